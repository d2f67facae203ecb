"""Files of `prunekit.save` as what is watched and evaluated: which model they hold, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prunekit
from prunekit.detection import DetectionTask, yolov3_tiny
from prunekit.detection.yolov3 import TINY_ANCHORS, Detector
from prunekit.errors import InputError
from prunekit.ops import native
from prunekit.pipeline.checkpoint import save_model
from prunekit.pipeline.deployed import is_deployed, open_deployed
from prunekit.task import ModelSpec, task_of
from tests.support.commands import Options, invoke, succeed
from tests.support.int8_everywhere import accelerate_in_int8

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.is_available(), reason="no native kernels"),
]

CLASSES, WIDTH, SIZE = 3, 0.05, 64
ANCHORS = [[[pair[0] + 1.0, pair[1] + 2.0] for pair in head] for head in TINY_ANCHORS]
ARGUMENTS = {"num_classes": CLASSES, "width": WIDTH, "anchors": ANCHORS}


@pytest.fixture(scope="module")
def net() -> Detector:
    """A detector with anchors of its own, a third of whose filters are gone."""
    torch.manual_seed(0)
    model = yolov3_tiny(CLASSES, WIDTH, ANCHORS).eval()
    block = model.get_submodule("stage16.4")
    with torch.no_grad():
        for name, value in block.named_parameters():
            if name.startswith(("conv.weight", "norm.")):
                value[:2] = 0
    return model


@pytest.fixture(scope="module")
def folder(net: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a checkpoint, accelerated, in int8 and compacted."""
    folder, x = tmp_path_factory.mktemp("files"), torch.rand(1, 3, SIZE, SIZE, generator=torch.manual_seed(1))
    save_model(folder / "net.safetensors", net, ModelSpec("yolov3-tiny", ARGUMENTS))
    prunekit.save(prunekit.accelerate(net, x, tuning_seconds=0.0, tuning_cache=None), folder / "fast.safetensors")
    prunekit.save(accelerate_in_int8(net, x, precision="int8", calibration=[x]), folder / "int8.safetensors")
    prunekit.save(prunekit.compact(net, x), folder / "small.prunekit")
    return folder


def test_a_checkpoint_is_no_deployed_file(folder: Path, tmp_path: Path) -> None:
    assert not is_deployed(folder / "net.safetensors")
    assert not is_deployed(tmp_path / "none.safetensors")
    assert all(is_deployed(folder / name) for name in ("fast.safetensors", "int8.safetensors", "small.prunekit"))


def test_a_compacted_detector_says_what_it_is(folder: Path) -> None:
    found = open_deployed(folder / "small.prunekit")
    assert isinstance(found.task, DetectionTask)
    assert found.task.spec.name == "yolov3-tiny"
    assert found.task.heads.num_classes == CLASSES
    assert found.task.heads.anchors == tuple(tuple((w, h) for w, h in head) for head in ANCHORS)
    assert not found.is_accelerated


def test_an_accelerated_one_does_not(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--checkpoint: .* does not say which model it holds"):
        open_deployed(folder / "fast.safetensors")


@pytest.mark.parametrize("name", ["fast", "int8"])
def test_a_name_is_enough_for_the_number_of_classes(folder: Path, name: str) -> None:
    found = open_deployed(folder / f"{name}.safetensors", task_of(ModelSpec("yolov3-tiny")))
    assert found.task.spec.arguments["num_classes"] == CLASSES
    assert (found.image_size, found.is_accelerated) == (SIZE, True)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (ModelSpec("yolov3-tiny", {"num_classes": 7}), r"yolov3-tiny of 7 classes with outputs of \[1, 36, 2, 2\]"),
        (ModelSpec("yolov3"), "--model: expected outputs of a yolov3 of any number of classes, got"),
        (ModelSpec("resnet20", {"num_classes": 4}), r"resnet20 of 4 classes with outputs of \[1, 4\]"),
    ],
)
def test_a_file_of_something_else_is_refused(folder: Path, spec: ModelSpec, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_deployed(folder / "fast.safetensors", task_of(spec))


@pytest.fixture(scope="module")
def asked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    frames, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(picture).save(frames / f"{number}.png")
    return {"source": frames, "score-threshold": 0.0001, "max-detections": 5, "threads": 1, "image-size": SIZE}


def watched(asked: Options, path: Path) -> list[str]:
    """Return the boxes that watching writes, a line each."""
    succeed("watch", asked | {"boxes": path})
    return path.read_text().splitlines()[1:]


def numbers(line: str) -> list[float]:
    return [float(cell) for cell in line.split(",")]


def test_accelerated_and_compacted_files_find_what_the_checkpoint_does(
    folder: Path, asked: Options, tmp_path: Path
) -> None:
    checkpoint = folder / "net.safetensors"
    expected = watched(asked | {"weights": checkpoint, "dense": True}, tmp_path / "dense.csv")
    assert len(expected) == 15
    fast = watched(asked | {"weights": folder / "fast.safetensors", "checkpoint": checkpoint}, tmp_path / "fast.csv")
    small = watched(asked | {"weights": folder / "small.prunekit", "dense": True}, tmp_path / "small.csv")
    for lines in (fast, small):
        assert np.allclose([*map(numbers, lines)], [*map(numbers, expected)], atol=0.02)


def test_int8_is_watched_and_attacked_by_the_checkpoints_gradients(
    folder: Path, asked: Options, tmp_path: Path
) -> None:
    deployed = {"weights": folder / "int8.safetensors", "checkpoint": folder / "net.safetensors"}
    assert len(watched(asked | deployed, tmp_path / "int8.csv")) == 15
    result = succeed("watch", asked | deployed | {"attack": "fgsm", "attack-frames": 1, "report": tmp_path / "held"})
    assert "Held over 3 frames" in result.stdout


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"dense": True}, "--dense: expected a model that is not accelerated yet"),
        ({"attack": "fgsm"}, "--attack: expected --checkpoint with the model that"),
        ({"model": "resnet20"}, "--model: expected outputs of a resnet20 of any number of classes"),
    ],
)
def test_what_an_accelerated_file_cannot_do_is_told(folder: Path, asked: Options, more: Options, sentence: str) -> None:
    result = invoke("watch", asked | {"weights": folder / "fast.safetensors", "model": "yolov3-tiny"} | more)
    assert result.exit_code == 2
    assert sentence in result.stderr
