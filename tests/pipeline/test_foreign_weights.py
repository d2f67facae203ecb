"""Training starts from weights of other classes, of a backbone alone, or of a trainer's checkpoint, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunekit.detection import CocoDataset, darknet_num_classes, save_darknet_weights, yolov3_tiny
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress, make_config, run
from prunekit.pipeline.checkpoint import Checkpoint, open_checkpoint, save_model, spec_of, starting_model
from prunekit.pipeline.command_config import PruneStage, TrainStage
from prunekit.pipeline.commands import prune_stage, train_stage
from prunekit.task import ModelSpec, task_of

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 0.03
HEADS = {"predict32.head", "predict16.head"}


class Listening(SilentProgress):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def _tiny(num_classes: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net = yolov3_tiny(num_classes, WIDTH)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), 0.5, 2)
    return net.eval()


def _spec(num_classes: int) -> ModelSpec:
    return ModelSpec("yolov3-tiny", {"num_classes": num_classes, "width": WIDTH})


def _darknet(path: Path, net: nn.Module) -> Path:
    save_darknet_weights(net, path.with_suffix(".weights"))  # type: ignore[arg-type]
    return path.with_suffix(".weights")


def _own(path: Path, net: nn.Module) -> Path:
    save_model(path.with_suffix(".safetensors"), net, _spec(5))
    return path.with_suffix(".safetensors")


def _checkpoint(path: Path, net: nn.Module) -> Path:
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "ema": state}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


FILES: dict[str, Callable[[Path, nn.Module], Path]] = {
    "darknet": _darknet,
    "prunekit's": _own,
    "a trainer's": _checkpoint,
}


def _start(path: Path, num_classes: int, seed: int = 0) -> Checkpoint:
    return starting_model(path, task_of(_spec(num_classes)), seed, SilentProgress())


@pytest.mark.parametrize("kind", FILES)
def test_all_but_the_heads_is_taken_from_weights_of_other_classes(kind: str, tmp_path: Path) -> None:
    source = _tiny(5)
    path = FILES[kind](tmp_path / "net", source)
    start = _start(path, 2)
    given = source.state_dict()
    for name, value in start.model.state_dict().items():
        if name.rpartition(".")[0] not in HEADS and "num_batches" not in name:
            assert torch.equal(value, given[name]), name
    assert start.transfer is not None
    assert set(start.transfer.made_anew) == HEADS
    again, other = _start(path, 2), _start(path, 2, seed=1)
    assert again.sha256 == start.sha256
    assert other.sha256 != start.sha256


@pytest.mark.parametrize("kind", FILES)
def test_weights_of_the_same_classes_are_taken_whole(kind: str, tmp_path: Path) -> None:
    source = _tiny(5)
    start = _start(FILES[kind](tmp_path / "net", source), 5)
    assert start.transfer is None
    given = source.state_dict()
    assert all(torch.equal(v, given[n]) for n, v in start.model.state_dict().items() if "num_batches" not in n)


@pytest.mark.parametrize("kind", FILES)
def test_the_number_of_classes_is_read_from_the_file(kind: str, tmp_path: Path) -> None:
    path = FILES[kind](tmp_path / "net", _tiny(5))
    out = tmp_path / "out"
    prune_stage(PruneStage(model="yolov3-tiny", width=WIDTH, weights=path, ratio=50, out=out))
    assert open_checkpoint(out / "model.safetensors", task_of(_spec(5))).masks


def test_training_takes_a_backbone_and_says_what_it_made_anew(shapes_data: Path, tmp_path: Path) -> None:
    whole = _darknet(tmp_path / "net", _tiny(5))
    layers = [m for m in _tiny(5).modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)][:14]
    floats = sum(v.numel() for m in layers for k, v in m.state_dict().items() if "num_batches" not in k)
    (tmp_path / "cut.conv.11").write_bytes(whole.read_bytes()[: 20 + 4 * floats])
    heard = Listening()
    options: dict[str, Any] = {
        "data": shapes_data,
        "image_size": 64,
        "threads": 1,
        "max_steps": 1,
        "objective": "clean",
    }
    config = TrainStage(
        model="yolov3-tiny", width=WIDTH, weights=tmp_path / "cut.conv.11", out=tmp_path / "o", **options
    )
    train_stage(config, heard)
    assert any("cut.conv.11: took 7 of 13 layers; made anew: " in message for message in heard.messages)


def test_the_backbone_stays_as_long_as_it_is_frozen(shapes_data: Path, tmp_path: Path) -> None:
    source = _tiny(5)
    path = _darknet(tmp_path / "net", source)
    options: dict[str, Any] = {
        "data": shapes_data, "image_size": 64, "threads": 1, "objective": "clean", "weights": path,
        "model": "yolov3-tiny", "width": WIDTH, "train_batch_size": 4, "freeze": "backbone",
    }  # fmt: skip
    for epochs, trains in ((1, False), (2, True)):
        out = tmp_path / f"{epochs}"
        train_stage(TrainStage(**options | {"epochs": epochs, "out": out}))
        task = task_of(_spec(CocoDataset.open(shapes_data).num_classes))
        model = open_checkpoint(out / "model.safetensors", task).model
        changed = {
            name.rpartition(".")[0]
            for name, value in model.state_dict().items()
            if "num_batches" not in name and not torch.equal(value, source.state_dict()[name])
            if value.shape == source.state_dict()[name].shape
        }
        assert bool(changed - HEADS) is trains


def test_anchors_are_fitted_and_come_back(shapes_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": shapes_data,
        "image_size": 64,
        "threads": 1,
        "max_steps": 1,
        "objective": "clean",
    }
    config = TrainStage(model="yolov3-tiny", width=WIDTH, fit_anchors=True, out=tmp_path / "out", **options)
    train_stage(config)
    again = TrainStage(weights=tmp_path / "out" / "model.safetensors", out=tmp_path / "again", **options)
    train_stage(again)
    found: list[Any] = [
        open_checkpoint(folder / "model.safetensors", task_of(spec)).model.anchors
        for folder in (tmp_path / "out", tmp_path / "again")
        if (spec := spec_of(folder / "model.safetensors"))
    ]
    assert found[0] == found[1] != yolov3_tiny(1, WIDTH).anchors
    assert max(side for head in found[0] for pair in head for side in pair) <= 64


def test_a_run_trains_from_scratch(shapes_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": "yolov3-tiny", "width": WIDTH, "data": shapes_data, "train_data": shapes_data, "image_size": 64,
        "threads": 1, "objective": "clean", "max_steps": 1, "ratios": (50,), "attack": "none", "limit": 4,
        "finetune_epochs": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match="--weights: expected a file, got none"):
        make_config(**options, out=tmp_path / "run")
    folder = run(make_config(**options, pretrain_epochs=1, out=tmp_path / "run"))
    assert len(folder.results.read_text().splitlines()) == 2  # the heading, and the ratio
    before = sorted(path.stat().st_mtime_ns for path in folder.root.rglob("model.safetensors"))
    run(make_config(**options, pretrain_epochs=1, out=tmp_path / "run"))
    assert before == sorted(path.stat().st_mtime_ns for path in folder.root.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda path: torch.save({"a": torch.zeros(3)}, path), "is missing"),
        (lambda path: torch.save({"model": _tiny(2)}, path), "pickled objects such as"),
        (lambda path: torch.save([torch.zeros(3)], path), "got a list"),
    ],
)
def test_what_is_no_weights_of_the_model_is_one_sentence(
    save: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    save(tmp_path / "net.pt")
    with pytest.raises(InputError, match=words):
        _start(tmp_path / "net.pt", 2)


def test_the_file_says_its_classes(tmp_path: Path) -> None:
    assert darknet_num_classes(_tiny(1), _darknet(tmp_path / "net", _tiny(7))) == 7
