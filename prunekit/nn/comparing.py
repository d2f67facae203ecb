"""Whether an accelerated model computes what its original does."""

from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunekit.errors import WrongOutputError
from prunekit.nn.tuning import MAX_RELATIVE_RMS
from prunekit.timing import relative_rms


def check_equal(expected: object, actual: object, most: float = MAX_RELATIVE_RMS) -> None:
    """Compare outputs of any nesting.

    Raises:
        WrongOutputError: they differ by more than `most`, in relative RMS.
    """
    difference = largest_difference(expected, actual)
    if not difference <= most:  # also when it is nan
        raise WrongOutputError(
            f"the accelerated model differs from the original by {difference:.3g} relative RMS; expected at most "
            f"{most:g}."
        )


def largest_difference(expected: object, actual: object) -> float:
    """Return the largest relative RMS over the outputs' tensors, whatever their nesting."""
    pairs = zip(tree_leaves(expected), tree_leaves(actual), strict=True)
    return max((relative_rms(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)
