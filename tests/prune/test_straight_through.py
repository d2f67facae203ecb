"""The straight-through gradient against its formula, and a model that is itself again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from prunekit.attacks import PgdConfig, pgd
from prunekit.errors import InputError
from prunekit.prune import MaskRule, StraightThrough, prunable_layers, score_model, sparsity
from tests.support.pruning_nets import Residual, groups_of, make_model


def random_net(seed: int, width: int, groups: int) -> nn.Module:
    torch.manual_seed(seed)
    channels = width * groups
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, groups=groups, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.Conv2d(2 * channels, 3, 1),
    ).double()


def loss_of(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum().sin()


def step(pruning: StraightThrough, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = loss_of(pruning.model(x))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def weight_gradients(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The gradient of the loss with respect to each convolution's effective weight, by plain autograd."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    outputs = functional_call(model, {f"{name}.weight": leaf for name, leaf in leaves.items()}, (x,))
    return dict(zip(leaves, torch.autograd.grad(loss_of(outputs), list(leaves.values())), strict=True))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 99),
    st.booleans(),
)
def test_scores_get_the_gradient_of_the_formula(seed: int, width: int, groups: int, ratio: int, training: bool) -> None:
    model = random_net(seed, width, groups).train(training)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    weights = {layer: conv.weight.detach().clone() for layer, conv in prunable_layers(model).items()}
    scores = {layer: torch.randn_like(weight) for layer, weight in weights.items()}
    rule = MaskRule(ratio)
    masks = rule(scores)
    gradients = weight_gradients(model, {layer: w * masks[layer] for layer, w in weights.items()}, x)
    with StraightThrough(model, scores, rule):
        loss_of(model(x)).backward()  # type: ignore[no-untyped-call]
        for layer, conv in prunable_layers(model).items():
            found = conv.parametrizations.weight[0].scores.grad  # type: ignore[union-attr,index]
            assert isinstance(found, Tensor)
            assert int(masks[layer].sum()) >= masks[layer].numel() - masks[layer].numel() * ratio // 100
            torch.testing.assert_close(found, gradients[layer] * weights[layer] * scores[layer].sign())


def test_dropped_weights_get_gradients_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    with StraightThrough(model, score_model(model, "scaled"), MaskRule(90)) as pruning:
        loss_of(model(torch.randn(1, 3, 7, 6, dtype=torch.float64))).backward()  # type: ignore[no-untyped-call]
        (scores,) = pruning.parameters()
        assert scores.grad is not None
        assert scores.grad[~pruning.masks()["0"]].all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0, 30, 60, 90]), st.booleans())
def test_filter_scores_get_the_gradient_of_their_channel_where_it_is_read(
    seed: int, ratio: int, training: bool
) -> None:
    model = make_model(seed, width=4).double().train(training)
    groups, scores = groups_of(model.double().float()), score_model(model.double(), "scaled")
    rule = MaskRule(ratio, "filter", groups=groups)
    kept = groups.kept_units(rule(scores)).double().requires_grad_()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = loss_of(gated(model, kept, groups.units, x))
    (gradient,) = torch.autograd.grad(expected, kept)
    with StraightThrough(model, scores, rule):
        loss = loss_of(model(x))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(loss, expected.detach())
        for layer, conv in prunable_layers(model).items():
            found = conv.parametrizations.weight[0].scores.grad  # type: ignore[union-attr,index]
            num_filters = {"stem": 2, "block": 2, "wide": 2, "depthwise": 2}.get(layer, 1)  # of one unit
            slope = gradient[groups.units[layer]] / (conv.weight[0].numel() * num_filters)
            if layer != "head":
                torch.testing.assert_close(found, slope[:, None, None, None] * scores[layer].sign())


def gated(model: Residual, kept: Tensor, units: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward of Residual written out; what a layer reads is times 1 where its unit is kept, else 0."""

    def gate(layer: str, z: Tensor) -> Tensor:
        return z * kept[units[layer]][:, None, None]

    act = model.activation
    z = act(model.stem_norm(model.stem(x)))
    z = z + act(model.block_norm(model.block(gate("stem", z))))
    z = model.depthwise(model.wide(gate("block", z)))
    z = act(model.wide_norm(z))
    z = act(model.last(gate("depthwise", z)))
    logits: Tensor = model.head(gate("last", z))
    return logits


@pytest.mark.parametrize("structure", ["unstructured", "kernel2d", "filter", "hybrid"])
def test_a_finished_model_answers_as_it_did_while_masked(structure: str) -> None:
    model = make_model(width=8).double()
    groups = groups_of(model.float())
    model.double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with StraightThrough(model, score_model(model, "scaled"), MaskRule(75, structure, groups=groups)) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.05)
        model.train()
        for _ in range(3):
            step(pruning, x, optimizer)
        model.eval()
        expected = model(x).detach()
        masks = pruning.finish()
    torch.testing.assert_close(model(x), expected)
    assert sparsity(model) >= sparsity(masks) > 0.5
    assert all(not conv.weight[~masks[layer]].any() for layer, conv in prunable_layers(model).items())


@pytest.mark.parametrize("structure", ["unstructured", "filter"])
def test_ratio_zero_is_the_dense_model(structure: str) -> None:
    model = make_model()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    rule = MaskRule(0, structure, groups=groups_of(model))
    with StraightThrough(model, score_model(model, "scaled"), rule):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("structure", ["unstructured", "filter"])
def test_detaching_restores_the_model(structure: str) -> None:
    model = make_model()
    model.stem.bias.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "norm" not in name}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    rule = MaskRule(50, structure, groups=groups_of(model))
    with StraightThrough(model, score_model(model, "scaled"), rule) as pruning:
        trained = {id(parameter) for parameter in pruning.parameters()}
        norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        assert len(trained) == 6 + len(norms)
        assert norms < trained
        step(pruning, torch.randn(1, 3, 6, 6), torch.optim.SGD(pruning.parameters(), lr=0.1))
    assert type(model.stem) is nn.Conv2d
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after.keys() == make_model().state_dict().keys()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_several_forwards_of_one_step_can_each_go_backward() -> None:
    model = make_model()
    rule = MaskRule(50, "hybrid", groups=groups_of(model))
    x = torch.randn(1, 3, 6, 6)
    with StraightThrough(model, score_model(model, "scaled"), rule) as pruning:
        first, second = loss_of(model(x)), loss_of(model(2 * x))
        first.backward()  # type: ignore[no-untyped-call]
        second.backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in pruning.parameters())


def test_an_attack_between_two_steps_finds_every_buffer_as_it_was() -> None:
    model = make_model().train()
    rule = MaskRule(50, "filter", groups=groups_of(model))
    x = torch.rand(2, 3, 6, 6)
    with StraightThrough(model, score_model(model, "scaled"), rule) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.1)
        for _ in range(2):
            step(pruning, x, optimizer)
            x_adv = pgd(
                model, x, lambda outputs: outputs.sum(dim=(1, 2, 3)), PgdConfig(eps=0.1, step_size=0.1, steps=2)
            )
            assert not torch.equal(x_adv, x)


def optimize(
    steps: int, x: Tensor, resume: tuple[Path, dict[str, Tensor]] | None = None
) -> tuple[StraightThrough, float]:
    """Return what is left attached after so many steps, and its churn."""
    model = make_model()
    pruning = StraightThrough(model, score_model(model, "scaled"), MaskRule(50))
    if resume:
        model.load_state_dict(resume[1])
        pruning.load(resume[0])
    optimizer = torch.optim.SGD(pruning.parameters(), lr=0.3)
    for _ in range(steps):
        step(pruning, x, optimizer)
    return pruning, pruning.churn().total


def test_a_saved_optimization_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 6, 6)
    straight, churn = optimize(4, x)
    half, _ = optimize(2, x)
    half.save(tmp_path / "scores.safetensors")
    norms = {k: t.clone() for k, t in half.model.state_dict().items() if "scores" not in k}
    fresh = optimize(0, x)[0].model.state_dict()
    resumed, churn_of_resumed = optimize(2, x, (tmp_path / "scores.safetensors", fresh | norms))
    assert churn_of_resumed == churn > 0
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_excluded_layers_are_neither_scored_nor_masked() -> None:
    model = make_model()
    scores = score_model(model, "scaled")
    with StraightThrough(model, scores, MaskRule(90, excluded=("stem", "head"))) as pruning:
        step(pruning, torch.randn(1, 3, 6, 6), torch.optim.SGD(pruning.parameters(), lr=0.1))
        assert type(model.stem) is nn.Conv2d
        assert not model.stem.weight.requires_grad
        assert torch.equal(pruning.scores()["head"], scores["head"])
        assert list(pruning.scores()) == list(scores)
        assert pruning.churn().layers.keys() == {"block", "wide", "depthwise", "last"}
        masks = pruning.finish()
    assert masks["stem"].all()
    assert not masks["last"].all()


def test_scores_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = make_model()
    scores = score_model(model, "scaled")
    with pytest.raises(InputError, match=r"lacks \['stem'\]"):
        StraightThrough(model, {k: s for k, s in scores.items() if k != "stem"}, MaskRule(50))
    with StraightThrough(model, scores, MaskRule(50)) as pruning:
        with pytest.raises(InputError, match="'stem' is parametrized already"):
            StraightThrough(model, scores, MaskRule(50))
        with pytest.raises(InputError, match=r"none\.safetensors"):
            pruning.load(tmp_path / "none.safetensors")
    assert type(model.stem) is nn.Conv2d
