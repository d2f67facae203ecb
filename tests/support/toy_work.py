"""Jobs of no content, for what gives them to workers: they write a file, and fail, die or wait where they are told."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.experiments import Job, Plan, plan_jobs
from prunekit.pipeline.store import sha256
from prunekit.progress import Progress

PLAN: dict[str, Any] = {
    "rendered": {"num_train": 8, "num_val": 4, "image_size": 64, "width": 0.06, "epochs": 1},
    "settings": {"objective": "clean", "threads": 1, "pretrain": {"epochs": 1}, "finetune": {"epochs": 1}},
    "factors": {"structure": "unstructured"},
    "ratios": [0, 50],
    "seeds": [0, 1, 2],
}


def toy_jobs(out: Path, **change: Any) -> list[Job]:
    return plan_jobs(Plan(**PLAN | change), out)


@dataclass(frozen=True)
class ToyWork:
    """What jobs do; `behavior` is "" or "<what> <job>", and what it does first is not done a second time."""

    out: Path
    behavior: str = ""

    def __call__(self, job: Job, progress: Progress) -> dict[str, Any]:
        with (self.out / "calls.txt").open("a") as calls:
            calls.write(f"{job.name} {os.getpid()}\n")
        what, _, who = self.behavior.partition(" ")
        mark = self.out / f"{what}-{job.name}"
        is_first = not mark.exists()
        if who == job.name and what:
            mark.touch()
            self._misbehave(what, is_first)
        for _ in progress.track(range(2), "looping", 2):
            pass
        path = self.out / "runs" / job.name / "results.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"ratio\n{job.config.seed}\n")
        return {"rows": [{"run": job.name, "ratio": "0"}], "files": {str(path.relative_to(self.out)): sha256(path)}}

    def _misbehave(self, what: str, is_first: bool) -> None:
        if what == "refuse":
            raise InputError("Expected better, got this.")
        if what == "break":
            raise OSError("No space left on device")
        if what == "stumble" and is_first:
            raise OSError("Input/output error")
        if what == "perish" or (what == "die" and is_first):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang" and is_first:
            time.sleep(600)
