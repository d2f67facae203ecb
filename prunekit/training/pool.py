"""A pool of attacks, of which each batch meets one: the more often, the more loss that attack still causes.

The loss that an attack causes falls as training goes on, fastest for the attacks that are met. So each has a moving
average ℓ of the losses at its images, and is drawn with

    p = (1 - γ) · softmax(η · ℓ / mean ℓ) + γ / K,

exponential weights (Freund and Schapire 1997) on losses that are forgotten, with a share γ that is drawn evenly, so
that no average gets old (Auer et al. 2002, "The Nonstochastic Multiarmed Bandit Problem").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import PRESETS, AutoAttackConfig, OverloadConfig, attack_identity
from prunekit.errors import InputError

PREFIX = "pool:"
SHARPNESS, EVEN_SHARE, FORGETTING = 4.0, 0.2, 0.1  # η, γ, and what a new loss counts in its average


def is_pool(text: str) -> bool:
    """Return whether a choice of the training attack is a pool's."""
    return text.startswith(PREFIX)


def pool_names(text: str) -> tuple[str, ...]:
    """Read "pool:fgsm,strong" as names of attacks.

    Raises:
        InputError: When there are less than two, one is twice, or one is none that a batch can be trained with.
    """
    names = tuple(name.strip() for name in text.removeprefix(PREFIX).split(","))
    if len(names) < 2 or len({*names}) < len(names):
        example = "as in pool:fgsm,strong"
        raise InputError(f"--train-attack: expected at least two different attacks, {example}, got {text!r}.")
    known = [name for name, attack in PRESETS.items() if not isinstance(attack, (AutoAttackConfig, OverloadConfig))]
    for name in names:
        if name not in known:
            raise InputError(f"--train-attack: expected attacks among {', '.join(known)} in a pool, got {name!r}.")
    return names


def pool_identity(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the attacks of a pool do, by all their numbers."""
    return [{"name": name, **attack_identity(PRESETS[name])} for name in names]


def chance_column(name: str) -> str:
    """Return the column of losses.csv that holds an attack's probability in the next step."""
    return f"chance_{name}"


def chances(losses: Tensor) -> Tensor:
    """Return the probability of each attack.

    Args:
        losses: The averages ℓ [K], at least 0; nan for an attack that was not met yet. Those come first, evenly.

    Returns:
        Probabilities [K], float64.
    """
    is_new = losses.isnan()
    if is_new.any():
        return is_new.double() / is_new.sum()
    losses = losses.double()
    mean = losses.mean().clamp(min=torch.finfo(losses.dtype).tiny)
    return (1 - EVEN_SHARE) * torch.softmax(SHARPNESS * losses / mean, dim=0) + EVEN_SHARE / len(losses)


def drawn(losses: Tensor, generator: torch.Generator) -> int:
    """Draw an attack's number by `chances`; the generator may be on any device."""
    share = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return min(int((chances(losses).cumsum(0) <= share).sum()), len(losses) - 1)


def noted(losses: Tensor, number: int, loss: float) -> None:
    """Let an attack's average, in place in the losses [K], follow the loss that it has just caused."""
    before = losses[number]
    losses[number] = loss if before.isnan() else torch.lerp(before, torch.tensor(loss).to(before), FORGETTING)
