"""Eval mode for whatever module is handed over, and its own mode back afterwards.

`model.eval()` is not always there: modules of exported programs raise at it, modules frozen by TorchScript have no
training flag, and some classes do work in `train` (merging adapters into weights, switching noise off). What such a
method changed is put back as well: flags, attributes and numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_DICTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and everything that this changes back afterwards, also when something raises.

    A model that refuses `eval()` (as torch.export's do) computes one thing only and is left to do that.
    """
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules if _has_flag(module)]
    if not any(flag for _, flag in flags):
        yield
        return
    attributes = [(module, _attributes(module)) for module in modules] if any(map(_has_own_mode, modules)) else []
    tensors = [(t, t.detach().clone()) for t in _tensors(modules)] if attributes else []
    try:
        set_eval_mode(model)
        yield
    finally:
        for module, before in attributes:
            _restore(module, before)
        with torch.no_grad():
            for tensor, numbers in tensors:
                if not _is_same(tensor, numbers):
                    tensor.copy_(numbers)
        for module, flag in flags:
            module.training = flag


def set_eval_mode(model: nn.Module) -> nn.Module:
    """Put a model into eval mode for good, as far as its modules allow it, and return it.

    A class with a `train` or `eval` of its own is asked; where that raises, the flags are set.
    """
    if _has_own_mode(model):
        try:
            model.eval()
            return model
        except Exception:  # a foreign method; torch.export's modules raise NotImplementedError
            pass
    if _has_flag(model):
        model.training = False
    for child in model.children():
        set_eval_mode(child)
    return model


def _has_flag(module: nn.Module) -> bool:
    return isinstance(getattr(module, "training", None), bool)


def _has_own_mode(module: nn.Module) -> bool:
    """Tell whether a module's class, or the module itself, replaces nn.Module's `train` or `eval`."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    cls, own = type(module), vars(module)
    return cls.train is not nn.Module.train or cls.eval is not nn.Module.eval or "train" in own or "eval" in own


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, with copies of the dicts that hold its tensors and children."""
    own = dict(vars(module))
    return {**own, **{name: dict(own[name]) for name in _DICTS if isinstance(own.get(name), dict)}}


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return  # it holds its state in C++, and does nothing in eval() but set flags
    own = vars(module)
    for name in [name for name in own if name not in before]:
        del own[name]
    for name, value in before.items():
        if name in _DICTS and isinstance(own.get(name), dict):  # others may hold this very dict
            own[name].clear()
            own[name].update(value)
        else:
            own[name] = value


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    held = [t for module in modules for t in (*module.parameters(False), *module.buffers(False))]
    return list({id(t): t for t in held}.values())


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers; nan equals nan."""
    return a.shape == b.shape and bool(torch.equal(a, b) or torch.allclose(a, b, 0, 0, equal_nan=True))
