"""From a torch module to a Graph: torch.export, then one node for every ATen operator."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import treespec_dumps

from prunekit.engine import aten, aten_arithmetic
from prunekit.engine.aten import layer_of
from prunekit.engine.channel_views import CHANNEL_READERS, ChannelView, is_put_off
from prunekit.engine.graph import Graph, Node

_READERS = {**aten.READERS, **aten_arithmetic.READERS}


class CaptureError(Exception):
    """The model cannot be captured; the message is one sentence."""


def capture(model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Graph:
    """Capture `model`, which is in eval mode, on `inputs`; weights are shared with the model.

    Values of another dtype than `dtype` are left to torch.

    Raises:
        CaptureError: torch.export fails, or the forward changes buffers.
    """
    try:
        program = torch.export.export(model, tuple(inputs), strict=False)
        if any(_is_in_place(node) for node in program.graph.nodes):
            program = program.run_decompositions({})
    except Exception as error:  # whatever a foreign forward raises
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaptureError(f"torch.export cannot capture the model ({sentence})") from error
    return GraphReader(program, dtype).graph()


def is_size_free(model: nn.Module, inputs: Sequence[Tensor], graph: Graph, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether `graph`, captured on `inputs` in `dtype`, is the model's for any image size and batch.

    A size that the forward computes with, as in F.avg_pool2d(x, x.shape[2:]), is a constant of its graph: the model is
    captured once more on other sizes, or on twice the size where it does not run on odd ones, and must give the same.
    """
    for more in ((1, 2), (0, 0)):  # two remainders: a pad up to a multiple shows in one of them
        others = [
            x.new_empty(len(x) + 1, x.shape[1], 2 * x.shape[2] + more[0], 2 * x.shape[3] + more[1])
            if x.dim() == 4
            else x
            for x in inputs
        ]
        try:
            with _without_torch_logs():
                other = capture(model, others, dtype)
        except CaptureError:
            continue
        return _is_same(graph, other)
    return False


@contextmanager
def _without_torch_logs() -> Iterator[None]:
    """Keep torch from logging with a traceback that a model does not run on a size: that is an answer, not a fault."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_same(a: Graph, b: Graph) -> bool:
    def is_equal(x: Tensor, y: Tensor) -> bool:
        return x.data_ptr() == y.data_ptr() or torch.equal(x, y)

    is_wired_alike = (a.inputs, a.nodes, a.outputs, a.output_spec) == (b.inputs, b.nodes, b.outputs, b.output_spec)
    if not is_wired_alike or a.constants.keys() != b.constants.keys():
        return False
    return all(is_equal(constant, b.constants[name]) for name, constant in a.constants.items())


def _is_in_place(node: fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).split(".")[1:2] != [] and _mutates(node.target)


def _mutates(target: object) -> bool:
    schema = getattr(target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


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

    def graph(self) -> Graph:
        """Return the program's graph."""
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
        if not all(
            isinstance(leaf, fx.Node) and (leaf in self.names or leaf in self.flat or is_put_off(self, leaf))
            for leaf in leaves
        ):
            raise CaptureError("the forward returns something that is not a tensor it computes")
        spec = self.program.call_spec.out_spec
        assert spec is not None
        outputs = [self._value(leaf) for leaf in leaves]
        return Graph(inputs, self.nodes, outputs, self.constants, treespec_dumps(spec), self.sizes)

    def _keep_constant(self, node: fx.Node, name: str, tensors: dict[str, Any]) -> None:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{name} is not a tensor")
        self.constant_names[node] = name
        self.constants[name] = tensor.detach()

    def _read(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)) and value:  # decomposed BatchNorm: the first of three results
            value = value[0]
        view_reader = CHANNEL_READERS.get(str(node.target))
        if view_reader is not None and view_reader(self, node):
            return
        reader = _READERS.get(str(node.target))
        if reader is not None and (self.is_image(value) or self.is_flat(value)):
            native = reader(self, node)
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

    def _flat_size(self, native: Node) -> tuple[int, int, int]:
        if native.op == "conv2d":  # a linear layer
            return len(self.constants[native.attributes["weight"]]), 1, 1
        size = self.sizes[native.inputs[0]]
        return (size[0], 1, 1) if native.op == "global_mean" else size

    def _keep_image_size(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node in self.names and isinstance(value, Tensor) and self.is_image(value):
            channels, height, width = (int(size) for size in value.shape[1:])
            self.sizes[self.names[node]] = (channels, height, width)

    def _value(self, node: fx.Node) -> str:
        """Return the name of the value that a node stands for; torch flattens an image where it must."""
        if node not in self.names and is_put_off(self, node):
            self._read_foreign(node)
        elif node not in self.names:
            image = self.flat[node]
            attributes = {"target": "aten.flatten.using_ints", "args": [{"value": image}, 1], "kwargs": {}}
            self.nodes.append(Node(f"{node.name}.flat", "torch", [image], attributes, layer_of(node)))
            self.names[node] = f"{node.name}.flat"
        return self.names[node]

    def _read_foreign(self, node: fx.Node) -> None:
        inputs: list[str] = []

        def encode(arg: Any) -> Any:
            if isinstance(arg, fx.Node):
                if arg in self.constant_names:
                    return {"constant": self.constant_names[arg]}
                name = self._value(arg)
                inputs.append(name)
                return {"value": name}
            if isinstance(arg, (list, tuple)):
                return [encode(a) for a in arg]
            if isinstance(arg, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
                return {type(arg).__name__: str(arg)}
            if arg is None or isinstance(arg, (bool, int, float, str)):
                return arg
            raise CaptureError(f"{node.target} has an argument of type {type(arg).__name__}")

        if node.target is operator.getitem:
            target = "getitem"
        elif isinstance(node.target, torch._ops.OpOverload):
            target = str(node.target)
        else:
            raise CaptureError(f"{node.target} is no operator of torch")
        args = [encode(arg) for arg in node.args]
        kwargs = {key: encode(arg) for key, arg in node.kwargs.items()}
        self.nodes.append(
            Node(node.name, "torch", inputs, {"target": target, "args": args, "kwargs": kwargs}, layer_of(node))
        )
        self.names[node] = node.name
        self._keep_image_size(node)

    def is_image(self, value: object) -> bool:
        """Tell whether an exported value is [N, C, H, W] in the graph's dtype."""
        return isinstance(value, Tensor) and value.dim() == 4 and value.dtype == self.dtype and value.numel() > 0

    def is_flat(self, value: object) -> bool:
        """Tell whether an exported value is [N, features] in the graph's dtype."""
        return isinstance(value, Tensor) and value.dim() == 2 and value.dtype == self.dtype and value.numel() > 0

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
