"""Lines below and above piecewise linear functions over an interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12  # widths below are none


@dataclass(frozen=True)
class Lines:
    """Slopes and intercepts, [N, ...], of a line below f over an interval, and of one above."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor

    def leaky(self, slope: float) -> Lines:
        """Return lines around slope · x + (1 - slope) · f(x), for a slope from 0 to 1."""
        rest = 1 - slope
        return Lines(
            slope + rest * self.lower_slope,
            rest * self.lower_intercept,
            slope + rest * self.upper_slope,
            rest * self.upper_intercept,
        )

    def pull(self, coefficients: Tensor) -> tuple[tuple[Tensor], Tensor]:
        """Return a lower bound's coefficients [K, N, ...] in front of the function, and its constant [K, N]."""
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        constant = positive * self.lower_intercept + negative * self.upper_intercept
        return (positive * self.lower_slope + negative * self.upper_slope,), constant.flatten(2).sum(2)


def clamp_lines(lower: Tensor, upper: Tensor, least: float, most: float) -> Lines:
    """Return lines around min(max(x, least), most) for x in [lower, upper]; ReLU is this between 0 and infinity.

    The upper line goes through the interval's left end and, up to where the function is convex, its right one; or it
    is the constant `most` where that leaves less area (CROWN's choice for ReLU, Zhang et al. 2018). The lower line
    likewise, the other way around.
    """
    upper_slope, upper_intercept = _upper_line(lower, upper, least, most)
    slope, intercept = _upper_line(-upper, -lower, -most, -least)  # clamp(x) = -clamp(-x)
    return Lines(slope, -intercept, upper_slope, upper_intercept)


def _upper_line(lower: Tensor, upper: Tensor, least: float, most: float) -> tuple[Tensor, Tensor]:
    start, end = lower.clamp(least, most), upper.clamp(max=most)
    width = end - lower
    slope = torch.where(width > _TINY, (end.clamp(min=least) - start) / width.clamp(min=_TINY), 0.0)
    intercept = start - slope * lower
    if most == float("inf"):
        return slope, intercept
    is_flat = (upper > most) & (slope * (lower + upper) / 2 + intercept > most)
    return torch.where(is_flat, 0.0, slope), torch.where(is_flat, most, intercept)
