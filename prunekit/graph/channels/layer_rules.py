"""Layers that make channels, convolutions and linear layers, and normalizations, which change each by itself.

A filter without weights answers its bias at every pixel. So does one whose weights read constants alone, unless they
meet zeros beside the image:

    y_k = b_k + Σ_c v_c · Σ_taps W[k, c],    constant where every c that has weights in W[k] is the constant v_c
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.graph.channels.channel_flow import ChannelFlow, Equal, Layer, require, rule
from prunekit.graph.channels.values import Value, channels, finite_or_nan, unknown
from prunekit.graph.nodes import arguments, layer_name, operator_name, readers, shape_of, source


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(flow: ChannelFlow, node: fx.Node) -> Value:
    """Read a convolution; of a transposed one, how many taps meet at a pixel depends on the place, as beside zeros."""
    a, transposed = arguments(node), "transpose" in operator_name(node)
    value = flow.value(a["input"])
    name, module = _owner(flow, a["weight"], a["bias"], node)
    require(getattr(module, "transposed", transposed) == transposed, "is not a convolution's own")
    if transposed:
        require(a["groups"] == 1, "works in groups")
    else:
        require(_is_plain(flow, node, module) or a["groups"] == 1, "works in groups in a forward of its own")
    require(len(value.shape) == module.weight.dim(), "reads images without a batch dimension")
    require(value.dim in (None, 1), "reads channels from another dimension than the second")
    own = a["padding"] == "same" or (not isinstance(a["padding"], str) and any(_as_list(a["padding"])))
    pads = transposed or bool(own) or value.framed
    return _layer(flow, node, name, module, value, 1, pads=pads, a=a, transposed=transposed)


@rule("linear")
def linear(flow: ChannelFlow, node: fx.Node) -> Value:
    """Read a linear layer, whose channels lie along the last dimension."""
    a = arguments(node)
    value = flow.value(a["input"])
    name, module = _owner(flow, a["weight"], a["bias"], node)
    last = len(value.shape) - 1
    require(value.dim in (None, last), "reads channels from another dimension than the last")
    return _layer(flow, node, name, module, value, last, pads=False, a=a)


@rule("batch_norm", "native_batch_norm_legit_no_training", "cudnn_batch_norm", "instance_norm")
def normalization(flow: ChannelFlow, node: fx.Node) -> Any:
    """Read a normalization of each channel by itself."""
    a = arguments(node)
    value = flow.value(a["input"])
    name = layer_name(node)
    by_batch = bool(a.get("training") or a.get("use_input_stats") or a["running_mean"] is None)
    result = _unlabeled(node) if value.dim is None else _normalized(flow, a, value, by_batch)
    flow.outputs.setdefault(name, []).append(result)
    layer = flow.makers.get(a["input"])
    if not by_batch and layer is not None and layer.calls == 1 and len(a["input"].users) == 1:
        mean = flow.name_of(a["running_mean"])
        if mean in flow.tensors and len(readers(source(a["running_mean"]))) == 1:  # type: ignore[arg-type]
            layer.norm = mean
    several = not isinstance(node.meta["val"], Tensor)
    return [result] if several else result


def _normalized(flow: ChannelFlow, a: dict[str, Any], value: Value, by_batch: bool) -> Value:
    require(value.dim == 1, "normalizes another dimension than the second")
    tensors = {
        key: flow.channel_tensor(a[key], 0, value.labels) for key in ("weight", "bias", "running_mean", "running_var")
    }
    count = len(value.labels)
    weight = _or(tensors["weight"], torch.ones(count, dtype=torch.float64))
    bias = _or(tensors["bias"], torch.zeros(count, dtype=torch.float64))
    v = value.channel_constants()
    if flow.silent is not None:
        y = v
    elif by_batch:  # what does not vary is its own mean
        y = torch.where(v.isnan(), torch.nan, bias)
    else:
        mean, var = tensors["running_mean"], tensors["running_var"]
        assert mean is not None
        assert var is not None
        y = (v - mean) / (var + a["eps"]).sqrt() * weight + bias
    if flow.silent is None:
        y = torch.where(weight == 0, bias, y)  # whatever comes in
    return channels(value.shape, 1, value.labels, finite_or_nan(y))


@rule("group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm", "local_response_norm")
def mixing_normalization(flow: ChannelFlow, node: fx.Node) -> Any:
    """Keep what is normalized together."""
    return flow.give_up(node, "normalizes over channels, so all of them stay")


def _layer(
    flow: ChannelFlow,
    node: fx.Node,
    name: str,
    module: Any,
    value: Value,
    dim: int,
    pads: bool,
    a: dict[str, Any],
    transposed: bool = False,
) -> Value:
    # A forward that passes no bias would not see one that folding makes: constants go into carriers there.
    pads |= a["bias"] is None and not _is_plain(flow, node, module)
    weight = _weight(flow, name, module, a["weight"])
    weight = weight.transpose(0, 1) if transposed else weight
    has_bias = a["bias"] is not None and flow.silent is None
    bias = module.bias.detach().double().cpu() if has_bias else torch.zeros(len(weight), dtype=torch.float64)
    weight = weight[:, :, None] if weight.dim() == 2 else weight.flatten(2)  # [filters, channels / groups, taps]
    groups = a.get("groups", 1)
    layer = flow.layers.get(name)
    if layer is None:
        labels = flow.units.fresh(len(weight))
        empty = torch.zeros(0, dtype=torch.float64)
        used = (weight != 0).any(dim=2)
        layer = Layer(name, groups, labels, labels[:0], empty, pads, used)
        layer.transposed = transposed
        flow.layers[name] = layer
    layer.calls += 1
    layer.pads |= pads
    layer.norm = None
    result = _unlabeled(node)
    if value.dim is not None:
        v = _read(flow, layer, value)
        y = _answers(layer, weight, bias, v)
    else:
        require(layer.calls == 1 or not len(layer.in_labels), "reads known and unknown channels by turns")
        if groups > 1:
            flow.units.pin(layer.out_labels, f"{name} reads channels that cannot be cut, in groups")
        y = torch.where(layer.masked, bias, torch.nan)
    result = channels(shape_of(node), dim, layer.out_labels, finite_or_nan(y))
    flow.outputs.setdefault(name, []).append(result)
    flow.makers[node] = layer
    return result


def _weight(flow: ChannelFlow, name: str, module: Any, arg: fx.Node) -> Tensor:
    """Return a weight in float64; where layers are taken for silent, a zero a channel for those, nan for others."""
    if flow.silent is None:
        weight: Tensor = module.weight.detach().double().cpu()
        return weight
    return torch.tensor(0.0 if name in flow.silent else torch.nan, dtype=torch.float64).expand(shape_of(arg)[:2])


def _read(flow: ChannelFlow, layer: Layer, value: Value) -> Tensor:
    """Tie what a layer reads at several places; return the constants of this call."""
    v = value.channel_constants()
    if layer.calls == 1:
        layer.in_labels, layer.in_constants = value.labels, v
        if layer.groups > 1:
            _couple_groups(flow, layer)
    else:
        require(len(layer.in_labels) > 0, "reads known and unknown channels by turns")
        flow.units.tie(layer.in_labels, value.labels)
        layer.in_constants = torch.where(layer.in_constants == v, v, torch.nan)
    return v


def _couple_groups(flow: ChannelFlow, layer: Layer) -> None:
    """A depthwise convolution's channels go one by one, with what they write; other groups stay equally wide."""
    read, written = len(layer.in_labels) // layer.groups, len(layer.out_labels) // layer.groups
    if read == 1:
        for i in range(written):
            flow.units.tie(layer.in_labels, layer.out_labels[i::written])
        return
    flow.equal.append(
        Equal(
            [layer.in_labels[g * read : (g + 1) * read] for g in range(layer.groups)],
            f"the groups of {layer.name} stay equally wide",
            [layer.out_labels[g * written : (g + 1) * written] for g in range(layer.groups)],
        )
    )


def _answers(layer: Layer, weight: Tensor, bias: Tensor, v: Tensor) -> Tensor:
    """Return the constant that each filter answers, [filters]; nan where it varies."""
    groups, filters = layer.groups, len(weight)
    by_group = v.view(groups, 1, -1).expand(groups, filters // groups, -1).reshape(filters, -1)
    varies = by_group.isnan() | ((by_group != 0) if layer.pads else torch.zeros_like(by_group, dtype=torch.bool))
    y = bias + (torch.where(layer.used & ~by_group.isnan(), by_group, 0.0) * weight.sum(dim=2)).sum(dim=1)
    return torch.where((layer.used & varies).any(dim=1), torch.nan, y)


def _owner(flow: ChannelFlow, weight: object, bias: object, node: fx.Node) -> tuple[str, Any]:
    """Return the module whose own weight and bias a node uses, and its name."""
    names = [flow.name_of(arg) for arg in (weight, bias) if isinstance(arg, fx.Node)]
    if None in names and layer_name(node) in (flow.silent or ()):
        return _computing_owner(flow, weight, node)
    owners = {name.rpartition(".")[0] for name in names if name is not None}
    require(None not in names and len(owners) == 1, "computes its weight")
    require(not any(name in flow.traced.shared for name in names), "shares its weight with another layer")
    require(
        not any(name in flow.tensors or name in flow.whole for name in names),
        "uses a weight that is used elsewhere too",
    )
    owner = owners.pop()
    module = flow.traced.model.get_submodule(owner)
    own = {f"{owner}.weight".lstrip("."), f"{owner}.bias".lstrip(".")}
    require(set(names) <= own, "is not a layer's own")
    for arg in (weight, bias):
        whose = source(arg)
        users = readers(whose) if isinstance(whose, fx.Node) else ()
        require(all(user.target == node.target for user in users), "uses a weight that is used elsewhere too")
    return owner, module


def _computing_owner(flow: ChannelFlow, weight: object, node: fx.Node) -> tuple[str, Any]:
    """Return the convolution in whose forward a weight of its own shape was computed."""
    module: Any = flow.traced.model.get_submodule(layer_name(node))
    filters = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    require(isinstance(weight, fx.Node) and shape_of(weight) == filters, "computes a weight of another shape")
    return next(name for name, found in flow.traced.model.named_modules() if found is module), module


def _is_plain(flow: ChannelFlow, node: fx.Node, module: object) -> bool:
    """Tell whether a node is torch's own forward of a layer, which reads its numbers of channels and its bias from it.

    Others are subclasses with a forward of their own, functional calls, and the modules of exported programs.
    """
    if dict(flow.traced.model.named_modules(remove_duplicate=False)).get(layer_name(node)) is not module:
        return False
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    forward: Any = getattr(type(module), "forward", None)
    conv_forward = getattr(type(module), "_conv_forward", None)
    return any(
        isinstance(module, kind) and forward is kind.forward and conv_forward is getattr(kind, "_conv_forward", None)
        for kind in kinds
    )


def _unlabeled(node: fx.Node) -> Value:
    value = node.meta["val"]
    return unknown(tuple(int(s) for s in (value if isinstance(value, Tensor) else value[0]).shape))


def _or(tensor: Tensor | None, default: Tensor) -> Tensor:
    return default if tensor is None else tensor


def _as_list(padding: int | Sequence[int]) -> Sequence[int]:
    return [padding] if isinstance(padding, int) else padding
