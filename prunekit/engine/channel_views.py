"""Views of an image's channels: split, chunk, slices, and the reshaping of a channel shuffle, without copies.

A value [N, ..., H, W] whose middle dimensions are an image's channels in some order is known by that order, an array
of channel numbers. When it is an image again, [N, C, H, W], it is the image, or a "select" node. Where torch runs an
operator on something in between, the views are left to torch, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from prunekit.engine.aten import arguments_of, layer_of
from prunekit.engine.aten_arithmetic import are_alike
from prunekit.engine.graph import Node
from prunekit.engine.lanes import Indices

if TYPE_CHECKING:
    from prunekit.engine.capture import GraphReader


@dataclass(frozen=True)
class ChannelView:
    """The channels of the value `image`, of node `source`, in the order of `index`, whose shape is that of the view."""

    source: fx.Node
    image: str
    index: Indices


def _view_of(reader: GraphReader, arg: object) -> ChannelView | None:
    if not isinstance(arg, fx.Node):
        return None
    if arg in reader.channel_views:
        view = reader.channel_views[arg]
        return view if isinstance(view, ChannelView) else None
    image = reader.image(arg)
    return None if image is None else ChannelView(arg, image, np.arange(reader.sizes[image][0]))


def _keep(reader: GraphReader, node: fx.Node, view: ChannelView, index: Indices) -> bool:
    """Note what `node` is; an image becomes one of the graph."""
    if index.ndim != 1:
        reader.channel_views[node] = ChannelView(view.source, view.image, index)
    elif np.array_equal(index, np.arange(reader.sizes[view.image][0])):
        reader.names[node] = view.image
    else:
        reader.nodes.append(Node(node.name, "select", [view.image], {"channels": index.tolist()}, layer_of(node)))
        reader.names[node] = node.name
        reader.sizes[node.name] = (len(index), *reader.sizes[view.image][1:])
    return True


def _dim(node: fx.Node, dim: int) -> int:
    """Count a dimension of a node's first argument from the front."""
    return dim % node.args[0].meta["val"].dim()  # type: ignore[union-attr, no-any-return]


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int) for value in values)


def _is_of_channels(view: ChannelView, *dims: int) -> bool:
    return all(1 <= dim <= view.index.ndim for dim in dims)


def _reshape(reader: GraphReader, node: fx.Node) -> bool:
    source, value = node.args[0], node.meta["val"]
    view, shape = _view_of(reader, source), tuple(value.shape)
    if view is None:
        return _pixel_as_image(reader, source, node)
    before = tuple(source.meta["val"].shape)  # type: ignore[union-attr]
    is_kept = len(shape) >= 4 and are_alike((shape[0], *shape[-2:]), (before[0], *before[-2:]))
    if not is_kept or not _are_numbers(*shape[1:-2]) or math.prod(shape[1:-2]) != view.index.size:
        return False
    return _keep(reader, node, view, view.index.reshape(shape[1:-2]))


def _pixel_as_image(reader: GraphReader, source: object, node: fx.Node) -> bool:
    """Read [N, C] of an image of one pixel as that image again where it becomes [N, C, 1, 1]."""
    if not isinstance(source, fx.Node):
        return False
    name, shape = reader.flat.get(source) or reader.half_flat.get(source), tuple(node.meta["val"].shape)
    if name is None or reader.sizes[name][1:] != (1, 1):
        return False
    batch, channels = source.meta["val"].shape[:2]
    if are_alike(shape, (batch, channels, 1)):
        reader.half_flat[node] = name
    elif are_alike(shape, (batch, channels, 1, 1)):
        reader.names[node] = name
    else:
        return False
    return True


def _permute(reader: GraphReader, node: fx.Node) -> bool:
    view, a = _view_of(reader, node.args[0]), arguments_of(node)
    if view is None:
        return False
    count = view.index.ndim + 3
    dims = list(range(count))
    if "dims" in a:
        dims = [_dim(node, dim) for dim in a["dims"]]
    else:
        i, j = _dim(node, a["dim0"]), _dim(node, a["dim1"])
        dims[i], dims[j] = dims[j], dims[i]
    if dims[0] != 0 or dims[-2:] != [count - 2, count - 1]:
        return False
    return _keep(reader, node, view, view.index.transpose([dim - 1 for dim in dims[1:-2]]))


def _same(reader: GraphReader, node: fx.Node) -> bool:
    source = node.args[0]
    if source in reader.half_flat:
        return _pixel_as_image(reader, source, node)
    view = reader.channel_views.get(source)  # type: ignore[arg-type]
    return isinstance(view, ChannelView) and _keep(reader, node, view, view.index)


def _select(reader: GraphReader, node: fx.Node) -> bool:
    view, a = _view_of(reader, node.args[0]), arguments_of(node)
    if view is None or not _is_of_channels(view, dim := _dim(node, a["dim"])) or view.index.ndim == 1:
        return False
    if not _are_numbers(a["index"]):
        return False
    return _keep(reader, node, view, view.index.take(a["index"], axis=dim - 1))


def _slice(reader: GraphReader, node: fx.Node) -> bool:
    view, a = _view_of(reader, node.args[0]), arguments_of(node)
    if view is None:
        return False
    dim, value = _dim(node, a["dim"]), node.meta["val"]
    if not _are_numbers(*(a[key] or 0 for key in ("start", "end", "step"))):
        return False
    if not _is_of_channels(view, dim):
        is_all = a["start"] in (None, 0) and a["end"] in (None, 2**63 - 1) and a["step"] == 1
        return is_all and _keep(reader, node, view, view.index)
    index = np.moveaxis(np.moveaxis(view.index, dim - 1, 0)[a["start"] : a["end"] : a["step"]], 0, dim - 1)
    return index.size > 0 and value.shape[dim] == index.shape[dim - 1] and _keep(reader, node, view, index)


def _unsqueeze(reader: GraphReader, node: fx.Node) -> bool:
    source = node.args[0]
    view = _view_of(reader, source)
    if view is None:
        return _pixel_as_image(reader, source, node)
    dim = arguments_of(node)["dim"] % (view.index.ndim + 4)
    if not 1 <= dim <= view.index.ndim + 1:
        return False
    return _keep(reader, node, view, np.expand_dims(view.index, dim - 1))


def _pieces(reader: GraphReader, node: fx.Node) -> bool:
    """Read what makes several values of one: split, chunk, unbind."""
    view, values = _view_of(reader, node.args[0]), node.meta["val"]
    if view is None or not _is_of_channels(view, dim := _dim(node, arguments_of(node)["dim"])):
        return False
    if "unbind" in str(node.target):
        pieces = list(np.moveaxis(view.index, dim - 1, 0))
        if view.index.ndim == 1:
            return False
    else:
        sizes = [value.shape[dim] for value in values]
        if not _are_numbers(*sizes):
            return False
        pieces = np.split(view.index, np.cumsum(sizes)[:-1].tolist(), axis=dim - 1)
    if not all(piece.size for piece in pieces):
        return False
    reader.channel_views[node] = [ChannelView(view.source, view.image, piece) for piece in pieces]
    return True


def _piece(reader: GraphReader, node: fx.Node) -> bool:
    source, number = node.args
    pieces = reader.channel_views.get(source)  # type: ignore[arg-type]
    if not isinstance(pieces, Sequence) or not isinstance(number, int):
        return False
    return _keep(reader, node, pieces[number], pieces[number].index)


def _expand(reader: GraphReader, node: fx.Node) -> bool:
    """Remember of what a repeated pixel is: products repeat it anyway."""
    source, shape = node.args[0], tuple(node.meta["val"].shape)
    if not isinstance(source, fx.Node) or reader.image(source) is None or len(shape) != 4:
        return False
    before = tuple(source.meta["val"].shape)
    if not are_alike(before, (*shape[:2], 1, 1)):
        return False
    reader.expanded[node] = source
    return True


#: Each returns whether it read the node.
CHANNEL_READERS: dict[str, Callable[[GraphReader, fx.Node], bool]] = {
    **dict.fromkeys(
        ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.unflatten.int",
         "aten.flatten.using_ints"), _reshape,
    ),
    **dict.fromkeys(("aten.transpose.int", "aten.permute.default"), _permute),
    **dict.fromkeys(
        ("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default"), _same
    ),
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.unsqueeze.default": _unsqueeze,
    **dict.fromkeys(
        ("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int"), _pieces
    ),
    "<built-in function getitem>": _piece,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand,
}  # fmt: skip


def is_put_off(reader: GraphReader, node: Any) -> bool:
    """Tell whether a node was read as a view that nothing stands for yet."""
    return node in reader.channel_views or node in reader.half_flat or node in reader.expanded
