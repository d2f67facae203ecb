"""What packed filters of any format have in common: their header, their tensors, and their pattern without weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from prunekit.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class FilterHeader:
    """The weight's sizes, which a packed filter of any format begins with; formats add their own numbers."""

    FORMAT: ClassVar[str]

    out_channels: int
    group_channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    chunk_channels: int

    def words(self) -> list[int]:
        """Flatten for the op."""
        return list(astuple(self))

    @classmethod
    def read(cls, words: Sequence[int]) -> Self:
        """Undo `words`."""
        if len(words) != len(fields(cls)):
            raise InputError(f"a {cls.FORMAT} filter's header has {len(fields(cls))} numbers; got {len(words)}.")
        return cls(*words)

    @property
    def longest_run(self) -> tuple[int, ...]:
        """What a block holds of a run at most: the numbers that are called longest, in the format's units."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name.startswith("longest"))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The weight's shape [K, C / groups, R, S]."""
        return self.out_channels, self.group_channels, self.kernel_h, self.kernel_w


@dataclass(frozen=True)
class FilterParts:
    """A header, and the tensors that a format adds to it as fields.

    Attributes:
        header: what launches need to know.
    """

    header: FilterHeader

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        """Return the names of the tensors, in their order."""
        return tuple(field.name for field in fields(cls) if field.name != "header")

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors in their order."""
        return tuple(getattr(self, name) for name in self.tensor_names())

    def to(self, device: torch.device | str) -> Self:
        """Return the same with its tensors on `device`."""
        make: Callable[..., Self] = type(self)
        return make(self.header, *(tensor.to(device) for tensor in self.tensors()))


@dataclass(frozen=True)
class PackedFilter(FilterParts, ABC):
    """A filter with its weights; its tensors are the op's, in the op's order."""

    HEADER: ClassVar[type[FilterHeader]]

    @classmethod
    def read(cls, words: Sequence[int], *tensors: Any) -> Self:
        """Undo `arguments`."""
        make: Callable[..., Self] = cls
        return make(cls.HEADER.read(words), *tensors)

    def arguments(self) -> tuple[object, ...]:
        """Return the op's arguments between x and the bias: the header's words, then the tensors."""
        return self.header.words(), *self.tensors()

    @abstractmethod
    def unpack(self) -> tuple[Tensor, Tensor]:
        """Return (weight [K, C / groups, R, S] with zeros where dropped, mask); for files and references, so slow."""

    def weight(self) -> Tensor:
        """Return the weight [K, C / groups, R, S], with zeros where dropped."""
        return self.unpack()[0]


@dataclass(frozen=True)
class FilterPattern(FilterParts, ABC):
    """A filter without its weights: what the mask alone decides."""

    @abstractmethod
    def fill(self, weight: Tensor) -> PackedFilter:
        """Gather `weight`, of the mask's shape and on the pattern's device, into its places; waits for nothing."""
