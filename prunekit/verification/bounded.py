"""Images with a ball around each, as tensors: a model that is called on them bounds its own outputs.

    logits = model(bounded(x, eps=2 / 255))        # logits.lower <= model(x') <= logits.upper for all x' in the balls

A `Bounded` is the ordinary value, so that outputs, statistics of batch normalization and gradients are those of a usual
forward, and carries the interval in which the value stays over the ball around each image. No graph is read: what the
model calls, hooks and parametrizations included, is what is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.verification.nodes import Node
from prunekit.verification.rules import RULES

#: What says something about a tensor without computing with its values.
_METADATA = {"dim", "size", "numel", "is_floating_point", "is_contiguous", "get_device", "__len__", "ndimension"}


class Bounded(Tensor):
    """A value [N, ...] and its interval over the ball around each of N images."""

    node: Node

    @property
    def value(self) -> Tensor:
        """The value at the images themselves, as an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @property
    def lower(self) -> Tensor:
        """What no image of a ball is below, [N, ...]."""
        return self.node.lower

    @property
    def upper(self) -> Tensor:
        """What no image of a ball is above, [N, ...]."""
        return self.node.upper

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Bound what a function returns; InputError where nothing is known about it."""
        name, kwargs = getattr(func, "__name__", str(func)), kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__" or name in _METADATA:
                return _metadata(name, func(*args, **kwargs))
            # Bounds in bfloat16 would be none.
            with torch.autocast(_first(args).device.type, enabled=False):
                return _apply(name, func, args, kwargs)


def bounded(x: Tensor, eps: float) -> Bounded:
    """Return images x [N, ...] in [0, 1] with the ball of radius eps, in L∞ and in [0, 1], around each."""
    return _with_node(x, Node((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)))


def _with_node(value: Tensor, node: Node) -> Bounded:
    result = value.as_subclass(Bounded)
    result.node = node
    return result


def _apply(name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bounded:
    if name in ("__iadd__", "add_"):
        return _overwritten(args[0], _apply("add", torch.add, args, kwargs))
    if name not in RULES:
        raise _unknown(name)
    result = _with_node(*RULES[name](func, args, {key: value for key, value in kwargs.items() if key != "inplace"}))
    return _overwritten(args[0], result) if kwargs.get("inplace") else result


def _overwritten(target: Bounded, result: Bounded) -> Bounded:
    """Let what an operator wrote in place hold its result."""
    target.copy_(result)
    target.node = result.node
    return target


def _metadata(name: str, found: Any) -> Any:
    if isinstance(found, Tensor):  # x.data, x.T
        raise _unknown("an attribute that is a tensor")
    return found


def _first(args: Sequence[Any]) -> Tensor:
    found = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    return found if isinstance(found, Tensor) else next(arg for arg in args if isinstance(arg, Tensor))


def _unknown(name: str) -> InputError:
    return InputError(
        "Expected a network of convolutions, linear layers, batch normalization, ReLU, ReLU6, LeakyReLU, pooling, sums "
        f"and concatenations to bound, got one that calls {name}."
    )
