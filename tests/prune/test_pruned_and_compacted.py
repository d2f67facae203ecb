"""What the channel groups let go, compaction removes: shuffles, halves, groups, gates, tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.compaction import compact
from prunekit.prune import (
    ChannelGroups,
    MaskRule,
    StraightThrough,
    apply_masks,
    channel_groups,
    count_costs,
    prunable_layers,
    score_model,
)
from tests.support.compaction_nets import Shuffle, SqueezeExcite, randomize


def block(in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNet V2: one half of the channels passes by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(block(half, half), block(half, half, 3, groups=half), block(half, half))
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        shuffled: Tensor = self.shuffle(torch.cat([left, self.branch(right)], dim=1))
        return shuffled


class Halves(nn.Module):
    """Channels halved by slices, each half its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(3, 8, 3), block(4, 6, 3), block(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        return torch.cat([self.first(x[:, :half]), self.second(x[:, half:])], dim=1)


class LinearGate(nn.Module):
    """Squeeze and excitation by linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, 3), nn.Linear(3, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.expand(functional.relu(self.reduce(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Tokens(nn.Module):
    """Pixels as tokens behind convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = block(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.patches(x).flatten(2).transpose(1, 2))
        return mixed


NETS: dict[str, Callable[[], nn.Module]] = {
    "ShuffleNet V2": lambda: nn.Sequential(block(3, 8, 3), ShuffleUnit(8), ShuffleUnit(8), nn.Conv2d(8, 2, 1)),
    "ShuffleNet V1": lambda: nn.Sequential(
        block(3, 12, 3), block(12, 12, 1, groups=2), Shuffle(2), block(12, 12, 3, groups=12), nn.Conv2d(12, 2, 1)
    ),
    "halves": lambda: nn.Sequential(Halves(), nn.Conv2d(12, 2, 1)),
    "pixel shuffle": lambda: nn.Sequential(block(3, 16, 3), nn.PixelShuffle(2), block(4, 6, 3), nn.Conv2d(6, 2, 1)),
    "gate": lambda: nn.Sequential(block(3, 8, 3), SqueezeExcite(8, 4), nn.Conv2d(8, 2, 1)),
    "linear gate": lambda: nn.Sequential(block(3, 8, 3), LinearGate(8), nn.Conv2d(8, 2, 1)),
    "transposed": lambda: nn.Sequential(block(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    "tokens": Tokens,
}


@pytest.fixture(name="net", params=list(NETS))
def _net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[request.param]()
    randomize(net)
    return net.eval()


X = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)


def some_units(groups: ChannelGroups) -> Tensor:
    """Return bool [units]: the pinned ones stay, about half of the others, and one of every layer."""
    kept = groups.pinned | (torch.rand(len(groups.pinned)) < 0.5)
    for units in groups.units.values():
        kept[units[0]] |= not kept[units].any()
    return kept


def test_compaction_removes_every_filter_that_the_groups_let_go(net: nn.Module) -> None:
    groups = channel_groups(net, X)
    kept = some_units(groups)
    masks = {
        name: kept[groups.units[name]].view(-1, 1, 1, 1).expand_as(conv.weight).clone()
        for name, conv in prunable_layers(net).items()
    }
    assert groups.unknown == ()
    assert not kept.all()
    apply_masks(net, masks, groups)
    small = compact(net, X, masks, multiple_of=1, latency_runs=0)
    widths = {name: conv.out_channels for name, conv in prunable_layers(small.model).items()}
    assert widths == {name: int(kept[groups.units[name]].sum()) for name in widths}
    dense = {row.name: row.weights for row in count_costs(small.model, X).layers if row.name in masks}
    counted = count_costs(net, X, masks, groups).layers
    assert {row.name: row.kept_weights for row in counted if row.name in masks} == dense


def test_training_the_scores_sees_the_model_that_is_left(net: nn.Module) -> None:
    groups = channel_groups(net, X)
    with StraightThrough(net, score_model(net, "magnitude"), MaskRule(50, "filter", groups=groups)) as pruning:
        trained = net(X)
        masks = pruning.finish()
    assert any(not mask.flatten(1).any(1).all() for mask in masks.values())
    torch.testing.assert_close(net(X), trained)
