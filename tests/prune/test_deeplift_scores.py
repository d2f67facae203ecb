"""DeepLIFT of detectors, and scores: what they sum, what they leave alone, which layers they know."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.testing import assert_close

from prunekit.detection import MODELS, Detector, yolov3_tiny
from prunekit.prune.deeplift import (
    RULES,
    Comparison,
    data_mean,
    deeplift_contributions,
    deeplift_scores,
)
from prunekit.prune.deeplift.attribution import RuleName
from prunekit.prune.deeplift.rescale import secant
from tests.support.deeplift_nets import (
    both_heads,
    both_rules,
    check_completeness,
    conv_then,
    simple_comparison,
    sum_of_heads,
    two_heads,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def narrow_detector(name: str) -> Detector:
    torch.manual_seed(0)
    net = MODELS[name](2, width=0.125)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
    return net


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
            x -= 0.5  # a normalization in place
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


def test_data_mean_weighs_images_not_batches() -> None:
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_close(data_mean([x[:4], x[4:]]), x.mean(dim=0, keepdim=True))


def test_the_secant_falls_back_only_where_rounding_rules() -> None:
    x_ref = torch.tensor([1.0, 1.0, 0.0, 100.0])
    x = x_ref + torch.tensor([1e-7, 1e-3, 0.0, 1e-4])
    found = secant(torch.full((4,), 7.0) * (x - x_ref), x - x_ref, x.abs(), lambda: torch.full((4,), -1.0))
    assert_close(found, torch.tensor([-1.0, 7.0, -1.0, -1.0]))
