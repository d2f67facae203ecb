"""Weights that are computed from other tensors: torch's pruning, weight_norm, spectral_norm, parametrizations.

The *effective* weight is what the forward pass convolves with. Where a hook computes it, the attribute `weight` is only
what the last forward pass left there, and where a parametrization does, reading it may change buffers (spectral_norm's
power iteration in training mode). `effective` gives it without either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunekit.errors import InputError
from prunekit.nn.random_state import own_random_state

Hook = BasePruningMethod | WeightNorm | SpectralNorm

# What to call to make a computed tensor a plain one.
_REMEDIES: dict[type, str] = {
    BasePruningMethod: "torch.nn.utils.prune.remove(layer, {!r})",
    WeightNorm: "torch.nn.utils.remove_weight_norm(layer, {!r})",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(layer, {!r})",
    parametrize.ParametrizationList: "torch.nn.utils.parametrize.remove_parametrizations(layer, {!r})",
}


def computing_hooks(module: nn.Module) -> dict[str, Hook]:
    """Return the hooks of torch that compute one of the module's tensors before each forward pass, by its name."""
    hooks: dict[str, Hook] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            hooks[hook._tensor_name] = hook
        elif isinstance(hook, (WeightNorm, SpectralNorm)):
            hooks[hook.name] = hook
    return hooks


def is_stored(module: nn.Module, name: str = "weight") -> bool:
    """Return whether a tensor of the module is a parameter or a buffer of its own."""
    is_held = module._parameters.get(name) is not None or module._buffers.get(name) is not None
    return is_held and name not in computing_hooks(module) and not parametrize.is_parametrized(module, name)


def effective(module: nn.Module, name: str = "weight") -> Tensor:
    """Return a tensor as the next forward pass in eval mode uses it; nothing of the module changes."""
    hook = computing_hooks(module).get(name)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)  # type: ignore[no-any-return]
    if isinstance(hook, BasePruningMethod):
        return hook.apply_mask(module)  # type: ignore[no-any-return, no-untyped-call]
    if parametrize.is_parametrized(module, name):
        with _parametrizations_in_eval(module, name), own_random_state():
            return _tensor(module, name)
    return _tensor(module, name)


def storage_name(layer: str, module: nn.Module, name: str = "weight") -> str:
    """Return the name of the tensor in which a zero makes the effective tensor zero there, and changes nothing else.

    That is the tensor itself, or what torch.nn.utils.prune multiplies with its mask.

    Raises:
        InputError: it is computed in another way, or is not there; the sentence says how to make it a plain one.
    """
    is_pruned = isinstance(computing_hooks(module).get(name), BasePruningMethod)
    stored = f"{name}_orig" if is_pruned else name
    if not (is_pruned and _is_held(module, stored)) and not is_stored(module, name):
        raise InputError(f"Expected layer {layer!r} to have a plain {name}, {_got(module, name)}.")
    return stored


def refresh(module: nn.Module, name: str = "weight") -> None:
    """Let the attribute that torch.nn.utils.prune computes follow a change of what it is computed from."""
    if isinstance(computing_hooks(module).get(name), BasePruningMethod):
        setattr(module, name, effective(module, name))


@contextmanager
def held_weights(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yield each layer's effective weight, the very tensor that every forward pass inside the block reads.

    Computed weights are leaves of the graph there, so that a gradient is one to the effective weight. The layers, in
    eval mode, are afterwards as they were.

    Raises:
        InputError: a weight is computed in a way that is not known.
    """
    with ExitStack() as stack:
        stack.enter_context(parametrize.cached())
        yield {name: stack.enter_context(_held(name, layer)) for name, layer in layers.items()}


@contextmanager
def _held(name: str, layer: nn.Module) -> Iterator[Tensor]:
    if "weight" in computing_hooks(layer):
        with _without_hook(layer) as weight:
            yield weight
        return
    if parametrize.is_parametrized(layer, "weight"):
        with torch.no_grad(), own_random_state():
            weight = _tensor(layer, "weight")  # cached: what all further reads return
    elif _is_held(layer, "weight") or "weight" in layer.__dict__:
        weight = _tensor(layer, "weight")
    else:
        raise InputError(f"Expected layer {name!r} to have a plain weight, {_got(layer, 'weight')}.")
    required = weight.requires_grad
    try:
        yield weight
    finally:
        weight.requires_grad_(required)


@contextmanager
def _without_hook(layer: nn.Module) -> Iterator[Tensor]:
    hook, hooks, before = computing_hooks(layer)["weight"], dict(layer._forward_pre_hooks), layer.__dict__.get("weight")
    with torch.no_grad():
        weight = effective(layer).clone()
    del layer._forward_pre_hooks[next(key for key, known in hooks.items() if known is hook)]
    layer.weight = weight
    try:
        yield weight
    finally:
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks.update(hooks)
        layer.__dict__["weight"] = before


@contextmanager
def _parametrizations_in_eval(module: nn.Module, name: str) -> Iterator[None]:
    parts = list(module.parametrizations[name].modules())  # type: ignore[index, union-attr]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _is_held(module: nn.Module, name: str) -> bool:
    return module._parameters.get(name) is not None or module._buffers.get(name) is not None


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _got(module: nn.Module, name: str) -> str:
    """Return the end of a message: what computes the tensor, and how to make it a plain one."""
    hook = computing_hooks(module).get(name)
    if hook is not None:
        kind = next(kind for kind in _REMEDIES if isinstance(hook, kind))
        return f"got one that {type(hook).__name__} computes: call {_REMEDIES[kind].format(name)} first"
    if parametrize.is_parametrized(module, name):
        parts = ", ".join(type(part).__name__ for part in module.parametrizations[name])  # type: ignore[index]
        remedy = _REMEDIES[parametrize.ParametrizationList].format(name)
        return f"got one that a parametrization ({parts}) computes: call {remedy} first"
    return f"got a {type(module).__name__} whose {name} is neither a parameter nor a buffer"
