"""What is known of a tensor in the graph: where its channels lie, which units they are, which of them are constant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from prunekit.graph.channels.units import Labels


@dataclass(frozen=True)
class Value:
    """One tensor.

    Attributes:
        shape: Its shape on the example.
        dim: The dimension along which its channels lie; None where it has none that are known.
        labels: The label of each channel, [shape[dim]].
        constants: float64, of the tensor's rank and of size 1 along dimensions that it does not vary over: the number
            that the channel is at every pixel of every image, nan where that is not one number.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    labels: Labels = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    constants: Tensor = field(default_factory=lambda: torch.tensor(torch.nan, dtype=torch.float64))
    framed: bool = False

    @property
    def has_channels(self) -> bool:
        """Whether its channels are known."""
        return self.dim is not None

    def channel_constants(self) -> Tensor:
        """Return one constant a channel, [shape[dim]]; nan where a channel has several."""
        assert self.dim is not None
        flat = by_channel(self.constants.expand(*self._constant_shape()), self.dim)
        is_one = (flat == flat[:, :1]).all(dim=1)
        return torch.where(is_one, flat[:, 0], torch.nan).expand(self.shape[self.dim]).clone()

    def with_constants(self, per_channel: Tensor) -> Value:
        """Return the same channels with other constants, [shape[dim]]."""
        assert self.dim is not None
        return replace(self, constants=along(per_channel, self.dim, len(self.shape)))

    def _constant_shape(self) -> list[int]:
        assert self.dim is not None
        sizes = list(self.constants.shape) if self.constants.dim() == len(self.shape) else [1] * len(self.shape)
        sizes[self.dim] = self.shape[self.dim]
        return sizes


def unknown(shape: tuple[int, ...]) -> Value:
    """Return a tensor of which nothing is known but its shape."""
    return Value(shape, constants=torch.full([1] * len(shape), torch.nan, dtype=torch.float64))


def channels(shape: tuple[int, ...], dim: int, labels: Labels, per_channel: Tensor) -> Value:
    """Return a tensor with channels along `dim`."""
    return Value(shape, dim, labels, along(per_channel, dim, len(shape)))


def by_channel(tensor: Tensor, dim: int) -> Tensor:
    """View a tensor of any rank as a table with a row for each index of `dim`."""
    rows = tensor.movedim(dim, 0)
    return rows.flatten(1) if rows.dim() > 1 else rows[:, None]


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """View a vector as a tensor of `rank` dimensions that varies along `dim` alone."""
    return vector.reshape([-1 if d == dim else 1 for d in range(rank)])


def finite_or_nan(constants: Tensor) -> Tensor:
    """Replace what is no finite number: an infinity is no constant that could be folded."""
    return torch.where(constants.isfinite(), constants, torch.nan)


def squeezed(tensor: Tensor) -> Tensor:
    """Cut a tensor to size 1 along each dimension that it does not vary over; nan equals nan."""
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(dim, 0, 1)
            same = tensor == first
            if tensor.is_floating_point():
                same |= tensor.isnan() & first.isnan()
            if bool(same.all()):
                tensor = first
    return tensor
