"""The attack by a patch as a piece of an evaluation's work: trained on one half of the images, judged on the other."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunekit import documents
from prunekit.attacks import PatchState, random_patch
from prunekit.detection.attack_losses import FOUND_SCORE
from prunekit.errors import InputError
from prunekit.evaluation.corruptions.summary import require_corruptible
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate, finite_or_none
from prunekit.evaluation.patch import PatchOptions, goal_label, halves, patched, train_patch
from prunekit.files import write_bytes
from prunekit.pipeline.store import STATE, StageFolder
from prunekit.task import Figure
from prunekit.training.data import seeded

#: In the folder of its work: the pictures, and the patch as a tensor.
PICTURE, EXAMPLE, TENSOR = "patch.png", "example.png", "patch.safetensors"
#: The images that are compared: as they are, under a random patch, under the trained one; all at the same places.
CLEAN, RANDOM, TRAINED = "clean", "random", "trained"
_CALLED = {CLEAN: "no patch", RANDOM: "random patch", TRAINED: "trained patch"}
#: How often the class that a patch shows is found, an image; and what tables call it.
GOAL_DETECTIONS, GOAL_HEADING = "goal_detections_per_image", "goal detections"
_WHAT = "a patch in training"


def patch_identity(options: PatchOptions) -> dict[str, Any]:
    """Return what a patch's training and evaluation are told, as a part of an evaluation is found by it."""
    return {**options.model_dump(), "patch": asdict(options.patch)}


def write_patch(folder: StageFolder, subject: Subject, options: PatchOptions) -> tuple[dict[str, Any], list[str]]:
    """Train a patch and evaluate it; return the figures of each kind of images, and the files' names.

    A training that was stopped goes on after its last finished pass, to the same bits.
    """
    learned, judged = (_of(subject, half) for half in halves(subject.dataset))
    trained = _trained(folder, learned, options)
    found = _judged(judged, trained, options)
    _write_image(folder.file(EXAMPLE), _example(patched(judged, trained, options.patch)))
    documents.write(folder.file(TENSOR), {"patch": trained}, options.model_dump())
    _write_image(folder.file(PICTURE), (trained * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    return {"trained_on": len(learned.dataset), **found}, [TENSOR, PICTURE, EXAMPLE]


def write_judged(
    folder: StageFolder, subject: Subject, options: PatchOptions, patch: Path
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate what is deployed under the patch that was trained on its checkpoint; write nothing.

    Args:
        folder: Where the work is done.
        subject: What is deployed, as it is evaluated.
        options: Those of the patch's training.
        patch: The file `TENSOR` of `write_patch`.
    """
    trained = documents.read(patch, "a trained patch").tensors["patch"]
    return _judged(_of(subject, halves(subject.dataset)[1]), trained, options), []


def patch_sentence(found: dict[str, Any], column: str, name: str) -> str:
    """Return what a reader should know first."""
    clean, random, trained = (_shown(found[kind][column]) for kind in (CLEAN, RANDOM, TRAINED))
    return (
        f"Patch ({found['goal']}): {name} {clean} clean, {random} under a random patch, {trained} under the trained "
        f"one, on {found['evaluated_on']} images that it was not trained on"
    )


def patch_row(found: Mapping[str, Any], figure: Figure) -> dict[str, float | None]:
    """Return the figure of each kind of images by its heading; for a class also how often it is found, an image."""
    row = {f"{figure.name}, {called}": found[kind][figure.column] for kind, called in _CALLED.items()}
    if GOAL_DETECTIONS in found[CLEAN]:
        row |= {f"{GOAL_HEADING}, {called}": found[kind][GOAL_DETECTIONS] for kind, called in _CALLED.items()}
    return row


def _of(subject: Subject, dataset: Any) -> Subject:
    return Subject(subject.model, subject.task, dataset, subject.config, subject.progress)


def _judged(judged: Subject, trained: Tensor, options: PatchOptions) -> dict[str, Any]:
    """Return the figures of each kind of the images that the patch was not trained on."""
    patches = {CLEAN: None, RANDOM: _random(judged, options), TRAINED: trained}
    label = goal_label(options.patch_goal, judged.dataset)
    found: dict[str, Any] = {"goal": options.patch_goal, "evaluated_on": len(judged.dataset)}
    for kind, patch in patches.items():
        seen = judged if patch is None else patched(judged, patch, options.patch)
        found[kind] = _figures(evaluate(seen, None, f"patch: {kind}"), label, len(judged.dataset))
    return found


def _random(subject: Subject, options: PatchOptions) -> Tensor:
    return random_patch(options.patch, seeded(subject.config.seed, "random patch", 0))


def _trained(folder: StageFolder, subject: Subject, options: PatchOptions) -> Tensor:
    state, done = _kept(folder.file(STATE), PatchState.gray(options.patch))
    left = options.patch_passes - done
    passes = islice(train_patch(subject, options.patch_goal, options.patch, state, done), left)
    for number, state in enumerate(subject.progress.track(passes, "training the patch", left), done + 1):
        tensors = {"patch": state.patch.cpu(), "velocity": state.velocity.cpu()}
        documents.write(folder.file(STATE), tensors, {"passes": number})
    return state.patch.cpu()


def _kept(path: Path, start: PatchState) -> tuple[PatchState, int]:
    """Return the last state that was written and its number of passes; the start where there is none."""
    try:
        found = documents.read(path, _WHAT) if path.is_file() else None
    except InputError:  # what the disk spoilt is made again
        found = None
    if found is None:
        return start, 0
    return PatchState(found.tensors["patch"], found.tensors["velocity"]), int(found.document["passes"])


def _figures(found: Evaluation, label: int | None, images: int) -> dict[str, float | None]:
    """Return the task's figures, and for a class how often it is found with a score of at least 0.5, an image."""
    figures = {name: finite_or_none(value) for name, value in found.figures.items()}
    if label is None:
        return figures
    of_class = sum(
        int(((one.classes == label) & (one.scores >= FOUND_SCORE)).sum()) for one in found.predictions.values()
    )
    return figures | {GOAL_DETECTIONS: of_class / images}


def _example(seen: Subject) -> Any:
    """Return the first image worth showing, with the patch, as decoded."""
    dataset = require_corruptible(seen.dataset)
    return dataset.pixels(next(iter(seen.dataset.examples(1)), 0))


def _write_image(path: Path, pixels: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
