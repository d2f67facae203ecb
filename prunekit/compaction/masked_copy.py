"""A copy of a model with its masks applied, after everything that can be wrong with them was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from prunekit.compaction.plain import plain_copy
from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.nn.unwrapping import unwrap

_MASKABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def masked_copy(model: nn.Module, example: Call, masks: Mapping[str, Tensor] | None) -> nn.Module:
    """Return a copy of `model` whose masked weights are zero.

    Raises:
        InputError: The model is in training mode, cannot be copied or does not run; a mask names an unknown layer, has
            another shape, takes all filters of a layer, or is for a weight that the forward computes anew.
    """
    inside, _ = unwrap(model)
    _check_kind(inside)
    plain = plain_copy(inside, example)
    masks = {_own_name(model, inside, name): mask for name, mask in (masks or {}).items()}
    for name, mask in masks.items():
        layer = _masked_layer(plain, name)
        layer.weight.masked_fill_(~_weight_mask(name, layer.weight, mask), 0.0)
    if masks:
        _check_masks_hold(plain, example, masks)
    _check_filters(plain)
    return plain


def _own_name(model: nn.Module, inside: nn.Module, name: str) -> str:
    """Return a layer's name without what wrappers put in front of it."""
    name = name.replace("_orig_mod.", "")
    return name if inside is model or hasattr(inside, "module") else name.removeprefix("module.")


def _check_kind(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule) or any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise InputError(
            f"Expected a module with Python code, got a TorchScript program ({type(model).__name__}), whose layers "
            "cannot be changed: compact the module that it was made from."
        )
    is_exported = isinstance(model, fx.GraphModule) and "eval" in vars(model)  # has one mode, and refuses eval()
    for name, module in model.named_modules():
        has_mode = module is model or isinstance(module, (_NormBase, _DropoutNd))
        if module.training and has_mode and not is_exported:
            raise InputError(
                f"Expected a model in eval mode, but {name or type(model).__name__} is in training mode: call eval()."
            )


def _check_masks_hold(model: nn.Module, example: Call, masks: Mapping[str, Tensor]) -> None:
    """A hook or a forward that writes a layer's weight at each call would undo the masks."""
    example.run(model)
    for name, mask in masks.items():
        layer = _masked_layer(model, name)
        if bool(layer.weight[~_weight_mask(name, layer.weight, mask)].any()):
            raise InputError(
                f"Expected the mask of layer {name!r} to hold, but something computes the layer's weight at every call "
                "and undoes it: make the weight a plain parameter first."
            )


def _masked_layer(model: nn.Module, name: str) -> Any:
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, _MASKABLE) or _holds_weight(m)}
    if name not in layers:
        raise InputError(
            f"Expected masks for the model's {len(layers)} convolutions and linear layers, such as "
            f"{', '.join(repr(n) for n in list(layers)[:3])}, but there is none called {name!r}."
        )
    return layers[name]


def _holds_weight(module: nn.Module) -> bool:
    """Tell whether a module stands for a layer in an exported program."""
    weight = getattr(module, "weight", None)
    return type(module) is nn.Module and isinstance(weight, nn.Parameter) and weight.dim() > 1


def _weight_mask(name: str, weight: Tensor, mask: object) -> Tensor:
    """Return a mask of the weight's shape."""
    shape = tuple(weight.shape)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = f"one of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"Expected the mask of layer {name!r} to be a bool tensor, True = kept, got {found}.")
    if tuple(mask.shape) == shape:
        return mask.to(weight.device)
    if tuple(mask.shape) == shape[:1]:
        return mask.to(weight.device).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    raise InputError(
        f"Expected the mask of layer {name!r} to have the weight's shape {shape} or one entry for each of its "
        f"{shape[0]} filters, got shape {tuple(mask.shape)}."
    )


def _check_filters(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _MASKABLE[:3]) and not bool((module.weight != 0).any()):
            raise InputError(
                f"Expected every layer to keep a filter, but all {len(module.weight)} filters of {name!r} are masked."
            )
