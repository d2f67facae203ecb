"""Convolution arguments: pairs, padding and the output size, said once for all ops."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.errors import InputError

IntPair = int | tuple[int, ...] | list[int]


def pair(name: str, value: IntPair) -> tuple[int, int]:
    """Turn an int or a sequence of two ints into a pair (height, width)."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise InputError(f"{name} must be an int or a pair of ints; got {value!r}.")
    return values[0], values[1]


def split_padding(
    padding: IntPair | str, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], tuple[int, int]]:
    """Split padding into an explicit pad (left, right, top, bottom) and a symmetric rest for the op.

    Only "same" with an even extent needs the explicit one: torch then pads one more on the right and bottom.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return [0, 0, 0, 0], (0, 0)
        if padding != "same":
            raise InputError(f'padding must be an int, a pair, "valid" or "same"; got {padding!r}.')
        if max(stride) > 1:
            raise InputError(f'padding="same" needs stride 1; got stride {tuple(stride)}.')
        total = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        return [0, total[1] % 2, 0, total[0] % 2], (total[0] // 2, total[1] // 2)
    symmetric = pair("padding", padding)
    if min(symmetric) < 0:
        raise InputError(f"padding must not be negative; got {symmetric}.")
    return [0, 0, 0, 0], symmetric


def conv_output_size(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Return (P, Q) as nn.Conv2d's documentation defines it.

    Raises:
        InputError: the dilated kernel is larger than the padded input.
    """
    size = []
    for x, k, s, p, d in zip(x_shape[2:], weight_shape[2:], stride, padding, dilation, strict=True):
        span = x + 2 * p - d * (k - 1) - 1
        if span < 0:
            raise InputError(
                f"the dilated kernel does not fit: input {tuple(x_shape[2:])}, padding {tuple(padding)}, "
                f"kernel {tuple(weight_shape[2:])}, dilation {tuple(dilation)}."
            )
        size.append(span // s + 1)
    return size[0], size[1]
