"""Anchors by k-means: the clusters that are there are found, and nothing depends on the order of boxes."""

from __future__ import annotations

import math

import pytest
import torch

from prunekit.detection import yolov3_tiny
from prunekit.detection.anchors import fit_anchors, iou_of_sizes
from prunekit.detection.yolov3 import YOLOV3_ANCHORS
from prunekit.errors import InputError


def test_clusters_are_found_and_the_largest_go_to_the_first_head() -> None:
    centers = torch.tensor([[10.0, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]])
    generator = torch.Generator().manual_seed(0)
    noise = 1 + 0.04 * torch.randn(6, 50, 2, generator=generator)
    sizes = (centers[:, None] * noise).reshape(-1, 2)
    found = fit_anchors(sizes[torch.randperm(len(sizes), generator=generator)], [3, 3])
    expected = torch.split(centers.flip(0), 3)
    for head, wanted in zip(found, expected, strict=True):
        assert torch.tensor(head).sub(wanted.flip(0)).abs().div(wanted.flip(0)).max() < 0.02
    assert torch.tensor(yolov3_tiny(2, 0.03, found).anchors).equal(torch.tensor(found))


def test_fitted_anchors_overlap_the_boxes_more_than_published_ones() -> None:
    sizes = 4 + 30 * torch.rand(500, 2, generator=torch.Generator().manual_seed(1))
    fitted = torch.tensor(fit_anchors(sizes, [3, 3, 3])).reshape(-1, 2)
    usual = torch.tensor(YOLOV3_ANCHORS).reshape(-1, 2)
    assert iou_of_sizes(sizes, fitted).amax(1).mean() > 0.1 + iou_of_sizes(sizes, usual).amax(1).mean()


def test_the_seed_decides() -> None:
    sizes = 4 + 30 * torch.rand(100, 2, generator=torch.Generator().manual_seed(1))
    assert fit_anchors(sizes, [3, 3], seed=5) == fit_anchors(sizes, [3, 3], seed=5)


def test_too_few_sizes_are_one_sentence() -> None:
    with pytest.raises(InputError, match="expected boxes of at least 6 different sizes, got 2"):
        fit_anchors(torch.tensor([[4.0, 5], [6, 7]]).repeat(9, 1), [3, 3])


@pytest.mark.parametrize("anchors", [[[[1, 2]]], [[[1, 2]] * 3, [[1, -2]] * 3], [[[1, 2]] * 3, [[1, math.nan]] * 3]])
def test_anchors_that_no_head_can_have_are_one_sentence(anchors: list[list[list[float]]]) -> None:
    with pytest.raises(InputError, match=r"Expected \[3, 3\] anchors above 0"):
        yolov3_tiny(2, 0.03, anchors)
