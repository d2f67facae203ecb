"""Masks: which weights stay. True = kept, one bool per weight, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import effective, refresh, storage_name
from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.layers import channels_normalized, prunable_layers
from prunekit.prune.tensor_files import check_tensors, load_tensors, save_tensors


def check_masks(model: nn.Module, masks: Mapping[str, Tensor], source: str = "masks") -> None:
    """Raise InputError unless `masks` has one bool mask of the right shape for each prunable layer.

    Args:
        model: The model that the masks are for.
        masks: Layer name → mask.
        source: What the message calls the masks: a file's path, say.
    """
    check_tensors(model, masks, source, "bool mask", lambda tensor: tensor.dtype == torch.bool)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups | None = None) -> None:
    """Set the dropped weights of `model` to zero, in place.

    A filter without weights still answers the constant that its bias and its BatchNorm make of zero. With
    `groups` those go too, so that what a dropped filter's normalization answers is zero everywhere, and so is
    every activation behind it that maps zero to zero.

    Args:
        model: A module whose prunable layers are the ones that `masks` names.
        masks: Layer name → bool mask of the layer's weight's shape, True = kept.
        groups: The model's `channel_groups`, for masks that drop whole filters.

    Raises:
        InputError: When a mask is missing, unknown, or of another shape or dtype, or a layer's weight is computed by
            weight_norm, spectral_norm or a parametrization; the model is then as it was. Layers that
            torch.nn.utils.prune pruned keep its masks, too.
    """
    for masked in masked_tensors(model, masks, groups):
        masked.zero_dropped()


@dataclass(frozen=True)
class MaskedTensor:
    """A parameter or buffer that a mask zeros.

    Attributes:
        module: The module whose forward pass uses it.
        name: What it is called there, such as "weight".
        stored: The tensor to write zeros into; of a layer that torch.nn.utils.prune pruned, its `weight_orig`.
        dropped: bool, of the tensor's shape and on its device, True = zero.
    """

    module: nn.Module
    name: str
    stored: Tensor
    dropped: Tensor

    @torch.no_grad()
    def zero_dropped(self) -> None:
        """Set dropped entries to zero now."""
        self.stored.masked_fill_(self.dropped, 0.0)  # not a multiplication: nan · 0 is nan
        refresh(self.module, self.name)


def masked_tensors(
    model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups | None = None
) -> list[MaskedTensor]:
    """Find what the masks zero and check that they can; nothing is changed yet.

    Raises:
        InputError: When masks or groups do not fit, or a tensor is computed from others in such a way that no zero in
            them would be one zero of it.
    """
    found = []
    for full_name, mask in tensor_masks(model, masks, groups).items():
        layer, _, name = full_name.rpartition(".")
        module = model.get_submodule(layer)
        stored = getattr(module, storage_name(layer, module, name))
        found.append(MaskedTensor(module, name, stored, ~mask.to(stored.device)))
    return found


def tensor_masks(
    model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups | None = None
) -> dict[str, Tensor]:
    """Return every parameter and buffer of `model` that the masks zero, by its full name, with its own mask.

    Without `groups` those are the convolutions' weights; with them also, channel by channel, the bias of each
    convolution and the weight and bias of each normalization (the running mean of one that has no weight).
    """
    check_masks(model, masks)
    if groups is not None:
        check_groups(model, masks, groups)
    found = {f"{layer}.weight" if layer else "weight": mask for layer, mask in masks.items()}
    if groups is None:
        return found
    kept = torch.cat([groups.kept_units(masks), torch.tensor([True])])  # the last one is for unit -1
    for layer, units in groups.units.items():
        if model.get_submodule(layer).bias is not None:
            found[f"{layer}.bias"] = kept[units]
    for name, units in groups.norm_units.items():
        norm = model.get_submodule(name)
        is_affine = norm.weight is not None
        for tensor in ("weight", "bias") if is_affine else ("running_mean",) if norm.track_running_stats else ():
            found[f"{name}.{tensor}"] = kept[units]
    return found


def check_groups(model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups) -> None:
    """Raise InputError unless `groups` are the model's: the same layers with as many filters and channels."""
    filters = {layer: len(units) for layer, units in groups.units.items()}
    norms = {name: len(units) for name, units in groups.norm_units.items()}
    found = {name: channels_normalized(module) for name, module in model.named_modules()}
    if filters != {layer: len(mask) for layer, mask in masks.items()} or not norms.items() <= found.items():
        raise InputError("Expected the channel groups of this model, got those of another: names or channels differ.")


def save_masks(path: str | Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks as a safetensors file, atomically: one bool tensor a layer, True = kept."""
    save_tensors(path, masks)


def load_masks(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Read masks that `save_masks` wrote and check them against `model`.

    Args:
        path: The safetensors file.
        model: The model that the masks are for; it is not changed.

    Returns:
        Layer name → bool mask of the layer's weight's shape, True = kept.

    Raises:
        InputError: When the file is missing or damaged, or does not fit the model.
    """
    masks = load_tensors(path, "masks")
    check_masks(model, masks, source=str(path))
    return masks


def sparsity(model_or_masks: nn.Module | Mapping[str, Tensor]) -> float:
    """Return the fraction of prunable weights that are zero (a model) or dropped (masks).

    Every weight counts once: a large layer weighs more than a small one.
    """
    if isinstance(model_or_masks, nn.Module):
        tensors = [effective(conv).detach() for conv in prunable_layers(model_or_masks).values()]
    else:
        tensors = list(model_or_masks.values())
    total = sum(tensor.numel() for tensor in tensors)
    kept = sum(int(tensor.count_nonzero()) for tensor in tensors)
    return 1.0 - kept / total if total else 0.0
