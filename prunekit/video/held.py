"""A detector on a clip under one perturbation, held over all frames: how many of its detections survive a frame.

A clip has no annotations, so what counts is what the detector finds in the same frame without the perturbation. The
attack raises the loss towards these detections on the first frames; the other frames say whether it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.attacks import LossPerImage, PgdConfig, attack_named, held_perturbation, moved, uniform_noise
from prunekit.detection.boxes import Detections
from prunekit.detection.rates import match_boxes
from prunekit.detection.target import Target
from prunekit.detection.task import DetectionTask
from prunekit.errors import InputError
from prunekit.kept_images import Pixels
from prunekit.training.data import seeded
from prunekit.video.sources import Frame, Source
from prunekit.video.watching import Squared, WatchOptions, square, with_boxes
from prunekit.video.writing import VideoWriter


@dataclass(frozen=True)
class HeldAttack:
    """How a perturbation is searched for.

    Attributes:
        name: Of the preset, which is PGD's.
        frames: The perturbation is computed on so many frames, the first ones.
        seed: Of random starts, and of the random perturbation beside it.
    """

    name: str
    frames: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.config
        if self.frames < 1:
            raise InputError(f"--attack-frames: expected a whole number of at least 1, got {self.frames}.")

    @property
    def config(self) -> PgdConfig:
        """The preset; InputError where it is no ball that a perturbation of many images lies in."""
        found = attack_named(self.name)
        if not isinstance(found, PgdConfig):
            raise InputError(f"--attack: expected a preset of PGD, such as paper, for a whole clip, got {self.name!r}.")
        return found


@dataclass(frozen=True)
class Held:
    """Perturbations [1, 3, S, S] of the network's input: one that was searched for, and a random one of its ball."""

    found: Tensor
    random: Tensor


@dataclass(frozen=True)
class FrameSurvival:
    """What became of a frame's detections.

    Attributes:
        number: Of the frame.
        clean: Detections in the frame as it is.
        random: How many of them are there under the random perturbation: same class, IoU of at least 0.5.
        held: How many of them are there under the perturbation that was searched for.
        invented: Detections under it that match none of the clean ones.
    """

    number: int
    clean: int
    random: int
    held: int
    invented: int


@dataclass(frozen=True)
class Example:
    """A frame as the network sees it, uint8 [S, S, 3], as it is and under the perturbation, both with their boxes."""

    number: int
    clean: Pixels
    held: Pixels


@dataclass(frozen=True)
class Survival:
    """What became of a clip.

    Attributes:
        computed_on: Frames that the perturbation was computed on, the first ones.
        frames: All of them.
        example: The frame that lost the most detections; None where none had any.
        was_interrupted: Whether Ctrl-C ended it.
    """

    computed_on: int
    frames: Sequence[FrameSurvival]
    example: Example | None
    was_interrupted: bool = False

    @property
    def later(self) -> Sequence[FrameSurvival]:
        """The frames that the perturbation was not computed on."""
        return self.frames[self.computed_on :]

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON, but the pictures; a share is None where there was nothing to lose."""
        found = {"frames": len(self.frames), "computed_on": self.computed_on}
        return {**found, "all": shares(self.frames), "later": shares(self.later)}

    def sentence(self) -> str:
        """Return what a reader should know first."""
        found = shares(self.later) if self.later else shares(self.frames)
        which = "later" if self.later else "the same"
        random, held = (_percent(found[kind]) for kind in ("random", "held"))
        return (
            f"Held over {len(self.frames)} frames: of the detections in {which} frames {held} survive the perturbation "
            f"computed on the first {self.computed_on}, {random} a random one; "
            f"{_number(found['invented_per_frame'])} false ones a frame"
        )


def shares(frames: Iterable[FrameSurvival]) -> dict[str, float | None]:
    """Return, over frames, the share of the clean detections that survive, and detections a frame."""
    rows = list(frames)
    clean, count = sum(row.clean for row in rows), len(rows)
    survivors = {kind: sum(getattr(row, kind) for row in rows) for kind in ("random", "held")}
    return {
        **{kind: number / clean if clean else None for kind, number in survivors.items()},
        "clean_per_frame": clean / count if count else None,
        "invented_per_frame": sum(row.invented for row in rows) / count if count else None,
    }


def compute_held(
    source: Source, model: nn.Module, task: DetectionTask, options: WatchOptions, attack: HeldAttack
) -> Held:
    """Search for a perturbation on the first frames of a clip, by the gradients of a model.

    Args:
        source: The clip.
        model: Maps [N, 3, S, S] to the task's outputs, and has gradients; it stays as it was.
        task: What turns outputs into boxes and losses.
        options: What counts as a detection.
        attack: The search.

    Raises:
        InputError: When nothing is found in these frames, or there are none.
    """
    count = min(attack.frames, options.max_frames or attack.frames)
    squares = [square(frame, options) for frame in islice(source.frames(), count)]
    wanted = [_found(model, one.x, task, options) for one in squares]
    chosen = [number for number, found in enumerate(wanted) if len(found)]
    if not chosen:
        raise InputError(
            f"--attack: expected detections in the first {count} frames to attack, got none with a score above "
            f"{options.score_threshold:g}."
        )
    x, where = (torch.cat([of(squares[number]) for number in chosen]) for of in (lambda one: one.x, visible))
    targets = [Target(wanted[number].boxes, wanted[number].classes) for number in chosen]

    def losses_of(part: slice) -> LossPerImage:
        return task.attack_losses(targets[part]).total

    def search(config: PgdConfig, purpose: str) -> Tensor:
        return held_perturbation(model, x, losses_of, config, where, seeded(attack.seed, purpose, 0))

    config = attack.config
    noise = uniform_noise(config.eps, config.norm)
    return Held(search(config, "held perturbation"), search(noise, "random perturbation"))


def watch_held(
    source: Source,
    model: nn.Module,
    task: DetectionTask,
    options: WatchOptions,
    held: Held,
    computed_on: int,
    out: Path | None = None,
    class_names: Sequence[str] = (),
    follow: Callable[[Iterable[Frame]], Iterable[Frame]] = lambda frames: frames,
) -> Survival:
    """Run a detector over a clip as it is and under both perturbations.

    Args:
        source: The clip, from its beginning.
        model: What is deployed: maps [1, 3, S, S] to the task's outputs.
        task: What turns outputs into boxes.
        options: Sizes, thresholds and limits.
        held: The perturbations.
        computed_on: Frames that they were computed on.
        out: The video to write: frames under the perturbation as the network sees them, with their boxes.
        class_names: The labels' names.
        follow: Shows how far it has come.

    Returns:
        What became of all frames, or of those that were seen until Ctrl-C.
    """
    judge, rows = _Judge(model, task, options, held, class_names), list[FrameSurvival]()
    is_interrupted = False
    with ExitStack() as stack:
        writer = None if out is None else stack.enter_context(VideoWriter(out, Fraction(source.rate)))
        try:
            for frame in follow(islice(source.frames(), options.max_frames)):
                row, picture = judge(square(frame, options))
                rows.append(row)
                if writer is not None:
                    writer.write(picture)
        except KeyboardInterrupt:
            is_interrupted = True
    return Survival(min(computed_on, len(rows)), rows, judge.example, is_interrupted)


def visible(one: Squared) -> Tensor:
    """Return which of the network's input pixels show the frame, 1, and which are its border, 0: [1, 1, S, S]."""
    box = torch.tensor([[0.0, 0.0, one.letterbox.width, one.letterbox.height]])
    left, top, right, bottom = one.letterbox.to_square(box)[0].round().int().tolist()
    where = torch.zeros(1, 1, one.letterbox.size, one.letterbox.size)
    where[:, :, top:bottom, left:right] = 1
    return where


@dataclass
class _Judge:
    """Compares a frame with itself under the perturbations, and keeps the one that lost the most."""

    model: nn.Module
    task: DetectionTask
    options: WatchOptions
    perturbations: Held
    names: Sequence[str]
    example: Example | None = None
    _most: int = field(default=-1, init=False)

    def __call__(self, one: Squared) -> tuple[FrameSurvival, Pixels]:
        """Return what became of a frame's detections, and the frame under the perturbation with its boxes."""
        where = visible(one)
        x_random, x_held = (
            moved(one.x, delta, where) for delta in (self.perturbations.random, self.perturbations.found)
        )
        clean, random, held = (_found(self.model, x, self.task, self.options) for x in (one.x, x_random, x_held))
        wanted = Target(clean.boxes, clean.classes)
        under, beside = match_boxes(wanted, held), match_boxes(wanted, random)
        counts = (int(kind.sum()) for kind in (beside.is_found, under.is_found, under.is_false))
        row = FrameSurvival(one.frame.number, len(clean), *counts)
        picture = self._picture(x_held, held)
        if len(clean) and len(clean) - row.held > self._most:
            self._most = len(clean) - row.held
            self.example = Example(row.number, self._picture(one.x, clean), picture)
        return row, picture

    def _picture(self, x: Tensor, found: Detections) -> Pixels:
        pixels = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return with_boxes(np.asarray(pixels), found, self.names)


@torch.no_grad()
def _found(model: nn.Module, x: Tensor, task: DetectionTask, options: WatchOptions) -> Detections:
    """Return what is found in an image [1, 3, S, S], boxes xyxy in its pixels."""
    (found,) = task.detections(model(x), options)
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
