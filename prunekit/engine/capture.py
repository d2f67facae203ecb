"""From a torch module to a Graph: torch.export, then one node for every ATen operator."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import treespec_dumps

from prunekit.engine.graph import Activation, Graph, Node

# Linear layers of more kept weights are left to torch: they have one pixel in vectors of sixteen. Of 25088 features to
# 4096 a fifth takes as long here as all of it does in torch, a tenth half, a hundredth a tenth.
_MAX_LINEAR_DENSITY = 0.15


class CaptureError(Exception):
    """The model cannot be captured; the message is one sentence."""


def capture(model: nn.Module, inputs: Sequence[Tensor]) -> Graph:
    """Capture `model`, which is in eval mode, on `inputs`; weights are shared with the model.

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
    return _Reader(program).graph()


def is_size_free(model: nn.Module, inputs: Sequence[Tensor], graph: Graph) -> bool:
    """Tell whether `graph`, captured on `inputs`, is the model's for any image size and batch.

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
                other = capture(model, others)
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


class _Reader:
    """Turns an exported program into a Graph."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.names: dict[fx.Node, str] = {}  # of the value that a node stands for
        self.flat: dict[fx.Node, str] = {}  # of the image whose pixels, [N, C · H · W], a node stands for
        self.constant_names: dict[fx.Node, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.sizes: dict[str, tuple[int, int, int]] = {}

    def graph(self) -> Graph:
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
        if not all(isinstance(leaf, fx.Node) and (leaf in self.names or leaf in self.flat) for leaf in leaves):
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
        reader = _READERS.get(str(node.target))
        if reader is not None and (_is_image(value) or _is_flat(value)):
            native = reader(self, node)
            if isinstance(native, fx.Node):  # it stands for another value, or for its pixels
                if _is_image(value):
                    self.names[node] = self.names[native]
                else:
                    self.flat[node] = self.flat[native] if native in self.flat else self.names[native]
                self._keep_image_size(node)
                return
            if native is not None:
                native.layer = _layer(node)
                self.nodes.append(native)
                if _is_image(value):
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
        return self.sizes[native.inputs[0]]

    def _keep_image_size(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node in self.names and isinstance(value, Tensor) and _is_image(value):
            channels, height, width = (int(size) for size in value.shape[1:])
            self.sizes[self.names[node]] = (channels, height, width)

    def _value(self, node: fx.Node) -> str:
        """Return the name of the value that a node stands for; torch flattens an image where it must."""
        if node not in self.names:
            image = self.flat[node]
            attributes = {"target": "aten.flatten.using_ints", "args": [{"value": image}, 1], "kwargs": {}}
            self.nodes.append(Node(f"{node.name}.flat", "torch", [image], attributes, _layer(node)))
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
            Node(node.name, "torch", inputs, {"target": target, "args": args, "kwargs": kwargs}, _layer(node))
        )
        self.names[node] = node.name
        self._keep_image_size(node)

    def constant(self, arg: object) -> str | None:
        """Return the name of the constant that `arg` is, or None."""
        return self.constant_names.get(arg) if isinstance(arg, fx.Node) else None

    def image(self, arg: object) -> str | None:
        """Return the name of the float32 NCHW value that `arg` is, or None."""
        is_value = isinstance(arg, fx.Node) and arg in self.names and _is_image(arg.meta.get("val"))
        return self.names[arg] if is_value else None  # type: ignore[index]

    def pixels(self, arg: object) -> str | None:
        """Return the name of the image that `arg` is or whose pixels it is, or None."""
        return self.image(arg) or (self.flat.get(arg) if isinstance(arg, fx.Node) else None)


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.dtype == torch.float32 and value.numel() > 0


def _is_flat(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.dtype == torch.float32 and value.numel() > 0


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return str(path)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the operator's arguments by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = {}
    for i, parameter in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            arguments[parameter.name] = node.args[i]
        elif parameter.name in node.kwargs:
            arguments[parameter.name] = node.kwargs[parameter.name]
        else:
            arguments[parameter.name] = parameter.default_value
    return arguments


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _convolution(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x, weight = reader.image(a["input"]), reader.constant(a["weight"])
    bias = reader.constant(a["bias"])
    if x is None or weight is None or (a["bias"] is not None and bias is None):
        return None
    if reader.constants[weight].dim() != 4 or reader.constants[weight].dtype != torch.float32:
        return None
    stride, dilation, padding = _pair(a["stride"]), _pair(a["dilation"]), a["padding"]
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, reader.constants[weight].shape[2:], strict=True)]
        if any(r % 2 for r in reach):
            return None
        padding = [r // 2 for r in reach]
    return _conv2d(node.name, x, weight, bias, stride, _pair(padding), dilation, a["groups"])


def _conv2d(
    name: str, x: str, weight: str, bias: str | None, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Node:  # fmt: skip
    attributes = {
        "weight": weight, "bias": bias, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "before": Activation(), "after": Activation(),
    }  # fmt: skip
    return Node(name, "conv2d", [x], attributes)


def _batch_norm(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x = reader.image(a["input"])
    names = [reader.constant(a[key]) for key in ("weight", "bias", "running_mean", "running_var")]
    if x is None or a.get("training") or names[2] is None or names[3] is None:
        return None
    mean, var = reader.constants[names[2]].double(), reader.constants[names[3]].double()
    scale = 1 / (var + a["eps"]).sqrt()
    if names[0] is not None:
        scale = scale * reader.constants[names[0]].double()
    shift = -mean * scale
    if names[1] is not None:
        shift = shift + reader.constants[names[1]].double()
    attributes = {"scale": f"{node.name}.scale", "shift": f"{node.name}.shift", "after": Activation()}
    reader.constants[attributes["scale"]], reader.constants[attributes["shift"]] = scale, shift  # type: ignore[index]
    return Node(node.name, "affine", [x], attributes)


def _first_result(reader: _Reader, node: fx.Node) -> fx.Node | None:
    source, index = node.args
    is_first = isinstance(source, fx.Node) and str(source.target).startswith("aten._native_batch_norm") and index == 0
    is_native = any(made.is_native for made in reader.nodes if made.name == reader.names.get(source))  # type: ignore[arg-type]
    return source if is_first and is_native else None  # type: ignore[return-value]


def _activation(kind: str, slope: Callable[[dict[str, Any]], float] = lambda a: 0.0) -> Any:
    def read(reader: _Reader, node: fx.Node) -> Node | None:
        a = _arguments(node)
        x = reader.pixels(next(iter(a.values())))
        return None if x is None else Node(node.name, "activation", [x], {"after": Activation(kind, slope(a))})

    return read


def _hardtanh(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    if (a["min_val"], a["max_val"]) != (0, 6):
        return None
    read: Node | None = _activation("relu6")(reader, node)
    return read


def _linear(reader: _Reader, node: fx.Node) -> Node | None:
    """Read a layer of an image's pixels as a convolution as large as the image."""
    a = _arguments(node)
    x, weight, bias = reader.pixels(a["input"]), reader.constant(a["weight"]), reader.constant(a["bias"])
    if x is None or a["input"].meta["val"].dim() != 2 or weight is None or (a["bias"] is not None and bias is None):
        return None
    matrix = reader.constants[weight]
    if matrix.dtype != torch.float32 or float(matrix.count_nonzero()) > _MAX_LINEAR_DENSITY * matrix.numel():
        return None
    name = f"{node.name}.weight"
    reader.constants[name] = matrix.reshape(-1, *reader.sizes[x])
    return _conv2d(node.name, x, name, bias, [1, 1], [0, 0], [1, 1], 1)


def _flatten(reader: _Reader, node: fx.Node) -> fx.Node | None:
    """Read what makes [N, C · H · W] of an image."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or reader.pixels(source) is None or node.meta["val"].dim() != 2:
        return None
    shape = source.meta["val"].shape
    is_flat = tuple(node.meta["val"].shape) == (shape[0], math.prod(shape[1:]))
    return source if is_flat else None


def _mean(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x = reader.image(a["self"])
    if x is None or a.get("dtype") is not None:
        return None
    is_global = sorted(d % 4 for d in a["dim"] or ()) == [2, 3]
    return Node(node.name, "global_mean", [x]) if is_global else None


def _adaptive_pool(reader: _Reader, node: fx.Node) -> Node | fx.Node | None:
    a = _arguments(node)
    x = reader.image(a["self"])
    if x is None:
        return None
    size, output = tuple(a["self"].meta["val"].shape[2:]), tuple(node.meta["val"].shape[2:])
    if size == output:
        return _same(reader, node)
    return Node(node.name, "global_mean", [x]) if output == (1, 1) else None


def _add(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x, y = reader.image(a["self"]), reader.image(a["other"])
    if x is None or y is None or a["alpha"] != 1:
        return None
    if a["self"].meta["val"].shape != a["other"].meta["val"].shape:
        return None
    return Node(node.name, "add", [x, y], {"after": Activation()})


def _concat(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    names = [reader.image(tensor) for tensor in a["tensors"]]
    if None in names or a["dim"] not in (1, -3):
        return None
    return Node(node.name, "concat", [name for name in names if name is not None])


def _upsample(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x, factors = reader.image(a["input"]), a.get("scale_factors")
    if x is None or not factors or any(f != int(f) or f < 1 for f in factors):
        return None
    return Node(node.name, "upsample", [x], {"factors": [int(f) for f in factors]})


def _pool(op: str) -> Any:
    def read(reader: _Reader, node: fx.Node) -> Node | None:
        a = _arguments(node)
        x = reader.image(a["self"])
        padding = _pair(a["padding"])
        if x is None or a["ceil_mode"] or a.get("divisor_override") is not None:
            return None
        if op == "avg_pool2d" and any(padding) and not a["count_include_pad"]:
            return None
        kernel = _pair(a["kernel_size"])
        attributes = {
            "kernel": kernel, "stride": _pair(a["stride"]) if a["stride"] else kernel, "padding": padding,
            "dilation": _pair(a.get("dilation", 1)),
        }  # fmt: skip
        return Node(node.name, op, [x], attributes)

    return read


def _pad(reader: _Reader, node: fx.Node) -> Node | None:
    a = _arguments(node)
    x, widths = reader.image(a["self"]), list(a["pad"])
    if x is None or a.get("mode", "constant") != "constant" or any(widths[4:]):
        return None
    left, right, top, bottom = [*widths, 0, 0][:4]
    return Node(node.name, "pad", [x], {"sides": [left, right, top, bottom], "fill": float(a["value"] or 0.0)})


def _same(reader: _Reader, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    return source if isinstance(source, fx.Node) and reader.pixels(source) is not None else None


def _dropout(reader: _Reader, node: fx.Node) -> fx.Node | None:
    return None if _arguments(node)["train"] else _same(reader, node)


_READERS: dict[str, Callable[[_Reader, fx.Node], Node | fx.Node | None]] = {
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "<built-in function getitem>": _first_result,
    "aten.leaky_relu.default": _activation("leaky_relu", lambda a: float(a["negative_slope"])),
    "aten.relu.default": _activation("relu"),
    "aten.relu6.default": _activation("relu6"),
    "aten.hardtanh.default": _hardtanh,
    "aten.silu.default": _activation("silu"),
    "aten.hardswish.default": _activation("hardswish"),
    "aten.add.Tensor": _add,
    "aten.cat.default": _concat,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.linear.default": _linear,
    "aten.flatten.using_ints": _flatten,
    "aten.view.default": _flatten,
    "aten.reshape.default": _flatten,
    "aten._unsafe_view.default": _flatten,
    "aten.mean.dim": _mean,
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.max_pool2d.default": _pool("max_pool2d"),
    "aten.avg_pool2d.default": _pool("avg_pool2d"),
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.dropout.default": _dropout,
    "aten.clone.default": _same,
    "aten.contiguous.default": _same,
    "aten.alias.default": _same,
    "aten.detach.default": _same,
}
