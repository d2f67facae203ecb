"""torch.export with a symbol for each size that may change, and what is needed around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._subclasses.fake_tensor
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.overrides import TorchFunctionMode

from prunekit.engine.size_names import NAMED_SIZES, guards_on_names, with_named_sizes
from prunekit.engine.symbolic_sizes import SYMBOLIC, are_equal, hint_of, value_of
from prunekit.graph.export import exported

# Sizes as tensors, as converters from ONNX write them, have a few elements.
_MAX_SIZE_ELEMENTS = 64
_VIEWS = {"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"}
_COPIES = {
    "aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
    "aten.lift_fresh_copy.default", "aten.detach_.default", NAMED_SIZES,
}  # fmt: skip


def export_symbolically(
    model: nn.Module, inputs: Sequence[Tensor], *, keep_ones: bool = False
) -> ExportedProgram | None:
    """Export a model with a symbol for each size of the inputs but images' channels; None where that fails.

    Args:
        model: in eval mode.
        inputs: the example.
        keep_ones: leave sizes that are 1 on the example numbers; only then can they be broadcast to others.
    """
    dynamic: Any = ShapesCollection()  # type: ignore[no-untyped-call]  # by tensor, however the forward takes them
    for x in inputs:
        free = [dim for dim, size in enumerate(x.shape) if not (keep_ones and size == 1) and (x.dim(), dim) != (4, 1)]
        dynamic[x] = dict.fromkeys(free, Dim.AUTO)
    try:
        with without_size_one(), guards_on_names(), _SizeMode():
            return exported(model, inputs, dynamic_shapes=dynamic)
    except Exception:  # a forward that runs on numbers may raise anything on symbols
        return None


@contextmanager
def with_constant_sizes() -> Iterator[None]:
    """Let torch.export compute small integer tensors, which are sizes, instead of calling them data."""
    module = torch._subclasses.fake_tensor
    if not hasattr(module, "CONSTANT_NUMEL_LIMIT"):
        yield
        return
    with mock.patch.object(module, "CONSTANT_NUMEL_LIMIT", _MAX_SIZE_ELEMENTS):
        yield


@contextmanager
def without_size_one() -> Iterator[None]:
    """Let torch choose what holds for all sizes where it would else ask whether a size is 1.

    Without it a batch of 1 cannot be symbolic, and one guard after the other says that a size is not 1.
    """
    config = torch.fx.experimental._config
    with ExitStack() as stack:
        if hasattr(config, "backed_size_oblivious"):
            stack.enter_context(config.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        # Which memory format oneDNN would give a convolution's result: that, too, asks whether sizes are 1.
        for name, found in (
            ("_select_conv_backend", None),
            ("_conv_determine_backend_memory_format", torch.contiguous_format),
        ):
            if hasattr(torch._C, name):
                stack.enter_context(mock.patch.object(torch._C, name, lambda *_, found=found, **__: found))
        yield


class _SizeMode(TorchFunctionMode):
    """Make a pool whose window is the whole image one that has no sizes, and name sizes that are long expressions.

    `F.avg_pool2d(x, x.shape[2:])` would bind the program to that size, as the operator takes numbers only.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = _POOLS.get(function)
        if names is not None:
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            if _is_whole_image(given):
                x = given["input"]
                is_mean = function is F.avg_pool2d
                return x.mean((2, 3), keepdim=True) if is_mean else x.amax((2, 3), keepdim=True)
        result = function(*args, **(kwargs or {}))
        return with_named_sizes(result) if function in _RESIZING else result


_POOLS: dict[Any, tuple[str, ...]] = {
    F.avg_pool2d: (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    F.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
}  # fmt: skip


# What changes an image's size, and returns neither a view nor its input.
_RESIZING = {F.conv2d, F.avg_pool2d, F.max_pool2d, F.interpolate, F.pad, F.conv_transpose2d}


def _is_whole_image(given: dict[str, Any]) -> bool:
    x, kernel = given.get("input"), given.get("kernel_size")
    is_pair = isinstance(kernel, (list, tuple)) and len(kernel) == 2 and any(isinstance(k, SYMBOLIC) for k in kernel)
    if not is_pair or not isinstance(x, Tensor) or x.dim() != 4:
        return False
    unusual = ("padding", "return_indices", "divisor_override")
    is_plain = not any(given.get(name) for name in unusual) and given.get("dilation", 1) == 1
    return is_plain and are_equal(list(kernel), list(x.shape[2:]))  # type: ignore[arg-type]


def is_same_program(bound: ExportedProgram, free: ExportedProgram) -> bool:
    """Return whether a program with symbols is, at the sizes of the example, the one that was traced with numbers."""
    seen: dict[fx.Node, int] = {}
    steps = [_Steps(program) for program in (bound, free)]
    if len(steps[0].nodes) != len(steps[1].nodes):
        return False
    for i, (a, b) in enumerate(zip(steps[0].nodes, steps[1].nodes, strict=True)):
        if steps[0].words(a, seen) != steps[1].words(b, seen):
            return False
        seen[a] = seen[b] = i
    return True


def is_whole_slice(node: fx.Node) -> bool:
    """Return whether a node is x[:] along a dimension: torch leaves that out only where sizes are numbers."""
    if str(node.target) != "aten.slice.Tensor":
        return False
    _, start, end, step = _slice(node)
    return start in (None, 0) and (end is None or (isinstance(end, int) and end == sys.maxsize)) and step == 1


def _slice(node: fx.Node) -> list[Any]:
    """Return dimension, start, end and step."""
    return [*value_of(node.args[1:]), *(0, None, None, 1)[len(node.args) - 1 :]]


def _slice_on_example(node: fx.Node) -> tuple[int, int, int, int] | None:
    """Return dimension, first index, end and step of a slice of the example; None where it is all of it."""
    dim, start, end, step = (hint_of(value) for value in _slice(node))
    size = hint_of(node.args[0].meta["val"].shape[dim])  # type: ignore[union-attr]
    first, last, step = slice(start, end, step).indices(size)
    return None if (first, last, step) == (0, size, 1) else (dim, first, last, step)


class _Steps:
    """What a program computes, without sizes and copies, written so that two programs can be compared."""

    def __init__(self, program: ExportedProgram) -> None:
        self.copied: dict[fx.Node, fx.Node] = {}
        self.nodes = []
        for node in program.graph.nodes:
            if node.op == "call_function":
                is_slice = str(node.target) == "aten.slice.Tensor"
                if str(node.target) in _COPIES or (is_slice and _slice_on_example(node) is None):
                    self.copied[node] = node.args[0]
                    continue
                if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
                    continue  # a size, or an assertion
            self.nodes.append(node)

    def words(self, node: fx.Node, seen: dict[fx.Node, int]) -> Any:
        if node.op == "placeholder":
            return node.name
        target = "view" if str(node.target) in _VIEWS else str(node.target)
        if target == "aten.slice.Tensor":
            return target, self._written(node.args[0], seen), _slice_on_example(node)
        whole = _whole_image_pool(node)
        if whole is not None:
            return whole, self._written(node.args[0], seen)
        return target, self._written(node.args, seen), self._written(node.kwargs, seen)

    def _written(self, value: Any, seen: dict[fx.Node, int]) -> Any:
        value = value_of(value)
        while isinstance(value, fx.Node) and value in self.copied:
            value = self.copied[value]
        if isinstance(value, fx.Node):
            return ["value", seen.get(value, value.name)]
        if isinstance(value, (list, tuple)):
            return [self._written(item, seen) for item in value]
        if isinstance(value, Mapping):
            return {key: self._written(item, seen) for key, item in value.items()}
        return hint_of(value)


def _whole_image_pool(node: fx.Node) -> str | None:
    """Return "mean" or "max" for one of the ways to pool a whole image to one pixel, else None."""
    x = node.meta.get("val")
    if node.op != "call_function" or not isinstance(x, Tensor) or x.dim() != 4:
        return None
    operator, source = str(node.target), node.args[0]
    image = source.meta.get("val") if isinstance(source, fx.Node) else None
    if operator in ("aten.mean.dim", "aten.amax.default") and list(node.args[1:]) == [[2, 3], True]:
        return "mean" if operator == "aten.mean.dim" else "max"
    if operator in ("aten.avg_pool2d.default", "aten.max_pool2d.default") and isinstance(image, Tensor):
        is_whole = list(node.args[1]) == [hint_of(s) for s in image.shape[2:]]  # type: ignore[arg-type]
        are_rest_sizes = len(node.args) <= 3 and not node.kwargs  # a stride at most
        if is_whole and are_rest_sizes:
            return "mean" if operator == "aten.avg_pool2d.default" else "max"
    return None
