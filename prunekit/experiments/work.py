"""What a worker does for a job: its run, in the experiment's shared store, and the rows that come of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prunekit.environment import installed_version, thread_count
from prunekit.experiments.plan import Job, inputs_folder
from prunekit.experiments.rendered import Rendered, prepare_rendered
from prunekit.experiments.turns import InTurns, Turns
from prunekit.pipeline import RunFolder, read_rows, run
from prunekit.pipeline.store import sha256
from prunekit.progress import Progress

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What all jobs of an experiment share; called with a job, it does that job and returns its `Result`.

    Attributes:
        out: The experiment's folder.
        factors: Names of the factors, which become columns.
        rendered: What is rendered first, if anything.
    """

    out: Path
    factors: tuple[str, ...]
    rendered: Rendered | None

    def __call__(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Do a job, or what is left of it; return its rows, and the digests of its files by their names."""
        config = job.config.updated()  # checked again, which imports plugins into this process
        turns = Turns(self.out / "turns")
        try:
            in_turns = InTurns(progress, turns)
            if self.rendered is not None:
                with thread_count(config.threads):
                    prepare_rendered(self.rendered, inputs_folder(self.out, config.seed), config.seed, in_turns)
            folder = run(config, in_turns, stages=self.out / "stages")
        finally:
            turns.close()
        files = {
            str(path.relative_to(self.out)): sha256(path) for path in (folder.results, folder.root / "config.yaml")
        }
        return {"rows": self._rows(job, folder), "files": files}

    def _rows(self, job: Job, folder: RunFolder) -> list[Row]:
        """Return the run's rows with what tells them from those of other runs before them."""
        rows = read_rows(folder.results)
        about = _about(job)
        factors = {name: level(job, name) for name in self.factors if name not in rows[0]}
        return [{**about, **factors, **row} for row in rows]


def level(job: Job, factor: str) -> Any:
    """Return a job's level of a factor that is not within its run."""
    if factor in job.levels:
        return job.levels[factor]
    return getattr(job.config, factor, "")


def _about(job: Job) -> Mapping[str, Any]:
    config = job.config
    return {
        "run": job.name,
        "seed": config.seed,
        "model": config.model,
        "width": config.width,
        "objective": config.objective,
        "train_attack": config.train_attack,
        "precision": config.finetune.precision,
        "grayscale": config.grayscale,
        "prunekit": installed_version("prunekit"),
        "torch": installed_version("torch"),
        "machine": platform.node(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
