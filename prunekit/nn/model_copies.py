"""Copies of foreign models: everything is tried on copies, so that what was handed over stays what it was."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.errors import first_line
from prunekit.nn.computed_weights import computing_hooks
from prunekit.nn.evaluating import evaluating, set_eval_mode
from prunekit.nn.fusion import replace_module
from prunekit.nn.masked_conv2d import MaskedConv2d


class CopyError(Exception):
    """The model cannot be copied; the message is why, without a full stop."""


def copied(model: nn.Module) -> nn.Module:
    """Return a frozen copy of a model in eval mode.

    Tensors that carry a graph, as torch's pruning leaves them after a training step, are copied without it. What cannot
    be copied and is no tensor (a lock, an open file) is shared.

    Raises:
        CopyError: `copy.deepcopy` raises all the same.
    """
    try:
        return _frozen(deep_copy(model))
    except Exception:  # deepcopy runs foreign code
        memo = _without_graphs(model)
        for value in _attributes(model):
            if not isinstance(value, (Tensor, nn.Module)) and not _can_be_copied(value, memo):
                memo[id(value)] = value
    try:
        return _frozen(_deep_copy(model, memo))
    except Exception as error:
        raise CopyError(first_line(error)) from error


def deep_copy(model: nn.Module) -> nn.Module:
    """Copy a model as `copy.deepcopy` does, and raise what it raises; of tensors that carry a graph the numbers."""
    return _deep_copy(model, _without_graphs(model))


def _without_graphs(model: nn.Module) -> dict[int, Any]:
    held = (value for value in _attributes(model) if isinstance(value, Tensor) and not value.is_leaf)
    return {id(tensor): tensor.detach().clone() for tensor in held}


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters are the model's own; buffers and everything else are copies."""
    return _deep_copy(model, {id(parameter): parameter for parameter in model.parameters()})


def with_plain_weights(model: nn.Module) -> nn.Module:
    """Return a copy in which weights that are computed at every call are what they are now.

    These are the masks of torch.nn.utils.prune, parametrizations, weight_norm and spectral_norm, and MaskedConv2d,
    which becomes a convolution with zeros.
    """
    plain = _deep_copy(model, {})
    for name, module in list(plain.named_modules()):
        is_masked = isinstance(module, MaskedConv2d) and module.activation == "none" and name
        if is_masked and not module._forward_hooks and not module._forward_pre_hooks:
            replace_module(plain, name, module.to_dense())
            continue
        make_weights_plain(module)
    return _frozen(plain)


def make_weights_plain(module: nn.Module) -> None:
    """Make parameters and buffers of what torch's pruning, weight_norm, spectral_norm and parametrizations compute."""
    while hooks := computing_hooks(module):
        for name, hook in hooks.items():
            _make_permanent(module, name, hook)
    if parametrize.is_parametrized(module):
        _forget_parametrizations(module)


def has_computed_weights(model: nn.Module) -> bool:
    """Return whether `with_plain_weights` would change the model."""
    return any(
        isinstance(module, MaskedConv2d) or parametrize.is_parametrized(module) or bool(computing_hooks(module))
        for module in model.modules()
    )


class OriginalModel(nn.Module):
    """A model that cannot be copied, called as it is: in eval mode, without gradients, its own mode put back.

    It is no submodule, so that nothing done to this module reaches it.

    Attributes:
        report: Why (`prunekit.nn.AccelerationReport`).
    """

    original: nn.Module
    report: object

    def __init__(self, model: nn.Module) -> None:
        """Wrap `model`."""
        super().__init__()
        object.__setattr__(self, "original", model)
        self.report, self.training = None, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the original."""
        with torch.no_grad(), evaluating(self.original):
            return self.original(*args, **kwargs)


def _frozen(model: nn.Module) -> nn.Module:
    set_eval_mode(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a model, and the closures that someone put in the place of its modules' methods.

    copy.deepcopy takes a function as it is, so that a copy's `forward` would run on the original it closes over.
    """
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__closure__:
                with contextlib.suppress(Exception):  # it holds what cannot be copied
                    vars(module)[name] = _rebound(value, memo)
    return copied


def _rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    def copy_of(value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return _rebound(value, memo) if value.__closure__ and value is not function else value
        return copy.deepcopy(value, memo)

    cells = tuple(types.CellType(copy_of(cell.cell_contents)) for cell in function.__closure__ or ())
    rebound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    return rebound


def _attributes(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                yield from value.values() if type(value) is dict else [value]


def _can_be_copied(value: object, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _forget_parametrizations(module: nn.Module) -> None:
    """Give a module the tensors that its parametrizations compute, and the class it had before.

    torch's remove_parametrizations deletes a property of the class, which copies share with the original.
    """
    chains: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in chains}
    originals = {name: list(chains[name].parameters(recurse=False)) for name in chains}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        if originals[name]:
            requires_grad = any(original.requires_grad for original in originals[name])
            module.register_parameter(name, nn.Parameter(value, requires_grad))
        else:
            module.register_buffer(name, value)


def _make_permanent(module: nn.Module, name: str, hook: Any) -> None:
    hook.remove(module)
    for key, other in list(module._forward_pre_hooks.items()):
        if other is hook:
            del module._forward_pre_hooks[key]
    assert name in module._parameters, "the hooks' own remove() makes a parameter of what they computed"
