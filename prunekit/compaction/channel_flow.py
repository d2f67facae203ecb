"""Follow the channels of a model so that its own forward runs on what is left of them.

Sizes in a graph may be written down in the forward, as in x.view(n, 2, 16, h, w), or worked out from the tensor. Only
running the cut model tells: where it fails, the places with such sizes are kept whole, those of the module that
failed first.
"""

from __future__ import annotations

from torch import nn

from prunekit.compaction.differences import DoesNotRunError, differences
from prunekit.compaction.keep_set import Choice
from prunekit.compaction.plan import make_plan
from prunekit.compaction.proving import Proof
from prunekit.compaction.surgery import cut_copy
from prunekit.graph.calls import Call
from prunekit.graph.channels.channel_flow import ChannelFlow
from prunekit.graph.traced import trace


def follow(masked: nn.Module, example: Call, proof: Proof) -> ChannelFlow:
    """Follow the channels of `masked`.

    Raises:
        InputError: The model cannot be traced.
    """
    traced = trace(masked, example)
    hold: frozenset[str] = frozenset()
    while True:
        flow = ChannelFlow(traced, hold).run()
        more = _places_that_fail(flow, proof) - hold if flow.literal else frozenset()
        if not more:
            return flow
        hold |= more


def _places_that_fail(flow: ChannelFlow, proof: Proof) -> frozenset[str]:
    """Return places whose sizes seem to be written down, or nothing where the cut model runs and is exact."""
    small = cut_copy(proof.original, make_plan(flow, Choice(flow)))
    places = frozenset(flow.literal)
    try:
        (found,) = differences(small, proof, proof.trials[:1])
    except DoesNotRunError as error:
        near = {place for place in places if _is_near(place.partition(" of ")[2], error.layer)}
        return frozenset(near) or places
    return frozenset() if proof.is_equal(found) else places


def _is_near(place: str, layer: str) -> bool:
    """Tell whether a place lies in a module or in one that holds it."""
    return place == layer or (place != "" and layer.startswith(f"{place}.")) or place == ""
