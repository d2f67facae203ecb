from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prunekit.detection import Letterbox, to_grayscale


def test_a_wide_image_is_centered_between_two_bars() -> None:
    letterbox = Letterbox.fit(640, 480, size=416)
    assert (letterbox.scale, letterbox.pad_left, letterbox.pad_top) == (0.65, 0, 52)
    square = letterbox.apply(Image.new("RGB", (640, 480), (255, 0, 51)))
    assert square.shape == (3, 416, 416)
    assert (square[:, :52] == 0.5).all()
    assert (square[:, 364:] == 0.5).all()
    torch.testing.assert_close(square[:, 52:364], torch.tensor([1, 0, 0.2])[:, None, None].expand(3, 312, 416))


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for interpolation in ("bilinear", "antialiased"):
        square = Letterbox.fit(32, 32, 32, interpolation=interpolation).apply(Image.fromarray(pixels))
        torch.testing.assert_close(square, torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_the_fill_and_the_interpolation_can_be_chosen() -> None:
    # Black and white columns in turn: four neighbors average one pair, antialiasing averages them all.
    pixels = np.zeros((4, 64, 3), dtype=np.uint8)
    pixels[:, ::4] = 255
    sampled = Letterbox.fit(64, 4, 16, fill=0.25).apply(Image.fromarray(pixels))
    averaged = Letterbox.fit(64, 4, 16, fill=0.25, interpolation="antialiased").apply(Image.fromarray(pixels))
    assert (sampled[:, 0] == 0.25).all()
    assert (sampled[:, 7] == 0).all()
    torch.testing.assert_close(averaged[:, 7, 1:-1], torch.full((3, 14), 0.25))


@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    size=st.sampled_from([32, 416, 608]),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_find_their_way_back(width: int, height: int, size: int, corners: list[float]) -> None:
    letterbox = Letterbox.fit(width, height, size)
    box = torch.tensor([corners], dtype=torch.float64) * torch.tensor([width, height, width, height])
    inside = letterbox.to_square(box)
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= size + 1e-9
    torch.testing.assert_close(letterbox.to_image(inside), box)


def test_a_box_covers_the_same_pixels_before_and_after() -> None:
    pixels = np.zeros((100, 50, 3), dtype=np.uint8)
    pixels[40:80, 10:30] = 255
    letterbox = Letterbox.fit(50, 100, size=160)
    x1, y1, x2, y2 = letterbox.to_square(torch.tensor([[10.0, 40, 30, 80]]))[0].round().int().tolist()
    square = letterbox.apply(Image.fromarray(pixels))[0]
    assert float(square[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min()) > 0.9
    square[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 0
    square[:, :40] = square[:, 120:] = 0  # the bars
    assert float(square.max()) < 0.1


def test_boxes_are_clipped_to_the_original_image() -> None:
    letterbox = Letterbox.fit(640, 480, size=416)
    box = letterbox.to_image(torch.tensor([[-10.0, 0, 500, 416]]))
    assert box.tolist() == [[0, 0, 640, 480]]


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)])
def test_gray_values_are_weighted_sums(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    red, green, blue = images.unbind(-3)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    gray = to_grayscale(images)
    assert gray.shape == images.shape
    for channel in gray.unbind(-3):
        torch.testing.assert_close(channel, expected)
