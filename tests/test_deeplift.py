from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import deeplift_oracle
import numpy as np
import pytest
import reveal_cancel_oracle
import torch
from deeplift_oracle import ACTIVATIONS, TORCH_ACTIVATIONS, Step, StepNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.testing import assert_close

from prunekit.detection import MODELS, Detector, yolov3_tiny
from prunekit.errors import InputError
from prunekit.prune.deeplift import (
    RULES,
    Comparison,
    CompletenessError,
    Contributions,
    data_mean,
    deeplift_contributions,
    deeplift_scores,
)
from prunekit.prune.deeplift.attribution import RuleName
from prunekit.prune.deeplift.contributions import Filter
from prunekit.prune.deeplift.replay import apply_function
from prunekit.prune.deeplift.rescale import secant

both_rules = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv(rng: np.random.Generator, source: int, c: int, k: int, size: int = 3, **options: int) -> Step:
    weight = rng.normal(size=(k, c, size, size)) * math.sqrt(2 / (c * size * size))
    return Step("conv", (source,), {"weight": weight, "bias": rng.normal(size=k), **options})


def norm(rng: np.random.Generator, source: int, c: int) -> Step:
    scale = rng.choice([-1, 1], size=c) * rng.uniform(0.5, 2, size=c)
    return Step("norm", (source,), {"scale": scale, "shift": rng.normal(size=c)})


def activation(source: int, name: str) -> Step:
    return Step("activation", (source,), {"name": name})


def residual_net(name: str) -> list[Step]:
    """Convolutions of stride 1 and 2, batch norms with negative scales, and a shortcut before an activation."""
    rng = np.random.default_rng(1)
    return [
        conv(rng, 0, 3, 5, padding=1, stride=2),
        norm(rng, 1, 5),
        activation(2, name),
        conv(rng, 3, 5, 5, padding=1),
        norm(rng, 4, 5),
        Step("add", (3, 5)),
        activation(6, name),
        conv(rng, 7, 5, 2, size=1),
    ]


def tiny_yolo_net() -> list[Step]:
    """LeakyReLU before max-pools that tile, that overlap and that pad; upsampling and a concatenation."""
    rng = np.random.default_rng(2)
    return [
        conv(rng, 0, 3, 4, padding=1),
        norm(rng, 1, 4),
        activation(2, "leaky_relu"),
        Step("pool", (3,), {"kernel_size": 2, "stride": 2, "padding": 0}),
        conv(rng, 4, 4, 4, padding=1),
        activation(5, "leaky_relu"),
        Step("pool", (6,), {"kernel_size": 3, "stride": 1, "padding": 1}),
        conv(rng, 7, 4, 3, size=1),
        activation(8, "leaky_relu"),
        Step("upsample", (9,)),
        Step("cat", (10, 3)),
        conv(rng, 11, 7, 2),
    ]


def gated_net() -> list[Step]:
    """A squeeze-like gate: one activation times another, and a square."""
    rng = np.random.default_rng(3)
    return [
        conv(rng, 0, 3, 4, padding=1),
        activation(1, "silu"),
        conv(rng, 2, 4, 4, size=1),
        activation(3, "sigmoid"),
        Step("mul", (2, 4)),
        Step("mul", (5, 5)),
        conv(rng, 6, 4, 2),
    ]


def images(steps: list[Step], shared_reference: bool, size: int = 6) -> tuple[Any, Any, Any]:
    """Return x [3, 3, size, size], a reference and the weights of the target."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 3, size, size)) * 2
    x_ref = rng.normal(size=(1 if shared_reference else 3, 3, size, size))
    out = deeplift_oracle.forward(steps, x)[-1]
    return x, x_ref, rng.normal(size=out.shape)


def weighted_sum(weights: Any) -> Callable[[Tensor], Tensor]:
    return lambda out: (out * torch.tensor(weights)).flatten(1).sum(dim=1)


def contributions_of(steps: list[Step], x: Any, x_ref: Any, weights: Any, rule: RuleName, spelling: int = 0) -> Any:
    comparison = Comparison(torch.tensor(x), torch.tensor(x_ref), weighted_sum(weights))
    return deeplift_contributions(StepNet(steps, spelling), comparison, rule)


def check_against_oracle(steps: list[Step], shared_reference: bool, spelling: int = 0) -> None:
    x, x_ref, weights = images(steps, shared_reference)
    found = contributions_of(steps, x, x_ref, weights, "rescale", spelling)
    expected = deeplift_oracle.rescale(steps, x, x_ref, weights)
    assert found.layers.keys() == {f"{name}" for name in expected}
    for name, value in expected.items():
        assert np.abs(value).max() > 0
        assert_close(found.layers[name].numpy(), value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, i) for name, spellings in TORCH_ACTIVATIONS.items() for i in range(len(spellings))]
)
def test_every_spelling_of_an_activation_is_the_oracles(name: str, spelling: int) -> None:
    check_against_oracle(residual_net(name), shared_reference=spelling % 2 == 0, spelling=spelling)


@pytest.mark.parametrize("shared_reference", [True, False])
@pytest.mark.parametrize("net", [tiny_yolo_net, gated_net])
def test_max_pools_and_products_are_the_oracles(net: Callable[[], list[Step]], shared_reference: bool) -> None:
    check_against_oracle(net(), shared_reference)


def test_gradients_where_input_and_reference_agree() -> None:
    steps = tiny_yolo_net()
    x, x_ref, weights = images(steps, shared_reference=False)
    x_ref[:, :, :3] = x[:, :, :3]  # so that many activations have Δ = 0
    x_ref[1] = x[1]
    found = contributions_of(steps, x, x_ref, weights, "rescale")
    for name, value in deeplift_oracle.rescale(steps, x, x_ref, weights).items():
        assert_close(found.layers[name].numpy(), value, rtol=1e-7, atol=1e-8)
        assert not found.layers[name][1].any()


@both_rules
def test_contributions_that_cancel_still_count(rule: RuleName) -> None:
    """Both channels rise by 1 and a - b stays as it was: the multiplier is the slope there, through the pool too."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.LeakyReLU(0.1), nn.MaxPool2d(2))
    net[0].weight.data = torch.tensor([[[[1.0]], [[-1.0]]]])
    x_ref = torch.zeros(2, 2, 2, 2)
    x_ref[0, 1] = 3.0
    x_ref[0, 1, 1, 1] = 2.0  # where image 0 has its maximum, -2
    x_ref[1, 0, 0, 1] = 4.0  # where image 1 has its maximum, 4
    comparison = Comparison(x_ref + 1, x_ref, lambda out: out.flatten(0))
    found = deeplift_contributions(net, comparison, rule).layers["0"]
    assert_close(found.flatten(1), torch.tensor([[0.1, -0.1], [1.0, -1.0]]))


@pytest.mark.parametrize("shared_reference", [True, False])
@pytest.mark.parametrize("name", ["relu6", "leaky_relu", "silu", "tanh"])
def test_reveal_cancel_is_the_oracles(name: str, shared_reference: bool) -> None:
    steps = residual_net(name)
    x, x_ref, weights = images(steps, shared_reference)
    found = contributions_of(steps, x, x_ref, weights, "reveal_cancel")
    expected = reveal_cancel_oracle.reveal_cancel(steps, x, x_ref, weights)
    rescaled = contributions_of(steps, x, x_ref, weights, "rescale")
    assert found.layers.keys() == expected.keys()
    for name_of_layer, value in expected.items():
        assert_close(found.layers[name_of_layer].numpy(), value, rtol=1e-8, atol=1e-9)
    assert (found.layers["layers.0"] - rescaled.layers["layers.0"]).abs().max() > 1e-2


def test_reveal_cancel_sees_what_rescale_cannot() -> None:
    """Shrikumar et al.'s case: y = relu(a - b) with a = 2 and b = 3 stays 0, though a alone raises it."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU())
    net[0].weight.data = torch.tensor([[[[1.0]], [[-1.0]]]])
    comparison = Comparison(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), lambda y: y.flatten(0))
    assert not deeplift_scores(net, [comparison])["0"].any()
    # a raises y by 2 if it comes first and by 0 if last; b lowers it by 0 or by 2.
    signed = deeplift_contributions(net, comparison, "reveal_cancel").layers["0"]
    assert signed.flatten().tolist() == [1.0, -1.0]


@st.composite
def random_steps(draw: st.DrawFn, kinds: tuple[str, ...]) -> list[Step]:
    """Up to eight steps on values of one size, so that any two can meet."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = [conv(rng, 0, 3, 4, padding=1)]
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(kinds))
        source, other = draw(st.integers(1, len(steps))), draw(st.integers(1, len(steps)))
        if kind == "conv":
            steps.append(conv(rng, source, 4, 4, padding=1))
        elif kind == "norm":
            steps.append(norm(rng, source, 4))
        elif kind == "activation":
            steps.append(activation(source, draw(st.sampled_from(sorted(ACTIVATIONS)))))
        elif kind == "pool":
            steps.append(Step("pool", (source,), {"kernel_size": 3, "stride": 1, "padding": 1}))
        else:
            steps.append(Step(kind, (source, other)))
    return [*steps, conv(rng, len(steps), 4, 2)]


def check_completeness(found: Contributions) -> None:
    completeness = found.completeness
    assert_close(completeness.found, completeness.expected, rtol=0, atol=1e-11 * float(completeness.size.max()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_steps(("conv", "norm", "activation", "pool", "add", "mul")), st.booleans())
def test_random_nets_are_the_oracles_and_complete(steps: list[Step], shared_reference: bool) -> None:
    x, x_ref, weights = images(steps, shared_reference, size=5)
    found = contributions_of(steps, x, x_ref, weights, "rescale")
    for name, value in deeplift_oracle.rescale(steps, x, x_ref, weights).items():
        scale = float(found.completeness.size.max())
        assert_close(found.layers[name].numpy(), value, rtol=1e-7, atol=1e-9 * scale)
    check_completeness(found)
    # Every net here reads its input in one convolution, so its contributions alone make up the change.
    change = found.layers["layers.0"].flatten(1).sum(dim=1)
    assert_close(change, found.completeness.expected, rtol=0, atol=1e-11 * float(found.completeness.size.max()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_steps(("conv", "norm", "activation", "pool", "add", "mul")), st.booleans())
def test_reveal_cancel_is_complete_on_random_nets(steps: list[Step], shared_reference: bool) -> None:
    x, x_ref, weights = images(steps, shared_reference, size=5)
    check_completeness(contributions_of(steps, x, x_ref, weights, "reveal_cancel"))


# --- Captum --------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """A residual, an upsampling, a concatenation and two heads, of modules, each called once."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), activation())
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), activation())
        self.coarse = nn.Conv2d(8, 5, 1)
        self.fine = nn.Conv2d(14, 5, 3, groups=1, padding=2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        h = h + self.block(h)
        low = self.down(h)
        joined = torch.cat([functional.interpolate(low, scale_factor=2), h], dim=1)
        return self.coarse(low), self.fine(joined)


def both_heads(outputs: tuple[Tensor, Tensor]) -> Tensor:
    coarse, fine = outputs
    return coarse.flatten(1).sum(dim=1) * 2 - fine.flatten(1)[:, ::3].sum(dim=1)


def two_heads(activation: Callable[[], nn.Module]) -> TwoHeads:
    torch.manual_seed(0)
    net = TwoHeads(activation)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
    return net.double().eval()


@pytest.mark.parametrize("activation", [nn.ReLU, partial(nn.LeakyReLU, 0.1), nn.Sigmoid, nn.Tanh])
def test_captum_agrees_where_it_is_right(activation: Callable[[], nn.Module]) -> None:
    pytest.importorskip("captum", reason="the optional oracle captum is not installed")
    from bench.captum_deeplift import captum_contributions

    net = two_heads(activation)
    x, x_ref = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = deeplift_contributions(net, Comparison(x, x_ref, both_heads))
    for name, contributions in found.layers.items():
        expected = captum_contributions(net, name, x, x_ref, both_heads)
        assert_close(contributions, expected, rtol=1e-9, atol=1e-10)


# --- Detectors -----------------------------------------------------------------------------------------------------


def narrow_detector(name: str) -> Detector:
    torch.manual_seed(0)
    net = MODELS[name](2, width=0.125)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
    return net


def sum_of_heads(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([head.flatten(1).sum(dim=1) for head in outputs]).sum(dim=0)


@both_rules
@pytest.mark.parametrize("name", MODELS)
def test_detectors_are_complete_against_every_reference(name: str, rule: RuleName) -> None:
    net = narrow_detector(name).double()
    clean = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (clean + 0.05 * torch.randn_like(clean).sign()).clamp(0, 1)
    for x_ref in (torch.zeros_like(x[:1]), data_mean([clean]), clean):
        found = deeplift_contributions(net, Comparison(x, x_ref, sum_of_heads), rule)
        check_completeness(found)
        first = next(iter(found.layers.values())).flatten(1).sum(dim=1)
        assert_close(first, found.completeness.expected, rtol=1e-6, atol=0)
        assert all(contributions.any() for contributions in found.layers.values())


@both_rules
def test_single_precision_passes_the_gate_and_gives_the_same_scores(rule: RuleName) -> None:
    net = narrow_detector("yolov3-tiny")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = deeplift_scores(net, [Comparison(x, torch.zeros_like(x[:1]), sum_of_heads)], rule)
    expected = deeplift_scores(
        net.double(), [Comparison(x.double(), torch.zeros_like(x[:1]).double(), sum_of_heads)], rule
    )
    for name, score in scores.items():
        assert score.dtype == torch.float32
        difference = (score - expected[name]).square().mean().sqrt()
        assert difference < 2e-3 * expected[name].square().mean().sqrt(), name


# --- Scores --------------------------------------------------------------------------------------------------------


@both_rules
def test_scores_are_the_mean_absolute_contributions_of_all_images(rule: RuleName) -> None:
    net = two_heads(nn.ReLU)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x_ref = torch.zeros_like(x[:1])
    scores = deeplift_scores(net, (Comparison(part, x_ref, both_heads) for part in (x[:2], x[2:4], x[4:])), rule)
    signed = deeplift_contributions(net, Comparison(x, x_ref.expand_as(x), both_heads), rule)
    for name, contributions in signed.layers.items():
        assert_close(scores[name], contributions.abs().mean(dim=0), rtol=1e-9, atol=1e-12)
        assert (contributions.sum(dim=0).abs() < contributions.abs().sum(dim=0) * 0.999).any()


@both_rules
def test_a_weight_used_twice_gets_the_sum(rule: RuleName) -> None:
    class Twice(nn.Module):
        def __init__(self, is_shared: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = self.first if is_shared else nn.Conv2d(3, 3, 3, padding=1)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(torch.relu(self.first(x)))
            return out

    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    comparison = Comparison(x, torch.ones_like(x[:1]), lambda out: out.flatten(1).square().sum(dim=1))
    shared = deeplift_contributions(Twice(is_shared=True).double(), comparison, rule)
    apart = deeplift_contributions(Twice(is_shared=False).double(), comparison, rule)
    assert_close(shared.layers["first"], apart.layers["first"] + apart.layers["second"])
    check_completeness(shared)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 3)),
        nn.Conv2d(4, 6, 3, padding="valid", stride=(2, 1)),
        nn.Conv2d(4, 6, (3, 1), padding=(2, 0), groups=2),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"),
        parametrize.register_parametrization(nn.Conv2d(4, 6, 3), "weight", nn.Softshrink(0.05)),
    ],
    ids=str,
)
@both_rules
def test_every_kind_of_convolution(layer: nn.Module, rule: RuleName) -> None:
    """Without activations, contributions are weight · gradient of the target's change."""
    net = nn.Sequential(layer).double()
    x, x_ref = torch.randn(2, 3, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = deeplift_contributions(net, Comparison(x, x_ref, lambda out: out.flatten(1)[:, ::7].sum(dim=1)), rule)
    with parametrize.cached():
        change = net(x) - net(x_ref)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        for image in range(3):
            (gradient,) = torch.autograd.grad(change[image].flatten()[::7].sum(), weight, retain_graph=True)
            assert_close(found.layers["0"][image], (weight * gradient).detach())


@both_rules
def test_a_target_may_bend_the_outputs(rule: RuleName) -> None:
    net = two_heads(nn.ReLU)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def probabilities(outputs: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs[0].sigmoid() * outputs[0].tanh()).flatten(1).sum(dim=1)

    check_completeness(deeplift_contributions(net, Comparison(x, torch.zeros_like(x[:1]), probabilities), rule))


@both_rules
def test_what_reads_the_input_beside_convolutions_counts(rule: RuleName) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.linear = nn.Linear(4 + 3, 5)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5  # a normalisation in place
            pooled = torch.cat([self.conv(x).relu_(), x * -2], dim=1).mean(dim=(2, 3))
            out: Tensor = self.linear(functional.dropout(pooled, training=self.training))
            return out

    torch.manual_seed(0)
    net = Classifier().double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found = deeplift_contributions(net, Comparison(x, torch.zeros_like(x), lambda out: out[:, 1]), rule)
    check_completeness(found)
    first = found.layers["conv"].flatten(1).sum(dim=1)
    assert (first - found.completeness.expected).abs().min() > 1e-3


def test_attention_is_complete() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, stride=4)
            self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)  # [N, L, 8]
            weights = torch.sigmoid(tokens @ self.key(tokens).transpose(1, 2))
            return torch.bmm(weights, self.value(tokens)).mean(dim=1)

    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for rule in RULES:
        check_completeness(
            deeplift_contributions(Attention().double(), Comparison(x, x[:1] * 0, lambda out: out[:, 0]), rule)
        )


def test_autocast_and_matmul_settings_do_not_matter() -> None:
    net = conv_then(torch.relu)
    expected = deeplift_scores(net, [simple_comparison()])
    settings = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deeplift_scores(net, [simple_comparison()])
    assert settings.fp32_precision == before
    assert_close(found, expected, rtol=0, atol=0)


def test_the_model_is_left_as_it_was() -> None:
    net = yolov3_tiny(2, width=0.125).train()
    next(net.parameters()).requires_grad_(False)
    net.get_submodule("stage32").eval()
    modes = [module.training for module in net.modules()]
    trainable = [parameter.requires_grad for parameter in net.parameters()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.rand(2, 3, 64, 64)
    before = x.clone()
    with torch.no_grad():
        deeplift_scores(net, [Comparison(x, torch.zeros_like(x), sum_of_heads)])
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == trainable
    assert all(parameter.grad is None for parameter in net.parameters())
    assert_close(net.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(x, before)


# --- Errors --------------------------------------------------------------------------------------------------------


def simple_comparison() -> Comparison:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 10
    return Comparison(x, torch.zeros_like(x[:1]), lambda out: out.flatten(1).sum(dim=1))


@both_rules
def test_the_gate_catches_a_wrong_rule(rule: RuleName, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3))
    deeplift_scores(net, [simple_comparison()], rule)
    for module in ("rescale", "reveal_cancel"):
        monkeypatch.setattr(f"prunekit.prune.deeplift.{module}.secant", lambda dy, dx, size, slope: slope())
    with pytest.raises(CompletenessError, match=r"image 0 of the batch add up to -?\d.* changes by -?\d"):
        deeplift_scores(net, [simple_comparison()], rule)


@both_rules
def test_the_gate_catches_wrong_contributions(rule: RuleName, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    right = Filter.weight_gradient
    monkeypatch.setattr(Filter, "weight_gradient", lambda self, x, grad: right(self, x, grad) * 1.01)
    with pytest.raises(CompletenessError):
        deeplift_scores(net, [simple_comparison()], rule)


def test_the_gate_catches_nan() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.constant_(net.get_parameter("0.weight"), math.nan)
    with pytest.raises(CompletenessError):
        deeplift_scores(net, [simple_comparison()])


def conv_then(step: Callable[[Tensor], Any]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return step(self.conv(x))

    return Net()


class HiddenReLU(torch.autograd.Function):
    """A rectifier that torch announces under no name of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x: x.softmax(dim=1), "SoftmaxBackward"),
        (lambda x: functional.group_norm(x, 2), "NativeGroupNormBackward"),
        (lambda x: x.amax(dim=(2, 3)), "AmaxBackward"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "WhereBackward"),
        (lambda x: x / (1 + x.abs()), "DivBackward0 of several activations"),
        (lambda x: torch.einsum("nchw,nchw->nc", x, x), "BmmBackward0 of several activations"),
        (lambda x: x ** x.abs(), "pow of two activations"),
        (lambda x: apply_function(HiddenReLU, x), "HiddenReLUBackward"),
        (lambda x: x.detach(), "depends on the model's input"),
    ],
)
def test_a_step_without_a_rule_is_named(step: Callable[[Tensor], Tensor], message: str) -> None:
    net = conv_then(step)
    with pytest.raises(InputError, match=message):
        deeplift_scores(net, [simple_comparison()])


def test_other_bad_input_is_named() -> None:
    net = conv_then(torch.relu)
    good = simple_comparison()
    with pytest.raises(InputError, match="at least one image"):
        deeplift_scores(net, [])
    with pytest.raises(InputError, match="at least one image"):
        data_mean([])
    with pytest.raises(InputError, match=r"reference of shape \[1, 3, 8, 8\] or \[2, 3, 8, 8\], got \[3, 3, 8, 8\]"):
        deeplift_scores(net, [Comparison(good.x, torch.zeros(3, 3, 8, 8), good.target)])
    with pytest.raises(InputError, match=r"one floating-point dtype, got torch.uint8"):
        deeplift_scores(net, [Comparison(good.x.byte(), good.x_ref, good.target)])
    with pytest.raises(InputError, match="one of rescale, reveal_cancel, got 'gradient'"):
        deeplift_scores(net, [good], rule="gradient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"one number for each of 2 images, got \[\]"):
        deeplift_scores(net, [Comparison(good.x, good.x_ref, lambda out: out.sum())])
    net.register_module("spare", nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="the weight of 'spare' met no conv2d"):
        deeplift_scores(net, [good])


def test_another_path_for_the_reference_is_named() -> None:
    net = conv_then(lambda x: x.relu() if x.sum() > 0 else x.tanh())
    nn.init.constant_(net.get_parameter("conv.weight"), 1.0)
    nn.init.constant_(net.get_parameter("conv.bias"), -1.0)
    with pytest.raises(InputError, match="where the input met relu, the reference met tanh"):
        deeplift_scores(net, [simple_comparison()])


@both_rules
def test_joining_images_with_other_dimensions_needs_a_reference_per_image(rule: RuleName) -> None:
    net = conv_then(lambda x: torch.tanh(x.flatten(0, 1)).view(-1, 4, *x.shape[2:]))
    shared = simple_comparison()
    with pytest.raises(InputError, match="one reference per image"):
        deeplift_scores(net, [shared], rule)
    own = Comparison(shared.x, shared.x_ref.expand_as(shared.x), shared.target)
    plain = conv_then(torch.tanh)
    plain.load_state_dict(net.state_dict())
    assert_close(deeplift_scores(net, [own], rule), deeplift_scores(plain, [shared], rule))


def test_overwriting_what_a_rule_read_is_named() -> None:
    def step(x: Tensor) -> Tensor:
        y = torch.relu(x)
        x += 1
        return y + x

    net = conv_then(step)
    with pytest.raises(InputError, match="what relu read"):
        deeplift_scores(net, [simple_comparison()])


def test_data_mean_weighs_images_not_batches() -> None:
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_close(data_mean([x[:4], x[4:]]), x.mean(dim=0, keepdim=True))


def test_the_secant_falls_back_only_where_rounding_rules() -> None:
    x_ref = torch.tensor([1.0, 1.0, 0.0, 100.0])
    x = x_ref + torch.tensor([1e-7, 1e-3, 0.0, 1e-4])
    found = secant(torch.full((4,), 7.0) * (x - x_ref), x - x_ref, x.abs(), lambda: torch.full((4,), -1.0))
    assert_close(found, torch.tensor([-1.0, 7.0, -1.0, -1.0]))
