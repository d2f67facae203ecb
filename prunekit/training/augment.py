"""Augmentation for training: flips, scale and shift, colors; boxes follow the pixels.

All images of a batch are changed at once, each in its own way, by two small maps an image: an affine one from place to
place and an affine one from color to color. Everything random comes from the generator that is handed in.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from prunekit.config import Config
from prunekit.detection import Target

# What scale and shift leave of an object stays a target while it shows this share of its area and so many pixels.
MIN_VISIBLE = 0.2
MIN_SIDE = 2.0
# Luminance and two chrominances of RGB (NTSC): hue is an angle in the plane of the last two, saturation a length.
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class AugmentConfig(Config):
    """How strongly training images vary; 0 switches a change off."""

    flip: float = Field(0.5, ge=0, le=1, description="share of the images that are mirrored, left to right")
    scale: float = Field(0.0, ge=0, lt=1, description="sides times 1 - scale to 1 + scale, about the center")
    translate: float = Field(0.0, ge=0, le=1, description="shift by up to this share of the side, along both axes")
    crop: int = Field(0, ge=0, description="shift by up to N whole pixels, along both axes: a crop of the padded image")
    hue: float = Field(0.0, ge=0, le=1, description="turn colors by up to this share of the color circle, either way")
    saturation: float = Field(0.0, ge=0, le=1, description="distance from gray times 1 - saturation to 1 + saturation")
    brightness: float = Field(0.0, ge=0, le=1, description="values times 1 - brightness to 1 + brightness")
    contrast: float = Field(0.0, ge=0, le=1, description="distance from mean gray times 1 - contrast to 1 + contrast")
    fill: float = Field(0.5, ge=0, le=1, description="value of pixels that scale and shift uncover (0.5: letterbox)")

    @property
    def moves(self) -> bool:
        """Whether pixels move by other than a flip."""
        return self.scale > 0 or self.translate > 0 or self.crop > 0

    @property
    def recolors(self) -> bool:
        """Whether colors change."""
        return max(self.hue, self.saturation, self.brightness, self.contrast) > 0


NO_AUGMENTATION = AugmentConfig(flip=0.0)
FLIPS = AugmentConfig()


def augment(x: Tensor, targets: Any, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Any]:
    """Vary each image of a batch, and its boxes with it.

    Args:
        x: Images [N, 3, S, S] in [0, 1].
        targets: A `Target` an image, or labels [N], which stay as they are.
        config: What varies and how much.
        generator: Source of everything random, on the CPU: the same batch on every device.

    Returns:
        The new images, in [0, 1], and their targets: boxes clipped to the image, without tiny leftovers.
    """
    places = _draw_places(len(x), x.shape[-1], config, generator)
    if config.recolors:
        x = _recolor(x, config, generator)
    if config.moves:
        x = _move(x, places, config.fill)
    elif config.flip > 0:
        is_flipped = (places[:, 0, 0] < 0).to(x.device)
        x = torch.where(is_flipped[:, None, None, None], x.flip(-1), x)
    if isinstance(targets, Tensor):
        return x, targets
    return x, [_move_target(target, place, x.shape[-1]) for target, place in zip(targets, places, strict=True)]


def resize(x: Tensor, targets: Any, size: int) -> tuple[Tensor, Any]:
    """Scale square images, x [N, 3, S, S], and their boxes to [N, 3, size, size]."""
    scale = size / x.shape[-1]
    if scale == 1:
        return x, targets
    x = interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    if isinstance(targets, Tensor):
        return x, targets
    return x, [Target(target.boxes * scale, target.labels) for target in targets]


def _draw_places(count: int, size: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return where each image goes, [N, 2, 3]: place in the new image = A · (place in the old, 1).

    Places run from -1 to 1 over an image, which makes the center the fixed point of flips and scaling.
    """
    flip = 1 - 2 * (torch.rand(count, generator=generator) < config.flip).float()
    scale = 1 + config.scale * _symmetric(count, generator)
    shift = 2 * config.translate * torch.stack([_symmetric(count, generator), _symmetric(count, generator)], dim=1)
    if config.crop:  # whole pixels, so that nothing is blurred
        shift += torch.randint(-config.crop, config.crop + 1, (count, 2), generator=generator) * (2 / size)
    places = torch.zeros(count, 2, 3)
    places[:, 0, 0], places[:, 1, 1] = flip * scale, scale
    places[:, :, 2] = shift
    return places


def _move(x: Tensor, places: Tensor, fill: float) -> Tensor:
    """Resample images [N, 3, S, S] to their new places."""
    # Sampling asks where a new pixel comes from: the inverse of a diagonal map with a shift.
    from_new = torch.zeros_like(places)
    for axis in (0, 1):
        from_new[:, axis, axis] = 1 / places[:, axis, axis]
        from_new[:, axis, 2] = -places[:, axis, 2] / places[:, axis, axis]
    grid = affine_grid(from_new.to(x), list(x.shape), align_corners=False)
    # Outside of the image grid_sample reads zeros: shifted values make that the fill.
    return grid_sample(x - fill, grid, align_corners=False).add_(fill).clamp_(0, 1)


def _move_target(target: Target, place: Tensor, size: int) -> Target:
    """Move boxes xyxy in pixels of a square of `size`, clip them, and drop what is hardly there any more."""
    place = place.to(target.boxes)
    corners = target.boxes.view(-1, 2, 2) * (2 / size) - 1  # [K, corner, (x, y)] in -1 … 1
    moved = (corners * place.diagonal() + place[:, 2] + 1) * (size / 2)
    # A flip turns left into right.
    boxes = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=1)
    clipped = boxes.clamp(0, size)
    if torch.equal(clipped, boxes):
        return Target(boxes, target.labels)
    visible = clipped[:, 2:] - clipped[:, :2]
    is_large = (visible >= MIN_SIDE).all(dim=1)
    is_visible = visible.prod(dim=1) >= MIN_VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    keep = is_large & is_visible
    return Target(clipped[keep], target.labels[keep])


def _recolor(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Change hue, saturation, brightness and contrast of images [N, 3, S, S]."""
    count = len(x)
    angle = 2 * math.pi * config.hue * _symmetric(count, generator)
    saturation = 1 + config.saturation * _symmetric(count, generator)
    brightness = 1 + config.brightness * _symmetric(count, generator)
    contrast = 1 + config.contrast * _symmetric(count, generator)
    matrix = _color_matrices(angle, saturation) * (brightness * contrast)[:, None, None]  # [N, 3, 3]
    pixels = x.flatten(2)  # [N, 3, S·S]
    mean_gray = pixels.mean(dim=2) @ x.new_tensor(RGB_TO_YIQ[0])  # [N]; hue and saturation leave it alone
    offset = mean_gray * (brightness * (1 - contrast)).to(x)
    return torch.baddbmm(offset[:, None, None], matrix.to(x), pixels).clamp_(0, 1).view_as(x)


def _color_matrices(angle: Tensor, saturation: Tensor) -> Tensor:
    """Return maps from RGB to RGB, [N, 3, 3], that turn and stretch the chrominances."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=torch.float64)
    change = torch.zeros(len(angle), 3, 3, dtype=torch.float64)
    change[:, 0, 0] = 1
    change[:, 1, 1] = change[:, 2, 2] = saturation * angle.cos()
    change[:, 2, 1] = saturation * angle.sin()
    change[:, 1, 2] = -change[:, 2, 1]
    matrices: Tensor = torch.linalg.inv(to_yiq) @ change @ to_yiq
    return matrices.float()


def _symmetric(count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` numbers from -1 to 1."""
    return 2 * torch.rand(count, generator=generator) - 1
