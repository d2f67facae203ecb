"""Channels in another order, so that blocks of weights keep more; the model answers the same.

A block of R×C weights is kept or dropped as a whole. Which weights share one depends on the order of channels, which
means nothing to the network: filters may be permuted where whatever reads them is permuted alike. Here channels whose
weights are large at the same places come to lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.compaction.certificate import Difference
from prunekit.compaction.differences import differences
from prunekit.compaction.masked_copy import masked_copy
from prunekit.compaction.plan import LayerCut, Plan
from prunekit.compaction.proving import Proof, prove
from prunekit.compaction.surgery import cut_copy, select_weight
from prunekit.errors import InputError, WrongOutputError
from prunekit.graph.calls import Call
from prunekit.graph.channels.channel_flow import ChannelFlow, Layer
from prunekit.graph.channels.units import Labels, Units
from prunekit.graph.traced import trace
from prunekit.nn.calls import preserved_random_state
from prunekit.prune.blocks import PERMUTABLE
from prunekit.prune.mask_rule import MaskRule
from prunekit.prune.scores import score_model


@dataclass(frozen=True)
class PermutationResult:
    """A model whose channels lie in another order.

    Attributes:
        model: Of the original's class, in eval mode, with the original's names of parameters.
        moved: Filters that lie elsewhere than before.
        kept_before: The share of the summed |score| of all convolutions that blocks keep in the given order.
        kept_after: The same in the new order; never less.
        differences: Of the outputs from the original's, as in a certificate of compaction.
    """

    model: nn.Module
    moved: int
    kept_before: float
    kept_after: float
    differences: tuple[Difference, ...]


def permute_channels(
    model: nn.Module,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any],
    structure: str = "block1x4",
    ratio: float = 75.0,
    scores: Mapping[str, Tensor] | None = None,
) -> PermutationResult:
    """Reorder the channels of a model so that blocks at a ratio keep more of the summed |score|.

    Every set of channels that can be permuted without changing what the model answers is looked at by itself: channels
    that have kept weights at the same places are grouped greedily, and the new order is taken where it keeps more.
    Channels that are outputs, that a split takes apart or that flow into what is not understood stay where they are.

    Args:
        model: Any module in eval mode that torch.export can trace; it is not changed.
        example_input: As for `compact`.
        structure: One of `prunekit.prune.blocks.PERMUTABLE`.
        ratio: Pruning ratio in percent that the order is made for.
        scores: Convolution → scores of the weight's shape; None takes the scaled ones.

    Raises:
        InputError: A structure without blocks, scores that do not fit, or a model that cannot be traced or compared.
        WrongOutputError: The permuted model does not answer as the original does.
    """
    if structure not in PERMUTABLE:
        raise InputError(f"Expected a structure of blocks, {' or '.join(PERMUTABLE)}, got {structure!r}.")
    rule = MaskRule(ratio, structure)
    example = Call.of(model, example_input, None).copied()
    with preserved_random_state():
        plain = masked_copy(model, example, None)
        proof = prove(plain, example)
        found = {k: v.detach().abs().float() for k, v in (scores or score_model(plain, "scaled")).items()}
        _check_scores(plain, found)
        search = _Search(ChannelFlow(trace(plain, example)).run(), found, rule)
        before = search.kept(found)
        search.run()
        plan = search.plan()
        rows = _proven(plain, plan, proof)
        return PermutationResult(cut_copy(plain, plan), search.moved, before, search.kept(found), rows)


def _check_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules())
    for name, score in scores.items():
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d):
            raise InputError(f"Expected scores of the model's convolutions, but there is none called {name!r}.")
        if score.shape != module.weight.shape:
            raise InputError(
                f"Expected the scores of layer {name!r} to have the weight's shape {tuple(module.weight.shape)}, "
                f"got {tuple(score.shape)}."
            )


def _proven(plain: nn.Module, plan: Plan, proof: Proof) -> tuple[Difference, ...]:
    rows = differences(cut_copy(proof.original, plan), proof)
    for row in rows:
        if not proof.is_equal(row):
            proof.blame_randomness(type(plain).__name__)
            proof.blame_amplification(type(plain).__name__)
            raise WrongOutputError(
                f"Expected the model to answer the same with permuted channels, but on {row.input} the outputs of "
                f"{type(plain).__name__} differ by {row.relative:.1e}; it was not changed."
            )
    return tuple(rows)


class _Search:
    """The order of each set of channels that may be permuted.

    Attributes:
        order: Unit → the unit that lies at its place now; units are named by their roots.
    """

    def __init__(self, flow: ChannelFlow, magnitudes: Mapping[str, Tensor], rule: MaskRule) -> None:
        self._flow, self._roots = flow, flow.units.roots()
        groups = {name: layer.groups for name, layer in flow.layers.items()}
        self._rule = MaskRule(rule.ratio_percent, rule.structure, conv_groups=groups)
        self._magnitudes = {name: value for name, value in magnitudes.items() if name in flow.layers}
        self._survivors = {name: _survivors(value, rule.ratio_percent) for name, value in self._magnitudes.items()}
        self.order: Labels = np.arange(len(flow.units))

    def run(self) -> None:
        """Permute every set that keeps more in its new order."""
        for members in self._permutable():
            layers = self._touched(members)
            before, kept = self.order, self._kept_of(layers)
            self.order = before.copy()
            self.order[members] = members[self._grouped(members)]
            if self._kept_of(layers) <= kept:
                self.order = before

    @property
    def moved(self) -> int:
        """Filters that lie elsewhere than before."""
        arrays = (self._places(layer.out_labels) for layer in self._flow.layers.values())
        return sum(int((places != np.arange(len(places))).sum()) for places in arrays)

    def kept(self, magnitudes: Mapping[str, Tensor]) -> float:
        """Return the share of all |scores| that blocks keep in the order of now."""
        total = sum(float(value.sum()) for value in magnitudes.values())
        others = MaskRule(self._rule.ratio_percent, self._rule.structure)
        alone = {name: value for name, value in magnitudes.items() if name not in self._magnitudes}
        kept = self._kept_of(self._magnitudes) + _kept(others, alone)
        return kept / total if total else 1.0

    def plan(self) -> Plan:
        """Write the order down as what compaction takes: entries that stay, in another order."""
        layers = {name: self._layer_cut(layer) for name, layer in self._flow.layers.items()}
        tensors = {n: (dim, torch.from_numpy(self._places(found))) for n, (dim, found) in self._flow.tensors.items()}
        return Plan(layers, tensors)

    def _layer_cut(self, layer: Layer) -> LayerCut:
        nothing = torch.zeros(0, dtype=torch.int64)
        read = self._places(layer.in_labels) if len(layer.in_labels) else np.arange(layer.used.shape[1] * layer.groups)
        written = torch.from_numpy(self._places(layer.out_labels))
        return LayerCut(
            layer.name, written, torch.from_numpy(read), layer.groups, layer.groups, (), nothing, nothing.double(),
            None, layer.transposed,
        )  # fmt: skip

    def _places(self, labels: Labels) -> Labels:
        """Return for each place of a tensor where its channel lay before.

        A unit that has several channels there keeps their order: its first one comes where the first one was.
        """
        before = self._roots[labels]
        places = np.empty(len(labels), dtype=np.int64)
        places[np.argsort(self.order[before], kind="stable")] = np.argsort(before, kind="stable")
        return places

    def _kept_of(self, layers: Mapping[str, Tensor] | Sequence[str]) -> float:
        """Return the summed |score| that blocks keep of these layers in the order of now."""
        permuted = {}
        for name in layers:
            permuted[name] = select_weight(self._magnitudes[name], self._layer_cut(self._flow.layers[name]))
        return _kept(self._rule, permuted)

    @cached_property
    def _labels(self) -> list[Labels]:
        """The units of whatever has channels, array by array."""
        flow = self._flow
        arrays = [labels for layer in flow.layers.values() for labels in (layer.out_labels, layer.in_labels)]
        arrays += [labels for _, labels in flow.tensors.values()]
        return [self._roots[labels] for labels in arrays if len(labels)]

    def _permutable(self) -> Iterator[Labels]:
        """Yield the units of each set that may be permuted, in the order in which a layer writes them."""
        joined = Units()
        joined.fresh(len(self._flow.units))
        for layer in self._flow.layers.values():
            for first, second in pairwise(dict.fromkeys(self._roots[layer.out_labels].tolist())):
                joined.tie(np.array([first]), np.array([second]))
        sets, fixed = joined.roots(), self._fixed(joined.roots())
        for layer in self._flow.layers.values():
            members = np.array(list(dict.fromkeys(self._roots[layer.out_labels].tolist())))
            if int(sets[members[0]]) not in fixed and len(members) > 1:
                fixed.add(int(sets[members[0]]))
                yield members

    def _fixed(self, sets: Labels) -> set[int]:
        """Return the sets that may not be permuted: something tells their channels apart by place."""
        fixed = {int(sets[unit]) for unit in self._flow.units.pinned()}
        sizes = np.bincount(sets[np.unique(self._roots)], minlength=len(sets))
        for units in self._labels:
            present, counts = np.unique(units, return_counts=True)
            for found in np.unique(sets[present]).tolist():
                often = counts[sets[present] == found]
                if len(often) != sizes[found] or len(set(often.tolist())) > 1:
                    fixed.add(found)
        for layer in self._flow.layers.values():
            if layer.groups > 1 and not self._is_depthwise(layer):
                fixed |= set(sets[self._all_labels(layer)].tolist())
        return fixed

    def _is_depthwise(self, layer: Layer) -> bool:
        """Tell whether each channel that a layer reads goes with those that it writes from it alone."""
        written, read = self._roots[layer.out_labels], self._roots[layer.in_labels]
        is_alone = len(read) == layer.groups and len(written) % layer.groups == 0
        return is_alone and np.array_equal(written, np.repeat(read, len(written) // layer.groups))

    def _touched(self, members: Labels) -> list[str]:
        """Return the scored layers that read or write these units."""
        layers = self._flow.layers
        return [k for k in self._magnitudes if np.isin(self._all_labels(layers[k]), members).any()]

    def _all_labels(self, layer: Layer) -> Labels:
        labels: Labels = self._roots[np.concatenate([layer.out_labels, layer.in_labels])]
        return labels

    def _grouped(self, members: Labels) -> Labels:
        """Return an order of these units in which those with weights at the same places are neighbors."""
        block, shared = self._rule.block, torch.zeros(len(members), len(members))
        for name in self._touched(members):
            layer, survivors = self._flow.layers[name], self._survivors[name]
            if block.channels > 1 and layer.groups == 1:
                shared += _shared_places(survivors.movedim(1, 0), self._roots[layer.in_labels], members)
            if block.filters > 1 and layer.groups == 1:
                shared += _shared_places(survivors, self._roots[layer.out_labels], members)
        return np.array(_grouped_greedily(shared, max(block.channels, block.filters)))


def _kept(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> float:
    masks = rule(magnitudes)
    return sum(float((magnitudes[name] * mask).sum()) for name, mask in masks.items())


def _survivors(magnitude: Tensor, ratio: float) -> Tensor:
    """Return the |scores| that single weights would be kept for, 0 elsewhere."""
    return magnitude * MaskRule(ratio)({"": magnitude})[""]


def _shared_places(survivors: Tensor, units: Labels, members: Labels) -> Tensor:
    """Count for each pair of units at how many places both have a weight, [units, units].

    Args:
        survivors: 1 or 0 for each weight, channels first.
        units: The unit of each channel.
        members: The units to count for.
    """
    shared, rows = torch.zeros(len(members), len(members)), survivors.flatten(1)
    places = np.stack([np.flatnonzero(units == unit) for unit in members])  # [units, occurrences]
    for occurrence in torch.from_numpy(places).unbind(1):
        shared += rows[occurrence] @ rows[occurrence].T
    return shared


def _grouped_greedily(shared: Tensor, size: int) -> list[int]:
    """Form groups of `size`: each begins with who has most weights, and takes who shares most with its members."""
    free, order = torch.ones(len(shared), dtype=torch.bool), list[int]()
    while len(order) < len(shared):
        gain = shared.diagonal()
        for place in range(min(size, len(shared) - len(order))):
            best = int(gain.masked_fill(~free, -1.0).argmax())
            gain = shared[best] if place == 0 else gain + shared[best]
            free[best] = False
            order.append(best)
    return order
