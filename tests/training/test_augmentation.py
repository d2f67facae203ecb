"""Augmentation moves boxes with pixels, keeps colors sane, and draws from its generator alone."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prunekit.detection import Target
from prunekit.detection.task import AUGMENTATION
from prunekit.errors import InputError
from prunekit.training.augment import NO_AUGMENTATION, AugmentConfig, augment, resize

SIZE = 64
FILL = 0.25


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images_of(boxes: Tensor, size: int = SIZE) -> Tensor:
    """Black images, [N, 3, size, size], each white inside its box."""
    x = torch.zeros(len(boxes), 3, size, size)
    for image, (left, top, right, bottom) in zip(x, boxes.int().tolist(), strict=True):
        image[:, top:bottom, left:right] = 1
    return x


def _extent(image: Tensor) -> Tensor:
    rows, columns = (image[0] > 0.5).nonzero(as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def _one_each(boxes: Tensor) -> list[Target]:
    return [Target(box[None], torch.tensor([index])) for index, box in enumerate(boxes)]


def test_flips_move_the_boxes_with_the_pixels() -> None:
    boxes = torch.tensor([[3.0, 5.0, 17.0, 9.0]]).repeat(32, 1)
    x, targets = augment(_images_of(boxes, 32), _one_each(boxes), AugmentConfig(flip=0.5), _generator())
    assert all(torch.equal(_extent(image), target.boxes[0]) for image, target in zip(x, targets, strict=True))
    assert {tuple(target.boxes[0].tolist()) for target in targets} == {(3, 5, 17, 9), (15, 5, 29, 9)}


def test_scale_and_shift_move_the_boxes_with_the_pixels() -> None:
    boxes = torch.tensor([[20.0, 12.0, 40.0, 26.0]]).repeat(24, 1)
    config = AugmentConfig(flip=0.5, scale=0.4, translate=0.1, fill=FILL)
    x, targets = augment(_images_of(boxes), _one_each(boxes), config, _generator())
    found = torch.stack([_extent(image) for image in x])
    expected = torch.cat([target.boxes for target in targets])
    assert_close(found, expected, atol=1.0, rtol=0)
    width = expected[:, 2] - expected[:, 0]
    assert width.min() < 16
    assert width.max() > 24
    assert float(expected.std(dim=0).min()) > 1


def test_a_crop_moves_whole_pixels_and_the_boxes_with_them() -> None:
    boxes = torch.tensor([[10.0, 12.0, 20.0, 26.0]]).repeat(200, 1)
    config = AugmentConfig(flip=0, crop=4, fill=0)
    x = torch.rand(200, 3, 32, 32, generator=_generator(1))
    moved, targets = augment(x, _one_each(boxes), config, _generator())
    seen = set()
    for before, after, target in zip(x, moved, targets, strict=True):
        right, down = (round(float(value)) for value in (target.boxes - boxes[:1])[0, :2])
        padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
        assert_close(after, padded[:, 4 - down : 36 - down, 4 - right : 36 - right], atol=1e-5, rtol=0)
        seen |= {(0, right), (1, down)}
    assert seen == {(axis, shift) for axis in (0, 1) for shift in range(-4, 5)}
    with pytest.raises(InputError, match=r"crop: .* got -1"):
        AugmentConfig(crop=-1)


def test_what_scale_and_shift_uncover_is_filled() -> None:
    config = AugmentConfig(flip=0, scale=0.5, fill=FILL)
    x, _ = augment(torch.ones(8, 3, SIZE, SIZE), torch.zeros(8), NO_AUGMENTATION, _generator())
    assert torch.equal(x, torch.ones(8, 3, SIZE, SIZE))
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    x, targets = augment(torch.ones(8, 3, SIZE, SIZE), [nothing] * 8, config, _generator())
    corners = {round(float(image[0, 0, 0]), 4) for image in x}
    assert corners == {FILL, 1.0}
    assert all(target.boxes.shape == (0, 4) for target in targets)


def test_boxes_are_clipped_and_leftovers_dropped_by_share_and_by_side() -> None:
    # At the left border, in the middle, and three pixels wide at the right border.
    boxes = torch.tensor([[0.0, 20.0, 12.0, 30.0], [27.0, 20.0, 37.0, 30.0], [61.0, 20.0, 64.0, 30.0]])
    target = Target(boxes, torch.tensor([0, 1, 2]))
    x = torch.zeros(400, 3, SIZE, SIZE)
    _, targets = augment(x, [target] * len(x), AugmentConfig(flip=0, translate=0.18), _generator(3))
    seen = set()
    for moved in targets:
        (shift,) = (moved.boxes - boxes[1])[moved.labels == 1][:, 0].tolist()
        left, right = 12 + min(shift, 0), 3 - max(shift, 0)  # pixels that are left of the outer two
        expected = [label for label, stays in enumerate([left >= 0.2 * 12, True, right >= 2]) if stays]
        assert moved.labels.tolist() == expected
        sides = moved.boxes[:, 2] - moved.boxes[:, 0]
        assert_close(sides, torch.tensor([left, 10.0, right])[expected], atol=1e-4, rtol=0)
        seen.add(tuple(expected))
    assert seen == {(0, 1), (0, 1, 2), (1, 2)}


def test_the_color_maps_of_no_change_are_the_identity() -> None:
    x = torch.rand(4, 3, 5, 5, generator=_generator(1))
    strengths: tuple[dict[str, Any], ...] = (
        {"hue": 1e-9},
        {"saturation": 1e-9},
        {"brightness": 1e-9},
        {"contrast": 1e-9},
    )
    for strength in strengths:
        same, _ = augment(x, torch.zeros(4), AugmentConfig(flip=0, **strength), _generator())
        assert_close(same, x, atol=1e-3, rtol=0)


def test_hue_keeps_luminance_and_turns_colors() -> None:
    x = torch.rand(64, 3, 4, 4, generator=_generator(1)) * 0.2 + 0.4  # far from where clipping begins
    turned, _ = augment(x, torch.zeros(64), AugmentConfig(flip=0, hue=0.05), _generator())
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert_close((turned * weights).sum(1), (x * weights).sum(1), atol=1e-5, rtol=0)
    before = torch.tensor([colorsys.rgb_to_hsv(*pixel)[0] for pixel in x[:, :, 0, 0].tolist()])
    after = torch.tensor([colorsys.rgb_to_hsv(*pixel)[0] for pixel in turned[:, :, 0, 0].tolist()])
    moved = (after - before + 0.5) % 1 - 0.5
    # A turn in the plane of chrominances is nearly, not exactly, HSV's.
    assert 0.01 < float(moved.abs().mean()) < 0.08


def test_gray_images_stay_gray_under_hue_and_saturation() -> None:
    x = torch.rand(8, 1, 4, 4, generator=_generator(2)).expand(8, 3, 4, 4)
    y, _ = augment(x, torch.zeros(8), AugmentConfig(flip=0, hue=0.5, saturation=0.9), _generator())
    assert_close(y, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "strength"), [("brightness", 0.3), ("contrast", 0.3), ("saturation", 0.5)])
def test_each_color_change_does_its_own_thing(name: str, strength: float) -> None:
    x = torch.rand(16, 3, 8, 8, generator=_generator(5)) * 0.2 + 0.4
    changed: dict[str, Any] = {"flip": 0, name: strength}
    y, _ = augment(x, torch.zeros(16), AugmentConfig(**changed), _generator())
    measure: dict[str, Callable[[Tensor], Tensor]] = {
        "brightness": lambda images: images.mean(dim=(1, 2, 3)),
        "contrast": lambda images: images.std(dim=(1, 2, 3)),
        "saturation": lambda images: (images.amax(1) - images.amin(1)).mean(dim=(1, 2)),
    }
    ratios = {key: f(y) / f(x) for key, f in measure.items()}
    assert float(ratios[name].min()) < 1 - strength / 3
    assert float(ratios[name].max()) > 1 + strength / 3
    assert float((ratios[name] - 1).abs().max()) <= strength + 1e-3
    if name != "brightness":
        assert_close(y.mean(dim=(2, 3)).mean(1), x.mean(dim=(2, 3)).mean(1), atol=0.02, rtol=0)


def test_the_generator_alone_decides() -> None:
    boxes = torch.tensor([[20.0, 12.0, 40.0, 26.0]]).repeat(6, 1)
    x = torch.rand(6, 3, SIZE, SIZE, generator=_generator(9))

    def augmented(seed: int) -> tuple[Tensor, Tensor]:
        torch.rand(seed + 1)  # moves the global generator
        y, targets = augment(x, _one_each(boxes), AugmentConfig(**AUGMENTATION), _generator(seed))
        return y, torch.cat([target.boxes for target in targets])

    first, again, other = augmented(1), augmented(1), augmented(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert float(first[0].min()) >= 0
    assert float(first[0].max()) <= 1


def test_switched_off_it_changes_nothing() -> None:
    boxes = torch.tensor([[20.0, 12.0, 40.0, 26.0]])
    x = _images_of(boxes)
    y, (target,) = augment(x, _one_each(boxes), NO_AUGMENTATION, _generator())
    assert torch.equal(x, y)
    assert torch.equal(target.boxes, boxes)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"scale": 1.0}, {"hue": -0.1}, {"fill": float("nan")}])
def test_impossible_strengths_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_resizing_moves_the_boxes_with_the_pixels(size: int) -> None:
    boxes = torch.tensor([[8.0, 16.0, 40.0, 24.0]])
    x, targets = resize(_images_of(boxes), _one_each(boxes), size)
    assert x.shape == (1, 3, size, size)
    assert torch.equal(_extent(x[0]), targets[0].boxes[0])
