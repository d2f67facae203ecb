"""What an experiment's folder knows of its jobs: which plan it is, and what is done, running and failed.

plan.yaml              the plan, with the number of threads that its results depend on
jobs/<name>.json       of a job that has begun: its state, and at its end its rows and the digests of its files
runs/<name>/           its run folder
stages/                trainings and scores, shared by all runs
inputs/                rendered data and what was trained on them
rows.csv               the rows of all finished jobs
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.config import read_settings, write_settings
from prunekit.environment import installed_version
from prunekit.errors import InputError
from prunekit.experiments.plan import Job, Plan
from prunekit.files import write_text
from prunekit.pipeline.results import results_csv
from prunekit.pipeline.store import check_folder, digest, finished_work, write_json

PLAN, ROWS = "plan.yaml", "rows.csv"


@dataclass(frozen=True)
class State:
    """What is known of a job that is not done: its state, why it failed, and when it began (seconds since 1970)."""

    state: str
    reason: str = ""
    began: float = 0.0


class Records:
    """The records of an experiment's jobs."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def result(self, job: Job) -> dict[str, Any] | None:
        """Return a finished job's result: its rows, and the seconds that it took; None for any other job."""
        return finished_work(self._path(job), _key(job), "result", self.out)

    def state(self, job: Job) -> State:
        """Return what is known of a job that is not done."""
        try:
            found = json.loads(self._path(job).read_text())
            return State(found["state"], found.get("reason", ""), found.get("began", 0.0))
        except (OSError, ValueError, KeyError, TypeError):
            return State("waiting")

    def start(self, job: Job) -> None:
        """Write down that a job has begun."""
        self._write(job, {"state": "running", "began": time.time(), "driver": platform.node()})

    def fail(self, job: Job, reason: str) -> None:
        """Write down why a job has failed."""
        self._write(job, {"state": "failed", "reason": reason, "began": self.state(job).began})

    def finish(self, job: Job, result: Mapping[str, Any], seconds: float) -> None:
        """Declare a job done; it stays so while its files stay as they are."""
        files, rows = result["files"], result["rows"]
        self._write(job, {"state": "done", "files": files, "result": {"rows": rows, "seconds": seconds}})

    def write_rows(self, jobs: Sequence[Job]) -> Path:
        """Write the rows of all finished jobs, in the plan's order, as CSV; return the file."""
        results = [self.result(job) for job in jobs]
        rows = [row for result in results if result is not None for row in result["rows"]]
        write_text(self.out / ROWS, results_csv(rows))
        return self.out / ROWS

    def _path(self, job: Job) -> Path:
        return self.out / "jobs" / f"{job.name}.json"

    def _write(self, job: Job, record: Mapping[str, Any]) -> None:
        write_json(self._path(job), {"key": _key(job), **record})


def check_plan(plan: Plan, out: Path) -> None:
    """Raise InputError unless the folder is free or holds this very plan."""
    if not check_folder(out, PLAN, "an experiment's"):
        return
    earlier, now = (each.model_dump(mode="json") for each in (kept_plan(out), plan))
    for name in Plan.model_fields:
        if earlier[name] != now[name]:
            raise InputError(
                f"--out: {out} holds another plan's experiment (its {name} differ); choose another folder, "
                f"such as --out {out}-2."
            )


def keep_plan(plan: Plan, out: Path) -> None:
    """Write the plan into its folder."""
    write_settings(out / PLAN, plan)


def kept_plan(out: Path) -> Plan:
    """Return the plan of an experiment's folder; InputError where there is none."""
    if not (out / PLAN).is_file():
        raise InputError(f"Expected the folder of an experiment, with {PLAN}, but there is none in {out}.")
    return Plan(**read_settings(out / PLAN))


def _key(job: Job) -> str:
    versions = [installed_version(package) for package in ("prunekit", "torch")]
    return digest([job.config.identity(), [asdict(unit) for unit in job.config.units], versions])
