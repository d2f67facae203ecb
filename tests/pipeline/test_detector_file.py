"""A detector in a file: everything comes back, and every other file is refused in a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunekit.detection import Detector, save_darknet_weights, yolov3_tiny
from prunekit.errors import InputError
from prunekit.pipeline.checkpoint import FORMAT, open_checkpoint, save_model, spec_of
from prunekit.prune import MaskRule, apply_masks, score_model
from prunekit.task import ModelSpec, task_of
from tests.support.training_problems import tiny_task

WIDTH = 0.03
TASK = tiny_task(2, WIDTH)


@pytest.fixture(scope="module")
def net() -> Detector:
    torch.manual_seed(0)
    model = yolov3_tiny(2, WIDTH)
    model(torch.rand(2, 3, 64, 64))  # moves running statistics and counts batches
    return model.eval()


@pytest.fixture
def file(net: Detector, tmp_path: Path) -> Path:
    save_model(tmp_path / "net.safetensors", net, TASK.spec)
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("drops_filters", [False, True])
def test_a_pruned_detector_comes_back_bit_for_bit(net: Detector, tmp_path: Path, drops_filters: bool) -> None:
    model = yolov3_tiny(2, WIDTH).eval()
    model.load_state_dict(net.state_dict())
    masks = MaskRule(70)(score_model(model, "scaled"))
    apply_masks(model, masks)
    path = tmp_path / "pruned.safetensors"
    save_model(path, model, TASK.spec, masks, drops_filters)
    found = open_checkpoint(path, TASK)
    assert found.masks is not None
    assert all(torch.equal(masks[name], mask) for name, mask in found.masks.items())
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in found.model.state_dict().items())
    assert not found.model.training
    assert found.drops_filters == drops_filters
    assert spec_of(path) == TASK.spec


def test_an_unpruned_detector_has_no_masks(file: Path) -> None:
    found = open_checkpoint(file, TASK)
    assert (found.masks, found.drops_filters) == (None, False)


def test_the_same_detector_is_the_same_file(net: Detector, file: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again.safetensors", net, TASK.spec)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_darknet_file_says_nothing_of_its_architecture(net: Detector, tmp_path: Path) -> None:
    save_darknet_weights(net, tmp_path / "net.weights")
    assert spec_of(tmp_path / "net.weights") is None
    found = open_checkpoint(tmp_path / "net.weights", TASK)
    assert found.masks is None
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "weights"])
def test_weights_that_are_not_finite_are_refused(net: Detector, tmp_path: Path, suffix: str, value: float) -> None:
    broken, path = copy.deepcopy(net), tmp_path / f"broken.{suffix}"
    next(module for module in broken.modules() if isinstance(module, nn.BatchNorm2d)).running_var[0] = value  # type: ignore[index]
    if suffix == "weights":
        save_darknet_weights(broken, path)
    else:
        save_model(path, broken, TASK.spec)
    with pytest.raises(InputError, match="xpected finite weights"):
        open_checkpoint(path, TASK)


@pytest.mark.parametrize(
    ("name", "num_classes", "width", "words"),
    [
        ("yolov3", 2, WIDTH, "of model yolov3, got yolov3-tiny"),
        ("yolov3-tiny", 3, WIDTH, "of num_classes 3, got 2"),
        ("yolov3-tiny", 2, 0.25, "of width 0.25, got 0.03"),
    ],
)
def test_a_detector_of_another_architecture_is_refused(
    file: Path, name: str, num_classes: int, width: float, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_checkpoint(file, task_of(ModelSpec(name, {"num_classes": num_classes, "width": width})))


def test_a_file_without_description_is_a_state_dict(file: Path) -> None:
    tensors = load_file(file)
    save_file(tensors, file)
    state = open_checkpoint(file, TASK).model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("spoil", ["cut", "empty", "another format", "a lost tensor", "a strange mask"])
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(file: Path, spoil: str) -> None:
    tensors, content = load_file(file), file.read_bytes()
    described = {"format": FORMAT, "model": "yolov3-tiny", "num_classes": 2, "width": WIDTH}
    if spoil == "cut":
        file.write_bytes(content[:-100])
    elif spoil == "empty":
        file.write_bytes(b"")
    elif spoil == "another format":
        save_file(tensors, file, {"prunekit": json.dumps(described | {"format": "prunekit detector 0"})})
    elif spoil == "a lost tensor":
        tensors.popitem()
        save_file(tensors, file, {"prunekit": json.dumps(described)})
    else:
        save_file(
            tensors | {"mask:nowhere": torch.ones(1, dtype=torch.bool)}, file, {"prunekit": json.dumps(described)}
        )
    with pytest.raises(InputError, match=r"net\.safetensors") as caught:
        open_checkpoint(file, TASK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model": "yolov9"}, "'yolov9'"), ({"num_classes": "many"}, "many"), ({"width": None}, "to say which model")],
)
def test_a_description_that_makes_no_sense_is_refused(file: Path, change: dict[str, object], words: str) -> None:
    described = {"format": FORMAT, "model": "yolov3-tiny", "num_classes": 2, "width": WIDTH} | change
    save_file(load_file(file), file, {"prunekit": json.dumps(described)})
    with pytest.raises(InputError, match=words):
        spec_of(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.safetensors"):
        spec_of(tmp_path / "nowhere.safetensors")
