"""A copy of a model in which every weight is a plain parameter; the model is neither run nor changed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.nn import MaskedConv2d
from prunekit.nn.evaluating import set_eval_mode
from prunekit.nn.fusion import replace_module
from prunekit.nn.unwrapping import unwrap_submodules


@torch.no_grad()
def plain_copy(model: nn.Module, example: Call) -> nn.Module:
    """Copy a model; computed weights (pruning, parametrizations, weight_norm, MaskedConv2d) become plain parameters.

    Wrappers of submodules, such as torch.compile's, are taken off.

    Raises:
        InputError: The model cannot be copied, or does not run on the example.
    """
    try:
        plain = _copied(model)
    except Exception as error:  # deepcopy runs foreign code
        raise InputError(f"Expected a model that can be copied, but {type(model).__name__} raised: {error}.") from error
    unwrap_submodules(plain)
    set_eval_mode(plain)  # a module of an exported program has a flag that says nothing
    _check_runs(plain, example)
    for name, module in list(plain.named_modules()):
        if isinstance(module, MaskedConv2d):
            dense = module.to_dense().train(module.training)
            for place, other in list(plain.named_modules(remove_duplicate=False)):
                if other is module and place:
                    replace_module(plain, place, dense)
            plain = plain if name else dense
            continue
        _remove_hooks(module)
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
    return plain


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model; of weights that hooks computed with gradients, which deepcopy refuses, the numbers."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def _check_runs(model: nn.Module, example: Call) -> None:
    try:
        example.run(model)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example.tensors)
        sentence = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise InputError(
            f"Expected a model that runs on the example input of shape {shapes}, but {type(model).__name__} raised "
            f"{type(error).__name__}: {sentence}."
        ) from error


def _remove_hooks(module: nn.Module) -> None:
    """Make parameters of what torch's pruning, weight_norm and spectral_norm compute before each call."""
    for kind, remove in (
        (prune.BasePruningMethod, prune.remove),
        (WeightNorm, remove_weight_norm),
        (SpectralNorm, remove_spectral_norm),
    ):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, kind):
                found: Any = hook
                remove(module, getattr(found, "_tensor_name", None) or found.name)


def _remove_parametrizations(module: nn.Module) -> None:
    """Make plain tensors of parametrized ones.

    torch's own remove_parametrizations deletes the property from the module's class, which copies share with the
    module that they were copied from.
    """
    lists: Any = module.parametrizations
    values = {name: (getattr(module, name).detach().clone(), _is_parameter(lists[name])) for name in lists}
    requires_grad = {name: any(p.requires_grad for p in lists[name].parameters(recurse=False)) for name in lists}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, (value, is_parameter) in values.items():
        if is_parameter:
            module.register_parameter(name, nn.Parameter(value, requires_grad[name]))
        else:
            module.register_buffer(name, value)


def _is_parameter(parametrizations: Any) -> bool:
    originals = [getattr(parametrizations, name) for name in dir(parametrizations) if name.startswith("original")]
    return any(isinstance(tensor, nn.Parameter) for tensor in originals)
