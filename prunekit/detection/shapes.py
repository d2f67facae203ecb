"""A small data set that needs no download: simple shapes in varied scenes, as COCO JSON and JPEGs.

Color, size, rotation and background are drawn independently of the class, so that only the outline
tells the classes apart. Objects overlap and leave the frame; one that would hide too much of another
is not drawn at all, so whatever is in a picture is also in its annotations.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prunekit.errors import InputError
from prunekit.files import write_bytes, write_text

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


def render_shapes_dataset(
    folder: str | Path, num_images: int, image_size: int = 160, seed: int = 0, split: str = "train"
) -> Path:
    """Render a data set in COCO's layout; the same arguments give the same files, byte for byte.

    Picture i depends on (seed, split, i) only, so a longer data set starts with a shorter one's
    pictures. Boxes are the extent of the visible pixels, `area` is their number.

    Args:
        folder: Gets `annotations/instances_<split>.json` and the folder `<split>` of JPEGs.
        num_images: How many pictures; about one in 30 holds no object.
        image_size: The longer side in pixels, at least 64.
        seed: Any non-negative integer.
        split: The data set's name; another name gives other pictures.

    Returns:
        The path of the JSON file, which is written last.
    """
    if num_images < 1 or image_size < 64:
        raise InputError(f"Expected at least 1 image of at least 64 pixels, got {num_images} of {image_size} pixels.")
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
        pixels, objects = render_scene(rng, image_size)
        file_name = f"{index:06d}.jpg"
        write_bytes(folder / split / file_name, _jpeg(pixels))
        height, width, _ = pixels.shape
        images.append({"id": index + 1, "file_name": file_name, "width": width, "height": height})
        for scene_object in objects:
            annotations.append(_annotation(len(annotations) + 1, index + 1, scene_object))
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    write_text(path, json.dumps(content))
    return path


def render_scene(rng: np.random.Generator, image_size: int) -> tuple[NDArray[np.uint8], list[SceneObject]]:
    """Render one picture.

    Args:
        rng: Where all choices come from.
        image_size: The longer side in pixels.

    Returns:
        The pixels, [H, W, 3], and the objects in drawing order, the last on top.
    """
    short = int(image_size * rng.choice([0.75, 0.85, 1.0]))
    height, width = (short, image_size) if rng.random() < 0.5 else (image_size, short)
    canvas = _background(rng, height, width)
    objects: list[SceneObject] = []
    num_objects = 0 if rng.random() < 1 / 30 else int(rng.integers(1, 6))
    for _ in range(num_objects):
        for _ in range(ATTEMPTS_PER_OBJECT):
            candidate = _place(rng, height, width, image_size)
            if _fits(candidate, objects):
                _paint(rng, canvas, candidate.visible)
                for below in objects:
                    below.visible &= ~candidate.visible
                objects.append(candidate)
                break
    canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape).astype(np.float32)
    return canvas.clip(0, 255).astype(np.uint8), objects


def _fits(candidate: SceneObject, objects: list[SceneObject]) -> bool:
    is_inside = candidate.visible_fraction() >= MIN_VISIBLE
    return is_inside and all(other.visible_fraction(candidate.visible) >= MIN_VISIBLE for other in objects)


def _place(rng: np.random.Generator, height: int, width: int, image_size: int) -> SceneObject:
    label = int(rng.integers(len(SHAPES)))
    # Log-uniform: as many from 24 to 48 pixels as from 56 to 112 (at image_size 160).
    size = math.exp(rng.uniform(math.log(0.15), math.log(0.7))) * image_size
    patch = shape_patch(SHAPES[label], size, rng.uniform(0, 2 * math.pi))
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


def _paint(rng: np.random.Generator, canvas: Floats, where: Bools) -> None:
    """Fill pixels with a color that stands out from what they showed, shaded along one direction."""
    height, width, _ = canvas.shape
    covered = canvas[where].mean(axis=0)
    color = _color(rng)
    while np.linalg.norm(color - covered) < MIN_CONTRAST:
        color = _color(rng)
    shade = 1 + rng.uniform(0, 0.25) * _ramp(rng, height, width)[where]
    canvas[where] = color * shade[:, None]


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a canvas, [H, W, 3] in 0..255: gradient, stripes, clouds or chequers, often with clutter."""
    first, second = _color(rng), _color(rng)
    kind = rng.integers(4)
    ramp = _ramp(rng, height, width)
    if kind == 0:
        blend = (ramp + 1) / 2
    elif kind == 1:
        blend = (np.sin(ramp * rng.uniform(6, 30)) + 1) / 2
    elif kind == 2:
        cells = rng.integers(0, 256, (int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.uint8)
        clouds = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        blend = np.asarray(clouds, dtype=np.float32) / 255
    else:
        crossing = _ramp(rng, height, width)
        count = rng.uniform(6, 16)
        blend = (np.sign(np.sin(ramp * count) * np.sin(crossing * count)) + 1) / 2
    canvas = first + 0.6 * (second - first) * blend[..., None]
    if rng.random() < 0.5:
        _clutter(rng, canvas)
    return canvas.astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: NDArray[Any]) -> None:
    """Draw thin open lines, which are no object's outline, over the background."""
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    height, width, _ = canvas.shape
    for _ in range(int(rng.integers(3, 9))):
        points = rng.uniform((0, 0), (width, height), (int(rng.integers(2, 4)), 2))
        red, green, blue = (int(value) for value in _color(rng))
        line = [(float(x), float(y)) for x, y in points]
        draw.line(line, fill=(red, green, blue), width=int(rng.integers(1, 4)))
    canvas[:] = np.asarray(image)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a plane of random direction over the frame, [H, W] in about -1..1."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    ramp: Floats = (math.cos(angle) * x + math.sin(angle) * y).astype(np.float32)
    return ramp


def _color(rng: np.random.Generator) -> Floats:
    return rng.integers(0, 256, 3).astype(np.float32)


def _annotation(annotation_id: int, image_id: int, scene_object: SceneObject) -> dict[str, Any]:
    rows, columns = np.nonzero(scene_object.visible)
    x, y = int(columns.min()), int(rows.min())
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": scene_object.label + 1,
        "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        "area": int(scene_object.visible.sum()),
        "iscrowd": 0,
    }


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()
