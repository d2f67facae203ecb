"""A model that is named by its factory goes through every command, from the page that describes it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import prunekit
from prunekit import cli, task
from prunekit.errors import InputError
from prunekit.pipeline import read_rows
from prunekit.pipeline.own_models import model_arguments
from prunekit.task import ModelSpec, load_plugin, name_factory, task_of
from tests.support import ROOT
from tests.support.classes_of_images import write_classes
from tests.support.own_modules import own_modules

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (ROOT / "docs" / "own-models.md").read_text()
BRIEF = ["--objective", "clean", "--max-steps", "2", "--train-batch-size", "4"]
MORE = {
    "train": BRIEF,
    "finetune": BRIEF,
    "evaluate": ["--latency-runs", "3", "--attack", "fgsm"],
    "explain": ["--no-peers", "--image-size", "32"],
    "compact": ["--multiple-of", "1", "--image-size", "32"],
    "run": ["--latency-runs", "3", "--attack", "fgsm"],
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's modules in the working directory, as if nobody had imported them before."""
    sources = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
    assert all(code.count("\n") <= 30 for code in sources.values())
    with own_modules(tmp_path, monkeypatch, **sources):
        yield tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos", per_class=4, size=32)


def prunekit_command(line: str) -> Result:
    command, *words = line.split()
    return CliRunner().invoke(cli.app, [command, *words, *MORE.get(command, []), "--threads", "1"])


def page_commands(model: str) -> list[str]:
    return [line for line in re.findall(r"^prunekit (.*)$", PAGE, re.MULTILINE) if f" {model} " in line]


def succeed(line: str) -> Result:
    result = prunekit_command(line)
    assert result.exit_code == 0, result.stderr
    return result


def refused(line: str) -> str:
    result = prunekit_command(line)
    assert result.exit_code == 2, result.stdout + result.stderr
    words = " ".join(result.stderr.split())
    assert words.startswith("Error: ")
    return words


@pytest.mark.slow
def test_the_pages_classifier_goes_through_every_command(photos: Path, tmp_path: Path) -> None:
    *lines, own_weights = page_commands("mynet:small")
    assert [line.split()[0] for line in lines] == [
        "train",
        "score",
        "prune",
        "finetune",
        "evaluate",
        "explain",
        "compact",
        "run",
    ]
    for line in lines:
        succeed(line)
    found = json.loads((tmp_path / "runs/figures/evaluation.json").read_text())
    assert (found["model"], found["channels"], found["num_classes"]) == ("mynet:small", 16, 2)
    assert {"argmax_ms", "latency_ms_compacted"} <= found["latency"].keys()
    assert [row["ratio"] for row in read_rows(tmp_path / "runs/first/results.csv")] == ["0.0", "50.0"]
    assert prunekit.load(tmp_path / "small.prunekit")(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    name_factory("mynet:small")
    torch.save(ModelSpec("mynet:small", {"num_classes": 2, "channels": 16}).build().state_dict(), "mine.pt")
    succeed(own_weights)


def test_the_pages_detector_is_told_by_its_class(shapes_data: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes").symlink_to(shapes_data)
    for line in page_commands("mydetector:Tiny"):
        succeed(f"{line} --limit 3" if "--data" in line else line)
    found = json.loads((tmp_path / "runs/ap/evaluation.json").read_text())
    assert found["model"] == "mydetector:Tiny"
    assert {"ap", "ap50"} <= found["cases"]["none"].keys()


def test_safetensors_without_a_description_are_a_state_dict(photos: Path, tmp_path: Path) -> None:
    name_factory("mynet:small")
    state = ModelSpec("mynet:small", {"num_classes": 2}).build().state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    prune = "prune --model mynet:small --data photos --ratio 50"
    succeed(f"{prune} --weights mine.safetensors --out pruned")
    words = refused(f"{prune} --weights mine.safetensors --model-args channels=8 --out no")
    assert "got 0.0.weight of shape [32, 3, 3, 3] for [8, 3, 3, 3]" in words
    succeed("score --model mynet:small --weights mine.safetensors --out scores")  # without data to say the classes
    del state["0.1.bias"]
    torch.save({"state_dict": state}, tmp_path / "cut.pt")
    assert "0.1.bias is missing" in refused(f"{prune} --weights cut.pt --out no")


FACTORIES = """
import torch
from torch import nn
from os import remove

THREE = 3
def nothing(num_classes): return None
def broken(num_classes): raise RuntimeError("no such file of mine")
def ten(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
def two(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
def pixels(num_classes): return nn.Conv2d(3, num_classes, 1)
def needs(num_classes, depth): return two()
def leaves(num_classes): raise SystemExit("usage: mine.py [-h]")
def lazy(num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
def detached(num_classes):
    net = two()
    net.register_forward_hook(lambda module, given, logits: logits.detach())
    return net
def fixed(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 2))
"""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere_at_all:net", "--model: expected a module to import, got 'nowhere_at_all': No module named"),
        ("factories:absent", "--model: expected a factory of models called 'absent' in factories, got no such name"),
        ("factories:THREE", "called 'THREE' in factories, got int"),
        ("factories:nothing", "--model: expected factories:nothing to build an nn.Module, got NoneType."),
        ("factories:broken", "to build a model, got RuntimeError: no such file of mine."),
        ("factories:leaves", "to build a model, got SystemExit: usage: mine.py [-h]."),
        ("factories:lazy", "to build parameters with shapes, got lazy ones: show it an image first."),
        ("factories:detached --objective clean", "a loss that parameters change, got one without a gradient"),
        ("script:net", "--model: expected a module to import, got 'script': 3."),
        ("factories:needs", "arguments that factories:needs can be built from: needs() missing 1 required"),
        ("factories:pixels", "--task: expected one of detection, "),
        ("factories:ten", "to return logits [N, 2], one for each class of the data, got a tensor [2, 10]"),
        ("factories:pixels --task classification", "of the data, got a tensor [2, 2, 32, 32] for two images"),
        ("factories:fixed --task classification", "to take images [N, 3, 32, 32], got RuntimeError: mat1 and mat2"),
        ("factories:two --task sorting", "--model: expected the task to be one of detection, "),
        ("factories:two --model-args depth", "--model-args: expected name=value, "),
        ("factories:two --model-args num_classes=3", "--model-args: expected name=value, "),
        ("factories:two --model-args depth=3", "arguments that factories:two can be built from: "),
        ("resnet20 --task classification", "--task: expected with --model package.module:factory, got with resnet20"),
        ("os:getcwd", "to build an nn.Module, got str"),
    ],
)
def test_what_is_no_model_is_one_sentence(model: str, words: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "script.py").write_text("raise SystemExit(3)\n")
    assert words in refused(f"train --model {model} --data photos --out no")
    assert not (tmp_path / "no/model.safetensors").exists()


def test_a_model_without_convolutions_is_refused_where_it_is_pruned(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    name_factory("factories:two")
    torch.save(ModelSpec("factories:two").build().state_dict(), "two.pt")
    given = "--model factories:two --weights two.pt --data photos"
    for command in ("prune --ratio 50", "score", "run --ratios 0,50 --train-data photos --pretrain-epochs 1"):
        words = refused(f"{command} {given} --out no")
        assert words == "Error: Expected convolutions to prune, got none in factories:two."
        assert not (tmp_path / "no").exists()


def test_a_factory_without_a_parameter_for_classes_builds_the_datas(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    succeed("train --model factories:two --data photos --out net")
    assert "factories:two" in (tmp_path / "net/config.yaml").read_text()


def test_a_saved_file_imports_and_calls_nothing_by_itself(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "factories.py").write_text(f"{FACTORIES}\ntwo.task = 'classification'\n")
    victim = tmp_path / "victim"
    victim.write_text("still here")
    load_plugin("factories")
    for name, arguments in (
        ("secret:net", {}),
        ("os:remove", {"path": str(victim)}),
        ("factories:remove", {"path": str(victim)}),  # of a plugin, but no factory that says its task
        ("factories:ten", {}),
    ):
        with pytest.raises(InputError, match=f"'{name}' of a file to be named by the user: add --model {name}"):
            task_of(ModelSpec(name, arguments))
        description = {"format": "prunekit detector 1", "model": name, **arguments}
        save_file({"weight": torch.zeros(1)}, tmp_path / "bad.safetensors", {"prunekit": json.dumps(description)})
        assert "Error: " in refused("score --weights bad.safetensors --out no")
    assert "secret" not in sys.modules
    assert victim.read_text() == "still here"
    assert task_of(ModelSpec("factories:two")).spec.name == "factories:two"  # a plugin's that says its task


def test_a_trained_file_says_how_to_be_opened(photos: Path) -> None:
    (Path("other.py")).write_text("from mynet import small as net\n")
    succeed("train --model other:net --data photos --out net")
    task._NAMED.clear()  # as in another process
    assert "add --model other:net" in refused("score --weights net/model.safetensors --out scores")
    succeed("score --weights net/model.safetensors --model other:net --out scores")


def test_values_are_json_or_text() -> None:
    texts = ["depth=20", "wide=true", "kind=tiny", "sizes=[1, 2]", "path=a=b", "none=null", "far=NaN"]
    assert model_arguments(texts) == {
        "depth": 20, "wide": True, "kind": "tiny", "sizes": [1, 2], "path": "a=b", "none": None, "far": "NaN",
    }  # fmt: skip
    for bad in (["depth"], ["a b=1"], ["model=x"], ["depth=1", "depth=2"]):
        with pytest.raises(InputError, match="--model-args: expected name=value"):
            model_arguments(bad)
