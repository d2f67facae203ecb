"""A budget for a whole model becomes masks: `masks = allocate(model, scores, budget="macs=50%", example_input=x)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.prune.allocations import RATIOS_OF_PARTS, Part, Ratios, at_least, by_layer, fit
from prunekit.prune.budgets import Budget, parse_budget, show
from prunekit.prune.channel_groups import channel_groups
from prunekit.prune.costs import cost_of, output_positions
from prunekit.prune.latency import LatencyModel, by_latency, deployed_ms, latency_model
from prunekit.prune.layers import conv_groups
from prunekit.prune.mask_rule import STRUCTURES_OF_FILTERS, MaskRule, free_units
from prunekit.prune.scores import check_scores

Masks = dict[str, Tensor]


def allocate(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    *,
    budget: str | Budget,
    example_input: Tensor | None = None,
    structure: str = "unstructured",
    allocation: str = "uniform",
    sensitivities: Mapping[str, float] | None = None,
    excluded: tuple[str, ...] = (),
) -> Masks:
    """Return the masks that keep the highest scores within a budget.

    Budgets in parameters and multiply-accumulates count the weights of convolutions and linear layers that do
    something: where filters go, the weights that read them go, too, as `prunekit.compaction.compact` leaves it. These
    are never exceeded, and missed by more than 0.1 % only where no part can keep one more of its weights, blocks or
    filters. For milliseconds the model is built, compacted and accelerated, and measured, until it takes within 5 % of
    them.

    Args:
        model: Any module with `nn.Conv2d` layers; it runs at most once, in eval mode, and is not changed.
        scores: Layer name → scores [K, C, R, S]; what counts is their magnitude.
        budget: As `parse_budget` reads it.
        example_input: Images, [N, C, H, W]; only ratios of weights and blocks can go without.
        structure: What goes as a whole, a key of `STRUCTURES`.
        allocation: How the budget is shared among layers, a key of `ALLOCATIONS`.
        sensitivities: Module name → how sensitive it is, for the allocation mrs.
        excluded: Layers that keep everything.

    Returns:
        Layer name → bool mask of the layer's weight's shape, True = kept.

    Raises:
        InputError: When the model has nothing to prune, a layer has no score, or no masks meet the budget.
    """
    check_scores(model, scores)
    groups = None
    if structure in STRUCTURES_OF_FILTERS:
        groups = channel_groups(model, _required(example_input, f"the structure {structure}"))
    rule = MaskRule(0, structure, groups=groups, excluded=excluded)
    rule = allocated(model, scores, rule, budget, example_input, allocation=allocation, sensitivities=sensitivities)
    return rule(scores)


def allocated(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    rule: MaskRule,
    budget: str | Budget,
    example_input: Tensor | None = None,
    *,
    allocation: str = "uniform",
    sensitivities: Mapping[str, float] | None = None,
    pruned: Mapping[str, float] | None = None,
) -> MaskRule:
    """Return a rule of the same structure, with the ratio of each layer that `allocate` shares a budget by.

    Args:
        model: See `allocate`, as for the arguments that are not named here.
        scores: Likewise.
        rule: The structure, the channel groups and the excluded layers.
        budget: Likewise.
        example_input: Likewise.
        allocation: Likewise.
        sensitivities: Likewise.
        pruned: Layer → the ratio in percent that it has lost already and keeps at least.
    """
    rule = replace(rule, conv_groups=conv_groups(model))
    sharing = _Sharing(model, scores, rule, example_input, _parts(rule, scores, sensitivities or {}))
    budget = parse_budget(budget) if isinstance(budget, str) else budget
    if allocation not in ALLOCATIONS:
        raise InputError(f"Expected the allocation to be one of {', '.join(ALLOCATIONS)}, got {allocation!r}.")
    ratios_at = (
        by_latency(sharing.parts, sharing.times)
        if allocation == "latency"
        else RATIOS_OF_PARTS[allocation](sharing.parts)
    )
    if pruned:
        lost = [pruned[part.layers[0]] / 100 for part in sharing.parts]
        ratios_at = at_least(ratios_at, torch.tensor(lost, dtype=torch.float64))
    if budget.kind == "latency":
        return sharing.rule_of(_met_on_the_machine(sharing, ratios_at, budget))
    cost, dense = sharing.cost(budget.kind)
    allowed = dense * (1 - budget.amount / 100) if budget.kind == "ratio" else budget.of(dense)
    found = fit(ratios_at, cost, allowed)
    if found is None:
        raise InputError(
            _floor(
                budget, cost(ratios_at(1.0)), dense, allowed, f"{allocation} ratios and the structure {rule.structure}"
            )
        )
    return sharing.rule_of(found)


#: Names of what shares a budget among layers.
ALLOCATIONS = (*RATIOS_OF_PARTS, "latency")
# A latency is met when it is measured this close to the budget.
_LATENCY_TOLERANCE = 0.05
_BUILDS = 8
# Below this share of what the dense model's convolutions take, a budget is certainly one for pruning.
_CLEARLY_PRUNED = 0.8


@dataclass(frozen=True, eq=False)
class _Sharing:
    """What is shared: a model's parts, and what ratios for them cost."""

    model: nn.Module
    scores: Mapping[str, Tensor]
    rule: MaskRule
    example_input: Tensor | None
    parts: list[Part]

    def rule_of(self, ratios: Tensor) -> MaskRule:
        """Return the rule of a ratio for each part, [parts]."""
        return replace(self.rule, ratios=by_layer(self.parts, ratios))

    def cost(self, kind: str) -> tuple[Callable[[Tensor], float], float]:
        """Return what ratios cost in a budget's measure, and what the dense model does."""
        if kind == "ratio":
            is_of_weights = self.rule.structure == "hybrid"
            sizes = {part.layers[0]: part.num_weights if is_of_weights else part.size for part in self.parts}
            return partial(self._kept, sizes), sum(sizes.values())
        x = _required(self.example_input, f"a budget in {kind}")
        positions = output_positions(self.model, x)

        def counted(masks: Mapping[str, Tensor] | None) -> float:
            found = cost_of(self.model, positions, masks, self.rule.groups)
            return found.kept_weights if kind == "parameters" else found.kept_macs / len(x)

        return lambda ratios: counted(self.rule_of(ratios)(self.scores)), counted(None)

    def _kept(self, sizes: Mapping[str, int], ratios: Tensor) -> float:
        rule = self.rule_of(ratios)
        return sum(size - rule.num_dropped(size, layer) for layer, size in sizes.items())

    def measured_ms(self, ratios: Tensor) -> float:
        """Build the model of these ratios and time it."""
        groups = self.rule.groups if self.rule.cuts_filters else None
        return deployed_ms(self.model, self.rule_of(ratios)(self.scores), self.image, groups)

    @property
    def image(self) -> Tensor:
        """One image, [1, C, H, W]."""
        return _required(self.example_input, "measuring latency")[:1]

    @cached_property
    def times(self) -> LatencyModel:
        """The layers' times."""
        groups = self.rule.groups if self.rule.cuts_filters else None
        part_of_unit = None
        if groups is not None:
            part_of_unit = torch.full_like(groups.pinned, -1, dtype=torch.int64)
            numbers = {part.layers: number for number, part in enumerate(self.parts)}
            for layers, units in free_units(self.rule, _magnitudes(self.rule, self.scores))[1].items():
                part_of_unit[units] = numbers.get(layers, -1)
        return latency_model(self.model, self.image, self.parts, groups, part_of_unit)


def _met_on_the_machine(sharing: _Sharing, ratios_at: Ratios, budget: Budget) -> Tensor:
    """Plan by the layers' times, build, measure, and correct the plan until the budget is met.

    The times know convolutions alone; what the rest takes shows when the first model is measured.

    Raises:
        InputError: When even the most that the allocation prunes is too slow.
    """
    times, measured = sharing.times, dict[float, float]()
    target = allowed = _allowed_ms(sharing, budget)
    for _ in range(_BUILDS):
        found = fit(ratios_at, times.ms, target)
        ratios = ratios_at(1.0) if found is None else found
        ms = measured[times.ms(ratios)] = sharing.measured_ms(ratios)
        if abs(ms - allowed) <= _LATENCY_TOLERANCE * allowed:
            return ratios
        if found is None and ms > allowed:
            raise InputError(_slow(times, ratios, ms, allowed))
        target = _corrected(measured, allowed)
    nearest = min(measured.values(), key=lambda ms: abs(ms - allowed))
    raise InputError(
        f"Expected a quiet machine, to meet {show('latency', allowed)} within {_LATENCY_TOLERANCE:.0%}, but the "
        f"nearest of {_BUILDS} models took {show('latency', nearest)}."
    )


def _allowed_ms(sharing: _Sharing, budget: Budget) -> float:
    """Return the milliseconds that a budget allows; the dense model is timed only where they depend on it."""
    dense = torch.zeros(len(sharing.parts), dtype=torch.float64)
    if not budget.is_share and budget.amount < _CLEARLY_PRUNED * sharing.times.ms(dense):
        return budget.amount
    return budget.of(sharing.measured_ms(dense))


def _corrected(measured: Mapping[float, float], allowed: float) -> float:
    """Return the planned milliseconds for which `allowed` is to be expected, from plan → measured of all builds."""
    low = max((plan for plan, ms in measured.items() if ms <= allowed), default=0.0)
    high = min((plan for plan, ms in measured.items() if ms > allowed), default=float("inf"))
    near = sorted(measured, key=lambda plan: abs(measured[plan] - allowed))[:2]
    guesses = [
        near[0] + allowed - measured[near[0]],
        near[0] * allowed / measured[near[0]],
        (low + min(high, 2 * near[0])) / 2,
    ]
    if len(near) == 2 and measured[near[0]] != measured[near[1]]:
        slope = (near[0] - near[1]) / (measured[near[0]] - measured[near[1]])
        guesses.insert(0, near[0] + slope * (allowed - measured[near[0]]))
    # Noise must not lead to a plan beyond one that was measured already.
    return next((guess for guess in guesses if low < guess < high), guesses[-1])


def _floor(budget: Budget, floor: float, dense: float, allowed: float, what: str) -> str:
    if budget.kind == "ratio":
        most = f"{100 * (1 - floor / dense):.4g} %"
        return f"Expected a ratio of at most {most}, the most for {what}, got {budget.amount:g} %."
    least, got = show(budget.kind, floor), show(budget.kind, allowed)
    return f"Expected a budget of at least {least}, the least for {what}, got {got}."


def _slow(times: LatencyModel, ratios: Tensor, ms: float, allowed: float) -> str:
    of_layers = times.layer_ms(ratios)
    slowest, most = times.layers[int(of_layers.argmax())], float(of_layers.max())
    other = max(ms - float(of_layers.sum()), 0.0)
    return (
        f"Expected a budget of at least {show('latency', ms)}, got {show('latency', allowed)}: with all pruned that "
        f"may be, {show('latency', other)} are not the convolutions' and {show('latency', most)} are layer "
        f"{slowest!r}'s."
    )


def _required(example_input: Tensor | None, what: str) -> Tensor:
    if example_input is None:
        raise InputError(f"Expected an example input, as {what} needs one, got none.")
    return example_input


def _parts(rule: MaskRule, scores: Mapping[str, Tensor], sensitivities: Mapping[str, float]) -> list[Part]:
    magnitudes = _magnitudes(rule, scores)
    if rule.cuts_filters:
        importance, groups = free_units(rule, magnitudes)
        found = {layers: importance[units].float() for layers, units in groups.items() if len(units)}
    else:
        found = {(layer,): rule.block_scores(layer, magnitude).flatten() for layer, magnitude in magnitudes.items()}
    if not found:
        raise InputError("Expected a model with convolutions whose weights may be pruned, got none.")
    return [
        Part(
            layers,
            tuple(tuple(scores[layer].shape) for layer in layers),
            importance.sort().values,
            max((sensitivities[layer] for layer in layers if layer in sensitivities), default=None),
        )
        for layers, importance in found.items()
    ]


def _magnitudes(rule: MaskRule, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: score.detach().abs().float().cpu() for k, score in scores.items() if k not in rule.excluded}
