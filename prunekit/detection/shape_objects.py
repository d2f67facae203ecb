"""The objects of rendered scenes: shapes of several classes, where they lie, and which of their pixels still show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

MIN_VISIBLE = 0.6  # an object shows at least this fraction of its area, or it is not drawn
MIN_CONTRAST = 100  # distance in RGB (0..255) of an object's color from what it covers
ATTEMPTS_PER_OBJECT = 4

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass
class SceneObject:
    """A drawn shape: its class and which pixels of the frame still show it."""

    label: int
    visible: Bools  # [H, W]
    full_area: int  # pixels, parts outside the frame included

    def visible_fraction(self, covered_by: Bools | None = None) -> float:
        """Return the share of the full area that shows, also once `covered_by` ([H, W]) lies on top."""
        visible = self.visible if covered_by is None else self.visible & ~covered_by
        return int(visible.sum()) / self.full_area


def frame_size(rng: np.random.Generator, image_size: int) -> tuple[int, int]:
    """Draw a picture's height and width, whose longer side is `image_size` pixels."""
    short = int(image_size * rng.choice([0.75, 0.85, 1.0]))
    return (short, image_size) if rng.random() < 0.5 else (image_size, short)


def number_of_objects(rng: np.random.Generator) -> int:
    """Draw how many objects a picture gets at most: none in one of 30, else one to five."""
    return 0 if rng.random() < 1 / 30 else int(rng.integers(1, 6))


def compose(
    rng: np.random.Generator, draw: Callable[[], SceneObject], paint: Callable[[SceneObject], None]
) -> list[SceneObject]:
    """Paint a scene's objects; return them in drawing order, the last on top.

    Args:
        rng: Where their number comes from.
        draw: Proposes an object; one that would hide too much, or leave the frame too far, is proposed anew.
        paint: Draws an object that fits, over all before it.
    """
    objects: list[SceneObject] = []
    for _ in range(number_of_objects(rng)):
        for _ in range(ATTEMPTS_PER_OBJECT):
            candidate = draw()
            if candidate.visible_fraction() >= MIN_VISIBLE and remains_visible(objects, candidate.visible):
                paint(candidate)
                for below in objects:
                    below.visible &= ~candidate.visible
                objects.append(candidate)
                break
    return objects


def remains_visible(objects: Sequence[SceneObject], covered_by: Bools) -> bool:
    """Return whether enough of every object would show below `covered_by`, [H, W]."""
    return all(other.visible_fraction(covered_by) >= MIN_VISIBLE for other in objects)


def place(
    rng: np.random.Generator,
    height: int,
    width: int,
    image_size: int,
    shapes: Sequence[str] = SHAPES,
    sizes: tuple[float, float] = (0.15, 0.7),
) -> SceneObject:
    """Draw a class, a size, a rotation and a place.

    Args:
        rng: Where all choices come from.
        height: Of the frame, in pixels.
        width: Likewise.
        image_size: The frame's longer side, in pixels.
        shapes: The classes.
        sizes: Least and greatest diameter relative to `image_size`. Log-uniform: as many objects from 24 to 48 pixels
            as from 56 to 112 (of sizes that hold both).
    """
    label = int(rng.integers(len(shapes)))
    size = math.exp(rng.uniform(math.log(sizes[0]), math.log(sizes[1]))) * image_size
    patch = shape_patch(shapes[label], size, rng.uniform(0, 2 * math.pi))
    side = patch.shape[0]
    top = int(rng.uniform(0, height)) - side // 2
    left = int(rng.uniform(0, width)) - side // 2
    visible = np.zeros((height, width), dtype=bool)
    rows, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    visible[rows, columns] = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return SceneObject(label, visible, int(patch.sum()))


def shape_patch(name: str, size: float, angle: float) -> Bools:
    """Draw one shape.

    Args:
        name: One of `SHAPES`.
        size: Diameter in pixels of the circle around the shape.
        angle: Rotation in radians.

    Returns:
        A square mask, [D, D] with D = ceil(size) + 2, True inside the shape.
    """
    side = math.ceil(size) + 2
    center, radius = side / 2, size / 2
    image = Image.new("1", (side, side))
    draw = ImageDraw.Draw(image)
    if name in ("circle", "ring"):
        _disc(draw, center, radius, fill=1)
        if name == "ring":
            _disc(draw, center, 0.55 * radius, fill=0)
    else:
        points = [(r * radius, angle + phi) for r, phi in _outline(name)]
        draw.polygon([(center + r * math.cos(phi), center + r * math.sin(phi)) for r, phi in points], fill=1)
    return np.array(image, dtype=bool)


def _disc(draw: ImageDraw.ImageDraw, center: float, radius: float, fill: int) -> None:
    draw.ellipse((center - radius, center - radius, center + radius, center + radius), fill=fill)


def _outline(name: str) -> list[tuple[float, float]]:
    """Return a polygon's corners as (radius, angle), the circle around it having radius 1."""
    if name == "cross":
        half, arm = 0.32, math.sqrt(1 - 0.32**2)
        quarter = [(arm, -half), (arm, half), (half, half)]
        corners = [(math.hypot(x, y), math.atan2(y, x)) for x, y in quarter]
        return [(r, phi + turn * math.pi / 2) for turn in range(4) for r, phi in corners]
    if name == "star":
        return [(1.0 if i % 2 == 0 else 0.42, i * math.pi / 5) for i in range(10)]
    corners_of = {"triangle": 3, "square": 4}
    return [(1.0, 2 * math.pi * i / corners_of[name]) for i in range(corners_of[name])]


def color(rng: np.random.Generator) -> Floats:
    """Draw a color, [3] in 0..255."""
    return rng.integers(0, 256, 3).astype(np.float32)


def contrasting(rng: np.random.Generator, covered: Floats, least: float = MIN_CONTRAST) -> Floats:
    """Draw a color that stands out from another one by a distance of at least `least`, [3] in 0..255."""
    found = color(rng)
    while np.linalg.norm(found - covered) < least:
        found = color(rng)
    return found


def ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a plane of random direction over the frame, [H, W] in about -1..1."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    plane: Floats = (math.cos(angle) * x + math.sin(angle) * y).astype(np.float32)
    return plane
