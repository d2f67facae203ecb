"""Operations that move data and compute nothing: the same operation moves the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunekit.graph.channels.channel_flow import (
    ChannelFlow,
    Equal,
    NotUnderstoodError,
    note_literal,
    ordered,
    require,
    rule,
)
from prunekit.graph.channels.units import Labels
from prunekit.graph.channels.values import Value, along, by_channel, channels, squeezed, unknown
from prunekit.graph.nodes import arguments, shape_of


@rule("getitem")
def getitem(flow: ChannelFlow, node: fx.Node) -> Value:
    """Take one of several results."""
    source, index = node.args
    assert isinstance(source, fx.Node)
    several = flow.values(source)
    require(isinstance(several, (list, tuple)) and isinstance(index, int), "takes a part that is not known")
    assert isinstance(index, int)
    if index >= len(several):  # what a normalization returns beside its output
        return unknown(shape_of(node))
    found: Value = several[index]
    return found


@rule("cat", "concat")
def concatenate(flow: ChannelFlow, node: fx.Node) -> Value:
    """Join tensors: along the channels, or along another dimension, where channels meet and are tied."""
    a = arguments(node)
    nodes = a["tensors"]
    values = [flow.value(tensor) for tensor in nodes]
    shape = shape_of(node)
    along_dim = a["dim"] % len(shape)
    known = [value for value in values if value.has_channels]
    if not known:
        return unknown(shape)
    dim = known[0].dim
    assert dim is not None
    require(all(value.dim == dim for value in known), "lays channels across each other")
    if along_dim == dim:
        labels, constants = [], []
        for value in values:
            if not value.has_channels:
                fresh = flow.units.fresh(value.shape[dim])
                flow.units.pin(fresh, "it comes from a tensor that cannot be cut")
                value = channels(value.shape, dim, fresh, torch.full([len(fresh)], torch.nan, dtype=torch.float64))
            labels.append(value.labels)
            constants.append(value.channel_constants())
        return channels(shape, dim, ordered(labels), torch.cat(constants))
    require(len(known) == len(values), "meets a tensor that cannot be cut")
    v = known[0].channel_constants()
    for value in known[1:]:
        flow.units.tie(known[0].labels, value.labels)
        v = torch.where(v == value.channel_constants(), v, torch.nan)
    return channels(shape, dim, known[0].labels, v)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(flow: ChannelFlow, node: fx.Node) -> Any:
    """Take a tensor apart; parts of its channels must stay equally wide, for the forward may have halved a count."""
    value = flow.value(node.args[0])
    shapes = [tuple(int(s) for s in part.shape) for part in node.meta["val"]]
    dim = arguments(node).get("dim", 0) % len(value.shape)
    if value.dim is None:
        return [unknown(shape) for shape in shapes]
    if dim != value.dim:
        return [channels(shape, value.dim, value.labels, value.channel_constants()) for shape in shapes]
    bounds = np.cumsum([0, *(shape[dim] for shape in shapes)]).tolist()
    v = value.channel_constants()
    parts = [
        channels(shape, dim, value.labels[a:b], v[a:b])
        for shape, a, b in zip(shapes, bounds[:-1], bounds[1:], strict=True)
    ]
    if len({shape[dim] for shape in shapes}) > 1:
        flow.keep_whole(node, "splits channels into unequal parts")
        return parts
    flow.equal.append(Equal([part.labels for part in parts], f"the parts of {flow.describe(node)} stay equally wide"))
    note_literal(flow, node, value.labels)
    return parts


@rule("slice")
def take_slice(flow: ChannelFlow, node: fx.Node) -> Value:
    """Take a slice: of channels only halves, thirds and so on, whose bounds the forward can have worked out."""
    a = arguments(node)
    value = flow.value(a["self"])
    shape = shape_of(node)
    if value.dim is None:
        return unknown(shape)
    if a["dim"] % len(value.shape) != value.dim:
        return channels(shape, value.dim, value.labels, value.channel_constants())
    total, width = len(value.labels), shape[value.dim]
    start = min(max(a["start"] or 0, -total), total) % max(total, 1)
    require(a["step"] == 1 and width > 0, "takes an uneven slice of channels")
    if total % width or start % width:
        flow.keep_whole(node, "takes an uneven slice of channels")
    elif width < total:
        parts = [value.labels[first : first + width] for first in range(0, total, width)]
        flow.equal.append(Equal(parts, f"the parts that {flow.describe(node)} takes stay equally wide"))
        note_literal(flow, node, value.labels)
    v = value.channel_constants()
    return channels(shape, value.dim, value.labels[start : start + width], v[start : start + width])


@rule(
    "view", "reshape", "_unsafe_view", "unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "unsqueeze",
    "squeeze", "expand", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "select",
)  # fmt: skip
def move(flow: ChannelFlow, node: fx.Node) -> Value:
    """Move labels and constants as the data move."""
    value = flow.value(node.args[0])
    shape = shape_of(node)
    if value.dim is None:
        return unknown(shape)
    require(len(value.labels) > 1, "moves a single channel")
    if arguments(node).get("index") is not None:
        require(arguments(node)["dim"] % len(value.shape) != value.dim, "selects one channel")
    dim, labels = _one_dimension(flow, _moved(node, _full(torch.from_numpy(value.labels), value)))
    if not _keeps_channels(value, shape):
        note_literal(flow, node, value.labels)
    result = Value(shape, dim, labels, _moved(node, value.constants.expand(value.shape)))
    _explain(flow, node, result)
    return result


def _explain(flow: ChannelFlow, node: fx.Node, result: Value) -> None:
    """Where several constants came together in one channel, say so."""
    assert result.dim is not None
    table = by_channel(result.constants, result.dim)
    lost = (result.channel_constants().isnan() & ~table.isnan().any(dim=1)).numpy()
    flow.units.note_variation(result.labels[lost], f"{flow.describe(node)} lays different constants side by side")


def _keeps_channels(value: Value, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(value.shape) and sorted(shape) == sorted(value.shape)


def _full(vector: Tensor, value: Value) -> Tensor:
    assert value.dim is not None
    return along(vector, value.dim, len(value.shape)).expand(value.shape)


def _moved(node: fx.Node, tensor: Tensor) -> Tensor:
    """Run the node's own operator on a tensor in its input's place; cut the result to what it varies over."""
    target: Any = node.target
    if "view" in str(target):
        tensor = tensor.contiguous()
    moved: Tensor = target(tensor, *node.args[1:], **node.kwargs)
    return squeezed(moved)


def _one_dimension(flow: ChannelFlow, labels: Tensor) -> tuple[int, Labels]:
    """Tie channels until they lie along one dimension: of [groups, channels of a group], those of the same place."""
    wide = [dim for dim, size in enumerate(labels.shape) if size > 1]
    if not wide:
        raise NotUnderstoodError("joins all channels in one")
    rows = {dim: by_channel(labels, dim) for dim in wide}
    dim = max(wide, key=lambda d: len(set(rows[d][:, 0].tolist())))
    columns = [column.numpy().copy() for column in torch.unique(rows[dim], dim=1).unbind(dim=1)]
    for column in columns[1:]:
        flow.units.tie(columns[0], column)
    return dim, columns[0]
