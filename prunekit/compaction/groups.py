"""The certificate's groups: which layers lose channels together, what became of each masked channel, and why."""

from __future__ import annotations

from collections import Counter

import numpy as np

from prunekit.compaction.certificate import ChannelGroup
from prunekit.compaction.keep_set import Choice
from prunekit.graph.channels.channel_flow import Layer
from prunekit.graph.channels.units import sharing


def describe_groups(choice: Choice) -> tuple[ChannelGroup, ...]:
    """Return the groups in the model's order."""
    folded, layers = _folded(choice), choice.flow.layers
    groups = sharing({name: choice.units(layer.out_labels).tolist() for name, layer in layers.items()})
    return tuple(_describe(choice, [layers[name] for name in names], folded) for names in groups)


def _describe(choice: Choice, layers: list[Layer], folded: Counter[int]) -> ChannelGroup:
    first = layers[0]
    units = {unit for layer in layers for unit in choice.units(layer.out_labels).tolist()}
    reasons: Counter[str] = Counter()
    for layer in layers:
        stays = choice.stays(layer.out_labels)
        for index in np.flatnonzero(stays & layer.masked.numpy()).tolist():
            reasons[_reason(choice, layers, layer, int(choice.units(layer.out_labels)[index]))] += 1
    places = {unit: index for index, unit in reversed(list(enumerate(choice.units(first.out_labels).tolist())))}
    carriers = {places[unit]: names for unit, names in choice.carriers.items() if unit in places}
    return ChannelGroup(
        tuple(layer.name for layer in layers),
        len(first.out_labels),
        int(choice.stays(first.out_labels).sum()),
        carriers,
        sum(count for unit, count in folded.items() if unit in units),
        dict(reasons),
    )


def _reason(choice: Choice, layers: list[Layer], layer: Layer, unit: int) -> str:
    """Say why a masked channel stays."""
    reason = choice.reasons[unit]
    if not reason.endswith(" reads it"):
        return reason
    for other in layers:
        units = choice.units(other.out_labels)
        if (~other.masked.numpy() & (units == unit)).any():
            return f"it is tied to a live channel of {other.name}"
    return choice.flow.units.varied().get(unit, reason)


def _folded(choice: Choice) -> Counter[int]:
    """Count, by unit, the readers into which a constant other than zero was folded or carried."""
    found: Counter[int] = Counter()
    for layer in choice.flow.layers.values():
        if len(layer.in_labels):
            moved = (
                choice.reads(layer) & ~choice.stays(layer.in_labels) & (layer.in_constants.nan_to_num() != 0).numpy()
            )
            found.update(choice.units(layer.in_labels[moved]).tolist())
    return found
