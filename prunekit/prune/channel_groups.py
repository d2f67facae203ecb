"""Which convolutions must lose the same output channels, read from the traced model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.errors import InputError
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import own_random_state
from prunekit.prune.channel_trace import ChannelTrace


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """Every filter's unit. A *unit* is what goes as a whole: one filter, or filters tied across layers.

    Filters are tied by residual additions (and other element-wise functions of two tensors), by a depthwise
    convolution, whose output channels go with their input channel, by a group of a grouped convolution, and by a
    layer that is called at several places and reads them at each.

    Attributes:
        units: Convolution → int64 [out_channels], the unit of each filter.
        norm_units: Normalization layer → int64 [channels], the unit of each channel; -1 where no filter made it.
        input_units: Convolution or linear layer that runs → int64 [in_channels or in_features], the unit of each
            channel that it reads; -1 where no filter made it.
        pinned: bool [units], True where a unit may not be cut: its channels are outputs of the model, are added to
            its input, or flow into an operation that the trace does not know.
        groups: Convolutions whose filters share units, in the order of the model; a convolution that shares
            with nobody is a group of its own.
        stems: The convolutions that read the model's input with no convolution between.
        heads: The convolutions whose output is the model's output with no convolution or linear layer between.
        unknown: Operations that the trace does not know; filters that flow into them are pinned.
    """

    units: dict[str, Tensor]
    norm_units: dict[str, Tensor]
    input_units: dict[str, Tensor]
    pinned: Tensor = field(repr=False)
    groups: tuple[tuple[str, ...], ...] = ()
    stems: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def coupled(self) -> tuple[tuple[str, ...], ...]:
        """The groups of two convolutions or more."""
        return tuple(group for group in self.groups if len(group) > 1)

    def kept_units(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return bool [units]: False where every filter of the unit has lost all its weights.

        Pinned units are kept even so: a head's filter without weights still answers its bias.
        """
        kept = self.pinned.clone()
        for layer, units in self.units.items():
            has_weights = masks[layer].flatten(1).any(dim=1).cpu()
            kept[units[has_weights]] = True
        return kept


def channel_groups(model: nn.Module, example_input: Tensor) -> ChannelGroups:
    """Trace `model` and find out which filters belong together.

    Args:
        model: Any module that torch.fx can trace; it is run once, in eval mode, and not changed.
        example_input: One image or more, [N, C, H, W]; a small one will do.

    Raises:
        InputError: When the model cannot be traced, or does not run on the example.
    """
    graph = _trace(model, example_input)
    trace = ChannelTrace(model, graph)
    numbers = {root: i for i, root in enumerate(dict.fromkeys(map(trace.find, _chain(trace.outputs.values()))))}

    def units(labels: Iterable[int]) -> Tensor:
        return torch.tensor([numbers.get(trace.find(label), -1) for label in labels], dtype=torch.int64)

    units_of = {name: units(labels) for name, labels in trace.outputs.items()}
    pinned = torch.zeros(len(numbers), dtype=torch.bool)
    reached = units(sorted(trace.pinned))
    pinned[reached[reached >= 0]] = True
    return ChannelGroups(
        units=units_of,
        norm_units={name: units(labels) for name, labels in trace.norms.items()},
        input_units={name: units(labels) for name, labels in trace.inputs.items()},
        pinned=pinned,
        groups=_group_layers(units_of),
        stems=_nearest(model, graph, towards_output=True),
        heads=_nearest(model, graph, towards_output=False),
        unknown=tuple(sorted(trace.unknown)),
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _NormBase)) or super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Run the graph and leave every node's value, as a tensor without memory, in `node.meta`."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["value"] = fx.node.map_aggregate(value, lambda v: v.to("meta") if isinstance(v, Tensor) else v)
        return value


@torch.no_grad()
def _trace(model: nn.Module, example_input: Tensor) -> fx.Graph:
    try:
        with held_still(model), own_random_state():
            graph = _Tracer().trace(model)
            _Recorder(fx.GraphModule(model, graph)).run(example_input.clone())
    except Exception as error:  # a foreign forward raises what it likes
        raise InputError(
            "Expected a model that torch.fx can trace and that runs on the example input, because filters are cut "
            f"along the traced graph, but {type(model).__name__} raised {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from error
    return graph


def _chain(lists: Iterable[list[int]]) -> list[int]:
    return [label for labels in lists for label in labels]


def _group_layers(units: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    group_of_unit: dict[int, int] = {}
    members: dict[int, list[str]] = {}
    for number, (layer, layer_units) in enumerate(units.items()):
        met = {group_of_unit[unit] for unit in layer_units.tolist() if unit in group_of_unit}
        members[number] = [name for group in sorted(met) for name in members.pop(group)] + [layer]
        group_of_unit = {unit: number if group in met else group for unit, group in group_of_unit.items()}
        group_of_unit.update(dict.fromkeys(layer_units.tolist(), number))
    order = list(units)
    return tuple(
        sorted((tuple(sorted(names, key=order.index)) for names in members.values()), key=lambda g: order.index(g[0]))
    )


def _called(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _nearest(model: nn.Module, graph: fx.Graph, towards_output: bool) -> tuple[str, ...]:
    """Walk from the inputs (or back from the outputs) and stop at the first convolution on every path."""
    ends = [node for node in graph.nodes if node.op == ("placeholder" if towards_output else "output")]
    found, seen = set(), set(ends)
    while ends:
        node = ends.pop()
        module = _called(model, node)
        if isinstance(module, nn.Conv2d):
            found.add(str(node.target))
        elif not isinstance(module, nn.Linear):
            neighbors = set(node.users if towards_output else node.all_input_nodes) - seen
            seen |= neighbors
            ends.extend(neighbors)
    return tuple(name for name, _ in model.named_modules() if name in found)
