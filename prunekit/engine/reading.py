"""From an exported program to a Graph: what each of its nodes becomes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._pytree import treespec_dumps

from prunekit.engine import aten, aten_arithmetic
from prunekit.engine.aten import layer_of
from prunekit.engine.channel_views import CHANNEL_READERS, ChannelView, is_put_off
from prunekit.engine.exporting import is_whole_slice
from prunekit.engine.graph import Graph, Node
from prunekit.engine.program import SIZE_FUNCTIONS
from prunekit.engine.size_names import NAMED_SIZES
from prunekit.engine.symbolic_sizes import SYMBOLIC, SymbolTable, UnknownSizeError, hint_of, is_unbacked, value_of

_READERS = {**aten.READERS, **aten_arithmetic.READERS}
_VIEWS = {"aten.view.default", "aten._unsafe_view.default"}
# Sizes are evaluated and guards checked before a program runs; these say it once more.
_ASSERTIONS = ("aten._assert_", "aten.sym_constrain_range")


class CaptureError(Exception):
    """The model cannot be captured; the message is one sentence."""


class GraphReader:
    """Turns an exported program into a Graph."""

    def __init__(self, program: torch.export.ExportedProgram, dtype: torch.dtype = torch.float32) -> None:
        self.program, self.dtype = program, dtype
        self.names: dict[fx.Node, str] = {}  # of the value that a node stands for
        self.flat: dict[fx.Node, str] = {}  # of the image whose pixels, [N, C · H · W], a node stands for
        self.channel_views: dict[fx.Node, ChannelView | list[ChannelView]] = {}  # views that no value stands for yet
        self.half_flat: dict[fx.Node, str] = {}  # of the image of one pixel whose [N, C, 1] a node stands for
        self.expanded: dict[fx.Node, fx.Node] = {}  # of the pixel that a node repeats
        self.constant_names: dict[fx.Node, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.sizes: dict[str, tuple[int, int, int]] = {}
        given = set(program.graph_signature.user_inputs)
        self.symbols = SymbolTable([n for n in program.graph.nodes if n.op == "placeholder" and n.name in given])
        self.shapes: dict[str, list[Any]] = {}  # of values that torch computes, as expressions

    def graph(self) -> Graph:
        """Return the program's graph.

        Raises:
            CaptureError: a part of it cannot be run, or it changes buffers.
        """
        self.symbols.allow_guards()
        try:
            return self._graph()
        except UnknownSizeError as error:
            raise CaptureError(f"the forward computes sizes in a way that is not known ({error})") from error

    def _graph(self) -> Graph:
        signature = self.program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            raise CaptureError("the forward changes buffers or its inputs")
        tensors = {**dict(self.program.state_dict), **self.program.constants}
        where = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        inputs = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in where:
                    self._keep_constant(node, where[node.name], tensors)
                else:
                    self.names[node] = node.name
                    inputs.append(node.name)
                    self._keep_image_size(node)
            elif node.op == "call_function":
                self._read(node)
            elif node.op == "output":
                leaves = node.args[0]
        spec = self.program.call_spec.out_spec
        assert spec is not None
        outputs = [self._output(leaf, i) for i, leaf in enumerate(leaves)]
        graph = Graph(inputs, self.nodes, outputs, self.constants, treespec_dumps(spec), self.sizes)
        if self.symbols.env is not None:  # after reading, which may have added guards
            graph.rule = self.symbols.rule(self.shapes)
            graph.is_size_free = graph.rule.frees_images
        return graph

    def _output(self, leaf: Any, index: int) -> str:
        """Return the name of the value that leaves the graph as a leaf; numbers and constants are values of "torch"."""
        value = value_of(leaf)
        if isinstance(leaf, fx.Node) and (leaf in self.names or leaf in self.flat or is_put_off(self, leaf)):
            return self._value(leaf)
        constant = self.constant(leaf)
        is_number = isinstance(value, (bool, int, float, str, *SYMBOLIC)) and not is_unbacked(value)
        if value is None or is_number or constant is not None:
            name = f"output.{index}"
            given = self._size(value) if constant is None else {"constant": constant}
            attributes = {"target": "constant", "args": [given], "kwargs": {}}
            self.nodes.append(Node(name, "torch", [], attributes))
            return name
        raise CaptureError("the forward returns something that is not a tensor it computes")

    def _keep_constant(self, node: fx.Node, name: str, tensors: dict[str, Any]) -> None:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{name} is not a tensor")
        self.constant_names[node] = name
        self.constants[name] = tensor.detach()

    def _read(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, (*SYMBOLIC, bool, int, float)) or str(node.target).startswith(_ASSERTIONS):
            return  # a size: whoever reads it computes it
        if self._folds(node):
            return
        if is_whole_slice(node) or str(node.target) == NAMED_SIZES:
            names = self.names if node.args[0] in self.names else self.flat
            if node.args[0] in names:
                names[node] = names[node.args[0]]  # type: ignore[index]
                return
        if isinstance(value, (tuple, list)) and value:  # decomposed BatchNorm: the first of three results
            value = value[0]
        view_reader = CHANNEL_READERS.get(str(node.target))
        if view_reader is not None and view_reader(self, node):
            return
        reader = _READERS.get(str(node.target))
        if reader is not None and (self.is_image(value) or self.is_flat(value)):
            native = self._native(node)
            if isinstance(native, fx.Node):  # it stands for another value, or for its pixels
                if self.is_image(value):
                    self.names[node] = self.names[native]
                else:
                    self.flat[node] = self.flat[native] if native in self.flat else self.names[native]
                self._keep_image_size(node)
                return
            if native is not None:
                native.layer = layer_of(node)
                self.nodes.append(native)
                if self.is_image(value):
                    self.names[node] = native.name
                    self._keep_image_size(node)
                else:
                    self.flat[node] = native.name
                    self.sizes[native.name] = self._flat_size(native)
                return
        self._read_foreign(node)

    def _folds(self, node: fx.Node) -> bool:
        """Compute once what is made of parameters and buffers alone, such as a frozen normalization's scale."""
        target, value, made_of = node.target, node.meta.get("val"), [self.constant(arg) for arg in node.all_input_nodes]
        if not isinstance(target, torch._ops.OpOverload) or not isinstance(value, Tensor):
            return False
        if not made_of or None in made_of or not all(isinstance(size, int) for size in value.shape):
            return False
        most = max(self._constant(arg).numel() for arg in node.all_input_nodes)
        is_pure = not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
        if not is_pure or value.numel() > most:  # what is repeated stays small
            return False
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._constant)
        name = self.constant_names[node] = f"{node.name}.constant"
        self.constants[name] = target(*args, **kwargs).contiguous()
        return True

    def _constant(self, node: fx.Node) -> Tensor:
        return self.constants[self.constant_names[node]]

    def _native(self, node: fx.Node) -> Node | fx.Node | None:
        """Return what the engine makes of a node, sizes in its attributes encoded; None leaves it to torch."""
        try:
            native: Node | fx.Node | None = _READERS[str(node.target)](self, node)
            if isinstance(native, Node):
                native.attributes = self._size(native.attributes)
            return native
        except (GuardOnDataDependentSymNode, UnknownSizeError):  # a size that only running it gives
            return None

    def _size(self, value: Any) -> Any:
        """Replace symbolic sizes in a node's attributes by {"size": expression}."""
        if isinstance(value, SYMBOLIC):
            expression = self.symbols.expression(value)
            return {"size": expression} if isinstance(expression, list) else expression
        if isinstance(value, (list, tuple)):
            return [self._size(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self._size(item) for key, item in value.items()}
        return value

    def _flat_size(self, native: Node) -> tuple[int, int, int]:
        if native.op == "conv2d":  # a linear layer
            return len(self.constants[native.attributes["weight"]]), 1, 1
        size = self.sizes[native.inputs[0]]
        return (size[0], 1, 1) if native.op == "global_mean" else size

    def _keep_image_size(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node in self.names and isinstance(value, Tensor) and self.is_image(value):
            channels, height, width = (int(hint_of(size)) for size in value.shape[1:])
            self.sizes[self.names[node]] = (channels, height, width)

    def _value(self, node: fx.Node) -> str:
        """Return the name of the value that a node stands for; torch flattens an image where it must."""
        if node not in self.names and (node not in self.flat or is_put_off(self, node)):
            self._read_foreign(node)  # a size that is computed from pixels, or a view that was put off
        elif node not in self.names:
            image = self.flat[node]
            attributes = {"target": "aten.flatten.using_ints", "args": [{"value": image}, 1], "kwargs": {}}
            self.nodes.append(Node(f"{node.name}.flat", "torch", [image], attributes, layer_of(node)))
            self.names[node] = f"{node.name}.flat"
        return self.names[node]

    def _read_foreign(self, node: fx.Node) -> None:
        inputs: list[str] = []
        args = [self._encoded(arg, inputs, node) for arg in node.args]
        kwargs = {key: self._encoded(arg, inputs, node) for key, arg in node.kwargs.items()}
        target = _target_of(node)
        if target in _VIEWS:  # a view for the strides that were seen at export; the engine's values have others
            target = "aten.reshape.default"
        attributes = {"target": target, "args": args, "kwargs": kwargs}
        self.nodes.append(Node(node.name, "torch", inputs, attributes, layer_of(node)))
        self.names[node] = node.name
        self._keep_image_size(node)
        self._keep_shape(node)

    def _encoded(self, arg: Any, inputs: list[str], node: fx.Node) -> Any:
        """Write an argument of a node as JSON holds it; names of values among them go to `inputs`."""
        if isinstance(arg, fx.Node):
            size = value_of(arg)
            if not isinstance(size, fx.Node) and not is_unbacked(size):
                return self._size(size)
            if arg in self.constant_names:
                return {"constant": self.constant_names[arg]}
            inputs.append(self._value(arg))
            return {"value": inputs[-1]}
        if isinstance(arg, (list, tuple)):
            return [self._encoded(item, inputs, node) for item in arg]
        if isinstance(arg, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
            return {type(arg).__name__: str(arg)}
        if arg is None or isinstance(arg, (bool, int, float, str, *SYMBOLIC)):
            return self._size(arg)
        raise CaptureError(f"{node.target} has an argument of type {type(arg).__name__}")

    def _keep_shape(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not any(is_unbacked(size) for size in value.shape):
            self.shapes[node.name] = [self.symbols.expression(size) for size in value.shape]

    def is_image(self, value: object) -> bool:
        """Tell whether an exported value is [N, C, H, W] in the graph's dtype."""
        return _is_value(value, 4, self.dtype)

    def is_flat(self, value: object) -> bool:
        """Tell whether an exported value is [N, features] in the graph's dtype."""
        return _is_value(value, 2, self.dtype)

    def constant(self, arg: object) -> str | None:
        """Return the name of the constant that `arg` is, or None."""
        return self.constant_names.get(arg) if isinstance(arg, fx.Node) else None

    def image(self, arg: object) -> str | None:
        """Return the name of the NCHW value of the graph's dtype that `arg` is, or None."""
        is_value = isinstance(arg, fx.Node) and arg in self.names and self.is_image(arg.meta.get("val"))
        return self.names[arg] if is_value else None  # type: ignore[index]

    def pixels(self, arg: object) -> str | None:
        """Return the name of the image that `arg` is or whose pixels it is, or None."""
        return self.image(arg) or (self.flat.get(arg) if isinstance(arg, fx.Node) else None)

    def is_native(self, arg: object) -> bool:
        """Return whether the engine makes the value that `arg` is, which is then contiguous."""
        name = self.pixels(arg)
        return any(node.name == name and node.is_native for node in reversed(self.nodes))


def _is_value(value: object, dims: int, dtype: torch.dtype) -> bool:
    if not isinstance(value, Tensor) or value.dim() != dims or value.dtype != dtype:
        return False
    return not any(is_unbacked(size) or hint_of(size) == 0 for size in value.shape)


def _target_of(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    name = getattr(node.target, "__name__", "")
    if getattr(operator, name, None) is node.target and name in SIZE_FUNCTIONS:
        return f"operator.{name}"
    raise CaptureError(f"{node.target} is no operator of torch")
