"""Images kept in bounded memory, as the network sees them or as decoded: evaluating again does not decode again.

What is kept gives the same bits as decoding. Images as the network sees them are bytes where dividing them by 255 gives
every pixel back (images that need neither resizing nor a border), else float32. What does not fit is not kept and is
decoded each time. Nothing is evicted: an evaluation passes over all images in the same order, where the least recently
used image is the one needed next, so the first images stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: An image as decoded: RGB, uint8 [H, W, 3].
Pixels = npt.NDArray[np.uint8]

#: The default budget: 517 images of 416×416 pixels as float32, or 2068 as bytes.
KEPT_BYTES = 2**30


class KeptImages:
    """Pixels by image id, at most `budget` bytes of them.

    Attributes:
        budget: The limit, in bytes.
        bytes_used: What is kept, in bytes.
    """

    def __init__(self, budget: int = KEPT_BYTES) -> None:
        self.budget = budget
        self.bytes_used = 0
        self._pixels: dict[int, Tensor] = {}

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._pixels

    def keep(self, image_id: int, image: Tensor) -> None:
        """Keep a copy of an image, float [3, S, S] in [0, 1], if it is new and fits."""
        if image_id in self or self.bytes_used + image.numel() > self.budget:
            return
        pixels = _packed(image)
        if self.bytes_used + pixels.nbytes <= self.budget:
            self._pixels[image_id] = pixels
            self.bytes_used += pixels.nbytes

    def get(self, image_id: int) -> Tensor | None:
        """Return a copy of a kept image, float [3, S, S] in [0, 1]; None for one that is not kept."""
        pixels = self._pixels.get(image_id)
        if pixels is None:
            return None
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.clone()


def kept_or_decoded(kept: KeptImages | None, image_id: int, decode: Callable[[], Tensor]) -> Tensor:
    """Return an image from where it is kept, or decoded, and then kept if there is a place for it."""
    image = kept.get(image_id) if kept is not None else None
    if image is None:
        image = decode()
        if kept is not None:
            kept.keep(image_id, image)
    return image


class KeptPixels:
    """Images as decoded, uint8 [H, W, 3], by id; at most `budget` bytes of them.

    They are what is changed anew for every corruption, before anything resizes them.
    """

    def __init__(self, budget: int = KEPT_BYTES) -> None:
        self.budget = budget
        self.bytes_used = 0
        self._pixels: dict[int, Pixels] = {}

    def get(self, image_id: int, decode: Callable[[], Pixels]) -> Pixels:
        """Return a kept image, or decode it, and then keep it if it fits; nobody may write into it."""
        if image_id in self._pixels:
            return self._pixels[image_id]
        pixels = decode()
        if self.bytes_used + pixels.nbytes <= self.budget:
            pixels = pixels.view()
            pixels.flags.writeable = False
            self._pixels[image_id] = pixels
            self.bytes_used += pixels.nbytes
        return pixels


def _packed(image: Tensor) -> Tensor:
    """Return bytes that give the image back exactly, or a copy of it where there are none."""
    pixels = (image * 255).round().to(torch.uint8)
    return pixels if torch.equal(pixels.float() / 255, image) else image.clone()
