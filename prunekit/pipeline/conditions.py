"""What each trial of a run is evaluated under beside its attack, where that was asked: corruptions, a patch, overload.

Each corruption at each severity, the patch and the attack on latency are stages of their own, so that a run that was
stopped goes on after the last one that was finished. Milliseconds are the trial's own, as its latency is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from prunekit.attacks import PRESETS, attack_identity
from prunekit.evaluation.corruptions.summary import require_corruptible
from prunekit.evaluation.evaluate import Subject, evaluate, finite_or_none
from prunekit.evaluation.overload import OVERLOAD, suppressing
from prunekit.evaluation.patch import PATCH, goal_label, halves
from prunekit.pipeline.checkpoint import Checkpoint, Workspace
from prunekit.pipeline.condition_config import CORRUPTIONS, LATENCY, ConditionChoices
from prunekit.pipeline.corruptions import write_cell
from prunekit.pipeline.overload import (
    CANDIDATES,
    IMAGES,
    counter,
    read_images,
    steps_under_overload,
    timed_columns,
    total_ms,
    write_images,
)
from prunekit.pipeline.patch import CLEAN, RANDOM, TENSOR, TRAINED, write_judged, write_patch
from prunekit.pipeline.store import StageFolder
from prunekit.progress import alone
from prunekit.task import Data, Figures, Task

_OVERLOAD = "overload"
_EVALUATION = ("score_threshold", "iou_threshold", "max_detections", "max_candidates", "batch_size", "seed")


def require_conditions(choices: ConditionChoices, task: Task, dataset: Data) -> None:
    """Raise InputError, before any work, where a condition cannot be made of a task's models and data."""
    if {CORRUPTIONS, PATCH} & {*choices.conditions}:
        require_corruptible(dataset)
    if PATCH in choices.conditions:
        halves(dataset)
        goal_label(choices.patch_goal, dataset)
    if {PATCH, LATENCY} & {*choices.conditions}:
        suppressing(task)


@dataclass(frozen=True)
class Conditions:
    """A trial under the conditions.

    Attributes:
        workspace: Where the stages are.
        artifact: The model.
        subject: It, as it is evaluated.
        data_sha256: Of the evaluation data.
        choices: Which conditions.
        checkpoint: What the subject was made of, where that is not the checkpoint itself: attacks follow its gradients.
        deployed_sha256: Of the subject's file in that case.
    """

    workspace: Workspace
    artifact: Checkpoint
    subject: Subject
    data_sha256: str
    choices: ConditionChoices
    checkpoint: Conditions | None = None
    deployed_sha256: str = ""

    def of_deployed(self, model: nn.Module, sha256: str) -> Conditions:
        """Return the conditions of what was made of the checkpoint: it sees the very images that the checkpoint saw.

        Args:
            model: What is deployed, on the CPU.
            sha256: Of its file.
        """
        return replace(self, subject=replace(self.subject, model=model), checkpoint=self, deployed_sha256=sha256)

    def columns(self) -> dict[str, float | None]:
        """Return the columns of results.csv on accuracy and candidates; none where nothing was asked for."""
        figure, columns = self.subject.task.figures[0].column, dict[str, float | None]()
        if self.choices.cells:
            columns[f"corrupted_{figure}"] = self._mean_over_cells(figure)
        if PATCH in self.choices.conditions:
            found = self._patch()
            names = {CLEAN: "unpatched", RANDOM: "random_patch", TRAINED: "patched"}
            columns |= {f"{name}_{figure}": found[kind][figure] for kind, name in names.items()}
        if LATENCY in self.choices.conditions:
            under = self._overload()
            columns |= {CANDIDATES: under[f"clean_{CANDIDATES}"], f"{OVERLOAD}{CANDIDATES}": under[CANDIDATES]}
            columns[f"{OVERLOAD}{figure}"] = under[figure]
        return columns

    def milliseconds(self) -> dict[str, float]:
        """Return the medians of all steps together and of each, clean (deployed) and under overload, side by side."""
        if LATENCY not in self.choices.conditions:
            return {}
        self._overload()
        images = read_images(self._folder(_OVERLOAD, _overload_identity()).file(IMAGES))
        fast = None if self.checkpoint is None else self.subject.model
        with alone(self.subject.progress):
            timed = timed_columns(self.subject, images, {"": self.subject.config}, fast)
        clean, attacked = total_ms(timed)
        parts = {f"ms_{OVERLOAD}{name}": under for name, (_, under) in steps_under_overload(timed).items()}
        return {"ms_deployed": clean, "ms_overload": attacked, **parts}

    def _mean_over_cells(self, figure: str) -> float | None:
        cells = self.choices.cells
        follow = self.subject.progress.track(cells, "corruptions", len(cells))
        values = [self._stage("corruption", cell.identity, partial(write_cell, cell=cell))[figure] for cell in follow]
        return None if None in values else sum(values) / len(values)

    def _patch(self) -> dict[str, Any]:
        options = self.choices.patch_options
        identity = {**options.model_dump(), "patch": repr(options.patch)}
        make = partial(write_patch, options=options)
        if self.checkpoint is not None:
            self.checkpoint._patch()
            trained = self.checkpoint._folder(PATCH, identity).file(TENSOR)
            make = partial(write_judged, options=options, patch=trained)
        return self._stage(PATCH, identity, make)

    def _overload(self) -> Figures:
        source = None if self.checkpoint is None else self.checkpoint.subject.model
        return self._stage(_OVERLOAD, _overload_identity(), partial(_write_overload, source=source))

    def _stage(self, name: str, identity: Mapping[str, Any], make: Any) -> dict[str, Any]:
        folder = self._folder(name, identity)
        if (found := folder.result()) is None:
            found, files = make(folder, subject=self.subject)
            folder.finish(found, *files)
        return found

    def _folder(self, name: str, identity: Mapping[str, Any]) -> StageFolder:
        settings = {setting: getattr(self.subject.config, setting) for setting in _EVALUATION}
        inputs = {"model": self.artifact.sha256, "data": self.data_sha256}
        inputs |= {"deployed": self.deployed_sha256} if self.checkpoint is not None else {}
        return self.workspace.store.open(name, {**settings, **identity}, inputs)


def _overload_identity() -> dict[str, Any]:
    return {"attack": attack_identity(PRESETS[LATENCY])}


def _write_overload(
    folder: StageFolder, subject: Subject, source: nn.Module | None
) -> tuple[dict[str, Any], list[str]]:
    seen = counter(subject)
    found = evaluate(subject, PRESETS[LATENCY], "under overload", seen, source)
    figures = {name: finite_or_none(value) for name, value in found.figures.items()}
    candidates, files = write_images(folder, subject, seen)
    return figures | candidates, files
