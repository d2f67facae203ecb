from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunekit.detection import decode, nms
from prunekit.detection.boxes import NMS_CHUNK, Heads, intersection_and_union
from tests.support.detection_oracles import decode_loop, iou_scalar, nms_loop

ANCHORS = (((30.0, 61.0), (62.0, 45.0)), ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)), ((5.0, 4.0),))
STRIDES = (32, 16, 8)


def random_outputs(num_heads: int, num_classes: int, batch: int = 2, scale: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_heads * 100 + num_classes)
    return [
        # More columns than rows, so that exchanged axes would show.
        scale * torch.randn(batch, len(sizes) * (5 + num_classes), 64 // stride, 96 // stride, generator=generator)
        for sizes, stride in zip(ANCHORS[:num_heads], STRIDES[:num_heads], strict=True)
    ]


def random_boxes(generator: torch.Generator, *shape: int, side: float = 100.0) -> Tensor:
    """Boxes crowded enough to overlap often, [*shape, 4] xyxy."""
    corner = torch.rand(*shape, 2, generator=generator) * side
    size = torch.rand(*shape, 2, generator=generator) * side / 3 + 1
    return torch.cat([corner, corner + size], dim=-1)


@pytest.mark.parametrize("num_heads", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_decode_follows_the_box_equations(num_heads: int, num_classes: int) -> None:
    outputs = random_outputs(num_heads, num_classes)
    boxes, scores = decode(outputs, Heads(ANCHORS[:num_heads], STRIDES[:num_heads], num_classes))
    expected = decode_loop(outputs, ANCHORS[:num_heads], STRIDES[:num_heads], num_classes)
    torch.testing.assert_close(boxes, torch.tensor([[box for box, _ in image] for image in expected]))
    torch.testing.assert_close(scores, torch.tensor([[score for _, score in image] for image in expected]))


def test_decode_stays_finite_on_wild_logits() -> None:
    boxes, scores = decode([torch.full((1, 14, 2, 2), 1e30)], Heads(ANCHORS[:1], STRIDES[:1], 2))
    assert boxes.isfinite().all()
    assert scores.isfinite().all()


def test_decode_can_be_exported() -> None:
    class Decoder(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return decode([a, b], Heads(ANCHORS[:2], STRIDES[:2], 3))

    outputs = random_outputs(num_heads=2, num_classes=3)
    exported = torch.export.export(Decoder(), tuple(outputs)).module()
    for found, expected in zip(exported(*outputs), decode(outputs, Heads(ANCHORS[:2], STRIDES[:2], 3)), strict=True):
        assert torch.equal(found, expected)


def test_intersection_and_union_of_boxes_apart_nested_and_empty() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 2, 2]])
    b = torch.tensor([[5.0, 5, 6, 6], [1, 1, 3, 3], [2, 0, 6, 4], [2, 2, 2, 2]])
    intersection, union = intersection_and_union(a, b)
    assert intersection.tolist() == [0, 4, 8, 0]
    assert union.tolist() == [17, 16, 24, 0]


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.45, 1.0])
@pytest.mark.parametrize("max_detections", [7, 10_000])
def test_nms_keeps_what_the_greedy_loop_keeps(iou_threshold: float, max_detections: int) -> None:
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(generator, 2, 150)
    scores = torch.rand(2, 150, 4, generator=generator)
    found = nms(boxes, scores, 0.2, iou_threshold, max_detections)
    for image in range(2):
        expected = nms_loop(
            [(a, b, c, d) for a, b, c, d in boxes[image].tolist()],
            scores[image].tolist(),
            0.2,
            iou_threshold,
            max_detections,
        )
        index, label = (torch.tensor(column) for column in zip(*expected, strict=True))
        assert torch.equal(found[image].boxes, boxes[image, index])
        assert torch.equal(found[image].classes, label)
        assert torch.equal(found[image].scores, scores[image, index, label])


def test_nms_is_greedy_across_chunks() -> None:
    # One class and one crowded spot: every chunk must respect what earlier chunks kept.
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(generator, 1, 3 * NMS_CHUNK + 17)
    scores = torch.rand(1, boxes.shape[1], 1, generator=generator)
    (found,) = nms(boxes, scores, 0.0, 0.3, max_detections=10_000)
    listed = [(a, b, c, d) for a, b, c, d in boxes[0].tolist()]
    expected = nms_loop(listed, scores[0].tolist(), 0.0, 0.3, 10_000)
    assert torch.equal(found.boxes, boxes[0, [index for index, _ in expected]])


def test_a_long_chain_of_overlaps_is_resolved_link_by_link() -> None:
    # Each box overlaps only its neighbors, so every second one stays.
    start = torch.arange(301.0) * 10
    boxes = torch.stack([start, torch.zeros(301), start + 18, torch.ones(301)], dim=1)[None]
    scores = torch.linspace(1, 0.5, 301)[None, :, None]
    assert iou_scalar((0, 0, 18, 1), (10, 0, 28, 1)) > 0.2
    (found,) = nms(boxes, scores, 0.0, 0.2)
    assert torch.equal(found.boxes, boxes[0, ::2])


def test_overlap_across_classes_suppresses_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.9, 0.8], [0.7, 0.95]]])
    (found,) = nms(boxes, scores)
    assert found.classes.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.95, 0.9])


def test_equal_scores_keep_their_order_and_thresholds_are_exclusive() -> None:
    start = torch.arange(1000.0)[:, None] * 10
    boxes = torch.cat([start, start, start + 1, start + 1], dim=1)[None]
    scores = torch.tensor([0.5, 0.75, 0.25, 0.5]).repeat(250)[None, :, None]
    (found,) = nms(boxes, scores, score_threshold=0.25, max_detections=1000)
    best, good = (scores[0, :, 0] == 0.75).nonzero()[:, 0], (scores[0, :, 0] == 0.5).nonzero()[:, 0]
    assert torch.equal(found.boxes, boxes[0, torch.cat([best, good])])


def test_only_the_best_candidates_enter() -> None:
    generator = torch.Generator().manual_seed(5)
    boxes, scores = random_boxes(generator, 1, 50, side=1e6), torch.rand(1, 50, 3, generator=generator)
    (found,) = nms(boxes, scores, 0.0, 0.5, max_candidates=20)
    assert torch.equal(found.scores, scores.flatten().sort(descending=True).values[:20])


def test_nothing_above_the_threshold_and_nan_scores_give_no_detections() -> None:
    boxes = torch.zeros(2, 3, 4)
    scores = torch.tensor([0.0001, float("nan")])[:, None, None].expand(2, 3, 2)
    assert [len(found) for found in nms(boxes, scores)] == [0, 0]
