"""How a budget is shared among a model's layers: one strength becomes a pruning ratio for each of them.

Each allocation is a family of ratios, none of which falls while the strength grows from 0, where nothing is pruned, to
1; `fit` finds the strength that meets a budget. What gets one ratio is a `Part`: a layer or, where filters go, a
channel group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError

#: No module loses more than this share under `mrs`: ratios beyond it are where layers collapse.
MRS_CAP = 0.9
# A result this close to the budget is not improved; budgets are to be met within 1 %.
_CLOSE = 0.001
_BISECTIONS = 32
_STEPS_BETWEEN = 8


@dataclass(frozen=True, eq=False)
class Part:
    """What gets one pruning ratio.

    Attributes:
        layers: The names of its convolutions.
        shapes: Their weights' shapes, (K, C, R, S).
        importance: float32 [things that may be dropped], ascending; inf where one stays in any case.
        sensitivity: Of its most sensitive module; None where it was not measured.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    importance: Tensor = field(repr=False)
    sensitivity: float | None = None

    @property
    def size(self) -> int:
        """The number of things that may be dropped: weights, blocks, kernels or filters."""
        return len(self.importance)

    @property
    def num_weights(self) -> int:
        """The number of weights of its convolutions."""
        return sum(math.prod(shape) for shape in self.shapes)


#: Strength in [0, 1] → the ratio of each part, float64 [parts] in [0, 1].
Ratios = Callable[[float], Tensor]
Allocation = Callable[[Sequence[Part]], Ratios]


def uniform(parts: Sequence[Part]) -> Ratios:
    """Give every part the same ratio."""
    return lambda strength: torch.full([len(parts)], strength, dtype=torch.float64)


def global_threshold(parts: Sequence[Part]) -> Ratios:
    """Let all scores compete: everything below one threshold goes, wherever it is."""
    return _below_threshold([part.importance for part in parts])


def erk(parts: Sequence[Part]) -> Ratios:
    """Give densities in proportion to (K + C + R + S) / (K · C · R · S), at most 1: Erdős–Rényi-Kernel.

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3.
    """
    sums = torch.tensor([sum(sum(shape) for shape in part.shapes) for part in parts], dtype=torch.float64)
    sizes = torch.tensor([part.num_weights for part in parts], dtype=torch.float64)
    relative = sums / sizes / (sums / sizes).min() if len(parts) else sums
    return lambda strength: 1 - ((1 - strength) * relative).clamp(max=1)


def lamp(parts: Sequence[Part]) -> Ratios:
    """Let scores u compete as u² / Σ v², the sum over the v ≥ u of the same part; each part's best has the score 1.

    Reference: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    """
    return _below_threshold([_lamp_scores(part.importance) for part in parts])


def _lamp_scores(importance: Tensor) -> Tensor:
    finite = importance[importance.isfinite()]
    largest = finite.max() if len(finite) else torch.tensor(1.0)
    squares = importance.clamp(max=float(largest)).double().square()
    of_rest = squares.flip(0).cumsum(0).flip(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(importance.isinf(), torch.inf, (squares / of_rest).float())


def mrs(parts: Sequence[Part]) -> Ratios:
    """Give ratios that fall with the sensitivity s: min(0.9, λ · (1 - (s - min s) / (max s - min s))).

    After the idea of MRPF; the formula is ours, as none was published. The most sensitive part stays whole.

    Raises:
        InputError: When a part has no sensitivity.
    """
    if unknown := [part.layers[0] for part in parts if part.sensitivity is None]:
        raise InputError(
            f"Expected the sensitivity of every module for the allocation mrs, got none for {unknown[0]!r}: "
            "measure them with prunekit sensitivity."
        )
    sensitivities = torch.tensor([part.sensitivity for part in parts], dtype=torch.float64)
    lowest, highest = sensitivities.aminmax() if len(parts) else (torch.zeros(()), torch.zeros(()))
    calm = 1 - (sensitivities - lowest) / (highest - lowest) if highest > lowest else torch.ones_like(sensitivities)
    return lambda strength: (calm * strength / max(1 - strength, 1e-12)).clamp(max=MRS_CAP)


def _below_threshold(importances: Sequence[Tensor]) -> Ratios:
    """Drop the lowest int(n · strength) of all; among equal ones the earlier parts' go first."""
    pooled = torch.from_numpy(np.sort(torch.cat([*importances, torch.zeros(0)]).numpy()))
    sizes = torch.tensor([max(len(importance), 1) for importance in importances], dtype=torch.float64)

    def ratios(strength: float) -> Tensor:
        wanted = int(len(pooled) * strength)
        if wanted == len(pooled):
            return torch.ones_like(sizes)
        threshold = pooled[wanted : wanted + 1]
        below, up_to = (_counts(importances, threshold, right) for right in (False, True))
        equal = (wanted - below.sum() - (up_to - below).cumsum(0) + (up_to - below)).clamp(min=0)
        return (below + torch.minimum(equal, up_to - below)) / sizes

    return ratios


def _counts(importances: Sequence[Tensor], threshold: Tensor, right: bool) -> Tensor:
    found = [torch.searchsorted(importance, threshold, right=right) for importance in importances]
    return torch.cat([*found, torch.zeros(0)]).double()


#: Those that need nothing but the parts; `prunekit.prune.latency.by_latency` needs measured times as well.
RATIOS_OF_PARTS: dict[str, Allocation] = {
    "uniform": uniform,
    "global": global_threshold,
    "erk": erk,
    "lamp": lamp,
    "mrs": mrs,
}


def fit(ratios_at: Ratios, cost: Callable[[Tensor], float], budget: float) -> Tensor | None:
    """Return the ratios of least strength that cost no more than a budget; None where no strength does.

    Found by bisection. Where a step of strength drops something in several parts at once and the budget lies inside of
    the step, as many parts as fit stay before it.

    Args:
        ratios_at: An allocation's ratios.
        cost: What a model of these ratios costs; it never grows with a ratio.
        budget: What it may cost.
    """
    low, high = 0.0, 1.0
    if cost(ratios_at(high)) > budget:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = cost(ratios_at(middle))
        if found > budget:
            low = middle
            continue
        high = middle
        if found >= (1 - _CLOSE) * budget:
            return ratios_at(high)
    return _filled_up(ratios_at(high), ratios_at(low), cost, budget)


def _filled_up(ratios: Tensor, fewer: Tensor, cost: Callable[[Tensor], float], budget: float) -> Tensor:
    """Lower the ratio of one part after the other towards that of `fewer`, as far as the budget allows."""
    for part in (fewer < ratios).nonzero().flatten().tolist():
        low, high = float(fewer[part]), float(ratios[part])
        for ratio in (low, *(low + (high - low) * step / _STEPS_BETWEEN for step in range(1, _STEPS_BETWEEN))):
            trial = ratios.clone()
            trial[part] = ratio
            if cost(trial) <= budget:
                ratios = trial
                break
    return ratios


def at_least(ratios_at: Ratios, ratios: Tensor) -> Ratios:
    """Return an allocation that prunes no part less than `ratios`, which are pruned already."""
    return lambda strength: torch.maximum(ratios_at(strength), ratios)


def by_layer(parts: Sequence[Part], ratios: Tensor) -> Mapping[str, float]:
    """Return the ratio of every layer in percent."""
    percent = (100 * ratios).tolist()
    return {layer: ratio for part, ratio in zip(parts, percent, strict=True) for layer in part.layers}
