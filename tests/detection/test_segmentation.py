"""Boxes and areas of outlines: pycocotools' masks decide, and nothing that a file says brings it down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as masks

from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.segmentation import measure

HEIGHT, WIDTH = 32, 48


def runs_of(mask: Any) -> list[int]:
    """Count a mask's runs column by column, zeros first."""
    runs, value = [0], 0
    for pixel in mask.flatten(order="F"):
        if pixel == value:
            runs[-1] += 1
        else:
            runs.append(1)
            value = pixel
    return runs


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_run_lengths_of_any_mask_measure_it_compressed_or_not(mask: Any) -> None:
    height, width = mask.shape
    compressed = masks.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (runs_of(mask), compressed, [float(run) for run in runs_of(mask)], list(map(str, runs_of(mask)))):
        segmentation = {"size": [height, width], "counts": counts}
        if not mask.any():
            with pytest.raises(UnusableError, match="without a pixel"):
                measure(segmentation, width, height)
            continue
        found = measure(segmentation, width, height)
        ys, xs = mask.nonzero()
        assert found.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert found.area == mask.sum()


def test_long_runs_survive_compression() -> None:
    mask = np.zeros((2000, 3000), np.uint8)
    mask[500:700, 1000:2900] = 1
    counts = masks.encode(np.asfortranarray(mask))["counts"].decode()
    assert measure({"size": [2000, 3000], "counts": counts}, 3000, 2000) == ((1000, 500, 2900, 700), 200 * 1900)


@given(st.lists(st.lists(st.floats(-100, 150), min_size=6, max_size=12), min_size=1, max_size=3))
def test_polygons_are_measured_as_pycocotools_merges_them(polygons: list[list[float]]) -> None:
    polygons = [corners[: len(corners) // 2 * 2] for corners in polygons]
    merged = masks.merge(masks.frPyObjects(polygons, HEIGHT, WIDTH))
    x, y, width, height = masks.toBbox(merged)
    if masks.area(merged) == 0:
        with pytest.raises(UnusableError):
            measure(polygons, WIDTH, HEIGHT)
    else:
        assert measure(polygons, WIDTH, HEIGHT) == ((x, y, x + width, y + height), masks.area(merged))


def test_polygons_too_short_are_passed_over_and_one_may_stand_alone() -> None:
    square = [4, 4, 24, 4, 24, 16, 4, 16]
    expected = ((4, 4, 24, 16), 240)
    assert measure([[1, 1], [1, 1, 9, 9], square], WIDTH, HEIGHT) == expected
    assert measure(square, WIDTH, HEIGHT) == expected
    assert measure([list(map(str, square))], WIDTH, HEIGHT) == expected


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1e9, 1, 2, 3, 4, 5]], "more than 1000000 pixels"),  # pycocotools would take gigabytes
        ([[1e308, 1, -1e308, 3, 4, 5]], "more than 1000000 pixels"),
        ([[1, 2, 3, 4, 5]], "neither polygons nor run lengths"),
        ([[1, 2, 3, 4, 5, 6, 7]], "neither polygons nor run lengths"),
        ([[float("nan")] * 6], "neither polygons nor run lengths"),
        ([[100, 100, 120, 100, 120, 120]], "without a pixel"),
        ([], "neither polygons nor run lengths"),
        ("PPP", "neither polygons nor run lengths"),
        (7, "neither polygons nor run lengths"),
        ({"counts": "T"}, "cannot be decoded"),  # pycocotools reads on behind text that ends with "more follows"
        ({"counts": "T4<d" + "o" * 50}, "cannot be decoded"),
        ({"counts": "é"}, "cannot be decoded"),
        ({"counts": [-5, 4]}, "cannot be decoded"),
        ({"counts": [1.5, 4]}, "cannot be decoded"),
        ({"counts": None}, "cannot be decoded"),
        ({}, "cannot be decoded"),
        ({"counts": []}, "without a pixel"),
        ({"counts": ""}, "without a pixel"),
        ({"counts": "00"}, "without a pixel"),
        ({"counts": [3, 0, 4, 0]}, "without a pixel"),
        ({"counts": [0, 2**40]}, "more than its image"),
        ({"counts": [0, 4], "size": [48, 32]}, r"size \[48, 32\], not \[32, 48\]"),
        ({"counts": [0, 4], "size": 7}, "size 7"),
    ],
)
def test_what_is_no_outline_is_refused_with_its_reason(segmentation: Any, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        measure(segmentation, WIDTH, HEIGHT)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_a_run_of_no_pixels_changes_nothing(runs: list[int]) -> None:
    pixels = np.repeat(np.arange(len(runs)) % 2, runs)
    padded = np.pad(pixels, (0, HEIGHT * WIDTH - len(pixels))).reshape(WIDTH, HEIGHT).T
    if not padded.any():
        with pytest.raises(UnusableError, match="without a pixel"):
            measure({"counts": runs}, WIDTH, HEIGHT)
        return
    ys, xs = np.nonzero(padded)
    assert measure({"counts": runs}, WIDTH, HEIGHT) == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), len(xs))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_text_of_run_lengths_is_measured_or_refused(counts: str) -> None:
    try:
        found = measure({"counts": counts}, WIDTH, HEIGHT)
    except UnusableError:
        return
    assert 0 < found.area <= HEIGHT * WIDTH
    assert 0 <= found.box[0] < found.box[2] <= WIDTH
