"""An experiment in its folder: done, or gone on with, or looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from prunekit.experiments.driver import Pool, drive
from prunekit.experiments.plan import Job, Plan, count_trainings, plan_jobs, with_threads
from prunekit.experiments.records import Records, check_plan, keep_plan, kept_plan
from prunekit.experiments.turns import require_shared_locks
from prunekit.experiments.work import Work
from prunekit.pipeline.store import LOCK, check_folder, claimed
from prunekit.progress import Progress

#: Starts workers for what an experiment's jobs do, each with so many threads.
OpenPool = Callable[[Work, int], Pool]


@dataclass(frozen=True)
class Standing:
    """How far a job is.

    Attributes:
        job: The job.
        state: done, running, failed, interrupted or waiting.
        reason: Why it failed.
        seconds: How long it took, where it is done.
    """

    job: Job
    state: str
    reason: str = ""
    seconds: float = 0.0


def settle_plan(plan: Plan, out: Path, count: int) -> Plan:
    """Return the plan with the number of threads that its folder has, or else with one for `count` jobs at a time.

    Raises:
        InputError: When the folder holds another plan's experiment, or other files.
    """
    if "threads" not in plan.settings and (out / "plan.yaml").is_file():
        found = kept_plan(out).settings.get("threads")
        plan = plan.updated(settings={**plan.settings, **({} if found is None else {"threads": found})})
    plan = with_threads(plan, count)
    check_plan(plan, out)
    return plan


def do_experiment(plan: Plan, out: Path, open_pool: OpenPool, progress: Progress) -> dict[str, str]:
    """Do what is left of a plan in its folder, and write rows.csv; return why jobs failed, by name.

    Args:
        plan: As `settle_plan` returns it.
        out: The folder, absolute.
        open_pool: Starts the workers.
        progress: Shows how far it has come.

    Raises:
        InputError: When a run of the plan would be refused, another process works in the folder, or the system is
            Windows.
    """
    require_shared_locks()
    jobs, records = plan_jobs(plan, out), Records(out)
    check_plan(plan, out)
    with claimed(out):
        keep_plan(plan, out)
        work = Work(out, plan.factor_names, plan.rendered)
        threads = int(plan.settings["threads"])
        failures = drive(jobs, records, lambda: open_pool(work, threads), progress)
        records.write_rows(jobs)
    return failures


def standings(out: Path) -> list[Standing]:
    """Return how far the jobs of an experiment's folder are; InputError where it holds none."""
    check_folder(out, "plan.yaml", "an experiment's")
    jobs, records, is_driven = plan_jobs(kept_plan(out), out), Records(out), _is_driven(out)
    return [_standing(job, records, is_driven) for job in jobs]


def describe_plan(jobs: list[Job]) -> list[str]:
    """Return lines for people: each job with its models and whom it waits for, then what they amount to."""
    lines = [
        f"{job.name}: {job.models} models" + (f", after {job.after}, which pre-trains for it" if job.after else "")
        for job in jobs
    ]
    models, pruned = sum(job.models for job in jobs), sum(len(job.config.units) for job in jobs)
    trainings = ", ".join(f"{count} {name}" for name, count in count_trainings(jobs).items())
    return [*lines, f"{len(jobs)} jobs, {pruned} rows from {models} models: {trainings}."]


def _standing(job: Job, records: Records, is_driven: bool) -> Standing:
    if (result := records.result(job)) is not None:
        return Standing(job, "done", seconds=result["seconds"])
    found = records.state(job)
    state = "interrupted" if found.state == "running" and not is_driven else found.state
    return Standing(job, "waiting" if state == "done" else state, found.reason)  # done otherwise, or with files lost


def _is_driven(out: Path) -> bool:
    """Return whether a process works in the folder."""
    try:
        with FileLock(out / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
