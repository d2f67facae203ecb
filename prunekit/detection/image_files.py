"""Image files as RGB pixels in the size their annotations were made for."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from prunekit.errors import InputError

# What Pillow raises for files that are no images, are cut off or claim absurd sizes.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# EXIF orientations that exchange width and height.
_TRANSPOSING = (5, 6, 7, 8)
_EXIF_ORIENTATION = 0x0112


def image_problem(path: Path, width: int, height: int) -> str | None:
    """Say what is wrong with an image file, judging by its header only; None if nothing is."""
    if not path.is_file():
        return "is missing"
    try:
        with Image.open(path) as image:
            # In this order, because looking for EXIF data can mean reading a whole PNG.
            if image.size == (width, height) or _displayed_size(image) == (width, height):
                return None
            return f"has {image.width}×{image.height} pixels, but its annotations say {width}×{height}"
    except _DECODING_ERRORS as error:
        return f"cannot be read ({error})"


def read_image(path: Path, width: int, height: int) -> Image.Image:
    """Decode an image file to RGB.

    Pixels are taken as stored, like pycocotools' users do, unless only the orientation in the file's EXIF
    data gives the annotated width × height.

    Raises:
        InputError: the file is missing, damaged or of another size.
    """
    if problem := image_problem(path, width, height):
        raise InputError(f"expected a readable image, but {path} {problem}")
    try:
        with Image.open(path) as image:
            upright = image if image.size == (width, height) else ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except _DECODING_ERRORS as error:
        raise InputError(f"expected a complete image, but {path} cannot be decoded ({error})") from error


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    is_transposed = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSING
    return (image.height, image.width) if is_transposed else image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey values at 255 instead of scaling them.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
