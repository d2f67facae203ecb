"""Any model in float64, also one that casts inside: every operator computes in float64 whatever it is asked for.

Casts to a narrower type round, and a proof in float64 ends there: `x.float()`, half precision, autocast, uint8 images,
tables that a forward makes in float32. Rounding is not what a compaction is to prove, so it is left out on both sides.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_NARROW = frozenset((torch.float32, torch.float16, torch.bfloat16))


class ComputingInFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator on float64 in place of float32, float16 and bfloat16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._assert_tensor_metadata.default:  # of exported programs: the dtype is another now
            return None
        schema = func._schema
        args = [
            value if _is_written(schema.arguments[i]) else _widened(value)
            for i, value in enumerate(args)
        ]  # fmt: skip
        named = {argument.name: argument for argument in schema.arguments}
        kwargs = {key: value if _is_written(named[key]) else _widened(value) for key, value in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        # Factories without a dtype give the default one. What is written into, or looks into another tensor, stays.
        is_alias = any(returned.alias_info is not None for returned in schema.returns)
        return result if is_alias else _widened(result)


def in_float64(model: nn.Module) -> nn.Module:
    """Return a float64 copy; to be run under `ComputingInFloat64`."""
    return copy.deepcopy(model).double()


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    if type(value) in (list, tuple):
        return type(value)(map(_widened, value))
    return value
