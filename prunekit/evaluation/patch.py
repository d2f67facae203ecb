"""A patch trained on some images of a data set and pasted into others, right after decoding as corruptions are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunekit.attacks import LossPerImage, soft_count
from prunekit.attacks.patch import Area, PatchConfig, PatchState, draw_placement, pasted, trained_step
from prunekit.config import Config
from prunekit.detection.attack_losses import FOUND_SCORE
from prunekit.errors import InputError
from prunekit.evaluation.corruptions.summary import require_corruptible
from prunekit.evaluation.evaluate import Subject
from prunekit.evaluation.overload import suppressing
from prunekit.kept_images import Pixels
from prunekit.task import Data
from prunekit.task_data import HasHalves, NamesClasses
from prunekit.training.data import device_of, load_batches

#: What --attack calls it; what it is for unless it is to show a class.
PATCH, VANISH = "patch", "vanish"


class PatchOptions(Config):
    """What the attack by a patch is told."""

    patch_goal: str = Field(
        VANISH, description="what the patch is for: vanish hides all objects; a class's name makes objects of it appear"
    )
    patch_size: float = Field(
        0.3, gt=0, le=1, description="mean side of the patch relative to the image's shorter side"
    )
    patch_passes: int = Field(20, ge=1, description="passes over the images that the patch is trained on")

    @property
    def patch(self) -> PatchConfig:
        """The patch's own knobs."""
        return PatchConfig(size=self.patch_size)

    @property
    def patch_options(self) -> PatchOptions:
        """These options without those that a subclass adds."""
        return PatchOptions(**{name: getattr(self, name) for name in PatchOptions.model_fields})


@dataclass(frozen=True)
class PastePatch:
    """Pastes a patch into decoded images: a `prunekit.task_data.PixelChange`.

    Attributes:
        patch: [3, P, P] in [0, 1].
        config: How it is placed.
        seed: With an image's id it decides where the patch lies, whatever the patch is.
    """

    patch: Tensor
    config: PatchConfig
    seed: int

    def __call__(self, pixels: Pixels, image_id: int) -> Pixels:
        """Return a copy of an image, uint8 [H, W, 3], with the patch."""
        place = draw_placement(Area(0, 0, *pixels.shape[:2]), self.config, _generator(self.seed, "evaluate", image_id))
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
        changed = pasted(self.patch, x, [place])[0]
        return np.asarray((changed * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def halves(dataset: Data) -> tuple[Data, Data]:
    """Return the images to train a patch on, and those to evaluate it on; InputError where there are no two parts."""
    if not isinstance(dataset, HasHalves):
        raise InputError(f"--attack: expected images of a detector for a patch, got {type(dataset).__name__}.")
    if len(dataset) < 2:
        raise InputError("--attack: expected at least two images for a patch, to train it on one half, got one.")
    return dataset.half(0), dataset.half(1)


def patched(subject: Subject, patch: Tensor, config: PatchConfig) -> Subject:
    """Return an evaluation's subject with the patch in every image."""
    change = PastePatch(patch, config, subject.config.seed)
    return replace(subject, dataset=require_corruptible(subject.dataset).changed(change))


def goal_label(goal: str, dataset: Data) -> int | None:
    """Return the label of the class that a goal names, None for vanish; InputError for another name."""
    names = [*dataset.class_names] if isinstance(dataset, NamesClasses) else []
    if goal == VANISH:
        return None
    if goal not in names:
        shown = ", ".join([VANISH, *names][:8]) + (", …" if len(names) > 7 else "")
        raise InputError(f"--patch-goal: expected one of {shown}, got {goal!r}.")
    return names.index(goal)


def train_patch(
    subject: Subject, goal: str, config: PatchConfig, state: PatchState, first: int
) -> Iterator[PatchState]:
    """Train a patch, pass by pass; what a pass does follows from (seed, its number) and the state alone.

    Args:
        subject: The model, and the images to train on.
        goal: "vanish" or a class's name.
        config: The patch's knobs.
        state: Where to begin.
        first: The number of the first pass.

    Yields:
        The state after each pass.
    """
    dataset, options = subject.dataset, subject.config
    device, label = device_of(subject.model), goal_label(goal, dataset)
    areas = [visible_area(dataset, index) for index in range(len(dataset))]
    state, number = PatchState(state.patch.to(device), state.velocity.to(device)), first
    while True:
        generator = _generator(options.seed, "train", number)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        for step, batch in enumerate(load_batches(dataset, options.batch_size, options.workers, order)):
            batch = batch.to(device)
            chosen = order[step * options.batch_size :][: len(batch.images)]
            places = [draw_placement(areas[index], config, generator) for index in chosen]
            loss = _loss(subject, batch.targets, label)
            state = trained_step(subject.model, batch.images, places, loss, state, config)
        yield state
        number += 1


def visible_area(dataset: Data, index: int) -> Area:
    """Return the part of an image, as the network sees it, that is not border."""
    side = torch.arange(dataset.image_size)
    rows = side[:, None].expand(len(side), len(side))
    seen = dataset.visible(index, torch.stack([rows, rows.T, rows]))
    bottom, right = int(seen[0].max()) + 1, int(seen[1].max()) + 1
    return Area(int(seen[0].min()), int(seen[1].min()), bottom, right)


def _loss(subject: Subject, targets: Sequence[object], label: int | None) -> LossPerImage:
    """Return what the patch raises: less objects anywhere, or more boxes of a class."""
    task = suppressing(subject.task)
    if label is None:
        return subject.task.attack_losses(targets).components[VANISH]
    return lambda outputs: soft_count([scores[:, label] for scores in task.candidate_scores(outputs)], FOUND_SCORE)


def _generator(seed: int, purpose: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"patch/{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
