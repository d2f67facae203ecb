"""Pictures in lines and columns, each below its caption."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _CAPTION = 6, 20  # pixels between pictures, and above each for what it shows
#: A picture with its caption.
Tile = tuple[str, Image.Image]


def arranged(lines: Sequence[Sequence[Tile]]) -> Image.Image:
    """Return all pictures on one, each below its caption."""
    width = _GAP + max(picture.width for line in lines for _, picture in line)
    height = _GAP + _CAPTION + max(picture.height for line in lines for _, picture in line)
    canvas = Image.new("RGB", (width * max(map(len, lines)), height * len(lines)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, line in enumerate(lines):
        for column, (caption, picture) in enumerate(line):
            draw.text((column * width, row * height), caption, fill="black", font=font)
            canvas.paste(picture, (column * width, row * height + _CAPTION))
    return canvas


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return an image as a file of a kind, such as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()
