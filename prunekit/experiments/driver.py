"""Gives jobs to workers until all are done: each after the one that trains for it, and once more if it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prunekit.errors import InputError
from prunekit.experiments.plan import Job
from prunekit.experiments.records import Records
from prunekit.progress import Progress

TRIES = 2
_WAIT = 1.0  # seconds between looks at the clock


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    job: str


@dataclass(frozen=True)
class Done(Event):
    """A job has come to its end, with this result."""

    result: dict[str, Any]


@dataclass(frozen=True)
class Failed(Event):
    """A job has failed; `retry` says whether it may go better the next time."""

    reason: str
    retry: bool


@dataclass(frozen=True)
class Told(Event):
    """A job says how far a loop has come (`is_state`), or something to be shown."""

    text: str
    is_state: bool


class Pool(Protocol):
    """Workers: processes of this machine, or tasks of a cluster."""

    size: int

    def submit(self, job: Job) -> None:
        """Give a job to a free worker."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened, at the latest after so many seconds."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


@dataclass
class _Schedule:
    waiting: list[Job]
    ended: set[str]
    tries: dict[str, int] = field(default_factory=dict)
    running: dict[str, tuple[Job, float]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    def next(self) -> Job | None:
        """Take the first job that waits for no other one."""
        job = next((job for job in self.waiting if job.after is None or job.after in self.ended), None)
        if job is not None:
            self.waiting.remove(job)
        return job

    def describe(self) -> str:
        return "; ".join(f"{name}: {self.states.get(name, 'starting')}" for name in self.running) or "jobs"


def drive(jobs: Sequence[Job], records: Records, open_pool: Callable[[], Pool], progress: Progress) -> dict[str, str]:
    """Do all jobs that are not done; return the reasons of those that failed, by name.

    Args:
        jobs: Of the experiment.
        records: Told of every start and end.
        open_pool: Starts the workers, if there is anything to do.
        progress: Shows a bar over all jobs, with what runs.
    """
    left = [job for job in jobs if records.result(job) is None]
    done = {job.name for job in jobs} - {job.name for job in left}
    if done:
        progress.message(f"{len(done)} of {len(jobs)} jobs finished earlier")
    if not left:
        return {}
    schedule = _Schedule(list(left), done)
    failures: dict[str, str] = {}
    pool = open_pool()
    try:
        ends = _ends(schedule, pool, records, failures, progress)
        for _ in progress.track(ends, schedule.describe, len(left)):
            pass
    finally:
        pool.close()
    return failures


def _ends(
    schedule: _Schedule, pool: Pool, records: Records, failures: dict[str, str], progress: Progress
) -> Iterator[str]:
    """Keep the workers busy; yield the name of each job at its end."""
    while schedule.waiting or schedule.running:
        while len(schedule.running) < pool.size and (job := schedule.next()) is not None:
            schedule.tries[job.name] = schedule.tries.get(job.name, 0) + 1
            schedule.running[job.name] = (job, time.monotonic())
            records.start(job)
            pool.submit(job)
        if not schedule.running:
            names = ", ".join(job.name for job in schedule.waiting)
            raise InputError(f"Expected jobs of which one can begin, got some that wait for each other: {names}.")
        for event in pool.wait(_WAIT):
            if isinstance(event, Told):
                _tell(schedule, event, progress)
            elif _ended(schedule, event, records, failures, progress):
                yield event.job


def _tell(schedule: _Schedule, event: Told, progress: Progress) -> None:
    if event.is_state:
        schedule.states[event.job] = event.text
    else:
        progress.message(f"{event.job}: {event.text}")


def _ended(schedule: _Schedule, event: Event, records: Records, failures: dict[str, str], progress: Progress) -> bool:
    """Take a job off the running ones; return whether it is over, and not tried again."""
    job, began = schedule.running.pop(event.job)
    if isinstance(event, Done):
        records.finish(job, event.result, time.monotonic() - began)
    elif isinstance(event, Failed):
        records.fail(job, event.reason)
        again = event.retry and schedule.tries[job.name] < TRIES
        progress.message(f"{job.name}: {event.reason}{', trying it once more' if again else ''}")
        if again:
            schedule.waiting.insert(0, job)
            return False
        failures[job.name] = event.reason
    schedule.ended.add(job.name)
    return True
