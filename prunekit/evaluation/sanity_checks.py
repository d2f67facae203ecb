"""Check an evaluation under attack before believing it: attack in several ways, compare what must be ordered."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.attacks import GradientError, L2Step, LinfStep, PgdConfig, uniform_noise
from prunekit.attacks.gradient import loss_at, slope_at
from prunekit.attacks.presets import STANDARD
from prunekit.attacks.steps import STEPS
from prunekit.evaluation import sanity_rules as rules
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate
from prunekit.evaluation.sanity_rules import Check, CheckReport
from prunekit.task import Figure

LARGE_EPS = 64 / 255
STEPS_FACTOR = 5
SMALL_STEP = 0.02  # of eps
MIN_RISING_SHARE = 0.9  # of the images must do worse on the gradient's side than on the other
SIBLING_NOISE = 0.1  # of each filter bank's standard deviation


@dataclass(frozen=True)
class Attacked:
    """The evaluations that are compared: clean, attacked at ascending eps, and under three variants of the attack."""

    clean: Evaluation
    by_eps: dict[float, Evaluation]
    more_steps: Evaluation
    noise: Evaluation
    transfer: Evaluation


def check_evaluation(
    subject: Subject,
    attack: PgdConfig = STANDARD,
    source: nn.Module | None = None,
    num_images: int = 32,
) -> CheckReport:
    """Attack a part of the data set in several ways and check that the figures are ordered as they must be.

    Args:
        subject: What is evaluated; the first of its task's figures is compared.
        attack: The attack that is checked, with eps above 0 and enough steps to have converged.
        source: Another model of the same task, such as the unpruned one, whose attack is transferred. If not
            given, the model itself with noise on its filters.
        num_images: The checks use the first so many images in which there is something to attack.

    Returns:
        The checks; `CheckReport.require` raises if one failed. Where the mode or the gradient is wrong already, the
        checks end there.
    """
    model, part = subject.model, dataclasses.replace(subject, dataset=subject.dataset.part(num_images))
    rows = [_check_mode(model)]
    if rows[0].passed:
        rows.append(_check_gradient(part, attack))
    if not rows[-1].passed:
        return CheckReport(rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attacked = _attack_in_all_ways(part, attack, source or _sibling(model, subject.config.seed))
    judged = _judge(attacked, attack, subject.task.figures[0], part.dataset.resolution())
    return CheckReport([*rows, *judged, _check_state(model, before)])


def _attack_in_all_ways(subject: Subject, attack: PgdConfig, source: nn.Module) -> Attacked:
    def under(chosen: PgdConfig | None, what: str, source: nn.Module | None = None) -> Evaluation:
        return evaluate(subject, chosen, f"checking: {what}", source=source)

    more = dataclasses.replace(attack, steps=STEPS_FACTOR * attack.steps)
    return Attacked(
        clean=under(None, "clean"),
        by_eps={eps: under(attack.with_eps(eps), f"eps {eps:.3g}") for eps in _radii(attack)},
        more_steps=under(more, f"{more.steps} steps"),
        noise=under(uniform_noise(attack.eps, attack.norm), "noise"),
        transfer=under(attack, "transfer", source),
    )


def _radii(attack: PgdConfig) -> list[float]:
    """Return radii from 0 by way of the attack's own to one that nothing survives."""
    # In L2, the same multiple of the attack's radius as in L∞.
    large = LARGE_EPS if attack.norm == "linf" else attack.eps * LARGE_EPS / STANDARD.eps
    return sorted({0.0, attack.eps / 4, attack.eps / 2, attack.eps, large})


def _judge(attacked: Attacked, attack: PgdConfig, figure: Figure, chance: float) -> list[Check]:
    def value(evaluation: Evaluation) -> float:
        found = evaluation.figures[figure.column]
        return math.nan if found is None else found

    by_eps = {eps: value(evaluation) for eps, evaluation in attacked.by_eps.items()}
    moved = {eps: seen for eps, evaluation in attacked.by_eps.items() if (seen := evaluation.perturbation) is not None}
    scale = rules.Scale(value(attacked.clean), chance, figure.name)
    own, large = by_eps[attack.eps], max(by_eps)
    return [
        rules.something_to_attack(scale),
        rules.every_image_moves(attack.norm, attack.eps, moved[attack.eps]),
        rules.none_leaves_the_ball(attack.norm, moved),
        rules.pixels_stay_pixels(moved),
        rules.no_radius_changes_nothing(scale, by_eps[0.0]),
        rules.falls_with_eps(scale, by_eps),
        rules.nothing_survives(scale, large, by_eps[large]),
        rules.has_converged(scale, own, value(attacked.more_steps)),
        rules.chance_is_harmless(scale, value(attacked.noise)),
        rules.own_gradients_win(scale, own, value(attacked.transfer)),
    ]


def _sibling(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with noise on its filters."""
    sibling = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in sibling.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(SIBLING_NOISE * weight.std() * noise)
    return sibling


def _check_mode(model: nn.Module) -> Check:
    training = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training]
    sentence = "batch normalization uses its running statistics"
    if training:
        sentence = f"batch normalization must be in eval mode, but {training[0]} is in training mode"
    return Check("eval mode", not training, sentence, {"layers_in_training_mode": len(training)})


def _check_gradient(subject: Subject, attack: PgdConfig) -> Check:
    """A loss must be higher a little up its gradient than a little down: both sides, because minima are curved."""
    move = STEPS[attack.norm](SMALL_STEP * attack.eps, step_size=SMALL_STEP * attack.eps)
    try:
        rises = torch.cat([*_rises(subject, move)])
    except GradientError as error:
        return Check("gradient", False, str(error), {"rising_share": 0.0})
    share = float((rises > 0).double().mean())
    sentence = (
        f"the loss rises along its gradient, over a distance of {2 * move.eps:.3g}, for {share:.0%} of the images: "
        f"a true gradient gives at least {MIN_RISING_SHARE:.0%}"
    )
    return Check("gradient", share >= MIN_RISING_SHARE, sentence, {"rising_share": share})


def _rises(subject: Subject, move: LinfStep | L2Step) -> Iterator[Tensor]:
    """Yield, batch by batch, each image's loss one step up its gradient less that one step down, [N]."""
    precise = copy.deepcopy(subject.model).double()  # the differences are near float32's rounding
    for batch in subject.batches("checking: gradient"):
        x = batch.images
        losses = subject.task.attack_losses(batch.targets)
        loss_per_image = losses.smooth or losses.total
        grad = slope_at(subject.model, x, loss_per_image).grad
        up, down = (move.project(move.step(x, direction), x).double() for direction in (grad, -grad))
        yield (loss_at(precise, up, loss_per_image) - loss_at(precise, down, loss_per_image)).cpu()


def _check_state(model: nn.Module, before: dict[str, Tensor]) -> Check:
    """Nothing of the model may have changed, in particular no running statistics."""
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    sentence = (
        f"the attacks changed {changed[0]}" if changed else "the attacks left weights and running statistics alone"
    )
    return Check("state", not changed, sentence, {"changed_tensors": len(changed)})
