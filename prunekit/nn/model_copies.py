"""Copies of foreign models: everything is tried on copies, so that what was handed over stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

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
    memo: dict[int, Any] = {}
    for value in _attributes(model):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    try:
        return _frozen(copy.deepcopy(model, dict(memo)))
    except Exception:  # deepcopy runs foreign code
        for value in _attributes(model):
            if not isinstance(value, (Tensor, nn.Module)) and not _can_be_copied(value, memo):
                memo[id(value)] = value
    try:
        return _frozen(copy.deepcopy(model, memo))
    except Exception as error:
        raise CopyError(first_line(error)) from error


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters are the model's own; buffers and everything else are copies."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def with_plain_weights(model: nn.Module) -> nn.Module:
    """Return a copy in which weights that are computed at every call are what they are now.

    These are the masks of torch.nn.utils.prune, parametrizations, weight_norm and spectral_norm, and MaskedConv2d,
    which becomes a convolution with zeros.
    """
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        is_masked = isinstance(module, MaskedConv2d) and module.activation == "none" and name
        if is_masked and not module._forward_hooks and not module._forward_pre_hooks:
            replace_module(plain, name, module.to_dense())
            continue
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm)):
                _make_permanent(module, hook)
        if parametrize.is_parametrized(module):
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    return _frozen(plain)


def has_computed_weights(model: nn.Module) -> bool:
    """Return whether `with_plain_weights` would change the model."""
    return any(
        isinstance(module, MaskedConv2d)
        or parametrize.is_parametrized(module)
        or any(isinstance(h, (BasePruningMethod, WeightNorm, SpectralNorm)) for h in module._forward_pre_hooks.values())
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


def first_line(error: BaseException) -> str:
    """Return an error's first line without its full stop, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().removesuffix(".")


def _frozen(model: nn.Module) -> nn.Module:
    set_eval_mode(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


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


def _make_permanent(module: nn.Module, hook: Any) -> None:
    name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
    hook.remove(module)
    for key, other in list(module._forward_pre_hooks.items()):
        if other is hook:
            del module._forward_pre_hooks[key]
    assert name in module._parameters, "the hooks' own remove() makes a parameter of what they computed"
