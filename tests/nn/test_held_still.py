"""A model is what it was after it has run: a batch normalization that never stops counting included."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from prunekit.nn.held_still import buffers_restored, held_still
from tests.support.untouched import differences, snapshot

X = torch.arange(100.0).view(2, 2, 5, 5)


class AlwaysCounting(nn.BatchNorm2d):
    """Normalizes by the batch and updates its statistics in eval mode too, as some segmentation models do."""

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)


def test_statistics_that_are_always_updated_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), AlwaysCounting(3)).train()
    before = snapshot(net)
    with held_still(net), torch.no_grad():
        net(X)
        assert differences(before, snapshot(net))
    assert not differences(before, snapshot(net))


def test_statistics_of_training_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
    before = snapshot(net)
    with buffers_restored(net):
        net(X).sum().backward()
    net.zero_grad(set_to_none=True)
    assert not differences(before, snapshot(net))
