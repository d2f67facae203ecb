"""What was computed from what, with the interval of every value: a bound is traced back through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

_NUMBERS = count()
#: From coefficients [K, N, ...] of an output in a lower bound to those of each input, and a constant [K, N].
Pull = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]


@dataclass(frozen=True, eq=False)
class Node:
    """One value of a forward pass on N balls of images.

    Attributes:
        lower: No image of a ball takes the value below it, [N, ...].
        upper: Nor above it.
        inputs: What it was computed from; nothing for the images themselves.
        pull: How a lower bound that is linear in the value becomes one that is linear in the inputs.
        is_affine: Whether pulling loses nothing.
        number: Grows from node to node, so that inputs have smaller ones.
    """

    lower: Tensor
    upper: Tensor
    inputs: tuple[Node, ...] = ()
    pull: Pull | None = None
    is_affine: bool = True
    number: int = field(default_factory=lambda: next(_NUMBERS))

    @property
    def center(self) -> Tensor:
        """The middle of the interval."""
        return (self.upper + self.lower) / 2

    @property
    def radius(self) -> Tensor:
        """Half of the interval's length."""
        return (self.upper - self.lower) / 2

    def least(self, coefficients: Tensor) -> Tensor:
        """Return the least value of Σ coefficients · value over the interval, [K, N], for coefficients [K, N, ...]."""
        worst = coefficients * self.center - coefficients.abs() * self.radius
        return worst.flatten(2).sum(2)


def lower_bound(output: Node, coefficients: Tensor, relax: bool) -> Tensor:
    """Return lower bounds of Σ coefficients · output over each ball, [K, N].

    Args:
        output: What the bounds are about.
        coefficients: [K, N, ...], K linear functions of the output for each image.
        relax: Replace each nonlinearity by lines above and below it, back to the images (CROWN, Zhang et al. 2018);
            else stop at the intervals of the last ones (interval bounds, with the last linear layers in one).
    """
    pending, bound = {output: coefficients}, coefficients.new_zeros(coefficients.shape[:2])
    while pending:
        node = max(pending, key=lambda node: node.number)
        current = pending.pop(node)
        if node.pull is None or not (node.is_affine or relax):
            bound = bound + node.least(current)
            continue
        pulled, constant = node.pull(current)
        bound = bound + constant
        for source, share in zip(node.inputs, pulled, strict=True):
            pending[source] = pending[source] + share if source in pending else share
    return bound
