"""`prunekit watch --attack`: a clip under one perturbation, held over all frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunekit.cli.ending import error_console, tell
from prunekit.console import ConsoleProgress
from prunekit.detection.task import DetectionTask
from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.report.held_page import write_held_page
from prunekit.video import Frame, Source, WatchOptions, open_source
from prunekit.video.held import HeldAttack, Survival, compute_held, watch_held
from prunekit.video.sources import Folder, Video


@dataclass(frozen=True)
class AttackedModel:
    """What is watched under an attack.

    Attributes:
        deployed: What runs.
        source: What gives gradients.
        task: What both are made for.
        weights: The file that was named.
    """

    deployed: nn.Module
    source: nn.Module
    task: DetectionTask
    weights: Path


def require_clip(source: Source, text: str) -> None:
    """Raise InputError where a source cannot be read twice: to compute a perturbation, and to hold it."""
    if source.is_live:
        raise InputError(
            f"--attack: expected a video file or a folder as --source, got {text}, which cannot be reread."
        )


def watch_under_attack(
    text: str,
    model: AttackedModel,
    options: WatchOptions,
    attack: HeldAttack,
    names: list[str],
    out: Path | None,
    report: Path | None,
) -> Survival:
    """Compute the perturbation, hold it, tell and return what survived.

    Args:
        text: The source.
        model: What is watched.
        options: Sizes, thresholds and limits.
        attack: The search for the perturbation.
        names: The labels' names.
        out: The video to write; None writes none.
        report: The folder for the page; None writes none.
    """
    with ConsoleProgress(error_console) as progress:
        for _ in progress.track(range(1), f"computing the perturbation ({attack.name})", 1):
            held = compute_held(open_source(text), model.source, model.task, options, attack)
        source = open_source(text)
        survival = watch_held(
            source, model.deployed, model.task, options, held, attack.frames, out, names,
            lambda frames: _followed(frames, source, options, progress),
        )  # fmt: skip
    about = {
        "source": text, "model": model.task.spec.name, "weights": str(model.weights), "image_size": options.image_size,
        "score_threshold": options.score_threshold, "iou_threshold": options.iou_threshold,
    }  # fmt: skip
    files = [] if report is None or not survival.frames else write_held_page(report, attack, held, survival, about)
    if survival.was_interrupted:
        tell("Interrupted. What was written until then can be played, and the figures are of these frames.")
    if survival.frames:
        tell(survival.sentence())
    for file in [*([] if out is None else [out]), *files]:
        tell(f"Written: {file}")
    return survival


def _followed(frames: Iterable[Frame], source: Source, options: WatchOptions, progress: Progress) -> Iterator[Frame]:
    """Show how far frames have come, where the source says how many there are."""
    count = source.count if isinstance(source, (Folder, Video)) else 0
    known = [number for number in (count, options.max_frames) if number]
    yield from progress.track(frames, "under the held perturbation", min(known)) if known else frames
