"""Cut a model in place: weights, biases, normalizations, and the numbers of channels that modules remember."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunekit.compaction.plan import LayerCut, Plan


@torch.no_grad()
def cut(model: nn.Module, plan: Plan) -> None:
    """Cut `model`, which has the names and shapes of the one that the plan was made for."""
    for name, layer_cut in plan.layers.items():
        _cut_layer(model, model.get_submodule(name), layer_cut)
    for name, (dim, keep) in plan.tensors.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, attribute)
        if not torch.equal(keep, torch.arange(tensor.shape[dim])):
            _replace(module, attribute, select(plan, name, tensor.detach()))
            _note_width(module, len(keep))


def cut_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of `model` that is cut."""
    copied = copy.deepcopy(model)
    cut(copied, plan)
    return copied


def select(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """Return the part that stays of a tensor that has the shape of the parameter or buffer `name`."""
    owner, _, attribute = name.rpartition(".")
    if owner in plan.layers:
        layer_cut = plan.layers[owner]
        if attribute == "weight" and layer_cut.transposed:
            return select_weight(tensor.transpose(0, 1), layer_cut).transpose(0, 1)
        if attribute == "weight":
            return select_weight(tensor, layer_cut)
        return tensor.index_select(0, layer_cut.out_keep.to(tensor.device))
    if name in plan.tensors:
        dim, keep = plan.tensors[name]
        return tensor.index_select(dim, keep.to(tensor.device))
    return tensor


def select_weight(weight: Tensor, layer_cut: LayerCut) -> Tensor:
    """Return the part of a tensor of the weight's shape that stays."""
    device = weight.device
    out_keep, in_keep = layer_cut.out_keep.to(device), layer_cut.in_keep.to(device)
    if layer_cut.old_groups == 1:
        return weight.index_select(0, out_keep).index_select(1, in_keep)
    written, read = len(weight) // layer_cut.old_groups, weight.shape[1]
    rows = []
    for group in dict.fromkeys((in_keep // read).tolist()):
        filters = out_keep[out_keep // written == group]
        channels = in_keep[in_keep // read == group] - group * read
        rows.append(weight.index_select(0, filters).index_select(1, channels))
    return torch.cat(rows)


def _cut_layer(model: nn.Module, module: Any, layer_cut: LayerCut) -> None:
    weight = module.weight.detach()
    wide = weight.to(torch.float64, copy=True)
    wide = wide.transpose(0, 1) if layer_cut.transposed else wide  # [filters, channels / groups, taps]
    for carried in layer_cut.carried:
        _carry(wide, carried.carrier, carried.channels, carried.ratios, layer_cut.old_groups)
    out_keep = layer_cut.out_keep.to(weight.device)
    shift = _shift(wide, layer_cut)[out_keep]
    kept = select_weight(wide, layer_cut)
    kept = kept.transpose(0, 1) if layer_cut.transposed else kept
    _replace(module, "weight", kept.to(weight.dtype).contiguous())
    if getattr(module, "bias", None) is not None:
        bias = module.bias.detach()
        _replace(module, "bias", (bias.double()[out_keep] + shift).to(bias.dtype))
    elif len(layer_cut.folded) and layer_cut.norm is not None:
        _shift_mean(model, layer_cut, shift)
    elif len(layer_cut.folded):
        module.bias = nn.Parameter(shift.to(weight.dtype), module.weight.requires_grad)
    _note_layer(module, layer_cut)


def _carry(weight: Tensor, carrier: int, channels: Tensor, ratios: Tensor, groups: int) -> None:
    """W[:, carrier] += Σ ratio · W[:, channel], tap by tap, inside the carrier's group."""
    written, read = len(weight) // groups, weight.shape[1]
    group = carrier // read
    filters = weight[group * written : (group + 1) * written]
    channels, ratios = (channels - group * read).to(weight.device), ratios.to(weight)
    filters[:, carrier - group * read] += torch.einsum("kc...,c->k...", filters[:, channels], ratios)


def _shift(weight: Tensor, layer_cut: LayerCut) -> Tensor:
    """Return Σ_c v_c · Σ_taps W[:, c] of the folded channels, [filters]."""
    written, read = len(weight) // layer_cut.old_groups, weight.shape[1]
    taps = weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight
    shift = taps.new_zeros(len(weight))
    for channel, constant in zip(layer_cut.folded.tolist(), layer_cut.constants.tolist(), strict=True):
        group = channel // read
        place = slice(group * written, (group + 1) * written)
        shift[place] += constant * taps[place, channel - group * read]
    return shift


def _shift_mean(model: nn.Module, layer_cut: LayerCut, shift: Tensor) -> None:
    """Let the normalization behind a layer without bias take the constants in: (y + b) − m = y − (m − b)."""
    assert layer_cut.norm is not None
    owner, _, attribute = layer_cut.norm.rpartition(".")
    mean = getattr(model.get_submodule(owner), attribute)
    mean[layer_cut.out_keep.to(mean.device)] -= shift.to(mean.dtype)


def _replace(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    old = getattr(module, attribute)
    if isinstance(old, nn.Parameter):
        setattr(module, attribute, nn.Parameter(tensor, old.requires_grad))
    else:
        module._buffers[attribute] = tensor


def _note_layer(module: Any, layer_cut: LayerCut) -> None:
    inputs, outputs = len(layer_cut.in_keep), len(layer_cut.out_keep)
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, _ConvNd):
        module.in_channels, module.out_channels, module.groups = inputs, outputs, layer_cut.groups


def _note_width(module: nn.Module, width: int) -> None:
    for attribute in ("num_features", "num_parameters"):
        if hasattr(module, attribute):
            setattr(module, attribute, width)
