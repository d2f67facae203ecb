"""Which filters go together: read from the trace, against nets whose ties are known by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.detection import yolov3, yolov3_spp, yolov3_tiny
from prunekit.errors import InputError
from prunekit.prune import ChannelGroups, apply_masks, channel_groups, prunable_layers
from tests.support.compaction_nets import Shuffle
from tests.support.pruning_nets import Net

EXAMPLE = torch.zeros(1, 3, 8, 8)


def conv(in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups)


def groups_of(wiring: Callable[[Any, Tensor], Any], **layers: nn.Module) -> ChannelGroups:
    return channel_groups(Net(wiring, **layers), EXAMPLE)


@pytest.mark.parametrize(("build", "num_convs"), [(yolov3, 75), (yolov3_spp, 76)])
def test_yolov3_has_its_five_residual_groups(build: Callable[[], nn.Module], num_convs: int) -> None:
    found = channel_groups(build(), torch.zeros(1, 3, 32, 32))
    sizes = [(len(found.units[group[0]]), len(group)) for group in found.coupled]
    assert sizes == [(64, 2), (128, 3), (256, 9), (512, 9), (1024, 5)]
    assert sum(len(group) for group in found.groups) == num_convs
    assert found.stems == ("backbone.stem.conv",)
    assert found.heads == ("predict32.head", "predict16.head", "predict8.head")
    assert int(found.pinned.sum()) == 3 * 255
    assert found.unknown == ()


def test_yolov3_tiny_has_no_group() -> None:
    found = channel_groups(yolov3_tiny(), torch.zeros(1, 3, 32, 32))
    assert found.coupled == ()
    assert len(found.groups) == 13
    assert found.heads == ("predict32.head", "predict16.head")


def test_the_trace_leaves_modes_and_buffers_alone() -> None:
    model = yolov3_tiny(width=0.25)
    model.train()
    norm = model.get_submodule("stage16.0.norm").eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    channel_groups(model, torch.rand(1, 3, 32, 32))
    assert model.training
    assert not norm.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    "add",
    [
        lambda a, b: a + b,
        lambda a, b: a.add_(b),
        torch.add,
        lambda a, b: a * torch.sigmoid(b),
        lambda a, b: (
            functional.leaky_relu(a, 0.1) - functional.interpolate(functional.max_pool2d(b, 2), scale_factor=2)
        ),
        torch.maximum,
    ],
)
def test_elementwise_functions_of_two_tensors_tie(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = groups_of(lambda net, x: net.c(add(net.a(x), net.b(x))), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert found.coupled == (("a", "b"),)
    assert torch.equal(found.units["a"], found.units["b"])
    assert torch.equal(found.input_units["c"], found.units["a"])
    assert found.unknown == ()


def test_concatenation_shifts() -> None:
    found = groups_of(
        lambda net, x: net.d(torch.cat([net.a(x), net.b(x)], 1) + net.c(x)),
        a=conv(3, 2), b=conv(3, 3), c=conv(3, 5), d=conv(5, 2),
    )  # fmt: skip
    assert found.coupled == (("a", "b", "c"),)
    assert torch.equal(torch.cat([found.units["a"], found.units["b"]]), found.units["c"])
    assert torch.equal(found.input_units["d"], found.units["c"])


def test_splitting_shifts_back() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        first, second = net.a(x).chunk(2, dim=1)
        return net.d(first + net.b(x)) + net.e(second) + net.f(net.a(x)[:, 1:3])

    found = groups_of(wiring, a=conv(3, 4), b=conv(3, 2), d=conv(2, 1), e=conv(2, 1), f=conv(2, 1))
    assert torch.equal(found.units["b"], found.units["a"][:2])
    assert torch.equal(found.input_units["e"], found.units["a"][2:])
    assert torch.equal(found.input_units["f"], found.units["a"][1:3])


def test_a_depthwise_convolution_ties_its_input_to_its_outputs() -> None:
    found = groups_of(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 4), b=conv(4, 8, groups=4), c=conv(8, 2))
    assert found.coupled == (("a", "b"),)
    assert torch.equal(found.units["b"], found.units["a"].repeat_interleave(2))


def test_a_group_of_a_grouped_convolution_goes_as_a_whole() -> None:
    found = groups_of(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=conv(6, 4, groups=2), c=conv(4, 2))
    first, second = found.units["a"][0], found.units["a"][3]
    assert first != second
    assert found.units["a"].tolist() == [first] * 3 + [second] * 3
    assert found.units["b"].tolist() == [first] * 2 + [second] * 2


def test_channels_added_to_the_image_are_pinned() -> None:
    found = groups_of(lambda net, x: net.b(x + net.a(x)), a=conv(3, 3), b=conv(3, 2))
    assert found.pinned.all()


def test_a_classifiers_last_convolution_is_free_and_no_head() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        return net.fc(torch.flatten(functional.adaptive_avg_pool2d(net.a(x), 1), 1))

    found = groups_of(wiring, a=conv(3, 4), fc=nn.Linear(4, 2))
    assert found.heads == ()
    assert found.stems == ("a",)
    assert torch.equal(found.input_units["fc"], found.units["a"])
    assert not found.pinned.any()


def test_a_linear_layer_may_read_every_pixel() -> None:
    found = groups_of(lambda net, x: net.fc(net.a(x).view(x.size(0), -1)), a=conv(3, 4), fc=nn.Linear(256, 2))
    assert torch.equal(found.input_units["fc"], found.units["a"].repeat_interleave(64))
    assert not found.pinned.any()
    assert found.unknown == ()


def test_the_same_convolution_called_twice_is_one_layer() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        return net.d(net.b(net.a(x))), net.e(net.b(net.c(x)))

    found = groups_of(wiring, a=conv(3, 4), b=conv(4, 4), c=conv(3, 4), d=conv(4, 2), e=conv(4, 2))
    assert found.coupled == (("a", "c"),)  # the convolution that reads both can lose an input only for both
    assert torch.equal(found.input_units["b"], found.units["a"])
    assert torch.equal(found.input_units["d"], found.units["b"])


def test_convolutions_that_share_a_normalization_go_together() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        return net.c(net.norm(net.a(x))), net.d(net.norm(net.b(x)))

    found = groups_of(wiring, a=conv(3, 4), b=conv(3, 4), norm=nn.BatchNorm2d(4), c=conv(4, 2), d=conv(4, 2))
    assert found.coupled == (("a", "b"),)
    assert torch.equal(found.norm_units["norm"], found.units["a"])


class Frozen(nn.Module):
    """A batch normalization of buffers alone."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight / self.running_var.sqrt())[:, None, None]
        return x * scale + (self.bias[:, None, None] - self.running_mean[:, None, None] * scale)


def test_a_frozen_normalization_answers_zero_for_a_dropped_filter() -> None:
    net = Net(lambda net, x: net.b(net.norm(net.a(x)).relu()), a=conv(3, 4), norm=Frozen(4), b=conv(4, 2))
    found = channel_groups(net, EXAMPLE)
    assert torch.equal(found.norm_units["norm"], found.units["a"])
    masks = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable_layers(net).items()}
    masks["a"][1] = False
    apply_masks(net, masks, found)
    features = net.get_submodule("norm")(net.get_submodule("a")(torch.rand(1, 3, 8, 8)))
    assert features.abs().amax(dim=(0, 2, 3)).ne(0).tolist() == [True, False, True, True]


def test_a_normalization_after_concatenation_knows_whose_channels_it_gets() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        return net.b(functional.relu(net.norm(torch.cat([x, net.a(x)], dim=1))))

    found = groups_of(wiring, a=conv(3, 4), norm=nn.BatchNorm2d(7), b=conv(7, 2))
    assert found.norm_units["norm"].tolist() == [-1, -1, -1, *found.units["a"].tolist()]
    assert found.input_units["b"].tolist() == found.norm_units["norm"].tolist()


def test_one_channel_broadcast_over_many_ties_nothing() -> None:
    found = groups_of(lambda net, x: net.c(net.a(x) * net.b(x)), a=conv(3, 4), b=conv(3, 1), c=conv(4, 2))
    assert found.coupled == ()
    assert torch.equal(found.input_units["c"], found.units["a"])


def test_filters_that_flow_into_an_unknown_operation_are_pinned_and_it_is_named() -> None:
    found = groups_of(lambda net, x: net.c(net.b(net.a(x)).cumsum(1)), a=conv(3, 5), b=conv(5, 8), c=conv(8, 1))
    assert found.unknown == ("cumsum",)
    assert found.pinned[found.units["b"]].all()
    assert not found.pinned[found.units["a"]].any()


def test_a_convolution_that_never_runs_stands_alone() -> None:
    found = groups_of(lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=conv(4, 2), idle=conv(3, 4))
    assert ("idle",) in found.groups
    assert not found.pinned[found.units["idle"]].any()


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    def wiring(net: Any, x: Tensor) -> Any:
        return net.a(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"torch\.export can trace.*Net raised \w+: .*; weights, blocks and"):
        groups_of(wiring, a=conv(3, 4))


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="runs on the example input"):
        channel_groups(Net(lambda net, x: net.a(x), a=conv(4, 4)), EXAMPLE)


def test_pixel_shuffle_ties_the_channels_that_it_lays_side_by_side() -> None:
    found = groups_of(
        lambda net, x: net.c(functional.pixel_shuffle(net.b(net.a(x)), 2)), a=conv(3, 5), b=conv(5, 8), c=conv(2, 1)
    )
    assert found.unknown == ()
    assert found.units["b"].tolist() == found.input_units["c"].repeat_interleave(4).tolist()
    assert not found.pinned[found.units["b"]].any()


def test_a_shuffle_ties_the_same_channels_of_all_groups() -> None:
    found = channel_groups(nn.Sequential(conv(3, 8), Shuffle(2), conv(8, 2)), EXAMPLE)
    assert found.units["0"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert found.input_units["2"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.unknown == ()


def test_halves_go_together_and_uneven_parts_stay() -> None:
    halves = groups_of(lambda net, x: net.b(net.a(x)[:, 2:]), a=conv(3, 4), b=conv(2, 1))
    assert torch.equal(halves.units["a"][:2], halves.units["a"][2:])
    assert not halves.pinned[halves.units["a"]].any()

    def wiring(net: Any, x: Tensor) -> Any:
        first, second = net.a(x).split([1, 3], dim=1)
        return net.b(first), net.c(second)

    uneven = groups_of(wiring, a=conv(3, 4), b=conv(1, 1), c=conv(3, 1))
    assert uneven.pinned[uneven.units["a"]].all()
    assert torch.equal(torch.cat([uneven.input_units["b"], uneven.input_units["c"]]), uneven.units["a"])


def test_what_is_added_to_a_layer_that_is_not_pruned_stays_and_its_gate_ties_nothing_more() -> None:
    def gate(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        return net.b(x * torch.sigmoid(net.fc(x.mean((2, 3))))[:, :, None, None])

    def shift(net: Any, x: Tensor) -> Any:
        return net.b(net.a(x) + net.fc(x.mean((2, 3)))[:, :, None, None])

    gated = groups_of(gate, a=conv(3, 4), fc=nn.Linear(4, 4), b=conv(4, 2))
    shifted = groups_of(shift, a=conv(3, 4), fc=nn.Linear(3, 4), b=conv(4, 2))
    assert not gated.pinned[gated.units["a"]].any()
    assert torch.equal(gated.input_units["fc"], gated.units["a"])
    assert shifted.pinned[shifted.units["a"]].all()


def test_a_weight_that_is_used_without_its_layer_keeps_what_it_reads() -> None:
    found = groups_of(
        lambda net, x: functional.linear(net.a(x).mean((2, 3)), net.fc.weight), a=conv(3, 4), fc=nn.Linear(4, 2)
    )
    assert found.pinned[found.units["a"]].all()


def test_a_convolution_under_two_names_is_one() -> None:
    both = conv(4, 4)
    found = groups_of(lambda net, x: net.c(net.b(net.a(net.s(x)))), s=conv(3, 4), a=both, b=both, c=conv(4, 2))
    assert found.coupled == (("s", "a"),)
    assert torch.equal(found.input_units["a"], found.units["s"])
    assert not found.pinned[found.units["a"]].any()


CHANNELWISE = [
    nn.RReLU(), nn.PReLU(), nn.PReLU(4), nn.CELU(), nn.SELU(), nn.Mish(), nn.Softsign(), nn.Tanhshrink(),
    nn.Softshrink(), nn.LogSigmoid(), nn.Hardsigmoid(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(),
    nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1), nn.CircularPad2d(1), nn.LPPool2d(2, 2),
    nn.FractionalMaxPool2d(2, output_size=4), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2, mode="bicubic"),
    nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False),
]  # fmt: skip


def test_layers_that_work_channel_by_channel_hand_on() -> None:
    for layer in CHANNELWISE:
        found = groups_of(lambda net, x: net.b(net.layer(net.a(x))), a=conv(3, 4), layer=layer, b=conv(4, 2))
        assert torch.equal(found.input_units["b"], found.units["a"]), layer
        assert not found.pinned[found.units["a"]].any(), layer
        assert found.unknown == (), layer
