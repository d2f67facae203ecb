"""What COCO's segmentations enclose: the box and the area of polygons and run lengths, as pycocotools measures them.

pycocotools trusts what it is given: its decoder of compressed run lengths reads behind text that ends early, and its
polygons take memory in proportion to their length. So both are checked, and compressed run lengths decoded, here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pycocotools import mask

from prunekit.detection.coco_fields import UnusableError, number_of, numbers_of

#: Pixels along all of a polygon's edges; pycocotools needs some 100 bytes for each.
_LONGEST_OUTLINE = 1_000_000
_FIRST_CODE, _VALUE_BITS, _MORE_FOLLOWS, _SIGN = 48, 5, 0x20, 0x10
_LONGEST_CODE = 7  # characters of a run: 35 bits
_KIND = "annotations without a usable bbox or segmentation"


class Outline(NamedTuple):
    """The smallest box of whole pixels around an object, xyxy, and the number of its pixels."""

    box: tuple[float, float, float, float]
    area: float


def measure(segmentation: Any, width: int, height: int) -> Outline:
    """Rasterize a segmentation and measure it.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, …], or run lengths {"size": [H, W], "counts": …} with counts
            as a list or compressed to text.
        width: Of the image, in pixels.
        height: Likewise.

    Raises:
        UnusableError: It is neither, or encloses no pixel of the image.
    """
    if isinstance(segmentation, Mapping):
        encoded = mask.frPyObjects(_checked_runs(segmentation, width, height), height, width)
    else:
        encoded = mask.merge(mask.frPyObjects(_checked_polygons(segmentation), height, width))
    x, y, box_width, box_height = map(float, mask.toBbox(encoded))
    if box_width <= 0 or box_height <= 0:
        raise UnusableError("has a segmentation without a pixel of its image", _KIND)
    return Outline((x, y, x + box_width, y + box_height), float(mask.area(encoded)))


def _checked_polygons(segmentation: Any) -> list[list[float]]:
    """Return the polygons of at least three corners."""
    given = segmentation if isinstance(segmentation, list) else []
    if given and number_of(given[0]) is not None:
        given = [given]  # one polygon without the list around it
    polygons = [corners for corners in map(numbers_of, given) if corners and len(corners) >= 6]
    if not polygons or any(len(corners) % 2 for corners in polygons):
        raise UnusableError("has a segmentation that is neither polygons nor run lengths", _KIND)
    if sum(map(_outline_length, polygons)) > _LONGEST_OUTLINE:
        raise UnusableError(f"has polygons of more than {_LONGEST_OUTLINE} pixels' length", _KIND)
    return polygons


def _outline_length(corners: list[float]) -> float:
    xs, ys = [*corners[0::2], corners[0]], [*corners[1::2], corners[1]]
    # How far from the image it reaches counts too: pycocotools' coordinates have 32 bits, five steps to a pixel.
    reach = max(map(abs, corners))
    return reach + sum(max(abs(b - a), abs(d - c)) for (a, b), (c, d) in zip(pairwise(xs), pairwise(ys), strict=True))


def _checked_runs(segmentation: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    if (size := segmentation.get("size")) is not None and numbers_of(size) != [height, width]:
        raise UnusableError(f"has run lengths of the size {size!r}, not {[height, width]}", _KIND)
    counts = segmentation.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str) else numbers_of(counts)
    if runs is None or any(run < 0 or run != int(run) for run in runs):
        raise UnusableError("has run lengths that cannot be decoded", _KIND)
    if sum(runs) > width * height:
        raise UnusableError(f"has run lengths of {sum(runs):g} pixels, more than its image", _KIND)
    return {"size": [height, width], "counts": _without_empty_runs([int(run) for run in runs])}


def _without_empty_runs(runs: Sequence[int]) -> list[int]:
    """Join the runs beside one of no pixels, of which pycocotools makes a box of 2^32 pixels; a first run may be 0."""
    joined: list[int] = []
    for number, run in enumerate(runs):
        if joined and len(joined) % 2 != number % 2:  # of the color of the last one
            joined[-1] += run
        elif run or not joined:
            joined.append(run)
    return joined


def _decompressed(text: str) -> list[float] | None:
    """Return the runs that COCO's compressed text says; None if it is none.

    A character holds five bits and whether more follow, lowest first, two's complement; from the fourth run on,
    the difference to the run before the last is stored.
    """
    runs: list[float] = []
    value, length = 0, 0
    for character in text:
        code = ord(character) - _FIRST_CODE
        if not 0 <= code < 64 or length == _LONGEST_CODE:
            return None
        value |= (code & 0x1F) << (_VALUE_BITS * length)
        length += 1
        if code & _MORE_FOLLOWS:
            continue
        if code & _SIGN:
            value -= 1 << (_VALUE_BITS * length)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, length = 0, 0
    return None if length else runs
