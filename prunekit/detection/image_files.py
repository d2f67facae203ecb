"""Image files as RGB pixels in the frame that their annotations were made in.

A file's EXIF data can say that its pixels are to be turned or mirrored for display (orientation 2 to 8). Annotations
were made either on the pixels as stored or on the pixels as displayed; `CocoDataset.open` finds out which.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from prunekit.detection.coco_fields import UnusableError
from prunekit.errors import InputError, first_line

#: Of the image files that folders are searched for.
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_EXIF_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 256, 257
_TRANSPOSING = (5, 6, 7, 8)  # orientations that exchange width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = _TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_UNREADABLE = "images that cannot be read"

Size = tuple[int, int]  # width, height


class ImageHeader(NamedTuple):
    """The size of an image as stored, in pixels, and how EXIF says to turn it: 1 (not at all) to 8."""

    size: Size
    orientation: int

    @property
    def displayed_size(self) -> Size:
        """The size after turning."""
        return self.size[::-1] if self.orientation in _TRANSPOSING else self.size


def read_header(path: Path, annotated: Size | None) -> ImageHeader:
    """Read an image file's header; pixels are not decoded where the header is all that is needed.

    Args:
        path: The file.
        annotated: The size that its annotations say, if they say one.

    Raises:
        UnusableError: It is missing, no image, or of another size than annotated, however it is turned.
    """
    if not is_file(path):
        raise UnusableError("is missing", "images that are missing")
    try:
        with Image.open(path) as image:
            header = _header(image, annotated)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise UnusableError(f"cannot be read ({first_line(error)})", _UNREADABLE) from error
    width, height = header.size
    if not width or not height:
        raise UnusableError("has no pixels", _UNREADABLE)
    if annotated is not None and annotated not in (header.size, header.displayed_size):
        reason = f"has {width}×{height} pixels, but its annotations say {annotated[0]}×{annotated[1]}"
        raise UnusableError(reason, "images of another size than their annotations say")
    return header


def read_image(path: Path, width: int, height: int, upright: bool = False) -> Image.Image:
    """Decode an image file to RGB.

    Args:
        path: The file.
        width: Of the image that is wanted, in pixels.
        height: Likewise.
        upright: Turn it as its EXIF data say. That is done too where nothing else gives the wanted size; otherwise
            pixels are taken as stored.

    Raises:
        InputError: the file is missing, damaged or of another size.
    """
    try:
        header = read_header(path, (width, height))
    except UnusableError as error:
        raise InputError(f"Expected a readable image, but {path} {error.reason}") from error
    is_turned = upright or header.size != (width, height)
    try:
        with Image.open(path) as image:
            return _to_rgb(_turned(image, header.orientation) if is_turned else _as_stored(image, header.orientation))
    except Exception as error:  # likewise
        raise InputError(f"Expected a complete image, but {path} cannot be decoded ({first_line(error)})") from error


def is_file(path: Path) -> bool:
    """Return whether a path names a file; False too for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _header(image: Image.Image, annotated: Size | None) -> ImageHeader:
    size = image.size
    if isinstance(image, TiffImageFile):  # whose size Pillow gives as displayed, depending on its version
        size = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
    # A PNG's EXIF data may follow its pixels, and looking for them means decoding it.
    is_costly = image.format == "PNG" and "exif" not in image.info
    if is_costly and annotated in (None, size):
        return ImageHeader(size, 1)
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data say nothing, and the pixels may be whole
        orientation = 1
    return ImageHeader(size, orientation if orientation in _TURNS else 1)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the pixels as displayed."""
    if orientation == 1 or isinstance(image, TiffImageFile):  # Pillow turns a TIFF when it decodes it
        return image
    return image.transpose(_TURNS[orientation])


def _as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """Return the pixels as stored."""
    if orientation == 1 or not isinstance(image, TiffImageFile):
        return image
    return image.transpose(_TURNS_BACK[orientation])


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow would clip 16-bit gray values at 255 instead of scaling them.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are of 32 bits, and nothing says which value is white")
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
