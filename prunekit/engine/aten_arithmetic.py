"""Sums, differences and products of ATen: of two images, of an image and a pixel or channel, or of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from prunekit.engine.activations import Activation
from prunekit.engine.aten import arguments_of
from prunekit.engine.graph import Node

if TYPE_CHECKING:
    from prunekit.engine.capture import GraphReader


def _binary(op: str) -> Callable[[GraphReader, fx.Node], Node | None]:
    def read(reader: GraphReader, node: fx.Node) -> Node | None:
        a = arguments_of(node)
        first, second = a["self"], a["other"]
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            return None
        x, y = _pixels(reader, first), _pixels(reader, second)
        if x is not None and y is not None:
            fits = op != "div" and _fit(first, second, node)
            return Node(node.name, op, [x, y], {"after": Activation()}) if fits else None
        if x is not None:
            return _affine(reader, node, op, x, second, is_reversed=False)
        return None if y is None else _affine(reader, node, op, y, first, is_reversed=True)

    return read


def _reversed_difference(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x = _pixels(reader, a["self"])
    return None if x is None or a["alpha"] != 1 else _affine(reader, node, "sub", x, a["other"], is_reversed=True)


def _negative(reader: GraphReader, node: fx.Node) -> Node | None:
    x = reader.pixels(node.args[0])
    return None if x is None else _affine(reader, node, "mul", x, -1, is_reversed=False)


def _pixels(reader: GraphReader, arg: object) -> str | None:
    source = reader.expanded.get(arg, arg) if isinstance(arg, fx.Node) else arg
    return reader.pixels(source)


def _fit(a: fx.Node, b: fx.Node, node: fx.Node) -> bool:
    """Tell whether two operands are of one size, or repeated in all pixels or in all channels."""
    x, y, result = (tuple(n.meta["val"].shape) for n in (a, b, node))
    if not are_alike(x[:1], y[:1]) or len(x) != len(y):
        return False
    if are_alike(x, y):
        return True
    if len(result) != 4:
        return False
    return all(s[1] in (1, result[1]) and (are_alike(s[2:], (1, 1)) or are_alike(s[2:], result[2:])) for s in (x, y))


def are_alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Tell whether two shapes are the same for all sizes that symbols in them may stand for."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def _affine(reader: GraphReader, node: fx.Node, op: str, x: str, other: object, *, is_reversed: bool) -> Node | None:
    """Read an operation with a number, or with a constant for each channel."""
    channels = reader.sizes[x][0]
    constant = _per_channel(reader, other, node, channels)
    if constant is None or (op == "div" and is_reversed):
        return None
    one, nothing = torch.ones_like(constant), torch.zeros_like(constant)
    scale, shift = {
        "add": (one, constant),
        "sub": (-one, constant) if is_reversed else (one, -constant),
        "mul": (constant, nothing),
        "div": (1 / constant, nothing),
    }[op]
    names = {"scale": f"{node.name}.factor", "shift": f"{node.name}.summand"}
    reader.constants[names["scale"]], reader.constants[names["shift"]] = scale, shift
    return Node(node.name, "affine", [x], {**names, "after": Activation()})


def _per_channel(reader: GraphReader, other: object, node: fx.Node, channels: int) -> Tensor | None:
    """Return float64 [channels] of a number or a constant that is the same in all pixels, or None."""
    if isinstance(other, (bool, int, float)):
        return torch.full((channels,), float(other), dtype=torch.float64)
    name, shape = reader.constant(other), tuple(node.meta["val"].shape)
    if name is None:
        return None
    value = reader.constants[name]
    dims = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    is_flat = len(shape) == 2 and value.numel() > 1
    if value.dtype != reader.dtype or len(dims) != len(shape) or is_flat or dims[1] not in (1, channels):
        return None
    if any(size != 1 for i, size in enumerate(dims) if i != 1):
        return None
    return value.double().reshape(-1).expand(channels).clone()


READERS: dict[str, Any] = {
    **{f"aten.{op}.{form}": _binary(op) for op in ("add", "sub", "mul", "div") for form in ("Tensor", "Scalar")},
    "aten.rsub.Scalar": _reversed_difference,
    "aten.neg.default": _negative,
}
