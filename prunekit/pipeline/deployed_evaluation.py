"""What is deployed beside the checkpoint that it was made from: the same images, attacks and corruptions for both.

Accelerated models have no gradients, so attacks follow the checkpoint's: a deployed model sees the very images that the
checkpoint is attacked by, and the patch that was trained on it. A white-box attack on rounded weights could do worse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.attacks import PRESETS, attack_identity
from prunekit.errors import InputError
from prunekit.evaluation.corruptions.catalog import Cell
from prunekit.evaluation.corruptions.summary import CorruptionSummary
from prunekit.evaluation.evaluate import CLEAN, EvaluationCase, Subject, evaluate_case, evaluation_cases
from prunekit.evaluation.latency import Latency
from prunekit.evaluation.patch import PATCH, PatchOptions
from prunekit.nn import accelerate
from prunekit.pipeline.checkpoint import Checkpoint
from prunekit.pipeline.command_config import EvaluateStage
from prunekit.pipeline.corruptions import CELLS, Baseline, summarized, write_cell, write_table
from prunekit.pipeline.deployed import DeployedModel, open_deployed
from prunekit.pipeline.deployed_config import CHECKPOINT, DEPLOYED
from prunekit.pipeline.int8 import INT8, MODEL, calibration_images, calibration_indices, write_int8
from prunekit.pipeline.overload import (
    CANDIDATES,
    IMAGES,
    case_folder,
    counter,
    is_overload,
    read_images,
    timed_columns,
    total_ms,
    write_images,
)
from prunekit.pipeline.patch import GOAL_HEADING, TENSOR, patch_identity, patch_row, write_judged
from prunekit.pipeline.results import latency_columns
from prunekit.pipeline.store import StageFolder, sha256
from prunekit.pipeline.unit import compacted
from prunekit.progress import alone
from prunekit.task import Data, Figure, LabelsImages
from prunekit.task_data import HasTrainingPart
from prunekit.timing import time_in_turn
from prunekit.training.data import ImagesOnDisk

PREDICTIONS = "detections"
#: Decimals of what is below a heading that begins so.
_DIGITS = {"ms, ": 2, "candidates, ": 1, f"{GOAL_HEADING}, ": 2}


class MakesParts(Protocol):
    """Returns what a part of an evaluation makes in its folder, or has made there, and whether it was there already."""

    def __call__(  # noqa: D102
        self, name: str, identity: Mapping[str, Any], make: Any, from_source: bool = False, is_told: bool = True
    ) -> tuple[dict[str, Any], bool]: ...


@dataclass(frozen=True)
class DeployedWork:
    """The evaluation of one deployed model.

    Attributes:
        name: What it is called.
        deployed: The model.
        subject: The checkpoint as it is evaluated, on the CPU.
        attacks: Names of presets.
        cells: Corruptions.
        baseline: A classifier's accuracies by cell, for mCE.
        patch: What the patch was trained by that is in the evaluation's folder; None where none was asked for.
        about: What rows say of the data and of how they are looked at.
        out: The evaluation's folder.
        part: Makes a part of the evaluation.
    """

    name: str
    deployed: DeployedModel
    subject: Subject
    attacks: Sequence[str]
    cells: Sequence[Cell]
    baseline: Baseline | None
    patch: PatchOptions | None
    about: Mapping[str, Any]
    out: Path
    part: MakesParts

    @cached_property
    def fast(self) -> nn.Module:
        """What is timed: a compacted model is accelerated first."""
        model = self.deployed.model
        return model if self.deployed.is_accelerated else accelerate(model, self.subject.dataset[0].image[None])

    @property
    def own(self) -> Subject:
        """The deployed model as it is evaluated."""
        return replace(self.subject, model=self.deployed.model)

    def evaluate(self, times: bool) -> tuple[dict[str, Any], bool]:
        """Return all figures, and whether all of them were there already; `times` also without an attack on latency."""
        cases = {case.name: self._case(case) for case in evaluation_cases(self.attacks)}
        figures = {name: found for name, (found, _) in cases.items()}
        corruptions, were_finished = self._corruptions(figures[CLEAN])
        timed = {name: self._overload(name) for name in self.attacks if is_overload(name)}
        parts = self._patch() | (self._latency() if times else {})
        done = [*cases.values(), *parts.values(), *timed.values()]
        found: dict[str, Any] = {"cases": figures, **{name: result for name, (result, _) in parts.items()}}
        found |= {"corruptions": corruptions.figures()} if corruptions is not None else {}
        found |= {"overload": {name: figures for name, (figures, _) in timed.items()}} if timed else {}
        return found, were_finished and all(finished for _, finished in done)

    def _case(self, case: EvaluationCase) -> tuple[dict[str, Any], bool]:
        return self._own_part(
            case_folder(case.name), {"attack": attack_identity(PRESETS.get(case.attack))}, self._write_case, case
        )

    def _write_case(self, folder: StageFolder, case: EvaluationCase) -> tuple[dict[str, Any], list[str]]:
        """Evaluate the model on clean images, or on those that were attacked by the checkpoint's gradients."""
        task, data, is_clean = self.subject.task, self.subject.dataset, case.attack == CLEAN
        clean = self.out / DEPLOYED / self.name / CLEAN / PREDICTIONS
        seen = counter(self.own) if is_overload(case.attack) else None
        result = evaluate_case(
            replace(case, transfer=not is_clean), self.own, {} if is_clean else task.load_predictions(clean, data),
            self.subject.model, None, seen,
        )  # fmt: skip
        files = task.save_predictions(folder.file(PREDICTIONS), result.evaluation.predictions, data)
        found, more = write_images(folder, self.own, seen) if seen is not None else ({}, [])
        return result.figures() | found, [*(file.name for file in files), *more]

    def _corruptions(self, clean: Mapping[str, float | None]) -> tuple[CorruptionSummary | None, bool]:
        if not self.cells:
            return None, True
        found = {}
        for cell in self.subject.progress.track(self.cells, f"{self.name}: corruptions", len(self.cells)):
            found[cell] = self._own_part(f"{CELLS}/{cell.name}", cell.identity, self._write_cell, cell)
        figures = {cell: result for cell, (result, _) in found.items()}
        write_table(self.out / DEPLOYED / self.name, clean, figures, {**self.about, DEPLOYED: self.name})
        is_classifier = isinstance(self.subject.task, LabelsImages)
        summary = summarized(self.own, clean, figures, is_classifier, self.baseline)
        return summary, all(finished for _, finished in found.values())

    def _write_cell(self, folder: StageFolder, cell: Cell) -> tuple[dict[str, Any], list[str]]:
        return write_cell(folder, self.own, cell)

    def _patch(self) -> dict[str, tuple[dict[str, Any], bool]]:
        """Return the figures under the checkpoint's patch by the part's name; nothing where none was asked for."""
        if self.patch is None:
            return {}
        trained = self.out / PATCH / TENSOR
        identity = {**patch_identity(self.patch), "trained": sha256(trained)}
        return {PATCH: self._own_part(PATCH, identity, write_judged, self.own, self.patch, trained)}

    def _latency(self) -> dict[str, tuple[dict[str, Any], bool]]:
        return {"latency": self._own_part("latency", self._runs, self._write_latency)}

    @property
    def _runs(self) -> dict[str, Any]:
        return {"latency_runs": self.subject.config.latency_runs, "threads": torch.get_num_threads()}

    def _overload(self, attack: str) -> tuple[dict[str, Any], bool]:
        images = self.out / DEPLOYED / self.name / case_folder(attack) / IMAGES
        identity = {**self._runs, "attack": attack_identity(PRESETS.get(attack))}
        return self._own_part(f"{case_folder(attack)}/timing", identity, self._write_overload, images)

    def _write_overload(self, folder: StageFolder, images: Path) -> tuple[dict[str, Any], list[str]]:
        with alone(self.subject.progress):
            return timed_columns(self.own, read_images(images), {"": self.subject.config}, self.fast), []

    def _write_latency(self, folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
        """Time the network, and the checkpoint's in the same turns."""
        x, runs = self.subject.dataset[0].image[None], self.subject.config.latency_runs
        with alone(self.subject.progress):
            calls = {"control": partial(self.subject.model, x), "network": partial(self.fast, x)}
            timings = time_in_turn(calls, runs)
        return latency_columns(Latency(timings["control"], timings["network"])), []

    def _own_part(
        self, name: str, identity: Mapping[str, Any], write: Any, *more: object
    ) -> tuple[dict[str, Any], bool]:
        def make(folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
            found: tuple[dict[str, Any], list[str]] = write(folder, *more)
            return found

        own = {**identity, DEPLOYED: self.deployed.sha256}
        return self.part(f"{DEPLOYED}/{self.name}/{name}", own, make, is_told=False)


def open_all(files: Sequence[str], subject: Subject) -> dict[str, DeployedModel]:
    """Open the files of deployed models by their stems; InputError where one is not of the checkpoint's model."""
    size = subject.dataset.image_size
    return {Path(file).stem: open_deployed(Path(file), subject.task, size) for file in files}


def made_in_int8(
    artifact: Checkpoint,
    subject: Subject,
    choices: EvaluateStage,
    part: MakesParts,
    machine: Mapping[str, Any],
) -> dict[str, DeployedModel]:
    """Return the checkpoint's model in int8 by its name, from the evaluation's folder where it is there.

    Args:
        artifact: The checkpoint.
        subject: It, as it is evaluated.
        choices: The images to calibrate on, and the evaluation's folder.
        part: Makes a part of the evaluation.
        machine: What the choice of layers depends on.

    Returns:
        One model; none where all of it stayed float32.
    """
    data, chosen = _calibration(subject, choices)
    digest = hashlib.sha256(json.dumps(data.identity()).encode())
    for index in chosen:
        digest.update(data.fingerprint(index))
    images = calibration_images(ImagesOnDisk(data), choices.calibration_images, subject.config.workers)
    identity = {"calibration": digest.hexdigest(), **machine}
    make = partial(_write_int8, artifact=artifact, subject=subject, images=images)
    found, _ = part(f"{DEPLOYED}/{INT8}", identity, make, is_told=False)
    path = choices.out / DEPLOYED / INT8 / MODEL
    return {INT8: open_deployed(path, artifact.task, subject.dataset.image_size)} if found["int8_layers"] else {}


def _calibration(subject: Subject, choices: EvaluateStage) -> tuple[Data, list[int]]:
    """Return the data to calibrate on, as the evaluated images are seen, and which of its images are looked at."""
    path, seen = choices.calibration_data, subject.dataset
    assert path is not None
    data = subject.task.open_data(path, seen.image_size, choices.grayscale, None)
    data = data.training() if isinstance(data, HasTrainingPart) else data
    return data, calibration_indices(len(data), choices.calibration_images)


def _write_int8(
    folder: StageFolder, artifact: Checkpoint, subject: Subject, images: Iterable[Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """Write a model in int8, compacted where filters went; return what was chosen, and the files."""
    x, progress = subject.dataset[0].image[None], subject.progress
    with alone(progress):  # which widths are fastest is timed
        small = compacted(artifact, x, progress)
    return write_int8(folder, artifact.model if small is None else small.model, x, images, progress)


def comparison(found: Mapping[str, Any], figure: Figure) -> dict[str, dict[str, float | None]]:
    """Return the figures of the checkpoint and of what was deployed by their headings, one below the other.

    Args:
        found: The content of evaluation.json.
        figure: The task's main figure.
    """
    rows = {CHECKPOINT: found, **found[DEPLOYED]}
    return {name: _row(one, figure) for name, one in rows.items()}


def digits_of(heading: str) -> int:
    """Return how many decimals the figures below a heading of `comparison` are shown with."""
    return next((digits for kind, digits in _DIGITS.items() if heading.startswith(kind)), 3)


def _row(found: Mapping[str, Any], figure: Figure) -> dict[str, float | None]:
    row = {f"{figure.name}, {_called(name)}": case.get(figure.column) for name, case in found["cases"].items()}
    if "corruptions" in found:
        row |= {"corrupted, mean": found["corruptions"]["mean"], "share of clean": found["corruptions"]["relative"]}
    row |= patch_row(found[PATCH], figure) if PATCH in found else {}
    for name, timed in found.get("overload", {}).items():
        case, (clean, attacked) = found["cases"][name], total_ms(timed)
        row |= {f"candidates, {_called(CLEAN)}": case[f"clean_{CANDIDATES}"], f"candidates, {name}": case[CANDIDATES]}
        row |= {f"ms, {_called(CLEAN)}": clean, f"ms, {name}": attacked}
    if "latency" in found:
        row["ms, network"] = found["latency"]["latency_ms"]
    return row


def _called(case: str) -> str:
    return "clean" if case == CLEAN else case


def require_on_cpu(device: str) -> None:
    """Raise InputError unless deployed models, which run on the CPU, can see the checkpoint's images."""
    if device != "cpu":
        raise InputError(f"--device: expected cpu to evaluate deployed models, which run on it, got {device}.")
