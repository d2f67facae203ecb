"""A small data set that needs no download: simple shapes in varied scenes, as COCO JSON and JPEGs, in two styles.

Color, size, rotation and background are drawn independently of the class, so that only the outline
tells the classes apart. Objects overlap and leave the frame; one that would hide too much of another
is not drawn at all, so whatever is in a picture is also in its annotations.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prunekit.detection.shape_objects import (
    SHAPES,
    Bools,
    Floats,
    SceneObject,
    color,
    compose,
    contrasting,
    frame_size,
    place,
    ramp,
)
from prunekit.detection.textured import TEXTURED_SHAPES, render_textured_scene
from prunekit.errors import InputError
from prunekit.files import write_bytes, write_text
from prunekit.registry import look_up


def render_shapes_dataset(
    folder: str | Path,
    num_images: int,
    image_size: int = 160,
    seed: int = 0,
    split: str = "train",
    style: str = "flat",
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
        style: A key of `STYLES`: "flat", six shapes in plain colors, or "textured", four in scenes with materials,
            light, occlusion, blur and noise.

    Returns:
        The path of the JSON file, which is written last.
    """
    if num_images < 1 or image_size < 64:
        raise InputError(f"Expected at least 1 image of at least 64 pixels, got {num_images} of {image_size} pixels.")
    drawn = look_up(STYLES, "the style", style)
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
        pixels, objects = drawn.render(rng, image_size)
        file_name = f"{index:06d}.jpg"
        write_bytes(folder / split / file_name, _jpeg(pixels))
        height, width, _ = pixels.shape
        images.append({"id": index + 1, "file_name": file_name, "width": width, "height": height})
        for scene_object in objects:
            annotations.append(_annotation(len(annotations) + 1, index + 1, scene_object))
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(drawn.shapes)]
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
    height, width = frame_size(rng, image_size)
    canvas = _background(rng, height, width)
    draw = partial(place, rng, height, width, image_size)
    objects = compose(rng, draw, lambda placed: _paint(rng, canvas, placed.visible))
    canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape).astype(np.float32)
    return canvas.clip(0, 255).astype(np.uint8), objects


def _paint(rng: np.random.Generator, canvas: Floats, where: Bools) -> None:
    """Fill pixels with a color that stands out from what they showed, shaded along one direction."""
    height, width, _ = canvas.shape
    shown = contrasting(rng, canvas[where].mean(axis=0))
    shade = 1 + rng.uniform(0, 0.25) * ramp(rng, height, width)[where]
    canvas[where] = shown * shade[:, None]


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a canvas, [H, W, 3] in 0..255: gradient, stripes, clouds or chequers, often with clutter."""
    first, second = color(rng), color(rng)
    kind = rng.integers(4)
    direction = ramp(rng, height, width)
    if kind == 0:
        blend = (direction + 1) / 2
    elif kind == 1:
        blend = (np.sin(direction * rng.uniform(6, 30)) + 1) / 2
    elif kind == 2:
        cells = rng.integers(0, 256, (int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.uint8)
        clouds = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        blend = np.asarray(clouds, dtype=np.float32) / 255
    else:
        crossing = ramp(rng, height, width)
        count = rng.uniform(6, 16)
        blend = (np.sign(np.sin(direction * count) * np.sin(crossing * count)) + 1) / 2
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
        red, green, blue = (int(value) for value in color(rng))
        line = [(float(x), float(y)) for x, y in points]
        draw.line(line, fill=(red, green, blue), width=int(rng.integers(1, 4)))
    canvas[:] = np.asarray(image)


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


@dataclass(frozen=True)
class Style:
    """A kind of pictures.

    Attributes:
        shapes: Its classes.
        render: Renders one picture of a size: the pixels, [H, W, 3], and the objects in drawing order.
    """

    shapes: tuple[str, ...]
    render: Callable[[np.random.Generator, int], tuple[NDArray[np.uint8], list[SceneObject]]]


STYLES = {"flat": Style(SHAPES, render_scene), "textured": Style(TEXTURED_SHAPES, render_textured_scene)}
