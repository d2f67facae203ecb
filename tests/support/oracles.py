"""Slow float64 oracles that share no code with the product, and the one table of tolerances."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Relative RMS that a dtype's rounding explains on the sizes in these tests.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def masked_conv2d_oracle(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Sum the kept taps one by one, in float64: a dropped tap is never touched."""
    xs, ws, kept = x.double().numpy(), weight.detach().double().numpy(), mask.numpy()
    (n, _, h, w), (k, c, r, s) = xs.shape, ws.shape
    p = (h + 2 * padding[0] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + 2 * padding[1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    padded = np.zeros((n, xs.shape[1], h + 2 * padding[0], w + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = xs
    y = np.zeros((n, k, p, q))
    for o, i, a, b in zip(*kept.nonzero(), strict=True):
        channel = o // (k // groups) * c + i
        top, left = a * dilation[0], b * dilation[1]
        rows = slice(top, top + (p - 1) * stride[0] + 1, stride[0])
        columns = slice(left, left + (q - 1) * stride[1] + 1, stride[1])
        with np.errstate(invalid="ignore"):  # poisoned tests add inf to -inf
            y[:, o] += ws[o, i, a, b] * padded[:, channel, rows, columns]
    if bias is not None:
        y += bias.detach().double().numpy()[:, None, None]
    return torch.from_numpy(y)


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Root mean square of the difference over that of the expected; nan and inf must stand in the same places."""
    a, b = expected.detach().double(), actual.detach().double()
    special = ~a.isfinite()
    assert torch.equal(a[special].nan_to_num(7.0), b[special].nan_to_num(7.0))
    a, b = a[~special], b[~special]
    if a.numel() == 0 or not bool(a.any()):
        return float(b.abs().max()) if b.numel() else 0.0
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt())
