"""Fit images of any shape into a square without distortion, and find the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from prunekit.kept_images import Pixels

Interpolation = Literal["bilinear", "antialiased"]
REC_601 = (0.299, 0.587, 0.114)  # the weights of red, green and blue in a gray value


@dataclass(frozen=True)
class Letterbox:
    """The placement of one image inside a square.

    Attributes:
        size: side of the square, in pixels.
        scale: square pixels per original pixel.
        pad_left: square pixels left of the image.
        pad_top: square pixels above the image.
        width: original width, in pixels.
        height: original height, in pixels.
        fill: value of the border, in [0, 1].
        interpolation: "bilinear" mixes four neighbors as darknet does, "antialiased" averages more.
    """

    size: int
    scale: float
    pad_left: int
    pad_top: int
    width: int
    height: int
    fill: float = 0.5
    interpolation: Interpolation = "bilinear"

    @classmethod
    def fit(
        cls,
        width: int,
        height: int,
        size: int,
        fill: float = 0.5,
        interpolation: Interpolation = "bilinear",
    ) -> Letterbox:
        """Center an image of width × height pixels in a square as large as it can be."""
        scale = size / max(width, height)
        resized_width, resized_height = _resized(width, height, scale)
        pad_left, pad_top = (size - resized_width) // 2, (size - resized_height) // 2
        return cls(size, scale, pad_left, pad_top, width, height, fill, interpolation)

    def apply(self, image: Image.Image | Pixels) -> Tensor:
        """Return the RGB image, as an array uint8 [H, W, 3], resized and padded, as float [3, size, size] in [0, 1]."""
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255  # [3, H, W]
        width, height = _resized(self.width, self.height, self.scale)
        resized = interpolate(
            pixels[None],
            size=(height, width),
            mode="bilinear",
            align_corners=False,
            antialias=self.interpolation == "antialiased",
        )
        square = torch.full((3, self.size, self.size), self.fill)
        rows = slice(self.pad_top, self.pad_top + height)
        columns = slice(self.pad_left, self.pad_left + width)
        square[:, rows, columns] = resized[0].clamp(0, 1)
        return square

    def to_square(self, boxes: Tensor) -> Tensor:
        """Map boxes [K, 4] from the original image to the square; both xyxy in pixels."""
        return boxes * self._stretch(boxes) + self._shift(boxes)

    def to_image(self, boxes: Tensor) -> Tensor:
        """Map boxes [K, 4] from the square back to the original image, clipped to it; both xyxy in pixels."""
        limits = boxes.new_tensor([self.width, self.height, self.width, self.height])
        return ((boxes - self._shift(boxes)) / self._stretch(boxes)).clamp(min=0).minimum(limits)

    def _stretch(self, boxes: Tensor) -> Tensor:
        # Not simply `scale`: the resized sides are whole pixels, so the two axes differ a little.
        width, height = _resized(self.width, self.height, self.scale)
        x, y = width / self.width, height / self.height
        return boxes.new_tensor([x, y, x, y])

    def _shift(self, boxes: Tensor) -> Tensor:
        return boxes.new_tensor([self.pad_left, self.pad_top, self.pad_left, self.pad_top])


def to_grayscale(images: Tensor) -> Tensor:
    """Replace the colors of [..., 3, H, W] by their Rec. 601 gray value, the same in all three channels."""
    weights = images.new_tensor(REC_601)[:, None, None]
    return (images * weights).sum(dim=-3, keepdim=True).expand_as(images).contiguous()


def _resized(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))
