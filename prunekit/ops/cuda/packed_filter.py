"""What packed filters of any format have in common: their header, their tensors, and their pattern without weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
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
class PackedFilter(ABC):
    """A filter with its weights: a header, and the tensors that a format adds to it as fields, in the op's order.

    Attributes:
        HEADER: the header's class.
        WEIGHTS: the tensor that the weights stand in.
        header: what launches need to know.
    """

    HEADER: ClassVar[type[FilterHeader]]
    WEIGHTS: ClassVar[str]

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
        return replace(self, **{name: getattr(self, name).to(device) for name in self.tensor_names()})

    @classmethod
    def read(cls, words: Sequence[int], *tensors: Any) -> Self:
        """Undo `arguments`."""
        make: Callable[..., Self] = cls
        return make(cls.HEADER.read(words), *tensors)

    def arguments(self) -> tuple[object, ...]:
        """Return the op's arguments between x and the bias: the header's words, then the tensors."""
        return self.header.words(), *self.tensors()

    @classmethod
    def stored(cls, weights: Tensor) -> Tensor:
        """Return kept weights, a tensor of their own, as the filter has them."""
        return weights

    def unfilled(self, dtype: torch.dtype) -> Tensor:
        """Return a new tensor for weights of this dtype, with what stands where none is kept."""
        blank: Tensor = getattr(self, self.WEIGHTS)
        return blank.view(dtype).clone()

    @abstractmethod
    def unpack(self) -> tuple[Tensor, Tensor]:
        """Return (weight [K, C / groups, R, S] with zeros where dropped, mask); for files and references, so slow.

        Raises:
            InputError: the tensors are not the ones of the header.
        """

    def weight(self) -> Tensor:
        """Return the weight [K, C / groups, R, S], with zeros where dropped."""
        return self.unpack()[0]


def scattered(header: FilterHeader, where: Sequence[Any], values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight [K, C / groups, R, S] with zeros where dropped, mask) of kept weights.

    Args:
        header: of their filter.
        where: int64 [nnz] each: output channel, input channel of its group, and tap, as NumPy's.
        values: [nnz], on the CPU.
    """
    weight = torch.zeros(*header.shape[:2], header.kernel_h * header.kernel_w, dtype=values.dtype)
    mask, at = torch.zeros(weight.shape, dtype=torch.bool), tuple(map(torch.from_numpy, where))
    weight[at], mask[at] = values, True
    return weight.view(header.shape), mask.view(header.shape)


@dataclass(frozen=True)
class FilterPattern:
    """A filter without its weights: what the mask alone decides, so that new weights cost one gather.

    Attributes:
        blank: the filter, with anything in the place of its weights.
        slots: int64 [nnz], which elements of `PackedFilter.WEIGHTS` are weights; None: those of `sources`, in order.
        sources: int64 [nnz], which element of the weight each of them is.
    """

    blank: PackedFilter
    slots: Tensor | None
    sources: Tensor

    @property
    def header(self) -> FilterHeader:
        """The filter's header."""
        return self.blank.header

    def to(self, device: torch.device | str) -> FilterPattern:
        """Return the same with its tensors on `device`."""
        slots = None if self.slots is None else self.slots.to(device)
        return FilterPattern(self.blank.to(device), slots, self.sources.to(device))

    def fill(self, weight: Tensor) -> Any:
        """Return the filter of `weight`, of the mask's shape and on the pattern's device; waits for nothing."""
        weights = self.blank.stored(weight.detach().reshape(-1)[self.sources])
        if self.slots is not None:
            whole = self.blank.unfilled(weights.dtype)
            weights = whole.view(-1).index_copy_(0, self.slots, weights).view(whole.shape)
        filled: dict[str, Any] = {self.blank.WEIGHTS: weights}
        return replace(self.blank, **filled)


def pattern_of(blank: PackedFilter, slots: Any, where: Sequence[Any], sources: Tensor | None) -> FilterPattern:
    """Return the pattern of a filter whose kept weights' places are known.

    Args:
        blank: the filter, with anything in the place of its weights.
        slots: int64 [nnz], which elements of `PackedFilter.WEIGHTS` are weights, as NumPy's.
        where: int64 [nnz] each: output channel, input channel of its group, and tap, likewise.
        sources: int64 of the mask's shape, the element of the weight that belongs there; None: the one in the same
            place.
    """
    header = blank.header
    sizes = (*header.shape[:2], header.kernel_h * header.kernel_w)
    element = torch.from_numpy(np.ravel_multi_index(tuple(where), sizes))
    return FilterPattern(blank, torch.from_numpy(slots), element if sources is None else sources.flatten()[element])
