"""What is handed to prunekit's ops, scores, masks and attacks is afterwards what it was, also when they raise.

One entry per public function; a function that is added to those packages and not here fails the first test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import prunekit
import prunekit.attacks
import prunekit.ops
import prunekit.prune
from prunekit import attacks, ops
from prunekit import prune as pruning
from prunekit.attacks import PRESETS, classification_losses
from prunekit.attacks.patch import Area, Placement
from prunekit.errors import InputError
from prunekit.nn import MaskedConv2d
from tests.support.computed_weights import KINDS, make_net
from tests.support.untouched import untouched

LABELS = torch.tensor([1, 3])
Case = Callable[["Given"], Any]


class Busy(nn.Module):
    """Does what a forward pass should not: writes into its input, and as told draws, counts in a buffer, or fails."""

    calls: Tensor

    def __init__(self, kind: str, training: bool, *habits: str) -> None:
        super().__init__()
        self.net = make_net(kind, 1, training)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.habits, self.countdown = habits, Countdown()
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        if "draws" in self.habits:
            torch.rand(())
        if "counts" in self.habits:
            self.calls += 1
        if "fails" in self.habits:
            self.countdown.step()
        y: Tensor = self.net(x)
        return y


class Countdown:
    """Raises in every second step: a call's first forward pass works, and much has been done when the next fails."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps % 2 == 0:
            raise ValueError("no")


class Branching(nn.Module):
    """Cannot be traced, which shows after its net has run."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y if y.sum() > 0 else -y


class Given:
    """What one call is handed: nets in a certain state, images, masks, scores, a generator."""

    def __init__(self, kind: str, training: bool) -> None:
        self.net = make_net(kind, 1, training)
        self.busy, self.writing = Busy(kind, training, "draws", "counts"), Busy(kind, training)
        self.counting, self.failing = Busy(kind, training, "counts"), Busy(kind, training, "fails")
        nets = (self.net, self.busy, self.writing, self.counting, self.failing)
        for number, parameter in enumerate(parameter for net in nets for parameter in net.parameters()):
            parameter.requires_grad_(number % 3 > 0)
            parameter.grad = torch.full_like(parameter, 0.5)
        seeded = torch.Generator().manual_seed(1)
        self.x = torch.rand(2, 3, 6, 6, generator=seeded)
        self.reference = torch.rand(1, 3, 6, 6, generator=seeded)
        self.conv = cast(nn.Conv2d, self.net[3])
        self.weight = torch.randn(6, 3, 3, 3, generator=seeded)
        self.kept = torch.rand(6, 3, 3, 3, generator=seeded) < 0.5
        self.bias = torch.randn(6, generator=seeded)
        self.masks = {
            name: torch.rand(c.out_channels, c.in_channels, *c.kernel_size, generator=seeded) < 0.5
            for name, c in pruning.prunable_layers(self.net).items()
        }
        self.scores = {name: torch.randn(mask.shape, generator=seeded) for name, mask in self.masks.items()}
        self.labels = LABELS.clone()
        self.losses = attacks.AttackLosses(*(lambda y: y.mean((1, 2, 3)),) * 2, {"a": _mean, "b": _norm}, _mean)

    def generator(self) -> torch.Generator:
        """A generator is there to be drawn from, so each call gets its own."""
        return torch.Generator().manual_seed(2)

    def everything(self) -> list[object]:
        return [value for value in vars(self).values() if not isinstance(value, attacks.AttackLosses)]


def _mean(y: Tensor) -> Tensor:
    return y.mean((1, 2, 3))


def _norm(y: Tensor) -> Tensor:
    return y.square().mean((1, 2, 3))


def _batches(given: Given) -> list[Any]:
    return [(given.x, lambda y: y.square().mean())]


def _comparisons(given: Given, reference: Tensor | None = None) -> list[pruning.Comparison]:
    return [pruning.Comparison(given.x, given.reference if reference is None else reference, _mean)]


def _attack_on(net: str, name: str) -> Case:
    return lambda given: _short(PRESETS[name])(getattr(given, net), given.x, given.losses, given.generator())


def _short(attack: Any) -> Any:
    """Return the attack with few steps."""
    return dataclasses.replace(attack, steps=min(attack.steps, 3))


OPS: dict[str, Case] = {
    "masked_conv2d": lambda g: prunekit.masked_conv2d(g.x, g.weight, g.kept, g.bias, padding="same"),
    "native_status": lambda g: ops.native_status(),
}
MODULES: dict[str, Case] = {
    "from_dense": lambda g: MaskedConv2d.from_dense(g.conv),
    "from_dense with a mask": lambda g: MaskedConv2d.from_dense(g.conv, g.masks["3"]),
    "to_dense": lambda g: MaskedConv2d.from_dense(g.conv).to_dense(),
}
PRUNE: dict[str, Case] = {
    "allocate": lambda g: pruning.allocate(g.net, g.scores, budget="macs=70%", example_input=g.x, allocation="lamp"),
    "allocated": lambda g: pruning.allocated(g.net, g.scores, pruning.MaskRule(0), "50%", allocation="erk")(g.scores),
    "channel_groups": lambda g: pruning.channel_groups(g.net, g.x),
    "churn_between": lambda g: pruning.churn_between(g.masks, {k: ~mask for k, mask in g.masks.items()}),
    "conv_groups": lambda g: pruning.conv_groups(g.net),
    "count_costs": lambda g: pruning.count_costs(g.busy, g.x, {f"net.{k}": m for k, m in g.masks.items()}),
    "data_mean": lambda g: pruning.data_mean([g.x, g.reference]),
    "deeplift_scores": lambda g: pruning.deeplift_scores(g.net, _comparisons(g)),
    "initial_scores": lambda g: pruning.initial_scores(g.net, g.scores),
    "magnitude_scores": lambda g: pruning.magnitude_scores(g.weight).zero_(),
    "masks_from_scores": lambda g: pruning.masks_from_scores(g.scores, 50),
    "MaskRule": lambda g: pruning.MaskRule(50, "filter", "global", groups=pruning.channel_groups(g.net, g.x))(g.scores),
    "prunable_layers": lambda g: pruning.prunable_layers(g.net),
    "random_scores": lambda g: pruning.random_scores(g.weight, g.generator()),
    "scaled_scores": lambda g: pruning.scaled_scores(g.weight).zero_(),
    "score_model": lambda g: [s.zero_() for n in ("scaled", "magnitude", "random") for s in _scored(g, n)],
    "score_named": lambda g: pruning.score_named("taylor"),
    "robustness_sensitivities": lambda g: pruning.robustness_sensitivities(g.busy, [(g.x, _norm)], passes=2),
    "sparsity": lambda g: (pruning.sparsity(g.net), pruning.sparsity(g.masks)),
    "taylor_scores": lambda g: pruning.taylor_scores(g.busy, _batches(g)),
}
IN_PLACE = {"apply_masks", "FrozenMasks", "StraightThrough"}  # documented to change the model: only failures count
FILES = {"save_masks", "load_masks", "save_scores", "load_scores"}
ATTACKS: dict[str, Case] = {
    **{name: _attack_on("writing", name) for name in PRESETS if name not in ("autoattack", "latency")},
    "autoattack": lambda g: attacks.AutoAttackConfig(0.1, steps=3, targets=2, queries=3)(
        nn.Sequential(g.writing, nn.Flatten()),
        g.x,
        classification_losses(g.labels),
        g.generator(),
    ),
    "latency": lambda g: attacks.OverloadConfig(0.1, 0.05, 3)(
        g.writing, g.x, dataclasses.replace(g.losses, overload=_mean), g.generator()
    ),
    "draw_placement": lambda g: attacks.draw_placement(Area(0, 0, 6, 8), attacks.PatchConfig(), g.generator()),
    "pasted": lambda g: attacks.pasted(g.x[0], g.x, [Placement(0, 0, 2, 1.0)] * len(g.x)),
    "random_patch": lambda g: attacks.random_patch(attacks.PatchConfig(pixels=2), g.generator()),
    "trained_step": lambda g: attacks.trained_step(
        g.writing,
        g.x,
        [Placement(0, 0, 2, 1.0)] * len(g.x),
        _mean,
        attacks.PatchState(g.x[0].clone(), torch.zeros_like(g.x[0])),
        attacks.PatchConfig(),
    ),
    "soft_count": lambda g: attacks.soft_count([g.x], 0.5),
    "pgd": lambda g: attacks.pgd(
        g.writing, g.x, _mean, attacks.PgdConfig(0.1, 0.05, 3, random_start=True, restarts=2), g.generator()
    ),
    "held_perturbation": lambda g: attacks.held_perturbation(
        g.writing,
        g.x,
        lambda images: _mean,
        attacks.PgdConfig(0.1, 0.05, 2),
        torch.ones_like(g.x[:, :1]),
        g.generator(),
    ),
    "moved": lambda g: attacks.moved(g.x, g.reference, torch.ones_like(g.x[:, :1])),
    "fgsm": lambda g: attacks.fgsm(0.1)(g.writing, g.x, g.losses, g.generator()),
    "uniform_noise": lambda g: attacks.uniform_noise(0.1, "l2")(g.writing, g.x, g.losses, g.generator()),
    "LinfStep": lambda g: _walk(attacks.LinfStep(0.1, 0.05), g),
    "L2Step": lambda g: _walk(attacks.L2Step(0.1, 0.05), g),
    "classification_losses": lambda g: [
        loss(g.x.mean((2, 3)).repeat(1, 2)) for loss in classification_losses(g.labels).components.values()
    ],
    "cross_entropy_per_image": lambda g: attacks.cross_entropy_per_image(g.labels)(g.x.flatten(1)),
    "margin_per_image": lambda g: attacks.margin_per_image(g.labels)(g.x.flatten(1)),
    "softmax_divergence": lambda g: attacks.softmax_divergence(g.x.flatten(1), g.reference.flatten(1)),
    "attack_identity": lambda g: [attacks.attack_identity(attack) for attack in PRESETS.values()],
}
# Classes without work of their own, functions of names alone, and names that stand for something listed above.
DATA = {
    "ops": {"NativeStatus", "native"},
    "prune": {
        *("SCOPES", "SCORES", "STRUCTURES", "ChannelGroups", "Churn", "Comparison", "CompletenessError"),
        *("LayerCost", "ModelCost", "Score", "register_score"),
        *("ALLOCATIONS", "Budget", "Sensitivity", "parse_budget"),
    },
    "attacks": {
        *("PRESETS", "Attack", "AttackInParts", "AttackLosses", "AutoAttackConfig", "CarliniWagnerConfig"),
        *("GradientError", "LossPerImage", "OverloadConfig", "PatchConfig", "PatchState", "PgdConfig", "StrongConfig"),
        *("attack_named", "register_attack"),
    },
}


def _scored(given: Given, name: str) -> list[Tensor]:
    return list(pruning.score_model(given.net, name).values())


def _walk(step: attacks.LinfStep | attacks.L2Step, given: Given) -> Tensor:
    start = step.random_start(given.x, given.generator())
    return step.project(step.step(start, given.x), given.x)


def test_every_public_function_is_here() -> None:
    assert set(ops.__all__) == {*OPS, *DATA["ops"]}
    assert set(pruning.__all__) <= {*PRUNE, *IN_PLACE, *FILES, *DATA["prune"]}
    assert set(attacks.__all__) <= {*ATTACKS, *DATA["attacks"]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*OPS, *MODULES, *PRUNE, *ATTACKS])
def test_nothing_handed_over_is_changed(name: str, training: bool) -> None:
    call = {**OPS, **MODULES, **PRUNE, **ATTACKS}[name]
    for kind in ("plain", "pruned by torch", "spectral_norm", "parametrizations.spectral_norm"):
        given = Given(kind, training)
        with untouched(*given.everything()):
            call(given)


def _groups_of_a_part(given: Given) -> pruning.ChannelGroups:
    return pruning.channel_groups(given.net[5], torch.zeros(1, 6, 4, 4))


def _nan(given: Given) -> Tensor:
    x = given.x.clone()
    x[0, 0, 0, 0] = math.nan
    return x


FAILURES: dict[str, Case] = {
    "masked_conv2d, mask": lambda g: prunekit.masked_conv2d(g.x, g.weight, g.kept[:2]),
    "masked_conv2d, size": lambda g: prunekit.masked_conv2d(g.x[:, :, :1], g.weight, g.kept),
    "from_dense, mask": lambda g: MaskedConv2d.from_dense(g.conv, g.kept),
    "from_dense, module": lambda g: MaskedConv2d.from_dense(cast(nn.Conv2d, g.net)),
    "channel_groups, wiring": lambda g: pruning.channel_groups(Branching(g.net), g.x),
    "channel_groups, size": lambda g: pruning.channel_groups(g.net, g.x[:, :2]),
    "count_costs, forward": lambda g: [pruning.count_costs(model, g.x) for model in [g.failing] * 2],
    "deeplift_scores, forward": lambda g: pruning.deeplift_scores(g.failing, _comparisons(g)),
    "deeplift_scores, reference": lambda g: pruning.deeplift_scores(g.net, _comparisons(g, g.reference[:, :1])),
    "deeplift_scores, target": lambda g: pruning.deeplift_scores(g.net, [pruning.Comparison(g.x, g.x, torch.sum)]),
    "robustness_sensitivities, forward": lambda g: pruning.robustness_sensitivities(g.failing, [(g.x, _norm)] * 2),
    "taylor_scores, forward": lambda g: pruning.taylor_scores(g.failing, _batches(g) * 2),
    "taylor_scores, loss": lambda g: pruning.taylor_scores(g.net, [(g.x, lambda y: y.mean() / 0)]),
    "taylor_scores, no batch": lambda g: pruning.taylor_scores(g.net, []),
    "score_model, name": lambda g: pruning.score_model(g.net, "none"),
    "initial_scores, shape": lambda g: pruning.initial_scores(g.net, {k: s[:1] for k, s in g.scores.items()}),
    "apply_masks, a mask lacks": lambda g: pruning.apply_masks(g.net, {"0": g.masks["0"]}),
    "apply_masks, last mask's shape": lambda g: pruning.apply_masks(g.net, {**g.masks, "5": g.kept}),
    "apply_masks, last mask's dtype": lambda g: pruning.apply_masks(g.net, {**g.masks, "5": g.masks["5"].float()}),
    "FrozenMasks, last mask's shape": lambda g: pruning.FrozenMasks(g.net, {**g.masks, "5": g.kept}),
    "StraightThrough, a score lacks": lambda g: pruning.StraightThrough(
        g.net, {"0": g.scores["0"]}, pruning.MaskRule(50)
    ),
    "StraightThrough, groups of another model": lambda g: pruning.StraightThrough(
        g.net, g.scores, pruning.MaskRule(50, "filter", groups=_groups_of_a_part(g))
    ),
    "pgd, pixels": lambda g: attacks.pgd(g.net, g.x * 2, _mean, attacks.fgsm(0.1)),
    "pgd, nan": lambda g: attacks.pgd(g.net, _nan(g), _mean, attacks.fgsm(0.1)),
    "pgd, no gradient": lambda g: attacks.pgd(g.net, g.x, lambda y: y.detach().mean((1, 2, 3)), attacks.fgsm(0.1)),
    **{f"{name}, forward": _attack_on("failing", name) for name in ("paper", "strong", "cw")},
    **{f"{name}, a buffer that changes": _attack_on("counting", name) for name in ("paper", "strong", "cw")},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FAILURES)
def test_nothing_is_changed_when_a_call_fails(name: str, training: bool) -> None:
    for kind in ("plain", "pruned by torch", "parametrizations.spectral_norm"):
        given = Given(kind, training)
        fails = pytest.raises((InputError, ValueError, ArithmeticError, RuntimeError))
        with untouched(*given.everything()), fails:
            FAILURES[name](given)


def test_every_kind_of_weight_survives_the_failure_of_in_place_functions() -> None:
    for kind in KINDS:
        given = Given(kind, True)
        wrong = {**given.masks, "5": given.kept}
        for call in (pruning.apply_masks, pruning.FrozenMasks):
            with untouched(*given.everything(), wrong), pytest.raises(InputError):
                call(given.net, wrong)


def test_files_are_written_from_and_checked_against_what_stays(tmp_path: Path) -> None:
    given = Given("parametrizations.spectral_norm", True)
    with untouched(*given.everything()):
        pruning.save_masks(tmp_path / "masks.safetensors", given.masks)
        pruning.save_scores(tmp_path / "scores.safetensors", given.scores)
        pruning.load_masks(tmp_path / "masks.safetensors", given.net)
        pruning.load_scores(tmp_path / "scores.safetensors", given.net)
        with pytest.raises(InputError):
            pruning.load_masks(tmp_path / "scores.safetensors", given.net)
