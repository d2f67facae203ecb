from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.detection import MODELS, Detector, load_darknet_weights, save_darknet_weights, yolov3_tiny
from prunekit.errors import InputError


def narrow(name: str = "yolov3-tiny", seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    net = MODELS[name](num_classes=2, width=1 / 16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 2)
    return net


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items() if "num_batches" not in name}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    net, copy = narrow(name), narrow(name, seed=1)
    save_darknet_weights(net, tmp_path / "a.weights", images_seen=2**40)
    load_darknet_weights(copy, tmp_path / "a.weights")
    assert_same(state(copy), state(net))
    save_darknet_weights(copy, tmp_path / "b.weights", images_seen=2**40)
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_the_file_starts_with_the_first_layers_bias_scale_mean_variance_and_weights(tmp_path: Path) -> None:
    net = narrow()
    save_darknet_weights(net, tmp_path / "net.weights", images_seen=7)
    content = (tmp_path / "net.weights").read_bytes()
    assert np.frombuffer(content, "<i4", count=3).tolist() == [0, 2, 5]
    assert np.frombuffer(content, "<i8", offset=12, count=1).tolist() == [7]
    tensors = state(net)
    names = ["norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight"]
    expected = torch.cat([tensors[f"stage16.0.{name}"].flatten() for name in names])
    assert np.frombuffer(content, "<f4", offset=20, count=len(expected)).tolist() == expected.tolist()
    last = torch.cat([tensors["predict16.head.bias"], tensors["predict16.head.weight"].flatten()])
    assert np.frombuffer(content, "<f4", offset=20)[-len(last) :].tolist() == last.tolist()


def test_the_memory_format_does_not_matter(tmp_path: Path) -> None:
    net, copy = narrow(), narrow(seed=1)
    save_darknet_weights(net, tmp_path / "a.weights")
    for either in (net, copy):
        for module in either.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    save_darknet_weights(net, tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()
    load_darknet_weights(copy, tmp_path / "b.weights")
    assert_same(state(copy), state(net))


@pytest.mark.parametrize(
    "header",
    [
        np.array([0, 1, 0, 99], "<i4"),  # darknet before 0.2: images in 32 bits
        np.array([0, 0, 0, 99], "<i4"),
        np.array([0, 0, 0, 99, 0], "<i4"),  # programs that copy five numbers whatever the version
        np.array([0, 1, 0, 99, 0], "<i4"),
        np.array([0, 2, 0, 99, 0], "<i4"),
        np.array([0, 2, 5, -1, -1], "<i4"),
        np.array([1, 0, 0, 99, 0], "<i4"),
        np.array([2**31 - 1, 2**31 - 1, 0, 99], "<i4"),  # flags in the version's place
        np.array([-(2**31), 5, 0, 99], "<i4"),
    ],
    ids=str,
)
def test_the_headers_of_all_versions_are_read(header: npt.NDArray[np.int32], tmp_path: Path) -> None:
    net, copy = narrow(), narrow(seed=1)
    save_darknet_weights(net, tmp_path / "new.weights")
    values = (tmp_path / "new.weights").read_bytes()[20:]
    (tmp_path / "old.weights").write_bytes(header.tobytes() + values)
    load_darknet_weights(copy, tmp_path / "old.weights")
    assert_same(state(copy), state(net))


def test_a_float_too_many_or_too_few_is_not_taken_for_another_header(tmp_path: Path) -> None:
    save_darknet_weights(narrow(), tmp_path / "new.weights")
    values = (tmp_path / "new.weights").read_bytes()[20:]
    for name, content in {
        "one more": np.array([0, 1, 0, 99], "<i4").tobytes() + values + values[-4:],
        "one less": np.array([0, 2, 5, 99, 0], "<i4").tobytes() + values[:-4],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"Expected \d+ floats"):
            load_darknet_weights(narrow(), tmp_path / name)


NET = narrow(seed=1)


@settings(deadline=None, max_examples=int(os.environ.get("PRUNEKIT_FILES", "100")))
@given(header=st.binary(max_size=24), removed=st.integers(0, 9), tail=st.binary(max_size=9))
def test_any_bytes_load_whole_or_not_at_all(header: bytes, removed: int, tail: bytes, tmp_path_factory: Any) -> None:
    path, values = tmp_path_factory.getbasetemp() / "any.weights", np.full(count_of(NET), 0.5, "<f4").tobytes()
    content = header + values[: len(values) - removed] + tail
    path.write_bytes(content)
    before = state(NET)
    try:
        load_darknet_weights(NET, path)
    except InputError:
        assert_same(state(NET), before)
    else:
        assert len(content) - len(values) in (16, 20)
        assert all(bool(value.isfinite().all()) for value in state(NET).values())


def count_of(net: nn.Module) -> int:
    return sum(tensor.numel() for tensor in state(net).values())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-4], r"Expected (\d+) floats .* cut off or of a smaller model"),
        (lambda content: content + bytes(4), r"Expected (\d+) floats .* larger model"),
        (lambda content: content[:-1], "3 bytes after"),
        (lambda content: b"", "0 bytes in all"),
        (lambda content: content[:19], "header of 20 bytes"),
        (lambda content: content[:-4] + np.float32("nan").tobytes(), "1 of the"),
    ],
)
def test_a_damaged_file_is_refused_and_changes_nothing(damage, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    net, path = narrow(), tmp_path / "net.weights"
    save_darknet_weights(narrow(seed=1), path)
    path.write_bytes(damage(path.read_bytes()))
    before = state(net)
    with pytest.raises(InputError, match=message) as caught:
        load_darknet_weights(net, path)
    assert str(path) in str(caught.value)
    assert_same(state(net), before)


def test_another_architecture_is_refused_with_both_counts(tmp_path: Path) -> None:
    save_darknet_weights(narrow("yolov3"), tmp_path / "net.weights")
    held = sum(t.numel() for t in state(narrow("yolov3")).values())
    wanted = sum(t.numel() for t in state(narrow()).values())
    with pytest.raises(InputError, match=f"Expected {wanted} floats for yolov3-tiny .* holds {held}"):
        load_darknet_weights(narrow(), tmp_path / "net.weights")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.weights", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_darknet_weights(narrow(), path)


def test_the_official_tiny_file_has_as_many_floats_as_the_full_model() -> None:
    # 35 434 956 bytes in all, the header of 20 included.
    with torch.device("meta"):
        net = yolov3_tiny()
    assert sum(tensor.numel() for tensor in state(net).values()) == (35_434_956 - 20) // 4
