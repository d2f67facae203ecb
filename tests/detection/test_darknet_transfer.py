"""Weights of other classes, of backbones alone, and with other programs' headers: told apart by what fits exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from prunekit.detection import (
    MODELS,
    Detector,
    darknet_num_classes,
    load_darknet_weights,
    save_darknet_weights,
    transfer_darknet_weights,
)
from prunekit.detection.blocks import ConvBlock
from prunekit.errors import InputError

HEADS = {
    "yolov3": ("predict32.head", "predict16.head", "predict8.head"),
    "yolov3-spp": ("predict32.head", "predict16.head", "predict8.head"),
    "yolov3-tiny": ("predict32.head", "predict16.head"),
}


def narrow(name: str, num_classes: int, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    net = MODELS[name](num_classes=num_classes, width=1 / 16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.5, 2)
    return net


def convolutions(net: nn.Module) -> dict[str, nn.Module]:
    """Return what has a name of its own in the file: blocks with their normalization, and heads."""
    found = {name: module for name, module in net.named_modules() if isinstance(module, ConvBlock)}
    return found | {name: net.get_submodule(name) for name in dict(net.named_modules()) if name.endswith(".head")}


def assert_taken(net: Detector, source: Detector, before: Detector, taken: tuple[str, ...]) -> None:
    """Compare every tensor with the file's where it was taken, and with what was there before elsewhere."""
    for name, layer in convolutions(net).items():
        expected = convolutions(source if name in taken else before)[name].state_dict()
        for key, value in layer.state_dict().items():
            assert "num_batches" in key or torch.equal(value, expected[key]), f"{name}.{key}"


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("there", "here"), [(5, 2), (1, 4), (3, 3)])
def test_heads_of_other_classes_stay_and_all_else_is_taken(name: str, there: int, here: int, tmp_path: Path) -> None:
    source, net, before = narrow(name, there), narrow(name, here, seed=1), narrow(name, here, seed=1)
    save_darknet_weights(source, tmp_path / "a.weights")
    transfer = transfer_darknet_weights(net, tmp_path / "a.weights")
    assert transfer.num_classes == there == darknet_num_classes(net, tmp_path / "a.weights")
    assert set(transfer.made_anew) == (set() if there == here else set(HEADS[name]))
    assert set(transfer.taken) | set(transfer.made_anew) == convolutions(net).keys()
    assert_taken(net, source, before, transfer.taken)


@pytest.mark.parametrize(
    ("name", "count"),
    [("yolov3", 52), ("yolov3-spp", 52), ("yolov3-tiny", 9), ("yolov3-tiny", 6)],
    ids=["darknet53.conv.74", "darknet53.conv.74 under SPP", "yolov3-tiny.conv.15", "yolov3-tiny.conv.11"],
)
@pytest.mark.parametrize("header", [(0, 2, 0, 99, 0), (0, 1, 0, 99), (0, 2, 5, 99)], ids=str)
def test_backbones_alone(name: str, count: int, header: tuple[int, ...], tmp_path: Path) -> None:
    source, net, before = narrow(name, 5), narrow(name, 2, seed=1), narrow(name, 2, seed=1)
    save_darknet_weights(source, tmp_path / "all.weights")
    floats = (tmp_path / "all.weights").read_bytes()[20:]
    first = list(convolutions_in_order(source).values())[:count]
    size = sum(v.numel() for m in first for k, v in m.state_dict().items() if "num_batches" not in k)
    (tmp_path / "backbone").write_bytes(np.array(header, "<i4").tobytes() + floats[: 4 * size])
    transfer = transfer_darknet_weights(net, tmp_path / "backbone")
    assert (len(transfer.taken), transfer.num_classes) == (count, None)
    assert_taken(net, source, before, transfer.taken)
    with pytest.raises(InputError, match="holds the first layers alone"):
        load_darknet_weights(net, tmp_path / "backbone")
    with pytest.raises(InputError, match="with any number of classes"):
        darknet_num_classes(net, tmp_path / "backbone")


def convolutions_in_order(net: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in net.named_modules() if isinstance(module, ConvBlock) or name.endswith(".head")
    }


@pytest.mark.parametrize(
    "header",
    [
        np.array([0, 2, 5, 99], "<i4"),  # trainers that keep four numbers of any version
        np.array([0, 0, 0, 99], "<i4"),
        np.array([0, 0, 0, 99, 0], "<i4"),
        np.array([0, 1, 0, 99, 0], "<i4"),
    ],
    ids=str,
)
def test_four_and_five_numbers_under_any_version(header: npt.NDArray[np.int32], tmp_path: Path) -> None:
    source = narrow("yolov3-tiny", 5)
    save_darknet_weights(source, tmp_path / "new.weights")
    (tmp_path / "old").write_bytes(header.tobytes() + (tmp_path / "new.weights").read_bytes()[20:])
    same, other = narrow("yolov3-tiny", 5, seed=1), narrow("yolov3-tiny", 2, seed=1)
    load_darknet_weights(same, tmp_path / "old")
    assert_taken(same, source, source, tuple(convolutions(same)))
    transfer = transfer_darknet_weights(other, tmp_path / "old")
    assert transfer.num_classes == 5
    assert_taken(other, source, narrow("yolov3-tiny", 2, seed=1), transfer.taken)


@pytest.mark.parametrize("lost", [-4, 4, 8, 400])
def test_what_fits_no_layout_is_refused_and_changes_nothing(lost: int, tmp_path: Path) -> None:
    save_darknet_weights(narrow("yolov3-tiny", 5), tmp_path / "a.weights")
    content = (tmp_path / "a.weights").read_bytes()
    (tmp_path / "b.weights").write_bytes(content[: len(content) - lost] + bytes(max(0, -lost)))
    net, before = narrow("yolov3-tiny", 2, seed=1), narrow("yolov3-tiny", 2, seed=1)
    with pytest.raises(InputError, match=r"Expected \d+ floats for yolov3-tiny with 2 classes, but .* holds \d+"):
        transfer_darknet_weights(net, tmp_path / "b.weights")
    assert_taken(net, before, before, ())


def test_a_whole_file_of_other_classes_says_so_where_all_of_it_is_wanted(tmp_path: Path) -> None:
    save_darknet_weights(narrow("yolov3-tiny", 5), tmp_path / "a.weights")
    with pytest.raises(InputError, match="it is of 5 classes"):
        load_darknet_weights(narrow("yolov3-tiny", 2), tmp_path / "a.weights")
