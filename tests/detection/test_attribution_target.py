from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.testing import assert_close

from prunekit.detection import Target, yolov3_tiny
from prunekit.detection.attribution_target import matched_logits
from prunekit.detection.boxes import Heads
from prunekit.prune.deeplift import Comparison, deeplift_contributions

ANCHORS = (((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)), ((10.0, 13.0), (16.0, 30.0)))
STRIDES = (32, 16)
NUM_CLASSES = 3
SIZE = 96


def random_targets(counts: tuple[int, ...]) -> list[Target]:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for count in counts:
        sizes = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60 + 4
        corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (SIZE - sizes)
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        targets.append(Target(torch.cat([corners, corners + sizes], dim=1), labels))
    return targets


def matched_logits_loop(outputs: list[Tensor], target: Target, image: int) -> float:
    """Object by object, head by head, anchor by anchor."""
    total = 0.0
    for (x1, y1, x2, y2), label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
        for logits, anchors, stride in zip(outputs, ANCHORS, STRIDES, strict=True):
            column, row = math.floor((x1 + x2) / 2 / stride), math.floor((y1 + y2) / 2 / stride)
            for place, (width, height) in enumerate(anchors):
                ratios = ((x2 - x1) / width, (y2 - y1) / height)
                if max(max(ratio, 1 / ratio) for ratio in ratios) < 4:
                    first = place * (5 + NUM_CLASSES)
                    total += logits[image, first + 4, row, column].item()
                    total += logits[image, first + 5 + label, row, column].item()
    return total


def test_the_target_is_the_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = [
        torch.randn(3, len(a) * (5 + NUM_CLASSES), SIZE // s, SIZE // s, generator=generator, dtype=torch.float64)
        for a, s in zip(ANCHORS, STRIDES, strict=True)
    ]
    targets = random_targets((30, 0, 4))  # 30 objects share places
    found = matched_logits(outputs, targets, Heads(ANCHORS, STRIDES, NUM_CLASSES))
    expected = [matched_logits_loop(outputs, target, image) for image, target in enumerate(targets)]
    assert expected[0] != 0
    assert expected[1] == 0
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_an_image_without_objects_contributes_nothing() -> None:
    torch.manual_seed(0)
    net = yolov3_tiny(NUM_CLASSES, width=0.125).double()
    x = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    targets = random_targets((0, 5))

    def target(outputs: tuple[Tensor, ...]) -> Tensor:
        return matched_logits(outputs, targets, Heads.of(net))

    found = deeplift_contributions(net, Comparison(x, torch.zeros_like(x[:1]), target))
    assert found.completeness.expected[0] == 0
    for contributions in found.layers.values():
        assert not contributions[0].any()
    first = next(iter(found.layers.values()))
    assert_close(first[1].sum(), found.completeness.expected[1], rtol=1e-8, atol=0)
