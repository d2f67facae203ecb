"""Files given in the place of others: each is called what it is, and nothing in it runs."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunekit.detection import load_darknet_weights, save_darknet_weights, yolov3_tiny
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file
from prunekit.pipeline.checkpoint import open_checkpoint, spec_of
from tests.support.commands import invoke
from tests.support.training_problems import tiny_task

NET = nn.Linear(2, 2)
WIDTH = 0.03


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "checkpoint": (
        lambda path: torch.save({"epoch": 3, "model": NET.state_dict(), "optimizer": {}}, path),
        "PyTorch checkpoint .* with epoch, model, optimizer at its top, .* export its state dict with torch.load",
    ),
    "state dict": (lambda path: torch.save(NET.state_dict(), path), "of a state dict with 2 tensors"),
    "whole model": (lambda path: torch.save({"model": NET}, path), "pickled objects such as torch.nn.modules.linear"),
    "list": (lambda path: torch.save([1], path), "of a list"),
    "old checkpoint": (
        lambda path: torch.save(NET.state_dict(), path, _use_new_zipfile_serialization=False),
        "PyTorch checkpoint .* of an old format",
    ),
    "program": (
        lambda path: torch.export.save(torch.export.export(NET, (torch.rand(1, 2),)), path.open("wb")),
        "torch.export saved",
    ),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "a pickled object, which is never loaded"),
    "numpy": (lambda path: np.savez(path.open("wb"), a=np.ones(2)), "NumPy archive"),
    "zip": (write_zip, "a zip archive"),
    "cut zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)), "damaged zip archive"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights" * 9)), "a gzip archive"),
    "cfg": (lambda path: path.write_text("# YOLO\n\n[net]\nbatch=1\n"), r"darknet \.cfg file"),
    "page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>Sign in</html>"), "an HTML page"),
    "xml": (lambda path: path.write_text("<?xml version='1.0'?><a/>"), "an XML file"),
    "json": (lambda path: path.write_text('{"images": []}' * 999), "a JSON file"),
    "text": (lambda path: path.write_text("žluťoučký kůň\n" * 999), "a text file"),
    "wide text": (lambda path: path.write_text("hello\n", "utf-16"), "a text file"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
}


#: What is said of those whose tensors are read for a model that is named.
AS_STATE_DICTS = {
    "checkpoint": "weights of yolov3-tiny .* is missing",
    "state dict": "weights of yolov3-tiny .* is missing",
    "list": "state dict of tensors .* got a list",
    "old checkpoint": "weights of yolov3-tiny .* is missing",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_foreign_file_is_called_what_it_is_wherever_weights_are_read(name: str, tmp_path: Path) -> None:
    write, words = WRITERS[name]
    net = yolov3_tiny(2, WIDTH)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for path in (tmp_path / "net.weights", tmp_path / "net.safetensors", tmp_path / "best.pt"):
        write(path)
        for read, expected in (
            (lambda path=path: load_darknet_weights(net, path), words),
            (lambda path=path: spec_of(path), words),
            (lambda path=path: open_checkpoint(path, tiny_task(2, WIDTH)), AS_STATE_DICTS.get(name, words)),
        ):
            with pytest.raises(InputError, match=expected) as caught:
                read()
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "best.pt"
    for content in (Trap(mark), {"model": Trap(mark)}):
        torch.save(content, path)
        assert "PyTorch checkpoint" in str(kind_of_file(path))
        path.write_bytes(pickle.dumps(content))
        assert "pickled" in str(kind_of_file(path))
    assert not mark.exists()
    torch.load(path.with_name(save_trap(tmp_path, mark)), weights_only=False)
    assert mark.exists()  # the trap works


def save_trap(folder: Path, mark: Path) -> str:
    torch.save(Trap(mark), folder / "trap.pt")
    return "trap.pt"


def test_weights_are_not_taken_for_another_kind(tmp_path: Path) -> None:
    save_darknet_weights(yolov3_tiny(2, WIDTH), tmp_path / "net.weights")
    assert kind_of_file(tmp_path / "net.weights") is None
    save_file(NET.state_dict(), tmp_path / "net.st")
    assert kind_of_file(tmp_path / "net.st") == "a safetensors file"
    assert is_safetensors(tmp_path / "net.st")
    assert not is_safetensors(tmp_path / "net.weights")
    (tmp_path / "empty").touch()
    assert kind_of_file(tmp_path / "empty") == "an empty file"
    assert kind_of_file(tmp_path / "nowhere") is None
    assert not is_safetensors(tmp_path / "nowhere")


@pytest.mark.parametrize("command", ["compact", "score", "explain"])
def test_commands_say_what_a_checkpoint_is(command: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"epoch": 3, "model": yolov3_tiny(2, WIDTH).state_dict()}, path)
    given = [str(path)] if command == "compact" else ["--weights", str(path)]
    options = {} if command == "explain" else {"out": tmp_path / "out"}
    result = invoke(command, options, *given)
    assert result.exit_code == 2
    assert "best.pt is a PyTorch checkpoint (torch.save) with epoch, model at its top" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "out").exists()
