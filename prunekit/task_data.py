"""What a data set has to answer for the study: images of one size, their targets, and what identifies both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from prunekit.kept_images import KeptImages, KeptPixels, Pixels

#: Returns a changed copy of an image as decoded, uint8 [H, W, 3], by its pixels and its id.
PixelChange = Callable[[Pixels, int], Pixels]


class Sample(Protocol):
    """One image of a data set, as the network sees it."""

    @property
    def image(self) -> Tensor:
        """[3, S, S] in [0, 1]."""

    @property
    def target(self) -> Any:
        """What is to be learned about it."""


class Batch(Protocol):
    """N samples."""

    @property
    def images(self) -> Tensor:
        """[N, 3, S, S] in [0, 1]."""

    @property
    def targets(self) -> Any:
        """What the task's losses take: labels [N], or one target an image."""

    @property
    def image_ids(self) -> Sequence[int]:
        """Each image's id in its data set."""

    def to(self, device: Any) -> Any:
        """Return the batch on a device."""


class Data(Protocol):
    """A data set of a task: images, what is known about them, and what identifies both."""

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Return a `Sample`.

        Raises:
            InputError: When the image cannot be read.
        """

    def collate(self, samples: list[Any]) -> Any:
        """Join samples to a `Batch`."""

    def notes(self) -> list[str]:
        """Say what was left out, a sentence each."""

    def identity(self) -> Any:
        """Return, JSON-able, what the data are beside their images: categories, size."""

    def fingerprint(self, index: int) -> bytes:
        """Return what identifies an image and what is known about it; raise InputError if it cannot be decoded."""

    def part(self, count: int) -> Any:
        """Return a view of the first `count` images in which an attack has something to take."""

    def resolution(self) -> float:
        """Return how much of the task's main figure one object or image can make at most."""

    def examples(self, count: int) -> list[int]:
        """Return the indices of up to `count` images that are worth showing."""

    def example(self, index: int) -> dict[str, Any]:
        """Describe an image for the report, JSON-able: its "id", its "file_name", and what `Task.picture` shows."""

    def visible(self, index: int, image: Tensor) -> Tensor:
        """Return the part of an image, [3, S, S] as the network sees it, that is not border."""


@runtime_checkable
class NamesClasses(Protocol):
    """A data set whose classes have names."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names, in the order of the labels."""


@runtime_checkable
class HasTrainingPart(Protocol):
    """A data set that has images to learn from beside those to evaluate on."""

    def training(self) -> Any:
        """Return the data to learn from, of the same size and classes."""


@runtime_checkable
class HasHoldout(Protocol):
    """A data set with images beside those to learn from, to choose weights and settings by."""

    def holdout(self) -> Any:
        """Return them, of the same size and classes, or None where this one has none."""


@runtime_checkable
class HasHalves(Protocol):
    """A data set that can be divided, for what is trained on some of its images and evaluated on the others."""

    def half(self, number: int) -> Any:
        """Return a view of every second image, from the first (0) or from the second (1) on."""


@runtime_checkable
class KeepsImages(Protocol):
    """A data set that can keep decoded images; `KeptImages` says why, and what that costs."""

    kept: KeptImages | None

    def is_kept(self, index: int) -> bool:
        """Return whether taking an image decodes nothing."""


@runtime_checkable
class ChangesPixels(Protocol):
    """A data set whose images can be changed right after decoding, before anything resizes them."""

    decoded: KeptPixels | None
    """Where images are kept as decoded, for those who change them many times; None keeps none."""

    def changed(self, change: PixelChange) -> Any:
        """Return a view of the data whose images are changed; it shares what is kept as decoded, and keeps no more."""

    def pixels(self, index: int) -> Pixels:
        """Return an image as decoded, uint8 [H, W, 3], and changed; InputError if it cannot be decoded."""
