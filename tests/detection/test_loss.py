from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prunekit.detection import Target, detection_loss, yolov3_tiny
from prunekit.detection.boxes import Heads
from prunekit.detection.loss import BOX_WEIGHT, CLASSIFICATION_WEIGHT, complete_iou, match
from tests.support.detection_oracles import complete_iou_scalar, detection_loss_loop, iou_scalar

ANCHORS = (((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)), ((10.0, 13.0), (16.0, 30.0)))
STRIDES = (32, 16)
WIDTH, HEIGHT = 160, 96


def random_outputs(batch: int, num_classes: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            batch,
            len(sizes) * (5 + num_classes),
            HEIGHT // stride,
            WIDTH // stride,
            generator=generator,
            dtype=torch.float64,
        )
        for sizes, stride in zip(ANCHORS, STRIDES, strict=True)
    ]


def random_target(num_objects: int, num_classes: int, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(num_objects, 2, generator=generator, dtype=torch.float64) * 60 + 4
    limits = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64) - sizes
    corners = torch.rand(num_objects, 2, generator=generator, dtype=torch.float64) * limits
    labels = torch.randint(num_classes, (num_objects,), generator=generator)
    return Target(torch.cat([corners, corners + sizes], dim=1), labels)


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("num_objects", [0, 1, 40])
def test_the_loss_is_the_loops(num_objects: int, num_classes: int) -> None:
    # 40 objects on 15 and 60 cells share places, so the better fit must win there.
    outputs, target = random_outputs(1, num_classes), random_target(num_objects, num_classes)
    found = detection_loss(outputs, [target], Heads(ANCHORS, STRIDES, num_classes))
    boxes = [(a, b, c, d) for a, b, c, d in target.boxes.tolist()]
    box, objectness, classes = detection_loss_loop(
        outputs, boxes, target.labels.tolist(), ANCHORS, STRIDES, num_classes
    )
    assert found.box.item() == pytest.approx(BOX_WEIGHT * box, abs=1e-12)
    assert found.objectness.item() == pytest.approx(objectness)
    assert found.classification.item() == pytest.approx(CLASSIFICATION_WEIGHT * classes, abs=1e-12)
    assert found.total.item() == pytest.approx(BOX_WEIGHT * box + objectness + CLASSIFICATION_WEIGHT * classes)


def test_images_do_not_see_each_other() -> None:
    outputs = random_outputs(4, num_classes=3)
    targets = [random_target(count, 3, seed=count) for count in (5, 0, 1, 17)]
    together = detection_loss(outputs, targets, Heads(ANCHORS, STRIDES, 3))
    for index, target in enumerate(targets):
        alone = detection_loss([o[index : index + 1] for o in outputs], [target], Heads(ANCHORS, STRIDES, 3))
        for name in ("total", "box", "objectness", "classification"):
            assert_close(getattr(together, name)[index], getattr(alone, name)[0], rtol=1e-12, atol=0)
    assert together.box[1] == 0
    assert together.classification[1] == 0
    assert together.objectness[1] > 0


def test_each_images_gradient_is_its_own() -> None:
    outputs = [o.requires_grad_() for o in random_outputs(3, num_classes=2)]
    loss = detection_loss(outputs, [random_target(4, 2, seed) for seed in range(3)], Heads(ANCHORS, STRIDES, 2))
    grads = torch.autograd.grad(loss.total[1], outputs)
    for grad in grads:
        assert grad[[0, 2]].abs().max() == 0
        assert grad[1].abs().max() > 0


def test_only_objects_like_an_anchor_match_and_in_the_cell_of_their_center() -> None:
    boxes = torch.tensor([[40.0, 10, 60, 30], [0, 0, 160, 96], [100, 50, 103, 53]])
    found = match([Target(boxes, torch.tensor([2, 1, 0]))], torch.tensor([[16.0, 30], [79, 20]]), 16, 6, 10)
    image, anchor, row, column = found.places
    # 20×20 is within a factor of 4 of both anchors, 160×96 and 3×3 of neither.
    assert image.tolist() == [0, 0]
    assert anchor.tolist() == [0, 1]
    assert row.tolist() == [1, 1]
    assert column.tolist() == [3, 3]
    assert found.labels.tolist() == [2, 2]


def test_centers_on_the_far_border_belong_to_the_last_cell() -> None:
    edge = torch.tensor([[150.0, 90, 170, 102]])
    row, column = match([Target(edge, torch.tensor([0]))], torch.tensor([[16.0, 16]]), 16, 6, 10).places[2:]
    assert (row.tolist(), column.tolist()) == ([5], [9])


def test_complete_iou_is_the_scalar_formula() -> None:
    a, b = random_target(200, 1, seed=1).boxes, random_target(200, 1, seed=2).boxes
    a[:5] = b[:5]  # equal boxes
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    expected = [complete_iou_scalar((x1, y1, x2, y2), tuple(other)) for (x1, y1, x2, y2), other in pairs]
    assert_close(complete_iou(a, b), torch.tensor(expected, dtype=torch.float64))
    assert_close(complete_iou(a[:5], b[:5]), torch.ones(5, dtype=torch.float64))


def test_gradients_of_complete_iou_hold_alpha_constant() -> None:
    box, other = (10.0, 10.0, 30.0, 50.0), (14.0, 20.0, 50.0, 44.0)
    angles = [math.atan((b[2] - b[0]) / (b[3] - b[1])) for b in (box, other)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou_scalar(box, other) + v)

    def with_fixed_alpha(moved: tuple[float, float, float, float]) -> float:
        angle = math.atan((moved[2] - moved[0]) / (moved[3] - moved[1]))
        v = 4 / math.pi**2 * (angle - angles[1]) ** 2
        own_alpha = v / (1 - iou_scalar(moved, other) + v)
        return complete_iou_scalar(moved, other) + (own_alpha - alpha) * v

    leaf = torch.tensor([box], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(complete_iou(leaf, torch.tensor([other], dtype=torch.float64)).sum(), leaf)
    step = 1e-5
    for index in range(4):
        x1, y1, x2, y2 = (value + step * (index == place) for place, value in enumerate(box))
        slope = (with_fixed_alpha((x1, y1, x2, y2)) - with_fixed_alpha(box)) / step
        assert grad[0, index].item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 50.0, -50.0, 1e4, -1e4])
def test_gradients_stay_finite_on_wild_logits(value: float) -> None:
    outputs = [torch.full_like(o, value).float().requires_grad_() for o in random_outputs(2, num_classes=3)]
    targets = [random_target(6, 3), random_target(0, 3)]
    loss = detection_loss(outputs, targets, Heads(ANCHORS, STRIDES, 3))
    assert loss.total.isfinite().all()
    for grad in torch.autograd.grad(loss.total.sum(), outputs):
        assert grad.isfinite().all()


def test_descending_the_loss_makes_the_detector_fit_its_images() -> None:
    torch.manual_seed(0)
    net = yolov3_tiny(num_classes=2, width=1 / 8)
    images = torch.rand(2, 3, 96, 160)
    targets = [random_target(2, 2), random_target(1, 2, seed=5)]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = detection_loss(net(images), targets, Heads.of(net)).total.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
