"""How much the loss on attacked images rises when one module's weight moves a little: its robustness sensitivity.

With the mean loss R(θ) over attacked images that are made once and then held fixed, a module of weight W has

    S = max R(θ with W + Δ) - R(θ)    over ‖Δ‖₂ ≤ eps · ‖W‖₂

to first order eps · ‖W‖₂ · ‖dR/dW‖₂. This is the module robust criticality of RiFT (Zhu et al., "Improving
Generalization of Adversarial Training via Robust Critical Fine-Tuning", ICCV 2023). Its code ascends by SGD at a rate
of 1, and so by steps that depend on the weight's scale; here a step is as long as the ball's radius, so that S is the
same for a layer whose scale the normalization behind it undoes:

    Δ ← P(Δ + eps · ‖W‖₂ · g / ‖g‖₂),    g = dR/dW at W + Δ,    P the projection onto the ball
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import held_weights
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import RandomStream

#: Attacked images, and the map from the model's outputs for them to losses [N].
Attacked = tuple[Tensor, Callable[[Any], Tensor]]


@dataclass(frozen=True)
class Sensitivity:
    """One module's.

    Attributes:
        first_order: eps · ‖W‖ · ‖dR/dW‖.
        exact: The largest rise of the loss that the ascent reached, at least 0; None where none was made.
    """

    first_order: float
    exact: float | None = None

    @property
    def value(self) -> float:
        """The exact one where there is one."""
        return self.first_order if self.exact is None else self.exact


def sensitive_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have a sensitivity: every `nn.Conv2d` and `nn.Linear`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}


def robustness_sensitivities(
    model: nn.Module,
    attacked: Sequence[Attacked],
    *,
    eps: float = 0.1,
    passes: int = 10,
    done: Mapping[str, Sensitivity] | None = None,
    save: Callable[[Mapping[str, Sensitivity]], None] = lambda found: None,
    track: Callable[[Iterable[str], int], Iterable[str]] = lambda names, total: names,
) -> dict[str, Sensitivity]:
    """Measure each module's sensitivity, in eval mode; the model is left as it was.

    Args:
        model: Any module with convolutions or linear layers.
        attacked: Images that were attacked on this very model, [N, C, H, W], and what their loss is.
        eps: Radius of the ball, relative to the weight's norm.
        passes: Gradients over all images that the ascent takes; 0 measures to first order alone.
        done: What an earlier call found, to go on from.
        save: Called with all that is known after each module.
        track: Told which modules there are, and how many.

    Returns:
        Module name → its sensitivity, in the model's order.

    Raises:
        InputError: When there is no image or no module, or the loss is not finite.
    """
    layers = sensitive_layers(model)
    if not attacked or not layers:
        missing = "an attacked image" if layers else "a module with convolutions or linear layers"
        raise InputError(f"Expected {missing} to measure sensitivities, got none.")
    found = dict(done or {})
    with held_still(model), held_weights(layers) as weights:
        frozen = [(p, p.requires_grad) for p in model.parameters()]
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        try:
            risk = _Risk(model, attacked)
            start, gradients = risk.gradients(weights)
            for name in track(layers, len(layers)):
                if name not in found:
                    found[name] = _sensitivity(risk, weights[name], start, gradients[name], eps, passes)
                    save(found)
        finally:
            for parameter, trained in frozen:
                parameter.requires_grad_(trained)
    return {name: found[name] for name in layers}


class _Risk:
    """The mean loss over all attacked images."""

    def __init__(self, model: nn.Module, attacked: Sequence[Attacked]) -> None:
        self._model, self._attacked = model, attacked
        self._num_images = sum(len(x) for x, _ in attacked)

    def gradients(self, weights: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Return the loss and its gradient for each of the weights; zeros where it does not depend on one."""
        leaves = list(weights.values())
        total, sums = 0.0, [torch.zeros_like(weight, requires_grad=False) for weight in leaves]
        for weight in leaves:
            weight.requires_grad_(True)
        for loss in self._losses():
            for summed, gradient in zip(sums, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                if gradient is not None:
                    summed += gradient
            total += float(loss.detach())
        for weight in leaves:
            weight.requires_grad_(False)
        return total, dict(zip(weights, sums, strict=True))

    @torch.no_grad()
    def value(self) -> float:
        """Return the loss."""
        return sum(float(loss) for loss in self._losses())

    def _losses(self) -> Iterable[Tensor]:
        stream = RandomStream()  # the same random numbers, if the model draws any, in every pass
        for x, losses in self._attacked:
            with stream():
                loss = losses(self._model(x.clone())).sum() / self._num_images
            if not loss.isfinite():
                raise InputError(f"Expected a finite loss to measure sensitivities, got {loss.item()}.")
            yield loss


@torch.no_grad()
def _sensitivity(risk: _Risk, weight: Tensor, start: float, gradient: Tensor, eps: float, passes: int) -> Sensitivity:
    radius = eps * float(weight.norm())
    first_order = radius * float(gradient.norm())
    if passes == 0:
        return Sensitivity(first_order)
    origin, largest = weight.clone(), start
    try:
        for number in range(passes):
            if number:
                with torch.enable_grad():
                    loss, gradients = risk.gradients({"": weight})
                largest, gradient = max(largest, loss), gradients[""]
            length = float(gradient.norm())
            if length == 0:
                return Sensitivity(first_order, largest - start)
            weight.copy_(origin + project(weight - origin + gradient * (radius / length), radius))
        largest = max(largest, risk.value())
    finally:
        weight.copy_(origin)
    return Sensitivity(first_order, largest - start)


def project(delta: Tensor, radius: float) -> Tensor:
    """Return the nearest point of the ball of that Euclidean radius around 0."""
    length = float(delta.norm())
    return delta if length <= radius else delta * (radius / length)


def rank_correlation(found: Mapping[str, Sensitivity]) -> float | None:
    """Return Spearman's correlation of the exact sensitivities with those to first order; None without two exact."""
    pairs = [(one.exact, one.first_order) for one in found.values() if one.exact is not None]
    if len(pairs) < 2:
        return None
    ranks = torch.tensor(pairs, dtype=torch.float64).argsort(dim=0).argsort(dim=0).double()
    return float(torch.corrcoef(ranks.T)[0, 1])
