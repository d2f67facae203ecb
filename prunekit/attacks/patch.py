"""A patch: a printed square that, wherever it lies in an image, makes a model fail on images it was not trained with.

One patch is optimized for a set of images in expectation over size, place and brightness (Athalye et al. 2018,
"Synthesizing Robust Adversarial Examples"; on detectors Liu et al. 2019, "DPatch"). No ball bounds it: its pixels are
free within what a printer can do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.gradient import slope_at
from prunekit.attacks.losses import LossPerImage
from prunekit.errors import InputError


@dataclass(frozen=True)
class PatchConfig:
    """The knobs of a patch, for pixels in [0, 1].

    Attributes:
        size: side of the patch on the image, relative to the image's shorter side; the mean over placements.
        size_spread: the side varies by up to this share of itself, up and down.
        brightness_spread: brightness varies by a factor from 1 less this to 1 plus this.
        pixels: side of the patch itself, in pixels of its own.
        darkest: least value of a pixel: prints are not as dark as screens,
        brightest: and the greatest value, nor as bright.
        step_size: how far a pixel moves in one step.
        momentum: share of the earlier steps' direction that a step keeps.
    """

    size: float = 0.3
    size_spread: float = 0.2
    brightness_spread: float = 0.1
    pixels: int = 64
    darkest: float = 0.05
    brightest: float = 0.95
    step_size: float = 8 / 255
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.size <= 1 or self.pixels < 1:
            raise InputError(f"Expected 0 < size <= 1 and pixels >= 1, got {self.size} and {self.pixels}")
        if not all(0 <= spread < 1 for spread in (self.size_spread, self.brightness_spread, self.momentum)):
            found = (self.size_spread, self.brightness_spread, self.momentum)
            raise InputError(f"Expected spreads and momentum of at least 0 and below 1, got {found}")
        if not 0 <= self.darkest < self.brightest <= 1:
            raise InputError(f"Expected 0 <= darkest < brightest <= 1, got {self.darkest} and {self.brightest}")
        if not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise InputError(f"Expected a finite step_size above 0, got {self.step_size}")


@dataclass(frozen=True)
class Area:
    """Rows top to bottom and columns left to right of an image, in pixels, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Placement:
    """Where a patch lies in an image, in pixels, and by what its values are multiplied."""

    top: int
    left: int
    side: int
    brightness: float


def draw_placement(area: Area, config: PatchConfig, generator: torch.Generator) -> Placement:
    """Draw where a patch lies: all of it in an area, each place, size and brightness equally likely.

    Args:
        area: Of the image, without borders.
        config: Sizes and brightness.
        generator: On the CPU; four numbers are drawn.
    """
    size, row, column, light = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    height, width = area.bottom - area.top, area.right - area.left
    side = round(config.size * (1 + config.size_spread * size) * min(height, width))
    side = max(1, min(side, height, width))
    top = area.top + round((row + 1) / 2 * (height - side))
    left = area.left + round((column + 1) / 2 * (width - side))
    return Placement(top, left, side, 1 + config.brightness_spread * light)


def pasted(patch: Tensor, x: Tensor, placements: Sequence[Placement]) -> Tensor:
    """Return images with a patch on each; gradients flow to the patch.

    Args:
        patch: [3, P, P] in [0, 1].
        x: [N, 3, H, W] in [0, 1].
        placements: One an image.
    """
    images = []
    for image, place in zip(x, placements, strict=True):
        side = (place.side, place.side)
        resized = interpolate(patch[None], side, mode="bilinear", align_corners=False, antialias=True)[0]
        rows, columns = slice(place.top, place.top + place.side), slice(place.left, place.left + place.side)
        image = image.clone()
        image[:, rows, columns] = (resized * place.brightness).clamp(0, 1)
        images.append(image)
    return torch.stack(images)


def random_patch(config: PatchConfig, generator: torch.Generator) -> Tensor:
    """Draw a patch [3, P, P] that knows nothing, uniformly within what can be printed."""
    shape = (3, config.pixels, config.pixels)
    return torch.empty(shape).uniform_(config.darkest, config.brightest, generator=generator)


@dataclass(frozen=True)
class PatchState:
    """A patch [3, P, P] on its way, and the direction [3, P, P] of its earlier steps."""

    patch: Tensor
    velocity: Tensor

    @classmethod
    def gray(cls, config: PatchConfig) -> PatchState:
        """Return where training begins."""
        patch = torch.full((3, config.pixels, config.pixels), (config.darkest + config.brightest) / 2)
        return cls(patch, torch.zeros_like(patch))


def trained_step(
    model: nn.Module,
    x: Tensor,
    placements: Sequence[Placement],
    loss_per_image: LossPerImage,
    state: PatchState,
    config: PatchConfig,
) -> PatchState:
    """Return a patch after one step that raises a batch's summed losses; the model is left as it was.

    v ← momentum · v + ∇ / mean|∇|, patch ← clamp(patch + step_size · sign v): MI-FGSM (Dong et al. 2018) on the patch.

    Args:
        model: Maps images to outputs.
        x: Images [N, 3, H, W] in [0, 1].
        placements: Where the patch lies in each.
        loss_per_image: Maps outputs to losses [N], to be raised.
        state: The patch before the step.
        config: Step size, momentum and the printable range.

    Raises:
        GradientError: The loss does not depend on the patch, or its gradient is not finite.
    """
    with frozen_batch_norm(model):
        grad = slope_at(lambda patch: model(pasted(patch, x, placements)), state.patch, loss_per_image).grad
    velocity = config.momentum * state.velocity + grad / grad.abs().mean().clamp(min=torch.finfo(grad.dtype).tiny)
    patch = (state.patch + config.step_size * velocity.sign()).clamp(config.darkest, config.brightest)
    return PatchState(patch, velocity)
