"""From scores to masks: what goes as a whole, in what scope, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.prune.blocks import BLOCKS, Block
from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.selection import keep_highest

SCOPES = ("layer", "global")

#: Structures that need the model's channel groups.
STRUCTURES_OF_FILTERS = ("filter", "hybrid")


@dataclass(frozen=True)
class MaskRule:
    """Turns scores into masks: `masks = MaskRule(90)(scores)`.

    Attributes:
        ratio_percent: Pruning ratio in percent, 0 <= ratio < 100. Of n things that may be dropped, exactly
            int(n · ratio / 100) are: weights (unstructured, hybrid), blocks of weights (kernel2d, block1x4, block4x1,
            block16x1; see `prunekit.prune.blocks`) or units (filter).
        structure: One of `STRUCTURES`.
        scope: "layer" counts and compares inside each layer (inside each channel group for filters); "global"
            over all layers together, which can empty a layer of weights, though never of filters.
        filter_ratio_percent: For hybrid, the part that filters take. By default filters and the weights inside the
            filters that stay thin out alike: both densities are the square root of the density asked for.
        groups: The model's `channel_groups`; filter and hybrid need them.
        excluded: Layers that keep everything and do not count, such as `groups.stems + groups.heads`.
        ratios: Layer → its own ratio in percent, up to 100, where layers are not to lose alike; those of a channel
            group have one. Of n things round(n · ratio / 100) go, but never the last one.
        conv_groups: Layer → the groups of the convolution, whose ends no block crosses, as the function `conv_groups`
            reads them from a model; a layer that is not named has one.

    Raises:
        InputError: For a value outside what is said above.
    """

    ratio_percent: float
    structure: str = "unstructured"
    scope: str = "layer"
    filter_ratio_percent: float | None = None
    groups: ChannelGroups | None = field(default=None, repr=False, compare=False)
    excluded: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict, hash=False)
    conv_groups: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio_percent < 100:
            raise InputError(f"Expected a pruning ratio of at least 0 and below 100 percent, got {self.ratio_percent}.")
        if self.structure not in STRUCTURES:
            raise InputError(f"Expected the structure to be one of {', '.join(STRUCTURES)}, got {self.structure!r}.")
        if self.scope not in SCOPES:
            raise InputError(f"Expected the scope to be one of {', '.join(SCOPES)}, got {self.scope!r}.")
        if self.cuts_filters and self.groups is None:
            raise InputError(f"The structure {self.structure!r} cuts filters, so it needs the model's channel groups.")
        if not 0 <= (self.filter_ratio_percent or 0) <= self.ratio_percent:
            raise InputError(
                f"Expected a filter ratio from 0 to the pruning ratio of {self.ratio_percent} percent, "
                f"got {self.filter_ratio_percent}."
            )
        if self.ratios and self.scope != "layer":
            raise InputError(f"Expected the scope layer with a ratio for each layer, got {self.scope!r}.")

    @property
    def cuts_filters(self) -> bool:
        """Whether whole filters go, so that their normalization must be silenced too."""
        return self.structure in STRUCTURES_OF_FILTERS

    @property
    def masks_weights(self) -> bool:
        """Whether something smaller than a filter goes."""
        return self.structure != "filter"

    @property
    def block(self) -> Block:
        """What of a layer's weights goes together; a single one, where filters are cut."""
        return BLOCKS.get(self.structure, Block())

    @property
    def filter_ratio(self) -> float:
        """The ratio of filters in percent, where filters are cut."""
        return self._filter_ratio(self.ratio_percent)

    def num_dropped(self, count: int, layer: str | None, *, filters: bool = False) -> int:
        """Return how many of a layer's things go, or of its channel group's filters; None for all layers together."""
        if layer is None or layer not in self.ratios:
            return num_dropped(count, self._filter_ratio(self.ratio_percent) if filters else self.ratio_percent)
        ratio = self._filter_ratio(self.ratios[layer]) if filters else self.ratios[layer]
        return max(min(round(count * ratio / 100), count - 1), 0)

    def _filter_ratio(self, ratio_percent: float) -> float:
        """Return the part of a ratio that filters take, in percent."""
        if self.structure == "filter":
            return ratio_percent
        if self.filter_ratio_percent is not None:
            return min(self.filter_ratio_percent, ratio_percent)
        return 100 * (1 - math.sqrt(1 - ratio_percent / 100))

    def __call__(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one mask a layer, of the scores' shape and on their device; equal scores go in memory order.

        Args:
            scores: Layer name → scores [K, C, R, S]; what counts is their magnitude.

        Raises:
            InputError: For a score that is nan, or scores that do not fit the groups of channels or of convolutions.
        """
        magnitudes = {layer: _magnitude(layer, score) for layer, score in scores.items()}
        self._check_layers(scores)
        masks = {layer: torch.ones_like(scores[layer], dtype=torch.bool) for layer in self.excluded}
        cuttable = {layer: magnitude for layer, magnitude in magnitudes.items() if layer not in masks}
        masks |= STRUCTURES[self.structure](self, cuttable)
        return {layer: masks[layer] for layer in scores}

    def _check_layers(self, scores: Mapping[str, Tensor]) -> None:
        unknown = [layer for layer in self.excluded if layer not in scores]
        if unknown:
            raise InputError(f"Expected the excluded layers to be among the {len(scores)} scored ones, got {unknown}.")
        if self.groups is not None:
            filters = {layer: len(units) for layer, units in self.groups.units.items()}
            if filters != {layer: len(score) for layer, score in scores.items()}:
                raise InputError(
                    f"Expected scores of the model that the channel groups were read from ({len(filters)} "
                    f"convolutions, {sum(filters.values())} filters), got {len(scores)} layers of "
                    f"{sum(len(score) for score in scores.values())} filters."
                )
        for layer, groups in self.conv_groups.items():
            if layer in scores and len(scores[layer]) % groups:
                raise InputError(
                    f"Expected a multiple of {groups} filters, the groups of layer {layer!r}, "
                    f"got scores of {len(scores[layer])}."
                )

    def block_scores(self, layer: str, magnitude: Tensor) -> Tensor:
        """Score each block of a layer by its mean |score|, from |scores| [K, C, R, S]; see `Block.means`."""
        return self.block.means(magnitude, self.conv_groups.get(layer, 1))

    def cut(self, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop int(n · ratio / 100) of the lowest entries of each tensor, or of all together."""
        if self.scope == "layer" or not magnitudes:
            return {k: keep_highest(m, self.num_dropped(m.numel(), k)) for k, m in magnitudes.items()}
        everything = torch.cat([magnitude.flatten() for magnitude in magnitudes.values()])
        kept = keep_highest(everything, num_dropped(everything.numel(), self.ratio_percent))
        pieces = torch.split(kept, [magnitude.numel() for magnitude in magnitudes.values()])
        return {k: p.view(m.shape) for (k, m), p in zip(magnitudes.items(), pieces, strict=True)}


def masks_from_scores(scores: Mapping[str, Tensor], ratio_percent: float) -> dict[str, Tensor]:
    """Keep each layer's weights of highest |score|: short for `MaskRule(ratio_percent)(scores)`."""
    return MaskRule(ratio_percent)(scores)


def num_dropped(count: int, ratio_percent: float) -> int:
    """Return int(count · ratio / 100)."""
    # The product before the division: 0.29 · 100 is 28.999…, 29 · 100 / 100 is 29.
    return int(count * ratio_percent / 100)


def unit_scores(groups: ChannelGroups, magnitudes: Mapping[str, Tensor]) -> Tensor:
    """Score each unit by the mean |score| of a filter, averaged over the unit's filters; [units], float64.

    Each filter has one voice, however many weights it has: in a depthwise pair the 9 weights count as much as the
    hundreds that feed them.
    """
    sums = torch.zeros(len(groups.pinned), dtype=torch.float64)
    filters = torch.zeros_like(sums)
    for layer, magnitude in magnitudes.items():
        means = magnitude.flatten(1).mean(dim=1).double().cpu()
        sums.index_add_(0, groups.units[layer], means)
        filters.index_add_(0, groups.units[layer], torch.ones_like(means))
    return sums / filters.clamp(min=1)


def _magnitude(layer: str, score: Tensor) -> Tensor:
    magnitude = score.detach().abs()
    if magnitude.sum().isnan():  # magnitudes cannot cancel: one pass, and nan only where there is a nan
        raise InputError(f"Expected finite scores, but layer {layer!r} has nan among them.")
    return magnitude


def _cut_blocks(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut = rule.cut({layer: rule.block_scores(layer, magnitude) for layer, magnitude in magnitudes.items()})
    shapes = {layer: magnitude.shape for layer, magnitude in magnitudes.items()}
    return {k: rule.block.spread(mask, shapes[k], rule.conv_groups.get(k, 1)) for k, mask in cut.items()}


def _cut_filters(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = kept_units(rule, magnitudes)
    return {layer: _per_filter(rule, kept, layer, magnitude) for layer, magnitude in magnitudes.items()}


def _cut_filters_then_weights(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut filters, then weights of the filters that stay, until the ratio of all weights is met exactly."""
    stays = _cut_filters(rule, magnitudes)
    # Below every magnitude: the weights of dropped filters are the first to go and count towards the ratio.
    masks = rule.cut({k: magnitude.masked_fill(~stays[k], -1.0) for k, magnitude in magnitudes.items()})
    return {layer: mask & stays[layer] for layer, mask in masks.items()}


def kept_units(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> Tensor:
    """Return bool [units]: in each channel group (or in all) the lowest are dropped, but no layer's best one.

    Units that are pinned, or have a filter in an excluded layer, stay and do not count.
    """
    importance, groups = free_units(rule, magnitudes)
    kept = torch.ones(len(importance), dtype=torch.bool)
    if rule.scope == "global" and groups:
        groups = {(): torch.cat([*groups.values()]).sort().values}
    for layers, units in groups.items():
        wanted = rule.num_dropped(len(units), layers[0] if layers else None, filters=True)
        possible = int(importance[units].isfinite().sum())
        kept[units] = keep_highest(importance[units], min(wanted, possible))
    return kept


def free_units(rule: MaskRule, magnitudes: Mapping[str, Tensor]) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
    """Return each unit's importance, inf for a layer's best one, and by channel group the units that may be dropped."""
    assert rule.groups is not None
    groups, importance = rule.groups, unit_scores(rule.groups, magnitudes)
    fixed = groups.pinned.clone()
    for layer in rule.excluded:
        fixed[groups.units[layer]] = True
    for layer in magnitudes:
        units = torch.unique(groups.units[layer])
        best = units[(importance[units] == importance[units].max()).nonzero().flatten()[-1]]
        importance[best] = torch.inf
    free = {layers: torch.unique(torch.cat([groups.units[k] for k in layers])) for layers in groups.groups}
    return importance, {layers: units[~fixed[units]] for layers, units in free.items()}


def _per_filter(rule: MaskRule, kept: Tensor, layer: str, weight: Tensor) -> Tensor:
    assert rule.groups is not None
    per_filter = kept[rule.groups.units[layer]].to(weight.device)
    return per_filter[:, None, None, None].expand_as(weight).contiguous()


STRUCTURES: dict[str, Callable[[MaskRule, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    **dict.fromkeys(BLOCKS, _cut_blocks),
    "filter": _cut_filters,
    "hybrid": _cut_filters_then_weights,
}
