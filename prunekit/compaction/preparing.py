"""A plain copy of a model with its masks applied, after everything that can be wrong with them was looked at."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize, prune

from prunekit.errors import InputError
from prunekit.nn import MaskedConv2d

_MASKABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def masked_copy(model: nn.Module, inputs: Sequence[Tensor], masks: Mapping[str, Tensor] | None) -> nn.Module:
    """Return a copy of `model` whose masked weights are zero.

    Raises:
        InputError: The model is in training mode, cannot be copied or does not run; a mask names an unknown layer, has
            another shape, or takes all filters of a layer.
    """
    for name, module in model.named_modules():
        if module.training and (module is model or isinstance(module, (_NormBase, _DropoutNd))):
            raise InputError(
                f"Expected a model in eval mode, but {name or type(model).__name__} is in training mode: call eval()."
            )
    _check_input(model, inputs)  # without gradients: weights that hooks compute can be copied after that
    plain = _plain_copy(model)
    for name, mask in (masks or {}).items():
        layer = _masked_layer(plain, name)
        layer.weight.masked_fill_(~_weight_mask(name, layer.weight, mask), 0.0)
    _check_filters(plain)
    return plain


def _plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model; computed weights (torch's pruning, parametrisations, MaskedConv2d) become plain parameters."""
    try:
        plain = copy.deepcopy(model)
    except Exception as error:  # deepcopy runs foreign code
        raise InputError(f"Expected a model that can be copied, but {type(model).__name__} raised: {error}.") from error
    for name, module in list(plain.named_modules()):
        if isinstance(module, MaskedConv2d) and name:
            plain.set_submodule(name, module.to_dense().train(module.training))
            continue
        if parametrize.is_parametrized(module):
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, str(tensor))
        if prune.is_pruned(module):
            for tensor in [key.removesuffix("_orig") for key in module._parameters if key.endswith("_orig")]:
                if f"{tensor}_mask" in module._buffers:
                    prune.remove(module, tensor)  # type: ignore[no-untyped-call]
    return plain


def _check_input(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        found = ", ".join(type(x).__name__ for x in inputs) or "nothing"
        raise InputError(f"Expected example_input to be a tensor or a sequence of tensors, got {found}.")
    try:
        model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        sentence = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise InputError(
            f"Expected a model that runs on the example input of shape {shapes}, but {type(model).__name__} raised "
            f"{type(error).__name__}: {sentence}."
        ) from error


def _masked_layer(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _MASKABLE)}
    if name not in layers:
        raise InputError(
            f"Expected masks for the model's {len(layers)} convolutions and linear layers, such as "
            f"{', '.join(repr(n) for n in list(layers)[:3])}, but there is none called {name!r}."
        )
    return layers[name]  # type: ignore[return-value]


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
