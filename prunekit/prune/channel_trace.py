"""Follow every channel through a traced model: which convolution's filter made it, and who reads it.

Each tensor of the graph carries one label per channel (dimension 1). A convolution gives its outputs labels of its own;
element-wise functions, pooling, upsampling and normalization hand labels on; concatenation joins them; addition ties
them, two by two. Labels that were tied, however far apart, are one *unit*: channels that can only go together.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from prunekit.prune.layers import prunable_layers

Labels = list[int]

# torch.nn's modules of these files work channel by channel, except those listed below.
_CHANNELWISE_FILES = {
    f"torch.nn.modules.{name}" for name in ("activation", "dropout", "padding", "pooling", "upsampling")
}
_MIXING_MODULES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.MultiheadAttention)
# Functions and methods by name, without a trailing underscore: torch, torch.nn.functional and Tensor agree on them.
# fmt: off
_CHANNELWISE = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid", "prelu", "rrelu", "clamp", "clip", "abs",
    "neg", "exp", "sqrt", "pow", "square", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "max_pool2d",
    "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d",
    "interpolate", "upsample", "pad", "contiguous", "clone", "detach", "to", "float", "double", "half", "type_as",
    "identity",
}
_TYING = {
    "add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div", "true_divide", "subtract",
    "multiply", "divide", "maximum", "minimum",
}
# fmt: on
_JOINING = {"cat", "concat", "concatenate"}
_SPLITTING = {"chunk", "split", "tensor_split"}
_FLATTENING = {"flatten", "view", "reshape", "mean", "squeeze"}


class ChannelTrace:
    """The labels of one graph, whose nodes carry `node.meta["value"]` from a run on an example.

    Attributes:
        outputs: Convolution → one label per output channel.
        norms: Normalization layer → one label per channel.
        inputs: Convolution or linear layer → one label per channel it reads. What a layer reads when it is called
            at several places is tied, for its weight can lose an input only everywhere.
        pinned: Labels that may never be cut: they reach the model's outputs, come from its inputs, or reach an
            operation that is not known here.
        unknown: The names of those operations.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._modules = dict(model.named_modules())
        self._parents: list[int] = []
        self._labels: dict[fx.Node, Any] = {}
        self.outputs = {name: self._fresh(conv.out_channels) for name, conv in prunable_layers(model).items()}
        self.norms: dict[str, Labels] = {}
        self.inputs: dict[str, Labels] = {}
        self.pinned: set[int] = set()
        self.unknown: set[str] = set()
        for node in graph.nodes:
            self._labels[node] = self._visit(node)

    def find(self, label: int) -> int:
        """Return the label that stands for all labels tied to `label`."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _fresh(self, count: int) -> Labels:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return list(range(first, first + count))

    def _tie(self, first: Sequence[int], second: Sequence[int]) -> None:
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self.find(a), self.find(b)))
            self._parents[high] = low

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "output":
            return self._pin(node)
        if node.op in ("placeholder", "get_attr"):
            labels = self._fresh_for(node.meta.get("value"))
            self.pinned |= set(labels or ()) if node.op == "placeholder" else set()
            return None if node.op == "get_attr" else labels
        if node.op == "call_module":
            return self._visit_module(node, self._modules[str(node.target)])
        return self._visit_function(node, function_name(node))

    def _visit_module(self, node: fx.Node, module: nn.Module) -> Any:
        name = str(node.target)
        source = self._labels.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if isinstance(module, nn.Conv2d) and source is not None:
            return self._visit_convolution(name, module, source)
        if isinstance(module, nn.Linear) and source is not None and node.meta["value"].dim() == 2:
            self._read(name, source)
            return self._fresh_for(node.meta["value"])
        if isinstance(module, _NormBase) and source is not None:
            self._tie(self.norms.setdefault(name, source), source)
            return source
        is_channelwise = type(module).__module__ in _CHANNELWISE_FILES and not isinstance(module, _MIXING_MODULES)
        if is_channelwise or isinstance(module, nn.Identity):
            return self._hand_on(node, source)
        if isinstance(module, nn.Flatten):
            return self._flatten(node, source)
        return self._give_up(node, type(module).__name__)

    def _visit_convolution(self, name: str, conv: nn.Conv2d, source: Labels) -> Labels:
        self._read(name, source)
        labels = self.outputs[name]
        if conv.groups > 1:
            # The channels that one group of a grouped convolution reads and writes go together or not at all; of a
            # depthwise one that is a channel in and its channels out.
            read, written = len(source) // conv.groups, len(labels) // conv.groups
            for group in range(conv.groups):
                members = source[group * read : (group + 1) * read] + labels[group * written : (group + 1) * written]
                self._tie(members[:1] * len(members), members)
        return labels

    def _read(self, name: str, source: Labels) -> None:
        self._tie(self.inputs.setdefault(name, source), source)

    def _visit_function(self, node: fx.Node, name: str) -> Any:
        sources = [self._labels.get(argument) for argument in node.all_input_nodes]
        source = sources[0] if sources else None
        if not any(sources):
            return self._fresh_for(node.meta.get("value"))
        if name in _TYING:
            return self._tie_operands(node, sources)
        if name in _JOINING and _dimension(node, 1) == 1:
            return [label for labels in sources for label in labels or ()]
        if name in _SPLITTING and _dimension(node, 2) == 1:
            return self._split(node, source)
        if name == "getitem":
            return self._select(node, source)
        if name in _FLATTENING:
            return self._flatten(node, source)
        if name in _CHANNELWISE:
            return self._hand_on(node, source)
        return self._give_up(node, name)

    def _tie_operands(self, node: fx.Node, sources: Sequence[Labels | None]) -> Any:
        operands = [labels for labels in sources if labels]
        widest = max(operands, key=len)
        for labels in operands:
            if len(labels) == len(widest):
                self._tie(labels, widest)  # one channel, broadcast over many, ties nothing
        return self._hand_on(node, widest)

    def _split(self, node: fx.Node, source: Labels | None) -> Any:
        pieces, first = [], 0
        for piece in node.meta["value"]:
            pieces.append((source or [])[first : first + piece.shape[1]])
            first += piece.shape[1]
        return pieces

    def _select(self, node: fx.Node, source: Any) -> Any:
        index: Any = node.args[1]
        if isinstance(source[0], list):
            return source[index]
        is_plain = isinstance(index, tuple) and len(index) >= 2 and index[0] == slice(None) and _is_static(index[1])
        if is_plain and isinstance(index[1], slice):
            return self._hand_on(node, source[index[1]])
        return self._give_up(node, "indexing")

    def _hand_on(self, node: fx.Node, source: Labels | None) -> Any:
        value = node.meta.get("value")
        if source is None or not isinstance(value, Tensor):
            return None
        has_same_channels = value.dim() > 1 and value.shape[1] == len(source)
        return source if has_same_channels else self._give_up(node, function_name(node))

    def _flatten(self, node: fx.Node, source: Labels | None) -> Any:
        """Channels stay channels in [N, C, …] → [N, C], and each becomes a run of columns in [N, C·H·W]."""
        shape = node.meta["value"].shape
        before = node.all_input_nodes[0].meta["value"].shape
        if source is None or len(shape) < 2 or shape[0] != before[0]:
            return self._give_up(node, function_name(node))
        if len(before) > 2 and len(shape) == 2 and shape[1] == before[1:].numel():
            return [label for label in source for _ in range(before[2:].numel())]
        keeps_channels = shape[1] == before[1] and function_name(node) in ("mean", "squeeze", "flatten")
        return source if keeps_channels else self._give_up(node, function_name(node))

    def _give_up(self, node: fx.Node, name: str) -> Any:
        """Pin whatever flows into an operation that is not known, and start afresh behind it."""
        if not any(isinstance(part, Tensor) for part in tree_leaves(node.meta.get("value"))):
            return None  # a size or a number: no channel flows through
        if any(self._labels.get(argument) for argument in node.all_input_nodes):
            self.unknown.add(name)
        self._pin(node)
        labels = self._fresh_for(node.meta.get("value"))
        self.pinned |= set(labels or ())
        return labels

    def _pin(self, node: fx.Node) -> None:
        for argument in node.all_input_nodes:
            self.pinned |= set(_flat(self._labels.get(argument)))

    def _fresh_for(self, value: object) -> Labels | None:
        return self._fresh(value.shape[1]) if isinstance(value, Tensor) and value.dim() > 1 else None


def function_name(node: fx.Node) -> str:
    """Return what a node calls, without the trailing underscore of in-place variants: `relu`, `cat`, `add`."""
    if node.target is operator.getitem:
        return "getitem"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rpartition(".")[2].strip("_")


def _dimension(node: fx.Node, position: int) -> int | None:
    """Return the dimension that a joining or splitting node works along, counted from the front."""
    dim = node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0)
    value = node.all_input_nodes[0].meta["value"]
    return dim % value.dim() if isinstance(dim, int) and isinstance(value, Tensor) else None


def _is_static(index: object) -> bool:
    parts = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    return not any(isinstance(part, fx.Node) for part in parts)


def _flat(labels: Any) -> Iterator[int]:
    for label in labels or ():
        yield from _flat(label) if isinstance(label, list) else (label,)
