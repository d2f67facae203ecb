"""Exact compaction of layers in a row: what becomes of constants, how widths are rounded, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.compaction import compact, proving, rounding, surgery
from prunekit.errors import InputError, WrongOutputError
from prunekit.graph.calls import Call
from prunekit.timing import Timing
from tests.support.exact_compaction import X, conv, drop, exactly, net_of, widths
from tests.support.pruning_nets import Net


def test_a_masked_filter_s_constant_goes_into_the_next_bias_where_nothing_pads() -> None:
    net = net_of(
        lambda n, x: n.b(functional.silu(n.norm(n.a(x)))), a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 2, 1)
    )
    result = exactly(net, {"a": drop(6, 1, 4)})
    assert widths(result) == {"a": 4, "b": 2}
    assert result.certificate.groups[0].folded == 2
    assert result.certificate.reasons() == {"it is an output of the model": 0} or not result.certificate.reasons()


def test_beside_zero_padding_one_carrier_stays() -> None:
    net = net_of(lambda n, x: n.b(torch.sigmoid(n.norm(n.a(x)))), a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 2))
    result = exactly(net, {"a": drop(6, 1, 2, 4)})
    assert widths(result) == {"a": 4, "b": 2}
    assert list(result.certificate.groups[0].carriers.values()) == [["b"]]
    assert result.certificate.reasons() == {"it carries the constants of removed channels into b": 1}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_the_image_itself_needs_no_carrier(mode: str) -> None:
    net = net_of(lambda n, x: n.b(torch.sigmoid(n.a(x))), a=conv(3, 6), b=conv(6, 2, padding_mode=mode, padding=2))
    assert widths(exactly(net, {"a": drop(6, 1, 2, 4)}))["a"] == 3


def test_channels_that_are_zero_are_dropped_without_a_carrier() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 6), b=conv(6, 2))
    net.get_submodule("a").bias.data[[0, 3]] = torch.tensor([-1.0, 0.0]).double()
    assert widths(exactly(net, {"a": drop(6, 0, 3)}))["a"] == 4


def test_the_bias_goes_into_the_running_mean_of_a_normalization_that_follows() -> None:
    net = net_of(
        lambda n, x: n.c(n.norm(n.b(torch.sigmoid(n.a(x))))),
        a=conv(3, 6), b=conv(6, 4, 1, bias=False), norm=nn.BatchNorm2d(4), c=conv(4, 2),
    )  # fmt: skip
    result = exactly(net, {"a": drop(6, 1, 2)})
    names = set(dict(net.named_parameters()))
    assert set(dict(result.model.named_parameters())) == names


def test_a_filter_whose_taps_cancel_is_not_dead() -> None:
    net = net_of(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=conv(4, 2))
    weight = net.get_submodule("a").weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight[1] -= weight[1].mean()
    assert widths(exactly(net, {}))["a"] == 4


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AdaptiveMaxPool2d(5),
        nn.ReflectionPad2d(1),
        nn.InstanceNorm2d(6, affine=True),
        nn.PReLU(6),
        nn.PReLU(),
        nn.Dropout2d(),
        nn.Hardswish(),
        nn.Softplus(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_constants_go_through_layers_that_keep_them(layer: nn.Module) -> None:
    net = net_of(lambda n, x: n.b(n.layer(torch.sigmoid(n.a(x)))), a=conv(3, 6), layer=layer, b=conv(6, 2, 1))
    assert widths(exactly(net, {"a": drop(6, 0, 5)}))["a"] == 4


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (nn.AvgPool2d(3, 1, 1), 6),
        (nn.ConstantPad2d(1, 0.25), 6),
        (nn.GroupNorm(3, 6), 6),
        (nn.LayerNorm([6, 12, 12]), 6),
        (nn.Softmax(dim=1), 6),
        (nn.ZeroPad2d(1), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_channels_stay_where_their_constants_would_vary(layer: nn.Module, kept: int) -> None:
    net = net_of(lambda n, x: n.b(n.layer(torch.sigmoid(n.a(x)))), a=conv(3, 6), layer=layer, b=conv(6, 2))
    sizes = ((12, 12),) if isinstance(layer, nn.LayerNorm) else ((12, 12), (9, 14))
    result = exactly(net, {"a": drop(6, 0, 5)}, sizes)
    assert widths(result)["a"] == kept
    assert sum(result.certificate.reasons().values()) == kept - 4


def test_a_padded_largest_value_keeps_constants() -> None:
    net = net_of(
        lambda n, x: n.b(functional.max_pool2d(functional.pad(n.a(x), [0, 1, 0, 1], value=-torch.inf), 2, 1)),
        a=conv(3, 6), b=conv(6, 2, 1),
    )  # fmt: skip
    assert widths(exactly(net, {"a": drop(6, 0, 5)}))["a"] == 4


def test_scales_and_frozen_statistics_lose_entries_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
            self.register_buffer("shift", torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            shift = self.shift
            assert isinstance(shift, Tensor)
            return x * self.gamma + shift.view(1, -1, 1, 1)

    net = net_of(lambda n, x: n.b(n.scaled(n.a(x))), a=conv(3, 6), scaled=Scaled(), b=conv(6, 2, 1))
    result = exactly(net, {"a": drop(6, 0, 5)})
    assert result.model.get_submodule("scaled").gamma.shape == (4, 1, 1)
    assert result.model.get_submodule("scaled").shift.shape == (4,)


def test_a_normalization_scaled_to_zero_makes_a_channel_constant() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.norm(n.a(x)))), a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 2, 1))
    net.get_submodule("norm").weight.data[[2, 3]] = 0.0
    assert widths(exactly(net, {}))["a"] == 4


def test_rounding_keeps_masked_channels_and_stays_exact() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 24), b=conv(24, 2))
    result = compact(net, X, {"a": drop(24, *range(13))}, multiple_of=8, latency_runs=0)
    assert widths(result)["a"] == 16
    assert result.certificate.max_difference_float64 <= 1e-10
    assert result.certificate.reasons()["a is rounded up to a multiple of 8"] >= 4


def test_rounding_by_measurement_names_what_was_timed() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 24), b=conv(24, 2))
    certificate = compact(net, X, {"a": drop(24, *range(13))}, latency_runs=2).certificate
    assert set(certificate.rounding_ms) == {1, 8}  # 16 gives the same widths as 8
    assert certificate.multiple_of in certificate.rounding_ms
    assert certificate.latency_ms_before is not None


def test_rounding_is_taken_where_it_is_clearly_faster_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_channels(calls: dict[str, Any], runs: int) -> dict[str, Timing]:
        return {name: Timing.of([call().shape[1] / 1e3]) for name, call in calls.items()}

    monkeypatch.setattr(rounding, "time_in_turn", count_channels)
    assert rounding.fastest({1: 10.0, 8: 9.0, 16: 9.2}) == 8
    assert rounding.fastest({1: 10.0, 8: 9.8, 16: 11.0}) == 1
    assert rounding.fastest({}) == 1
    narrow, wide = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 10, 3)
    times = rounding.measure({1: wide, 8: narrow, 16: narrow}, Call((torch.rand(1, 3, 64, 64),)), 3)
    assert times == {1: pytest.approx(10), 8: pytest.approx(8)}  # models of the same size are timed once


def test_the_model_itself_is_left_alone_and_keeps_its_class() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 6), b=conv(6, 2))
    before = copy.deepcopy(net.state_dict())
    result = compact(net, X, {"a": drop(6, 1)}, multiple_of=1, latency_runs=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert type(result.model) is Net
    assert not result.model.training


def test_torch_s_own_pruning_is_a_mask() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 6), b=conv(6, 2))
    nn.utils.prune.ln_structured(net.get_submodule("a"), "weight", 0.5, 2, 0)  # type: ignore[no-untyped-call]
    result = compact(net, X, multiple_of=1, latency_runs=0)
    assert widths(result)["a"] <= 4
    assert set(dict(result.model.named_parameters())) == {"a.weight", "a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (
            {"a": torch.ones(5, dtype=torch.bool)},
            r"mask of layer 'a' .*\(6, 3, 3, 3\) or one entry .* got shape \(5,\)",
        ),
        ({"a": torch.ones(6)}, r"mask of layer 'a' to be a bool tensor"),
        ({"z": torch.ones(6, dtype=torch.bool)}, r"none called 'z'"),
        ({"a": torch.zeros(6, dtype=torch.bool)}, r"all 6 filters of 'a' are masked"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, Tensor], sentence: str) -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 6), b=conv(6, 2))
    with pytest.raises(InputError, match=sentence):
        compact(net, X, masks)


def test_a_model_in_training_mode_is_refused() -> None:
    net = net_of(lambda n, x: n.norm(n.a(x)), a=conv(3, 6), norm=nn.BatchNorm2d(6))
    net.get_submodule("norm").train()
    with pytest.raises(InputError, match=r"eval mode, but norm is in training mode"):
        compact(net, X)
    with pytest.raises(InputError, match=r"eval mode, but Net is in training mode"):
        compact(net.train(), X)


def test_control_flow_on_pixels_is_refused() -> None:
    net = net_of(lambda n, x: n.a(x) if float(x.sum()) > 0 else n.a(-x), a=conv(3, 6))
    with pytest.raises(InputError, match=r"torch\.export can trace .* control flow"):
        compact(net, X)


def test_an_example_that_does_not_fit_and_outputs_that_are_not_finite_are_refused() -> None:
    net = net_of(lambda n, x: n.a(x), a=conv(3, 6))
    with pytest.raises(InputError, match=r"runs on the example input of shape \(1, 4, 5, 5\)"):
        compact(net, torch.zeros(1, 4, 5, 5).double())
    net = net_of(lambda n, x: n.a(x).log(), a=conv(3, 6))
    with pytest.raises(InputError, match="answers nan or infinity"):
        compact(net, X)


def test_a_wrong_cut_is_an_error_that_names_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(lambda n, x: n.c(torch.relu(n.b(torch.sigmoid(n.a(x))))), a=conv(3, 6), b=conv(6, 4, 1), c=conv(4, 2))

    def no_shift(weight: Tensor, layer_cut: Any) -> Tensor:
        return weight.new_zeros(len(weight))

    monkeypatch.setattr(surgery, "_shift", no_shift)
    with pytest.raises(WrongOutputError, match=r"first at layer 'b'"):
        compact(net, X, {"a": drop(6, 1)}, latency_runs=0)
    assert proving.MAX_RELATIVE_DIFFERENCE == 1e-10
