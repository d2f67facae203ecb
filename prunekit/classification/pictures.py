"""Images with their class below, for people to look at."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

SIDE = 180  # pixels of the longer side; small images are enlarged without smoothing, so that single pixels show
_FRAME, _CAPTION = 4, 24  # pixels
# Told apart by color-blind readers; the word says it as well.
_RIGHT, _WRONG, _NEUTRAL = (0, 114, 178), (213, 94, 0), (107, 107, 107)


def captioned(image: Image.Image, text: str, is_right: bool | None = None) -> Image.Image:
    """Return an enlarged copy in a frame, with a line of text below.

    Args:
        image: The picture, of any size.
        text: What is written.
        is_right: Colors the frame, and marks what is wrong by a word; None for the truth.
    """
    zoom = SIDE / max(image.size)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    color = _NEUTRAL if is_right is None else _RIGHT if is_right else _WRONG
    canvas = Image.new("RGB", (size[0] + 2 * _FRAME, size[1] + 2 * _FRAME + _CAPTION), color)
    canvas.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST if zoom > 1 else None), (_FRAME, _FRAME))
    caption = f"{text} (wrong)" if is_right is False else text
    position = (2 * _FRAME, size[1] + _FRAME + _CAPTION // 2)
    ImageDraw.Draw(canvas).text(position, caption, fill="white", font=ImageFont.load_default(13), anchor="lm")
    return canvas
