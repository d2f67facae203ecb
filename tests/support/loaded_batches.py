"""Batches of data compared bit for bit."""

from __future__ import annotations

import torch

from prunekit.detection import Batch


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert (a.image_ids, a.letterboxes) == (b.image_ids, b.letterboxes)
    for first, second in zip(a.targets, b.targets, strict=True):
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.labels, second.labels)
