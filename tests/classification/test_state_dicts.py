"""Checkpoints by the names of the usual CIFAR networks load strictly, and nothing pickled is executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from torch.testing import assert_close

from prunekit.classification import load_state_dict, resnet18, resnet20, vgg16_bn
from prunekit.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 0.125  # ResNet-18's 64 channels become 8
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class UsualBlock(nn.Module):
    """A block as pytorch-cifar names its parts."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.shortcut(x))


class UsualResNet(nn.Module):
    """ResNet-18 for CIFAR as pytorch-cifar names its parts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(UsualBlock(8, 8, 1), UsualBlock(8, 8, 1))
        self.layer2 = nn.Sequential(UsualBlock(8, 16, 2), UsualBlock(16, 16, 1))
        self.layer3 = nn.Sequential(UsualBlock(16, 32, 2), UsualBlock(32, 32, 1))
        self.layer4 = nn.Sequential(UsualBlock(32, 64, 2), UsualBlock(64, 64, 1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = stage(y)
        logits: Tensor = self.linear(adaptive_avg_pool2d(y, 1).flatten(1))
        return logits


class UsualVGG(nn.Module):
    """VGG-16 as benchmarks of robust pruning have it: features.N and classifier.N."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for out in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64):
            if out:
                layers += [nn.Conv2d(before, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                before = out
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(adaptive_avg_pool2d(self.features(x), 2).flatten(1))
        return logits


NETS: dict[str, tuple[Callable[[int], nn.Module], Callable[..., nn.Module]]] = {
    "resnet18": (UsualResNet, resnet18),
    "vgg16": (UsualVGG, vgg16_bn),
}


def usual(name: str, classes: int = 10) -> nn.Module:
    """A network with statistics and scales of its own, so that no two tensors can be mixed up."""
    torch.manual_seed(3)
    net = NETS[name][0](classes)
    for tensor in net.state_dict().values():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return net.eval()


def ours(name: str, classes: int = 10) -> nn.Module:
    return NETS[name][1](classes, width=WIDTH, small_images=True).eval()


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "at the top": lambda state: state,
    "state_dict": lambda state: {"epoch": 9, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "acc": 0.8},
    "net": lambda state: {"net": state, "acc": 80.0, "epoch": 1},
    "DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_usual_checkpoint_gives_the_same_logits(name: str, wrapped: str, tmp_path: Path) -> None:
    net, mine = usual(name), ours(name)
    torch.save(WRAPPED[wrapped](net.state_dict()), tmp_path / "net.pth.tar")
    load_state_dict(mine, tmp_path / "net.pth.tar")
    assert_close(mine(X), net(X))


def test_torchvisions_names_and_safetensors_are_read(tmp_path: Path) -> None:
    state = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in usual("resnet18").state_dict().items()
    }
    save_file(state, tmp_path / "net.safetensors")
    mine = ours("resnet18")
    load_state_dict(mine, tmp_path / "net.safetensors")
    assert_close(mine(X), usual("resnet18")(X))


def test_pixels_are_normalized_as_the_file_says(tmp_path: Path) -> None:
    net, mine = usual("resnet18"), ours("resnet18")
    statistics = {"mu": torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), "sigma": torch.full((1, 3, 1, 1), 0.25)}
    torch.save(net.state_dict() | statistics, tmp_path / "net.pt")
    load_state_dict(mine, tmp_path / "net.pt")
    assert_close(mine(X), net((X - statistics["mu"]) / statistics["sigma"]))


def test_a_models_own_state_dict_comes_back(tmp_path: Path) -> None:
    net, other = (resnet20(4, width=0.25, small_images=True).eval() for _ in range(2))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    load_state_dict(other, tmp_path / "net.pt")
    assert torch.equal(other(X), net(X))


def _state(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = dict(usual("resnet18").state_dict())
    state |= {key.replace("/", "."): value for key, value in changes.items()}
    return {key: value for key, value in state.items() if value is not None}


class Plain:
    """A class of somebody's code."""


BAD: dict[str, tuple[Any, str]] = {
    "a tensor lacks": (_state(**{"layer2/1/bn1/weight": None}), r"but blocks\.3\.body\.1\.weight is missing"),
    "a tensor too many": (_state(popup_scores=torch.ones(2)), "got popup_scores, which it does not have"),
    "another shape": (_state(**{"linear/bias": torch.ones(7)}), r"got head\.bias of shape \[7\] for \[10\]"),
    "whole numbers": (
        _state(**{"bn1/bias": torch.ones(8, dtype=torch.int8)}),
        r"got stem\.1\.bias of torch\.int8 for torch\.float32",
    ),
    "not finite": (
        _state(**{"bn1/bias": torch.full((8,), torch.nan)}),
        r"stem\.1\.bias has values that are not finite",
    ),
    "pickled classes": ({"net": Plain()}, "pickled objects such as .*Plain"),
    "a whole model": (UsualVGG(10), "pickled objects such as .*UsualVGG"),
    "no tensors": ({"epoch": 3, "acc": 0.5}, "expected a state dict of tensors .* got epoch, acc"),
    "a list": ([torch.ones(1)], "got a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_checkpoint_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    mine = ours("resnet18")
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=words) as caught:
        load_state_dict(mine, tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
    assert "net.pt" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


@pytest.mark.filterwarnings("error")
def test_a_pickle_of_any_protocol_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(pickle.dumps({"epoch": 3}, protocol=4))
    with pytest.raises(InputError, match=r"net\.pt is a pickled object, which is never loaded"):
        load_state_dict(ours("resnet18"), tmp_path / "net.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02garbage", b"<html>", bytes(100)])
def test_a_damaged_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"expected a file with a state dict, but .*net\.pt is ") as caught:
        load_state_dict(ours("resnet18"), tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
