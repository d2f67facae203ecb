"""Scenes a little more like photographs: materials, light, shadows, occlusion, blur and noise.

What tells the classes apart is still the outline alone. Vector arithmetic is limited to what IEEE 754 rounds in one
way, and filters to Pillow's, which compute in integers: the pictures do not depend on the processor. While it is
painted, a canvas has its channels first, [3, H, W] in 0..255, which broadcasts several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from prunekit.detection.shape_objects import (
    Bools,
    Floats,
    SceneObject,
    color,
    compose,
    contrasting,
    frame_size,
    place,
    ramp,
    remains_visible,
)

#: No two of them look alike when they are small or blurred.
TEXTURED_SHAPES = ("circle", "triangle", "cross", "ring")
SIZES = (0.13, 0.55)  # diameters relative to the longer side
CONTRAST = 160  # in RGB, more than in flat scenes: light, noise and an attack take a part of it again
OCTAVES = (3, 7, 17, 41)  # cells of noise along a side, coarse to fine
SHADOW = 0.06  # of the longer side: how far an object's shadow reaches at most
MAX_BLUR = 1.2  # pixels, the radius of a box
MAX_NOISE = 6.0  # of 255, the standard deviation


def render_textured_scene(rng: np.random.Generator, image_size: int) -> tuple[NDArray[np.uint8], list[SceneObject]]:
    """Render one picture; some 200 of 256 pixels a second on one core.

    Args:
        rng: Where all choices come from.
        image_size: The longer side in pixels.

    Returns:
        The pixels, [H, W, 3], and the objects in drawing order, the last on top.
    """
    height, width = frame_size(rng, image_size)
    light = rng.uniform(0, 2 * math.pi)
    grain = _grain(rng, height, width)
    canvas = _ground(rng, grain)
    draw = partial(place, rng, height, width, image_size, TEXTURED_SHAPES, SIZES)
    objects = compose(rng, draw, partial(_paint, rng, canvas, grain, light, round(SHADOW * image_size)))
    _occlude(rng, canvas, objects)
    canvas *= np.float32(rng.uniform(0.85, 1.15)) + np.float32(rng.uniform(0, 0.25)) * ramp(rng, height, width)
    return _photographed(rng, canvas), objects


def _grain(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return noise of several octaves, [H, W] in 0..1: a coarse grid of random values, plus finer and weaker ones."""
    total, weight, weights = np.zeros((height, width), dtype=np.float32), 1.0, 0.0
    fade = rng.uniform(0.4, 0.8)
    for cells in OCTAVES:
        total += np.float32(weight) * _clouds(rng, height, width, cells)
        weight, weights = weight * fade, weights + weight
    grain: Floats = total / np.float32(weights)
    return grain


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> Floats:
    """Return a grid of random values, `cells` along each side, smoothly enlarged to [H, W] in 0..1."""
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    smooth = grid.resize((width, height), Image.Resampling.BICUBIC)
    clouds: Floats = np.asarray(smooth, dtype=np.float32) / np.float32(255)
    return clouds


def _ground(rng: np.random.Generator, grain: Floats) -> Floats:
    """Return a canvas, [3, H, W]: two materials, the second where coarse noise is above a threshold."""
    canvas, (height, width) = _material(rng, grain), grain.shape
    region = _clouds(rng, height, width, int(rng.integers(2, 6)))
    return np.where(region > rng.uniform(0.45, 0.8), _material(rng, grain), canvas)


def _material(rng: np.random.Generator, grain: Floats) -> Floats:
    """Return a surface, [3, H, W]: two colors blended by grain, or by grain and a pattern of planks."""
    first, second = color(rng)[:, None, None], color(rng)[:, None, None]
    blend = grain
    if rng.random() < 0.5:  # a triangle wave: no sine, which processors round differently
        wave = ramp(rng, *grain.shape) * np.float32(rng.uniform(1, 9))
        blend = grain / 2 + np.abs(wave - np.rint(wave))
    surface: Floats = first + np.float32(0.45) * (second - first) * blend
    return surface


def _paint(
    rng: np.random.Generator, canvas: Floats, grain: Floats, light: float, reach: int, placed: SceneObject
) -> None:
    """Draw an object and its shadow; its color stands out from what it covers."""
    shown = np.nonzero(placed.visible)  # rows and columns, [P] each
    material = contrasting(rng, canvas[:, shown[0], shown[1]].mean(axis=1, dtype=np.float64), CONTRAST)
    far = rng.uniform(0.3, 1) * reach
    down, right = round(far * math.sin(light)), round(far * math.cos(light))
    _darken(canvas, placed.visible, down, right, rng.uniform(0.5, 0.85))
    y, x = (_centered(indices) for indices in shown)  # in -1..1 over the object
    toward_light = -np.float32(math.cos(light)) * x - np.float32(math.sin(light)) * y
    shade = 1 + np.float32(rng.uniform(0.1, 0.3)) * toward_light - np.float32(rng.uniform(0, 0.15)) * (x * x + y * y)
    shade += np.float32(rng.uniform(0, 0.5)) * (grain[shown] - np.float32(0.5))
    canvas[:, shown[0], shown[1]] = material[:, None] * shade


def _centered(indices: NDArray[np.int64]) -> Floats:
    """Return pixel indices as positions, from -1 at the least to 1 at the greatest."""
    least, greatest = int(indices.min()), int(indices.max())
    positions: Floats = (2 * indices - (least + greatest)).astype(np.float32) / np.float32(max(1, greatest - least))
    return positions


def _darken(canvas: Floats, shape: Bools, down: int, right: int, factor: float) -> None:
    """Multiply by a factor where a shape would lie if it were moved so many pixels."""
    height, width = shape.shape
    to = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    of = slice(max(0, -down), height + min(0, -down)), slice(max(0, -right), width + min(0, -right))
    canvas[:, to[0], to[1]] *= np.where(shape[of], np.float32(factor), np.float32(1))


def _occlude(rng: np.random.Generator, canvas: Floats, objects: Sequence[SceneObject]) -> None:
    """Draw up to three twigs, bent lines over everything; one that would hide too much of an object is left out."""
    for _ in range(int(rng.integers(0, 4))):
        twig = _twig(rng, *canvas.shape[1:])
        bark = color(rng) * np.float32(0.6)
        if remains_visible(objects, twig):
            canvas[:, twig] = bark[:, None]
            for below in objects:
                below.visible &= ~twig


def _twig(rng: np.random.Generator, height: int, width: int) -> Bools:
    """Return the pixels of a bent line, [H, W]."""
    image = Image.new("1", (width, height))
    points = [(float(x), float(y)) for x, y in rng.uniform((0, 0), (width, height), (3, 2))]
    ImageDraw.Draw(image).line(points, fill=1, width=int(rng.integers(1, 2 + max(height, width) // 80)))
    return np.array(image, dtype=bool)


def _photographed(rng: np.random.Generator, canvas: Floats) -> NDArray[np.uint8]:
    """Return the picture that a camera takes of a canvas, [H, W, 3] in 0..255: blurred, with noise."""
    sharp = Image.fromarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    blurred = np.asarray(sharp.filter(ImageFilter.BoxBlur(rng.uniform(0.3, MAX_BLUR))), dtype=np.float32)
    # The difference of two bytes, of standard deviation 104, is the same everywhere, unlike the tails of a Gaussian.
    first, second = rng.integers(0, 256, (2, *blurred.shape), dtype=np.uint8).astype(np.float32)
    noisy = blurred + np.float32(rng.uniform(0, MAX_NOISE) / 104) * (first - second)
    pixels: NDArray[np.uint8] = noisy.clip(0, 255).astype(np.uint8)
    return pixels
