"""Exact compaction of every kind of wiring: branches, groups, gates, heads, and what ties their channels together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.compaction import compact
from tests.support.compaction_nets import Shuffle, SqueezeExcite
from tests.support.exact_compaction import conv, drop, exactly, net_of, widths


def test_a_residual_addition_carries_a_constant_of_one_branch() -> None:
    net = net_of(
        lambda n, x: n.c(torch.relu(n.a(x)) + torch.sigmoid(n.b(x))), a=conv(3, 6), b=conv(3, 6), c=conv(6, 2, 1)
    )
    result = exactly(net, {"a": drop(6, 0, 1, 2), "b": drop(6, 2, 3)})
    assert widths(result) == {"a": 5, "b": 5, "c": 2}
    assert result.certificate.reasons() == {
        "it is tied to a live channel of b": 2,
        "it is tied to a live channel of a": 1,
    }


def test_densely_concatenated_layers_shift_indices() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        first = torch.relu(n.a(x))
        second = torch.cat([first, torch.sigmoid(n.b(first))], 1)
        return n.d(torch.cat([second, n.c(functional.relu(n.norm(second)))], 1))

    net = net_of(wiring, a=conv(3, 5), b=conv(5, 4), norm=nn.BatchNorm2d(9), c=conv(9, 3), d=conv(12, 2))
    result = exactly(net, {"a": drop(5, 0, 2), "b": drop(4, 1, 2, 3), "c": drop(3, 2)})
    assert widths(result)["d"] == 2
    assert sum(widths(result)[name] for name in "abc") <= 3 + 1 + 2 + 3
    assert result.certificate.removed >= 4


def test_an_inverted_residual_with_squeeze_and_excitation() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        x = functional.hardswish(n.stem_norm(n.stem(x)))
        y = functional.relu6(n.expand_norm(n.expand(x)))
        y = n.se(functional.relu6(n.wise_norm(n.wise(y))))
        return n.last(x + n.shrink_norm(n.shrink(y)))

    net = net_of(
        wiring, stem=conv(3, 4), stem_norm=nn.BatchNorm2d(4), expand=conv(4, 8, 1, bias=False),
        expand_norm=nn.BatchNorm2d(8), wise=conv(8, 8, groups=8, bias=False), wise_norm=nn.BatchNorm2d(8),
        se=SqueezeExcite(8, 3), shrink=conv(8, 4, 1, bias=False), shrink_norm=nn.BatchNorm2d(4), last=conv(4, 2, 1),
    )  # fmt: skip
    for norm in ("expand_norm", "wise_norm"):  # constants of zero behind the activation, as training with masks gives
        net.get_submodule(norm).bias.data[[1, 5, 6]] = 0.0
        net.get_submodule(norm).running_mean[[1, 5, 6]] = 0.0
    masks = {"expand": drop(8, 1, 5, 6), "wise": drop(8, 1, 5, 6), "se.reduce": drop(3, 1)}
    result = exactly(net, masks)
    assert widths(result) == {
        "stem": 4, "expand": 5, "wise": 5, "se.reduce": 2, "se.expand": 5, "shrink": 4, "last": 2,
    }  # fmt: skip


def test_a_gate_keeps_a_constant_that_is_not_zero() -> None:
    net = net_of(lambda n, x: n.b(n.se(torch.sigmoid(n.a(x)))), a=conv(3, 5), se=SqueezeExcite(5, 2), b=conv(5, 2))
    result = exactly(net, {"a": drop(5, 2)})
    assert widths(result)["a"] == 5
    assert result.certificate.reasons() == {"it is tied to a live channel of se.expand": 1}


def test_a_depthwise_layer_beside_zero_padding_keeps_a_constant_that_is_not_zero() -> None:
    net = net_of(
        lambda n, x: n.c(n.b(torch.sigmoid(n.a(x)))), a=conv(3, 6), b=conv(6, 6, groups=6, bias=False), c=conv(6, 2, 1)
    )
    assert widths(exactly(net, {"a": drop(6, 1)}))["a"] == 6
    assert widths(exactly(net, {"a": drop(6, 1), "b": drop(6, 1)}))["b"] == 5


def test_groups_stay_equally_wide_and_can_go_as_a_whole() -> None:
    net = net_of(lambda n, x: n.c(n.b(torch.sigmoid(n.a(x)))), a=conv(3, 8), b=conv(8, 8, groups=4), c=conv(8, 2, 1))
    result = exactly(net, {"a": drop(8, 0, 1, 2), "b": drop(8, 0, 1, 4)})
    b = result.model.get_submodule("b")
    assert isinstance(b, nn.Conv2d)
    assert (b.groups, b.in_channels, b.out_channels) == (3, 6, 6)


@pytest.mark.parametrize("groups", [2, 3])
def test_channel_shuffle(groups: int) -> None:
    net = net_of(
        lambda n, x: n.b(n.shuffle(torch.sigmoid(n.a(x)))), a=conv(3, 12), shuffle=Shuffle(groups), b=conv(12, 2, 1)
    )
    size = 12 // groups
    result = exactly(net, {"a": drop(12, *(place * size + 1 for place in range(groups)), 0)})
    assert widths(result)["a"] == 12 - groups


def test_a_shufflenet_unit_splits_and_shuffles() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        for unit in (n.first, n.second):
            left, right = x.chunk(2, dim=1) if x.shape[1] > 3 else n.stem(x).chunk(2, dim=1)
            x = n.shuffle(torch.cat([left, unit(right)], dim=1))
        return n.last(x)

    def unit() -> nn.Module:
        return nn.Sequential(
            conv(6, 6, 1), nn.ReLU(), conv(6, 6, groups=6), nn.BatchNorm2d(6), conv(6, 6, 1), nn.ReLU()
        )

    net = net_of(wiring, stem=conv(3, 12), first=unit(), second=unit(), shuffle=Shuffle(2), last=conv(12, 2))
    everything = {"stem": drop(12, *range(6), 7)}
    everything |= {f"{name}.{i}": drop(6, 0, 2, 3) for name in ("first", "second") for i in (0, 2, 4)}
    result = exactly(net, everything)
    assert widths(result)["first.0"] < 6
    assert result.certificate.parameters_after < result.certificate.parameters_before


def test_sizes_that_the_forward_writes_down_keep_channels_whole() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        y = torch.sigmoid(n.a(x)).view(x.shape[0], 2, 4, x.shape[2], x.shape[3])
        return n.c(torch.relu(n.b(y.mean(dim=1))))

    net = net_of(wiring, a=conv(3, 8), b=conv(4, 6, 1), c=conv(6, 2))
    masks = {"a": drop(8, 1, 5), "b": drop(6, 0, 1)}
    varies = exactly(net, masks).certificate.reasons()
    assert varies["view lays different constants side by side"] == 2
    net.get_submodule("a").bias.data[[1, 5]] = 0.5
    result = exactly(net, masks)
    assert widths(result)["a"] == 8
    assert widths(result)["b"] <= 5
    assert any("writes the number of channels into the forward" in text for text in result.certificate.kept_whole)


def test_a_linear_layer_reads_every_pixel() -> None:
    net = net_of(
        lambda n, x: n.fc2(torch.relu(n.fc(functional.adaptive_avg_pool2d(torch.sigmoid(n.a(x)), 3).flatten(1)))),
        a=conv(3, 6), fc=nn.Linear(54, 7), fc2=nn.Linear(7, 2),
    )  # fmt: skip
    result = exactly(net, {"a": drop(6, 0, 5), "fc": drop(7, 3, 4)})
    assert widths(result) == {"a": 4, "fc": 5, "fc2": 2}
    assert result.model.get_submodule("fc").in_features == 36


def test_pixel_shuffle_drops_all_four_or_none() -> None:
    net = net_of(lambda n, x: n.b(functional.pixel_shuffle(torch.relu(n.a(x)), 2)), a=conv(3, 12), b=conv(3, 2, 1))
    masks = {"a": drop(12, 4, 5, 6, 7, 8)}
    assert widths(exactly(net, masks))["a"] == 12  # four constants side by side are none
    net.get_submodule("a").bias.data[4:9] = -1.0
    assert widths(exactly(net, masks)) == {"a": 8, "b": 2}


def test_heads_shared_over_levels_read_the_same_channels() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        fine = torch.relu(n.a(x))
        coarse = torch.relu(n.b(fine)) + functional.max_pool2d(fine, 2)
        return [n.head(torch.sigmoid(n.tower(level))) for level in (fine, coarse)]

    net = net_of(wiring, a=conv(3, 6), b=conv(6, 6, stride=2), tower=conv(6, 8), head=conv(8, 4))
    result = exactly(net, {"a": drop(6, 1, 2), "b": drop(6, 1, 2), "tower": drop(8, 0, 3, 4)}, ((12, 12), (10, 14)))
    assert widths(result)["tower"] == 6
    assert widths(result)["head"] == 4


def test_ssd_like_heads_are_outputs_and_stay() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        levels = [torch.relu(n.a(x))]
        levels.append(torch.relu(n.b(levels[0])))
        heads = [h(level).permute(0, 2, 3, 1).flatten(1, 2) for h, level in zip((n.h0, n.h1), levels, strict=True)]
        return torch.cat(heads, dim=1)

    net = net_of(wiring, a=conv(3, 6), b=conv(6, 6, stride=2), h0=conv(6, 8), h1=conv(6, 8))
    result = exactly(net, {"a": drop(6, 1, 2), "b": drop(6, 3), "h0": drop(8, 1)})
    assert widths(result)["h0"] == widths(result)["h1"] == 8
    assert widths(result)["a"] < 6


def test_the_convolutions_of_a_mobilevit_block_are_cut_and_its_attention_is_whole() -> None:
    """Patches of 2×2 pixels go through a transformer between convolutions."""

    def wiring(n: Any, x: Tensor) -> Any:
        x = functional.silu(n.norm(n.stem(x)))
        y = n.project(functional.silu(n.local(x)))
        batch, channels, height, width = y.shape
        patches = y.reshape(batch * channels, height // 2, 2, width // 2, 2).transpose(2, 3)
        patches = patches.reshape(batch, channels, -1, 4).permute(0, 3, 2, 1).reshape(batch * 4, -1, channels)
        patches = n.attention(patches).reshape(batch, 4, -1, channels).permute(0, 3, 2, 1)
        patches = patches.reshape(batch * channels, height // 2, width // 2, 2, 2).transpose(2, 3)
        y = functional.silu(n.back(patches.reshape(batch, channels, height, width)))
        return n.last(functional.silu(n.fuse(torch.cat([x, y], dim=1))))

    attention = nn.TransformerEncoderLayer(8, 2, 12, activation=functional.silu, batch_first=True)
    net = net_of(
        wiring, stem=conv(3, 6, bias=False), norm=nn.BatchNorm2d(6), local=conv(6, 7),
        project=conv(7, 8, 1, bias=False),
        attention=attention, back=conv(8, 6, 1), fuse=conv(12, 6), last=conv(6, 2, 1),
    )  # fmt: skip
    masks = {"stem": drop(6, 1, 2), "local": drop(7, 0, 3), "project": drop(8, 1), "back": drop(6, 2, 4, 5)}
    result = exactly(net, masks | {"fuse": drop(6, 1)}, ((12, 12), (8, 14)))
    found = widths(result)
    assert (found["local"], found["project"], found["fuse"]) == (5, 8, 5)
    assert found["stem"] + found["back"] <= 4 + 3 + 2  # with carriers
    assert result.certificate.kept_whole


def test_a_u_net_with_transposed_convolutions() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        fine = torch.sigmoid(n.a(x))
        coarse = torch.sigmoid(n.b(functional.max_pool2d(fine, 2)))
        return n.c(torch.cat([fine, torch.relu(n.up(coarse))], dim=1))

    up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
    net = net_of(wiring, a=conv(3, 6), b=conv(6, 6), up=up, c=conv(10, 2, 1))
    up.weight.data[:, 2] = 0.0
    result = exactly(net, {"a": drop(6, 1, 2), "b": drop(6, 0, 3, 4)}, ((12, 12), (10, 14)))
    assert (up.in_channels, up.out_channels) == (6, 4)
    small = result.model.get_submodule("up")
    assert (small.in_channels, small.out_channels, small.weight.shape[:2]) == (4, 3, (4, 3))


def test_signals_and_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(2, 6, 1)
            self.norm, self.c = nn.BatchNorm1d(6), nn.Conv1d(6, 2, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = self.c(torch.sigmoid(self.norm(self.a(x))) - self.b(y))
            return result

    torch.manual_seed(0)
    net = Two().double().eval()
    inputs = (torch.randn(2, 3, 20, dtype=torch.float64), torch.randn(2, 2, 20, dtype=torch.float64))
    masks = {"a": drop(6, 1, 2), "b": drop(6, 1, 2, 3)}
    result = compact(net, inputs, masks, multiple_of=1, latency_runs=1)
    assert widths(result) == {}
    assert dict(result.model.named_parameters())["a.weight"].shape == (4, 3, 3)
    assert result.certificate.macs_after < result.certificate.macs_before or result.certificate.macs_before == 0


def test_weights_that_two_layers_share_stay_whole() -> None:
    net = net_of(lambda n, x: n.c(n.b(n.a(x))), a=conv(3, 3), b=conv(3, 3), c=conv(3, 2))
    net.b.weight = net.a.weight
    result = exactly(net, {})
    assert widths(result) == {"a": 3, "b": 3, "c": 2}
    assert any("shares its weight" in text for text in result.certificate.kept_whole) or result.certificate.removed == 0


def test_channels_that_nobody_reads_go() -> None:
    net = net_of(lambda n, x: n.c(torch.relu(n.b(torch.relu(n.a(x))))), a=conv(3, 6), b=conv(6, 4), c=conv(4, 2))
    net.get_submodule("b").weight.data[1:, :3] = 0.0
    assert widths(exactly(net, {"b": drop(4, 0)}))["a"] == 3
