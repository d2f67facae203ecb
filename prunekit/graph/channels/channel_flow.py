"""Follow every channel and every constant through a traced model.

Each tensor of the graph is a `Value`. A convolution gives its filters labels of their own and works out which of them
answer a constant; functions that work channel by channel hand labels on; functions of two tensors tie them; movements
of data move them. What is not understood pins the channels that flow into it, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from prunekit.graph.channels.units import Labels, Units
from prunekit.graph.channels.values import Value, channels, unknown
from prunekit.graph.nodes import layer_name, operator_name, source
from prunekit.graph.traced import Traced

Rule = Callable[["ChannelFlow", fx.Node], Any]
#: By the operator's name; `layer_rules`, `pointwise_rules` and `movement_rules` fill it.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class NotUnderstoodError(Exception):
    """A rule does not apply; the message is why, to follow "flows into relu of layer x, which"."""


@dataclass
class Layer:
    """A convolution or linear layer that may lose channels.

    Attributes:
        name: Its name in the model.
        groups: Of a grouped convolution.
        out_labels: One a filter.
        in_labels: One an input channel; empty where the input's channels are not known.
        in_constants: float64, one an input channel: the constant that it is at every call; nan where it varies.
        pads: Whether it reads zeros beside the image.
        used: bool [filters, input channels / groups]: whether the filter has a weight there.
        calls: How often the graph calls it.
        norm: The running mean of the normalization that alone reads its output, by name.
        transposed: Whether it is a transposed convolution, whose weight is [channels, filters, taps].
    """

    name: str
    groups: int
    out_labels: Labels
    in_labels: Labels
    in_constants: Tensor
    pads: bool
    used: Tensor
    calls: int = 0
    norm: str | None = None
    transposed: bool = False

    @cached_property
    def masked(self) -> Tensor:
        """The filters without any weight, bool [filters]."""
        return ~self.used.any(dim=1)


@dataclass
class Equal:
    """Parts of a value that must keep equally many channels.

    Attributes:
        parts: The labels of each part.
        reason: Why, as a sentence.
        other_side: For a grouped convolution, the labels that each group writes: a group may go with all that it reads
            and writes, and the groups that stay must write equally many as well.
    """

    parts: list[Labels]
    reason: str
    other_side: list[Labels] | None = None


@dataclass
class ChannelFlow:
    """What the graph says about channels.

    Attributes:
        traced: The graph.
        hold: Places that are kept whole because sizes are written down there, as `describe` names them.
        silent: Names of layers to take for masked entirely, and of no other, whatever their weights are; normalizations
            shift nothing, and a convolution among them may compute its weight. None reads weights as they are.
        units: Labels, and which of them are tied or pinned.
        layers: Convolutions and linear layers that may be cut, by name.
        tensors: Other parameters and buffers that are cut: name → (dimension, labels).
        equal: Parts of values that must stay equally wide.
        literal: Places where a size may be written down in the forward, as `describe` names them, and their labels.
        outputs: What each layer and normalization returns, call by call.
        makers: Node → the layer that it is a call of.
        whole: Parameters and buffers that something uses as they are.
        kept_whole: Operations whose channels are kept, since they are not understood or cannot be cut, as sentences.
        not_understood: The nodes of those that nothing is known behind.
    """

    traced: Traced
    hold: frozenset[str] = frozenset()
    silent: frozenset[str] | None = None
    units: Units = field(default_factory=Units)
    layers: dict[str, Layer] = field(default_factory=dict)
    tensors: dict[str, tuple[int, Labels]] = field(default_factory=dict)
    equal: list[Equal] = field(default_factory=list)
    literal: dict[str, Labels] = field(default_factory=dict)
    outputs: dict[str, list[Value]] = field(default_factory=dict)
    makers: dict[fx.Node, Layer] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    kept_whole: dict[str, None] = field(default_factory=dict)
    not_understood: list[fx.Node] = field(default_factory=list)
    _values: dict[fx.Node, Any] = field(default_factory=dict)

    def run(self) -> ChannelFlow:
        """Visit every node."""
        for node in self.traced.nodes:
            if node.op == "call_function" and source(node) not in self.traced.tensors:  # casts of parameters wait
                self._values[node] = self._visit(node)
            elif node.op == "output":
                for leaf in tree_leaves(node.args):
                    self.pin(leaf, "it is an output of the model")
                    if isinstance(leaf, fx.Node):
                        self._pin_parameter(leaf)
        return self

    def value(self, arg: object) -> Value:
        """Return what is known of a node's tensor."""
        assert isinstance(arg, fx.Node)
        if arg not in self._values:
            self._values[arg] = self._leaf(arg)
        found = self._values[arg]
        return found if isinstance(found, Value) else unknown(())

    def values(self, arg: fx.Node) -> Any:
        """Return what is known of a node that may have several results."""
        self.value(arg)
        return self._values[arg]

    def pin(self, arg: object, reason: str) -> None:
        """Keep all channels of a node's tensors."""
        if isinstance(arg, fx.Node) and (arg in self._values or source(arg) not in self.traced.tensors):
            self.value(arg)
            for value in tree_leaves(self._values[arg], is_leaf=lambda v: isinstance(v, Value)):
                if isinstance(value, Value):
                    self.units.pin(value.labels, reason)

    def name_of(self, arg: object) -> str | None:
        """Return the name of the parameter or buffer that a node is, or is a cast of."""
        found = source(arg)
        return self.traced.tensors.get(found) if isinstance(found, fx.Node) else None

    def channel_tensor(self, arg: object, dim: int, labels: Labels) -> Tensor | None:
        """Let a parameter or buffer lose entries together with `labels`; return it as float64, None for None.

        Raises:
            NotUnderstoodError: It is computed, of another size, or belongs to a layer that is cut in its own way.
        """
        if arg is None:
            return None
        name = self.name_of(arg)
        if name is None or name in self.traced.shared or name in self.whole:
            raise NotUnderstoodError("computes its parameters or shares them with another layer")
        tensor = self.traced.tensor(name)
        if tensor.shape[dim] != len(labels):
            raise NotUnderstoodError("has parameters of another size")
        if name in self.tensors and self.tensors[name][0] == dim:
            self.units.tie(self.tensors[name][1], labels)
        elif name in self.tensors or name.rpartition(".")[0] in self.layers:
            raise NotUnderstoodError("uses a parameter that is used elsewhere too")
        self.tensors[name] = (dim, labels)
        return tensor.double().cpu()

    def describe(self, node: fx.Node) -> str:
        """Name a node for people."""
        layer = layer_name(node)
        return f"{operator_name(node)} of {layer}" if layer else operator_name(node)

    def _visit(self, node: fx.Node) -> Any:
        apply = RULES.get(operator_name(node))
        try:
            if self.describe(node) in self.hold:
                raise NotUnderstoodError("writes the number of channels into the forward")
            if apply is None:
                raise NotUnderstoodError("is no operation that channels are followed through")
            return apply(self, node)
        except NotUnderstoodError as error:
            return self.give_up(node, str(error))
        except Exception as error:  # a shape or an argument that a rule did not expect: keeping all is always right
            return self.give_up(node, f"has a form that its rule does not know ({type(error).__name__})")

    def give_up(self, node: fx.Node, why: str) -> Any:
        """Pin whatever flows into a node, and know nothing of what comes out."""
        shapes = [tuple(v.shape) for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        if not shapes:
            return None  # a size or a check: no channel flows through
        if self.keep_whole(node, why):
            self.not_understood.append(node)
        is_one = isinstance(node.meta["val"], Tensor)
        return unknown(shapes[0]) if is_one else [unknown(shape) for shape in shapes]

    def keep_whole(self, node: fx.Node, why: str) -> bool:
        """Pin whatever flows into a node; return whether channels do."""
        has_channels = any(self.value(argument).has_channels for argument in node.all_input_nodes)
        if has_channels:
            self.kept_whole[f"{self.describe(node)} {why}"] = None
        for argument in node.all_input_nodes:
            self.pin(argument, f"it flows into {self.describe(node)}, which {why}")
            self._pin_parameter(argument)
        return has_channels

    def _pin_parameter(self, node: fx.Node) -> None:
        name = self.name_of(node)
        layer = name.rpartition(".")[0] if name else ""
        if layer in self.layers:
            self.units.pin(self.layers[layer].out_labels, "its parameters are used outside its layer")
            self.units.pin(self.layers[layer].in_labels, "its parameters are used outside its layer")
        if name in self.tensors:
            self.units.pin(self.tensors[name][1], "its parameters are used elsewhere too")
        elif name:
            self.whole.add(name)

    def _leaf(self, node: fx.Node) -> Value:
        """Return an input, a parameter, a buffer or a constant as a value."""
        whose = source(node)
        if whose is not node:
            return self.value(whose)
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor):
            return unknown(())
        shape = tuple(int(size) for size in meta.shape)
        if "constant" in node.meta:
            return self._whole_constant(node.meta["constant"])
        name = self.traced.tensors.get(node)
        if name is None or not meta.is_floating_point():
            return unknown(shape)
        tensor = self.traced.tensor(name).double().cpu()
        wide = [dim for dim, size in enumerate(shape) if size > 1]
        is_free = name not in self.tensors and name not in self.whole and name not in self.traced.shared
        if len(wide) != 1 or not is_free or name.rpartition(".")[0] in self.layers:
            return self._whole_constant(tensor) if not wide else unknown(shape)
        labels = self.units.fresh(shape[wide[0]])
        self.tensors[name] = (wide[0], labels)
        return channels(shape, wide[0], labels, tensor.flatten())

    def _whole_constant(self, tensor: Tensor) -> Value:
        value = unknown(tuple(tensor.shape))
        return value if tensor.numel() != 1 else Value(value.shape, constants=tensor.detach().double().cpu())


def note_literal(flow: ChannelFlow, node: fx.Node, labels: Labels) -> None:
    """Remember a node whose arguments hold sizes that the forward may have written down or worked out."""
    flow.literal[flow.describe(node)] = labels


def require(condition: bool, why: str) -> None:
    """Raise NotUnderstoodError unless `condition`."""
    if not condition:
        raise NotUnderstoodError(why)


def ordered(labels: Sequence[Labels]) -> Labels:
    """Join lists of labels."""
    return np.concatenate(list(labels)) if labels else np.zeros(0, dtype=np.int64)
