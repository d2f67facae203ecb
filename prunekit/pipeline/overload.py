"""The attack on latency as pieces of work of an evaluation: its images and their candidates, then the milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import documents
from prunekit.attacks import PRESETS, OverloadConfig
from prunekit.evaluation.corruptions.summary import main_figure
from prunekit.evaluation.evaluate import EvaluationConfig, Subject, evaluate
from prunekit.evaluation.overload import OVERLOAD, UNCAPPED, CandidateCounter, time_overload
from prunekit.nn import accelerate
from prunekit.pipeline.results import timing_columns
from prunekit.pipeline.store import StageFolder
from prunekit.task import Figure

#: The first images, clean and attacked, which are timed; four tell a steady median of tens of milliseconds.
IMAGES, TIMED = "images.safetensors", 4
CANDIDATES = "candidates_per_image"
_COMPARED = UNCAPPED.replace("_", " ")  # steps that are timed beside those of the deployed model
#: The folder of the preset's case: "latency" is that of --latency's timings.
_FOLDERS = {"latency": "overload", "latency_transfer": "overload_transfer"}


def is_overload(attack: str) -> bool:
    """Return whether a name is that of an attack on latency."""
    return isinstance(PRESETS.get(attack), OverloadConfig)


def case_folder(name: str) -> str:
    """Return the folder of a case within that of an evaluation."""
    return _FOLDERS.get(name, name)


def counter(subject: Subject) -> CandidateCounter:
    """Return what counts the candidates of the images that an evaluation of the subject sees."""
    return CandidateCounter(subject.model, subject.task, subject.config, TIMED)


def write_images(folder: StageFolder, subject: Subject, attacked: CandidateCounter) -> tuple[dict[str, Any], list[str]]:
    """Write the first images, clean and attacked; return the candidates of all, and the file's name."""
    clean = counter(subject)
    for batch in subject.batches("candidates of clean images"):
        for image_id, image in zip(batch.image_ids, batch.images, strict=True):
            clean(image_id, image)
    tensors = {"clean": torch.stack(clean.images), "attacked": torch.stack(attacked.images)}
    documents.write(folder.file(IMAGES), tensors, {})
    return {CANDIDATES: attacked.mean, f"clean_{CANDIDATES}": clean.mean}, [IMAGES]


def read_images(path: Path) -> Mapping[str, Tensor]:
    """Read what `write_images` wrote: "clean" and "attacked", [N, 3, S, S] each."""
    return documents.read(path, "images of an attack on latency").tensors


def measure_overload(images: Path, subject: Subject, clean: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the milliseconds of each step on clean and on attacked images, and what --max-candidates costs.

    Args:
        images: The file that `write_images` wrote.
        subject: The model, which stays on the CPU afterwards.
        clean: Its figures on clean images, under --max-candidates where it was given.
    """
    config, columns = subject.config, dict[str, Any]()
    limits = {"": config}
    if config.max_candidates is not None:
        limits[UNCAPPED] = config.model_copy(update={"max_candidates": None})
        columns = _cost_of_cap(replace(subject, config=limits[UNCAPPED]), clean)
    return columns | timed_columns(subject, read_images(images), limits)


def timed_columns(
    subject: Subject,
    images: Mapping[str, Tensor],
    limits: Mapping[str, EvaluationConfig],
    fast: nn.Module | None = None,
) -> dict[str, Any]:
    """Return the milliseconds of each step: decode_ms, overload_decode_ms, overload_uncapped_nms_ms, ….

    Args:
        subject: The model.
        images: "clean" and "attacked", [N, 3, S, S] each.
        limits: What predicting is told, as `time_overload` takes it.
        fast: The accelerated model; None accelerates it.
    """
    model, pairs = (
        subject.model.cpu(),
        [*zip(torch.split(images["clean"], 1), torch.split(images["attacked"], 1), strict=True)],
    )
    for _ in subject.progress.track(range(1), "timing under overload", 1):
        deployed = fast or accelerate(model, pairs[0][0])
        timings = time_overload(model, deployed, subject.task, pairs, subject.config.latency_runs, limits)
    return timing_columns({f"{name}_ms": timing for name, timing in timings.items()})


def steps_under_overload(found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of each step, clean and attacked, by its name for people: "uncapped nms"."""
    steps = [name for name in found if name.endswith("_ms") and f"{OVERLOAD}{name}" in found]
    return {step.removesuffix("_ms").replace("_", " "): (found[step], found[f"{OVERLOAD}{step}"]) for step in steps}


def total_ms(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return the median milliseconds of all steps together, clean and attacked, as deployed."""
    steps = {name: pair for name, pair in steps_under_overload(found).items() if not name.startswith(_COMPARED)}
    clean, attacked = (sum(pair[kind] for pair in steps.values()) for kind in (0, 1))
    return clean, attacked


def overload_sentences(found: Mapping[str, Any], case: Mapping[str, Any], figure: Figure) -> list[str]:
    """Return what a reader should know first: candidates, milliseconds, and what a cap costs; a line each."""
    before, after = case[f"clean_{CANDIDATES}"], case[CANDIDATES]
    steps = [f"{name} {clean:.2f} → {under:.2f} ms" for name, (clean, under) in steps_under_overload(found).items()]
    lines = [f"Overload: {before:.1f} → {after:.1f} candidates an image; {', '.join(steps)}"]
    capped, uncapped = (found.get(f"{kind}_{figure.column}") for kind in ("capped", "uncapped"))
    if capped is not None and uncapped is not None:
        lines.append(f"--max-candidates: clean {figure.name} {uncapped:.3f} → {capped:.3f}")
    return lines


def _cost_of_cap(uncapped: Subject, clean: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the main figure on clean images with and without the cap."""
    figure = uncapped.task.figures[0]
    without = main_figure(evaluate(uncapped, None, "without --max-candidates").figures, figure)
    return {f"capped_{figure.column}": clean[figure.column], f"uncapped_{figure.column}": without}
