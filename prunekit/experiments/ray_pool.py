"""Workers as tasks of a Ray cluster: the one at RAY_ADDRESS, or one that is started on this machine."""

from __future__ import annotations

import os
import socket
from typing import Any

from prunekit.errors import InputError
from prunekit.experiments.driver import Event, Failed
from prunekit.experiments.local_pool import Doing, outcome
from prunekit.experiments.plan import Job
from prunekit.extras import check_extra
from prunekit.progress import SilentProgress

_PATIENCE = 10.0  # seconds


class RayPool:
    """Tasks of a cluster whose nodes share the experiment's folder; one that dies has failed.

    Args:
        work: Does a job.
        threads: Processors of a task; a job on a GPU takes a GPU, too.

    Raises:
        InputError: When there is no Ray at RAY_ADDRESS.
    """

    def __init__(self, work: Doing, threads: int) -> None:
        check_extra("ray", "--executor ray")
        require_answer(os.environ.get("RAY_ADDRESS", ""))
        import ray

        self._ray: Any = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"Expected a Ray cluster at RAY_ADDRESS, got none: {_line(error)}.") from None
        self._threads, self._work = threads, ray.put(work)
        self._do = ray.remote(max_calls=1)(_do)  # a process a job, which leaves nothing to the next one
        self._jobs: dict[Any, str] = {}
        self.size = max(1, int(ray.cluster_resources().get("CPU", 1) // threads))

    def submit(self, job: Job) -> None:
        """Start a task for a job."""
        gpus = 1 if job.config.device.startswith("cuda") else 0
        task = self._do.options(num_cpus=self._threads, num_gpus=gpus, max_retries=0)
        self._jobs[task.remote(self._work, job)] = job.name

    def wait(self, seconds: float) -> list[Event]:
        """Return the tasks that have ended, at the latest after so many seconds."""
        ended, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        return [self._end(task) for task in ended]

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for task in self._jobs:
            self._ray.cancel(task)
        if self._owns:
            self._ray.shutdown()

    def _end(self, task: Any) -> Event:
        name = self._jobs.pop(task)
        try:
            kind, value = self._ray.get(task)
        except Exception as error:  # the task's process or its node was lost
            return Failed(name, f"its worker was lost: {_line(error)}", retry=True)
        event: Event = kind(name, *value)
        return event


def require_answer(address: str) -> None:
    """Raise InputError where nothing answers at host:port, which Ray would try for minutes; pass other addresses."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise InputError(f"Expected a Ray cluster at RAY_ADDRESS, {address}, got none: {_line(error)}.") from None


def _do(work: Doing, job: Job) -> Any:
    return outcome(work, job, SilentProgress())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
