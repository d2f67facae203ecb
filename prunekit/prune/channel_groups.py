"""Which convolutions must lose the same output channels, read from the flow of channels through the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunekit.errors import InputError, first_line
from prunekit.graph.calls import Call
from prunekit.graph.channels.channel_flow import ChannelFlow, Equal, Layer
from prunekit.graph.channels.units import Labels, sharing
from prunekit.graph.nodes import layer_name, operator_name
from prunekit.graph.traced import Traced, trace
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import own_random_state
from prunekit.prune.layers import channels_normalized, prunable_layers


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """Every filter's unit. A *unit* is what goes as a whole: one filter, or filters tied across layers.

    Filters are tied by residual additions (and other element-wise functions of two tensors), by a depthwise
    convolution, whose output channels go with their input channel, by a group of a grouped convolution, by a
    layer that is called at several places and reads them at each, and by what cuts or shuffles a tensor into parts
    that stay equally wide.

    Attributes:
        units: Convolution → int64 [out_channels], the unit of each filter.
        norm_units: Normalization layer → int64 [channels], the unit of each channel; -1 where no filter made it.
        input_units: Convolution (transposed and of any rank, too) or linear layer that runs → int64 [in_channels or
            in_features], the unit of each channel that it reads; -1 where no filter made it.
        pinned: bool [units], True where a unit may not be cut: its channels are outputs of the model, are added to
            its input or to what another kind of layer makes, or flow into an operation that is not known.
        groups: Convolutions whose filters share units, in the order of the model; a convolution that shares
            with nobody is a group of its own.
        stems: The convolutions that read the model's input with no convolution between.
        heads: The convolutions whose output is the model's output with no convolution or linear layer between.
        unknown: Operations that are not known; filters that flow into them are pinned.
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
        model: Any module that torch.export can trace; it is looked at in eval mode, and not changed.
        example_input: One image or more, [N, C, H, W]; a small one will do.

    Raises:
        InputError: When the model cannot be traced, or does not run on the example.
    """
    convs = prunable_layers(model)
    with held_still(model), own_random_state():
        flow = ChannelFlow(_trace(model, example_input), silent=_all_names(model)).run()
    for equal in flow.equal:
        _couple(flow, equal)
    _pin_what_stays(flow)
    layers = {_first_name(model, name): layer for name, layer in flow.layers.items()}
    outputs = {name: _filters(flow, layers.get(name), name, conv) for name, conv in convs.items()}
    numbers = _Numbers(flow, outputs.values())
    units = {name: numbers.of(labels) for name, labels in outputs.items()}
    return ChannelGroups(
        units=units,
        norm_units=_norm_units(flow, numbers),
        input_units={name: _units_read(layer, numbers) for name, layer in layers.items() if _is_module(flow, layer)},
        pinned=numbers.pinned,
        groups=tuple(map(tuple, sharing({name: found.tolist() for name, found in units.items()}))),
        stems=_nearest(flow.traced, convs, towards_output=True),
        heads=_nearest(flow.traced, convs, towards_output=False),
        unknown=_unknown(flow),
    )


def _trace(model: nn.Module, example_input: Tensor) -> Traced:
    try:
        return trace(model, Call((example_input,)))
    except InputError as error:
        cause = error.__cause__
        if cause is None:
            raise
        raise InputError(
            "Expected a model that torch.export can trace and that runs on the example input, because filters are "
            f"pruned along the traced graph, but {type(model).__name__} raised {type(cause).__name__}: "
            f"{first_line(cause)}; weights, blocks and kernels can be pruned without."
        ) from cause


def _all_names(model: nn.Module) -> frozenset[str]:
    """Return the names of all convolutions that can be pruned, a shared one's every name."""
    named = model.named_modules(remove_duplicate=False)
    return frozenset(name for name, module in named if isinstance(module, nn.Conv2d))


def _first_name(model: nn.Module, name: str) -> str:
    """Return the name under which `named_modules` lists a module."""
    module = model.get_submodule(name)
    first: str = next(first for first, found in model.named_modules() if found is module)
    return first


def _couple(flow: ChannelFlow, equal: Equal) -> None:
    """Tie what must stay equally wide: the parts of a tensor, channel by channel, or all of a group.

    The channels that one group of a grouped convolution reads and writes go together or not at all. Where that would
    join the groups, since a shuffle tied their channels, each group loses the same ones of its channels instead.
    """
    sides = [equal.parts, equal.other_side or []]
    if equal.other_side is None or any(_are_tied(flow, side) for side in sides):
        for first, second in (pair for side in sides for pair in pairwise(side)):
            flow.units.tie(first, second)
        return
    for part, other in zip(equal.parts, equal.other_side, strict=True):
        labels = np.concatenate([part, other])
        flow.units.tie(labels[:-1], labels[1:])


def _are_tied(flow: ChannelFlow, parts: list[Labels]) -> bool:
    """Tell whether channels of one part are tied to others of another part."""
    roots = flow.units.roots()
    counts = np.bincount(np.concatenate([np.unique(part) for part in parts]))
    own = [set(roots[part[counts[part] == 1]].tolist()) for part in parts]
    return len(set().union(*own)) < sum(map(len, own))


def _pin_what_stays(flow: ChannelFlow) -> None:
    """Pin channels that masks do not silence: something live is added, or a reader is out of the masks' reach."""
    for layer in flow.layers.values():
        varies = layer.in_constants.isnan().numpy()
        flow.units.pin(layer.in_labels[varies], f"something live reaches {layer.name} with it")
        if not _is_module(flow, layer):
            flow.units.pin(layer.in_labels, f"{layer.name} is not called as a module")


def _is_module(flow: ChannelFlow, layer: Layer) -> bool:
    """Tell whether a layer is a module that is called, and not only its weight used."""
    model = flow.traced.model
    module = model.get_submodule(layer.name)
    callers = {layer_name(node) for node, made in flow.makers.items() if made is layer}
    return isinstance(module, (_ConvNd, nn.Linear)) and all(model.get_submodule(name) is module for name in callers)


def _filters(flow: ChannelFlow, layer: Layer | None, name: str, conv: nn.Conv2d) -> Labels:
    """Return the labels of a convolution's filters: pinned where it runs in a way that is not understood."""
    if layer is not None:
        return layer.out_labels
    labels = flow.units.fresh(conv.out_channels)
    if conv in {flow.traced.model.get_submodule(layer_name(node)) for node in flow.traced.nodes}:
        flow.units.pin(labels, f"{name} runs in a way that is not understood")
    return labels


class _Numbers:
    """The numbers of the units that filters are in, in the order of the model's layers.

    Attributes:
        pinned: bool [units].
    """

    def __init__(self, flow: ChannelFlow, outputs: Iterable[Labels]) -> None:
        self._roots = flow.units.roots()
        filters = [root for labels in outputs for root in self._roots[labels].tolist()]
        self._numbers = {root: number for number, root in enumerate(dict.fromkeys(filters))}
        pinned = flow.units.pinned()
        self.pinned = torch.tensor([root in pinned for root in self._numbers], dtype=torch.bool)

    def of(self, labels: Labels) -> Tensor:
        """Return the unit of each label, int64; -1 where no filter made it."""
        return torch.tensor([self._numbers.get(root, -1) for root in self._roots[labels].tolist()], dtype=torch.int64)


def _norm_units(flow: ChannelFlow, numbers: _Numbers) -> dict[str, Tensor]:
    model, found = flow.traced.model, {}
    for name, (value, *_) in flow.outputs.items():
        norm = model.get_submodule(name)
        if isinstance(norm, _NormBase):
            units = numbers.of(value.labels) if value.has_channels else _no_units(norm.num_features)
            found[_first_name(model, name)] = units
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) and channels_normalized(module) and f"{name}.weight" in flow.tensors:
            found[name] = numbers.of(flow.tensors[f"{name}.weight"][1])  # a frozen one is a sum and a product
    return found


def _units_read(layer: Layer, numbers: _Numbers) -> Tensor:
    width = layer.used.shape[1] * layer.groups
    return numbers.of(layer.in_labels) if len(layer.in_labels) else _no_units(width)


def _no_units(count: int) -> Tensor:
    return torch.full([count], -1, dtype=torch.int64)


def _nearest(traced: Traced, convs: Mapping[str, nn.Conv2d], towards_output: bool) -> tuple[str, ...]:
    """Walk from the inputs (or back from the outputs) and stop at the first convolution on every path."""
    start = "placeholder" if towards_output else "output"
    ends = [node for node in traced.nodes if node.op == start and node not in traced.tensors]
    found, seen = set(), set(ends)
    while ends:
        node = ends.pop()
        name = _first_name(traced.model, layer_name(node))
        if name in convs:
            found.add(name)
        elif operator_name(node) != "linear":
            neighbors = set(node.users if towards_output else node.all_input_nodes) - seen
            seen |= neighbors
            ends.extend(neighbors)
    return tuple(name for name in convs if name in found)


def _unknown(flow: ChannelFlow) -> tuple[str, ...]:
    """Name the operations that were not understood, but for those that compute weights."""
    images: set[fx.Node] = set()
    for node in flow.traced.nodes:
        is_input = node.op == "placeholder" and node not in flow.traced.tensors
        if is_input or not images.isdisjoint(node.all_input_nodes):
            images.add(node)
    return tuple(sorted({operator_name(node) for node in flow.not_understood if node in images}))
