"""The module inside a wrapper that changes how it runs, and not what it computes."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from prunekit.nn.fusion import replace_module


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Take a model out of torch.compile, DataParallel and DistributedDataParallel, however deep they nest.

    Returns:
        The module inside, which is the model itself where there is no wrapper, and a sentence (without a full stop)
        for each wrapper.
    """
    notes = []
    while (inside := _inside(model)) is not None:
        name = "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__
        notes.append(f"the model was taken out of {name}")
        model = inside
    return model, notes


def unwrap_submodules(model: nn.Module) -> None:
    """Take the submodules of a model out of such wrappers, in place."""
    for name, module in list(model.named_modules()):
        if name and _inside(module) is not None:
            replace_module(model, name, unwrap(module)[0])


def _inside(model: nn.Module) -> nn.Module | None:
    inside: Any = None
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inside = model.module
    else:
        compiler = sys.modules.get("torch._dynamo.eval_frame")  # there where anything was compiled; slow to import
        if compiler is not None and isinstance(model, compiler.OptimizedModule):
            inside = model._orig_mod
    return inside if isinstance(inside, nn.Module) else None
