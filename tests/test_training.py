"""Training learns, and its augmentations move pixels and boxes alike."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prunekit.detection import MODELS, CocoDataset, Target, load_darknet_weights
from prunekit.pipeline import RunConfig, SilentProgress
from prunekit.pipeline.evaluate import evaluate
from prunekit.pipeline.training import TrainConfig, flip_some, learning_rate_factor, resize, train


def _images_of(boxes: Tensor, size: int) -> Tensor:
    """Black images, [N, 3, size, size], each white inside its box."""
    x = torch.zeros(len(boxes), 3, size, size)
    for image, (left, top, right, bottom) in zip(x, boxes.int().tolist(), strict=True):
        image[:, top:bottom, left:right] = 1
    return x


def _extent(image: Tensor) -> list[float]:
    rows, columns = (image[0] > 0.5).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def test_flips_move_the_boxes_with_the_pixels() -> None:
    boxes = torch.tensor([[3.0, 5.0, 17.0, 9.0]]).repeat(32, 1)
    targets = [Target(box[None], torch.tensor([2])) for box in boxes]
    x, flipped = flip_some(_images_of(boxes, 32), targets, torch.Generator().manual_seed(0))
    extents = [_extent(image) for image in x]
    assert extents == [target.boxes[0].tolist() for target in flipped]
    assert {tuple(extent) for extent in extents} == {(3, 5, 17, 9), (15, 5, 29, 9)}


@pytest.mark.parametrize("size", [32, 64, 96])
def test_resizing_moves_the_boxes_with_the_pixels(size: int) -> None:
    boxes = torch.tensor([[8.0, 16.0, 40.0, 24.0]])
    x, targets = resize(_images_of(boxes, 64), [Target(boxes, torch.tensor([0]))], size)
    assert x.shape == (1, 3, size, size)
    assert _extent(x[0]) == targets[0].boxes[0].tolist()


def test_flips_leave_images_without_objects_alone() -> None:
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    _, targets = flip_some(torch.zeros(4, 3, 8, 8), [nothing] * 4, torch.Generator().manual_seed(1))
    assert all(target.boxes.shape == (0, 4) for target in targets)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, num_steps=100, warmup=0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0)


def test_eight_images_are_learnt_by_heart(shapes_config: RunConfig) -> None:
    dataset = CocoDataset.open(shapes_config.data, shapes_config.image_size)
    model = MODELS["yolov3-tiny"](dataset.num_classes, shapes_config.width).eval()
    load_darknet_weights(model, shapes_config.weights)
    found = evaluate(model, dataset, shapes_config, None, SilentProgress(), "", lambda *seen: None)
    assert found.average_precision.ap50 > 0.8


def test_the_same_seed_trains_the_same_weights(shapes_config: RunConfig) -> None:
    dataset = CocoDataset.open(shapes_config.data, 64)

    def trained() -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = MODELS["yolov3-tiny"](dataset.num_classes, 0.03)
        config = TrainConfig(epochs=2, batch_size=3, sizes=(32, 64), seed=7)
        return train(model, dataset, config, SilentProgress()).state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)
