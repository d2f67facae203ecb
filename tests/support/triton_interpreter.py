"""Makes triton's interpreter, which runs kernels on a processor, trustworthy.

The interpreter reads and writes wherever a kernel points, and multiplies bfloat16 as the integers that it stores them
as. Here every active pointer must lie in one of the tensors named, and bfloat16 is widened before it is multiplied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_allowed: list[tuple[int, int]] | None = None


class OutsideError(Exception):
    """A kernel's pointer lay outside every tensor."""


@contextlib.contextmanager
def only(*tensors: Tensor | None) -> Iterator[None]:
    """Inside, kernels may touch these tensors' elements only."""
    global _allowed
    _allowed = [
        (t.data_ptr(), t.data_ptr() + _extent(t) * t.element_size()) for t in tensors if t is not None and t.numel()
    ]
    try:
        yield
    finally:
        _allowed = None


def _extent(t: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def _check(pointers: Any, mask: Any) -> None:
    if _allowed is None:
        return
    at = np.asarray(pointers.data).astype(np.int64)
    active = np.broadcast_to(np.asarray(mask.data, bool), at.shape)
    at, size = at[active], max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    inside = np.zeros(at.shape, bool)
    for first, end in _allowed:
        inside |= (at >= first) & (at + size <= end)
    if not inside.all():
        raise OutsideError(f"{(~inside).sum()} of {at.size} active pointers lie outside every tensor")


def install_checks() -> None:
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if hasattr(builder, "_prunekit_checks"):
        return
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    tl, handle = interpreter.tl, interpreter.TensorHandle

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        _check(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return handle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def right_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.create_dot, builder._prunekit_checks = right_dot, True


def poisoned(t: Tensor) -> Tensor:
    """The same values amid nan, so that what is read beyond them shows."""
    arena = torch.full((t.numel() + 64,), torch.nan, dtype=t.dtype)
    inside = torch.as_strided(arena[32:], t.shape, t.stride())
    return inside.copy_(t)
