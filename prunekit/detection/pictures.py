"""Images with boxes, for people to look at."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

LONG_SIDE = 360  # pixels; a page shows five pictures side by side, somewhat smaller
MIN_CAPTIONED_WIDTH = 22  # pixels: captions of smaller boxes would hide the picture


@dataclass(frozen=True)
class LabeledBox:
    """A box, xyxy in pixels of the original image, with its class and, for a detection, its score."""

    box: tuple[float, float, float, float]
    label: int
    name: str
    score: float | None = None

    @property
    def caption(self) -> str:
        """What is written at the box."""
        return self.name if self.score is None else f"{self.name} {self.score:.2f}"


def draw_boxes(image: Image.Image, boxes: Sequence[LabeledBox], original_width: int) -> Image.Image:
    """Draw boxes over a copy of an image.

    Args:
        image: The picture, of any size.
        boxes: What to draw, the most important last.
        original_width: The width that the boxes' pixels refer to.

    Returns:
        The picture; its longer side has `LONG_SIDE` pixels.
    """
    zoom = LONG_SIDE / max(image.size)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw_over(canvas, boxes, original_width)
    return canvas


def draw_over(canvas: Image.Image, boxes: Sequence[LabeledBox], original_width: int) -> None:
    """Draw boxes into an RGB picture itself, which stays as large as it is; the arguments are those of `draw_boxes`."""
    draw = ImageDraw.Draw(canvas)
    for labeled in boxes:
        _draw_box(draw, labeled, canvas.width / original_width)


def class_color(label: int) -> tuple[int, int, int]:
    """Return a bright color; neighboring labels are far apart on the color wheel."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_box(draw: ImageDraw.ImageDraw, labeled: LabeledBox, scale: float) -> None:
    left, top, right, bottom = (value * scale for value in labeled.box)
    color = class_color(labeled.label)
    # A dark line around the bright one: visible on any background.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
    draw.rectangle((left, top, right, bottom), outline=color, width=2)
    if right - left < MIN_CAPTIONED_WIDTH:
        return
    font = ImageFont.load_default(11)
    text_top = max(top - 14, 0)
    background = draw.textbbox((left + 2, text_top), labeled.caption, font=font)
    draw.rectangle((background[0] - 2, background[1] - 1, background[2] + 2, background[3] + 1), fill=color)
    draw.text((left + 2, text_top), labeled.caption, fill=(0, 0, 0), font=font)
