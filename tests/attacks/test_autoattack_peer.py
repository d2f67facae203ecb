"""AutoAttack against another implementation of it, on a small net that was trained on photos."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.autoattack import ours, theirs
from prunekit.attacks import AutoAttackConfig
from prunekit.classification.data import ClassificationData
from tests.support.external_files import cifar10

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def photos() -> tuple[Tensor, Tensor]:
    data = ClassificationData.open(cifar10(), None, False, None)
    batch = data.collate([data[row] for row in range(0, len(data), len(data) // 400)])
    return batch.images, batch.targets


def trained(x: Tensor, labels: Tensor) -> nn.Module:
    """A net that has learned the images by heart as far as 80 steps go, noise of the radius included."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in ((3, 16), (16, 32), (32, 32))]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        cross_entropy(net((x + 0.02 * torch.randn_like(x)).clamp(0, 1)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def test_robust_accuracy_is_another_implementations_within_a_point() -> None:
    pytest.importorskip("torchattacks", reason="needs torchattacks: pip install --no-deps torchattacks==3.5.1")
    x, labels = photos()
    net = trained(x, labels)
    config = AutoAttackConfig(1 / 255, steps=40, targets=3, queries=300)
    mine, peer = ours(net, x[:200], labels[:200], config), theirs(net, x[:200], labels[:200], config)
    with torch.no_grad():
        clean = float((net(x[:200]).argmax(dim=1) == labels[:200]).double().mean())
    assert 0 < peer["square"] < clean
    assert max(abs(mine[part] - peer[part]) for part in config.parts) <= 0.01
