"""`prunekit explain`, and models as files: what they say, what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from typer.testing import CliRunner, Result

import prunekit
from prunekit import cli
from prunekit.benchmark import peers
from prunekit.benchmark.engines.calls import Call
from prunekit.benchmark.explanation import explain_model, explain_report, planned_sizes, shares_of
from prunekit.cli import explain as explaining
from prunekit.cli.explain import _opened
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn import AccelerationReport, LayerReport
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.native import native_status
from prunekit.pipeline.checkpoint import save_model
from prunekit.task import ModelSpec
from tests.support import ROOT
from tests.support.own_modules import own_modules
from tests.support.training_problems import tiny_task

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")
TINY = ["--model", "yolov3-tiny", "--width", "0.1", "--image-size", "64", "--threads", "1"]
X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_lines_with_brackets_are_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich would take an extra's name for markup: what was to be installed came without it."""
    line = "OpenVINO: not timed, openvino not installed (pip install 'prunekit[peers]')."
    monkeypatch.setattr(explaining, "summary", lambda *_: [line])
    monkeypatch.setattr(explaining, "layers_table", lambda *_: "")
    found: Any = SimpleNamespace(shares=[])
    explaining._show("", found, [])
    assert line in capsys.readouterr().out


class Split(nn.Module):
    """Two native parts with an operator of torch between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.cumsum(self.first(x), 2))
        return y


class BoundToSize(nn.Module):
    """Its forward branches on the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.avg_pool2d(y, 2) if x.shape[2] >= 50 else y


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def accelerated(model: nn.Module) -> AcceleratedModel:
    torch.manual_seed(0)
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        prune.random_unstructured(layer, "weight", 0.9)  # type: ignore[no-untyped-call]
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    built = build_whole_graph(  # whichever is faster on this machine
        model.eval(), [X], 10.0, TuningCache(None), lambda done, total: None
    )
    return built.model


def explain(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


def row(name: str, ms: float | None, limit: str, advice: str = "more zeros") -> LayerReport:
    return LayerReport(name, (1, 3, 8, 8), (4, 3, 3, 3), 0.5, "", None, None, "", ms, 10**6, 100, 1.0, limit, advice)


def test_milliseconds_are_added_up_by_what_limits_them() -> None:
    rows = [row("a", 1.0, "loads"), row("b", 3.0, "memory", "fewer channels"), row("c", 4.0, "loads")]
    shares = shares_of(rows, {"halo": 2.0})
    assert [(s.limit, s.ms, s.fraction, s.layers) for s in shares] == [
        ("loads", 5.0, 0.5, ("c", "a")),
        ("memory", 3.0, 0.3, ("b",)),
        ("beside convolutions: halo", 2.0, 0.2, ()),
    ]
    assert shares[1].advice == "fewer channels"
    assert all(share.advice for share in shares)
    assert shares_of([row("a", None, "loads")], {}) == []


def test_the_least_time_follows_from_the_peak() -> None:
    report = AccelerationReport(
        [row("a", 1.0, "loads")], 1, "avx2", 0, 4.0, 2.0, 0.0, engine="whole graph", peak_gflops=100.0
    )
    found = explain_report(report)
    assert (found.ms, found.original_ms, found.kept_macs) == (2.0, 4.0, 10**6)
    assert found.least_ms == pytest.approx(2 * 10**6 / 100e9 * 1e3)
    assert found.to_json()["least_ms"] == found.least_ms


def test_a_saved_model_computes_the_same_in_another_process(tmp_path: Path) -> None:
    fast, file = accelerated(Split()), tmp_path / "new" / "fast.safetensors"
    prunekit.save(fast, file)
    torch.save(X, tmp_path / "x.pt")
    code = (
        "import prunekit, sys, torch\n"
        "folder = sys.argv[1]\n"
        "torch.save(prunekit.load(folder + '/new/fast.safetensors')(torch.load(folder + '/x.pt')), folder + '/y.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    expected = fast(X)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected, rtol=1e-5, atol=1e-6)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fast.safetensors"]


def test_what_cannot_be_saved_or_loaded_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on its engine as a whole, got Conv2d"):
        prunekit.save(nn.Conv2d(1, 1, 1), tmp_path / "x")
    fast = accelerated(Split())
    with pytest.raises(InputError, match="got a folder"):
        prunekit.save(fast, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prunekit.save(fast, tmp_path / "file" / "fast.safetensors")
    with pytest.raises(InputError, match="there is no file"):
        prunekit.load(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        prunekit.load(tmp_path / "file")
    prunekit.save(fast, tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        prunekit.load(tmp_path / "half")


def test_sizes_of_a_loaded_model_are_those_that_ran(tmp_path: Path) -> None:
    fast = accelerated(Split())
    captured = dict(fast.graph.sizes)
    prunekit.save(fast, tmp_path / "fast")
    loaded = AcceleratedModel.load(tmp_path / "fast")
    loaded(X)
    found = planned_sizes(loaded, [X])
    convolutions = list(loaded.graph.convolutions())
    assert len(convolutions) == 2
    for node in convolutions:
        assert found[node.name] == captured[node.name]
        assert found[node.inputs[0]] == captured[node.inputs[0]]
    explanation = explain_model(loaded, [X])
    kept = [node.attributes["weight"] for node in convolutions]
    areas = (32 * 32, 16 * 16)
    assert [r.kept_macs for r in explanation.rows] == [
        loaded.graph.weights[name].values.numel() * area for name, area in zip(kept, areas, strict=True)
    ]
    assert sum(share.fraction for share in explanation.shares) == pytest.approx(1.0)
    assert any(share.limit == "beside convolutions: torch" for share in explanation.shares)
    assert explanation.notes == ["torch runs aten.cumsum.default"]


def test_a_net_is_explained_in_words_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "why.json"
    result = explain(*TINY, "--ratio", 90, "--no-peers", "--json", file)
    assert result.exit_code == 0, result.stderr
    found = json.loads(file.read_text())
    assert found["format"] == "prunekit-explain-1"
    assert len(found["rows"]) == 13
    assert all(0.05 < layer["density"] < 0.15 for layer in found["rows"])
    assert found["dense_engines"] == []
    assert "yolov3-tiny, 90" in result.stdout
    assert "predict16.head" in result.stdout
    assert f"{found['ms']:.2f} ms accelerated" in result.stdout
    if found["engine"] == "whole graph":  # elsewhere the model's own forward was faster
        assert "Where the time is" in result.stdout
        assert sum(share["ms"] for share in found["shares"]) > 0
        assert found["least_ms"] == pytest.approx(2 * found["kept_macs"] / found["peak_gflops"] / 1e6)
        assert found["kept_macs"] == sum(layer["kept_macs"] for layer in found["rows"])


def test_dense_engines_run_in_turn_on_the_unpruned_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit.cli.explain._PEERS", ("eager", "folded"))
    file = tmp_path / "why.json"
    result = explain(*TINY, "--ratio", 75, "--runs", 2, "--json", file)
    assert result.exit_code == 0, result.stderr
    rows = {engine["competitor"]: engine for engine in json.loads(file.read_text())["dense_engines"]}
    assert set(rows) == {"torch eager", "torch eager, folded", "torch eager, pruned", "prunekit"}
    assert rows["torch eager"]["density"] > 0.99
    assert rows["prunekit"]["density"] == pytest.approx(0.25, abs=0.01)
    assert len({engine["run"] for engine in rows.values()}) == 1
    assert all(name in result.stdout for name in rows)


def test_a_wrong_dense_engine_is_named_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, x: Tensor) -> Call:
        return lambda: tuple(y * 1.01 for y in model(x))

    monkeypatch.setitem(peers.PEERS, "folded", peers.Peer("torch eager, folded", (), wrong))
    monkeypatch.setattr("prunekit.cli.explain._PEERS", ("folded",))
    file = tmp_path / "why.json"
    result = explain(*TINY, "--ratio", 90, "--runs", 2, "--json", file)
    assert result.exit_code == 0, result.stderr
    assert "torch eager, folded: not timed, its outputs differ by 0.01" in result.stdout
    assert "torch eager, folded" not in {e["competitor"] for e in json.loads(file.read_text())["dense_engines"]}


def test_weights_of_a_stage_and_a_saved_file_are_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = prunekit.detection.yolov3_tiny(num_classes=3, width=0.1).eval()
    save_model(tmp_path / "model.safetensors", detector, tiny_task(3, 0.1).spec)
    common = ("--image-size", 64, "--threads", 1)
    result = explain("--weights", tmp_path / "model.safetensors", "--no-peers", *common)
    assert result.exit_code == 0, result.stderr
    assert "24×" in result.stdout  # the heads of three classes: 3 · (5 + 3) channels
    prunekit.save(accelerated(Split()), tmp_path / "fast.safetensors")
    result = explain(tmp_path / "fast.safetensors", "--json", tmp_path / "why.json", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert "second" in result.stdout
    assert json.loads((tmp_path / "why.json").read_text())["original_ms"] is None


OWN = """
from torch import nn
def net(num_classes, channels=16):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, 8, 3, 1, 1), nn.Flatten(),
        nn.Linear(8 * 16 * 16, num_classes),
    )
"""


@pytest.fixture
def explained_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with own_modules(tmp_path, monkeypatch, explained_net=OWN):
        yield


@pytest.mark.usefixtures("explained_net")
def test_a_model_of_ones_own_is_explained(tmp_path: Path) -> None:
    own = ("--model", "explained_net:net", "--model-args", "channels=24", "--threads", 1, "--no-peers")
    result = explain(*own, "--ratio", 50, "--image-size", 32, "--json", "why.json")
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "why.json").read_text())
    assert found["title"] == "explained_net:net, 50 % zeros, 32×32"
    assert [row["weight_shape"] for row in found["rows"]] == [[24, 3, 3, 3], [8, 24, 3, 3]]
    model = ModelSpec("explained_net:net", {"num_classes": 7, "channels": 24}).build()
    torch.save(model.state_dict(), "mine.pt")
    result = explain(*own, "--weights", "mine.pt", "--image-size", 32)
    assert result.exit_code == 0, result.stderr
    result = explain(*own, "--weights", "mine.pt")
    assert result.exit_code == 2
    assert "--image-size: expected a size that explained_net:net takes, got 224: " in result.stderr


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("yolov3-tiny", None, {"num_classes": 80}),
        ("resnet50", None, {"num_classes": 1000, "small_images": False}),
        ("resnet20", None, {"num_classes": 10, "small_images": True}),
        ("resnet20", 96, {"num_classes": 10, "small_images": False}),
    ],
)
def test_a_model_of_random_weights_is_its_usual_one(name: str, size: int | None, expected: dict[str, Any]) -> None:
    opened = _opened(name, None, 0.25, {}, None, size)
    assert opened.task.spec.arguments == {"width": 0.25, **expected}
    assert opened.task.image_size == {"yolov3-tiny": 416, "resnet50": 224, "resnet20": 224 if size else 32}[name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "got neither"),
        (["--model", "alexnet"], "--model: expected one of yolov3"),
        ([*TINY, "--ratio", "100"], "--ratio: expected a percentage from 0 to below 100, got 100.0"),
        ([*TINY, "--width", "0"], "--width: expected a number above 0"),
        ([*TINY, "--image-size", "33"], "--image-size: expected a multiple of 32, got 33"),
        ([*TINY, "--threads", "0"], "--threads: expected a whole number from 1"),
        ([*TINY, "--runs", "1"], "--runs: expected at least 2"),
        ([*TINY, "--json", "."], "--json: expected a file to write, got a folder"),
        ([*TINY, "--json", f"{__file__}/why.json"], "test_explain.py is a file"),
        ([*TINY, "--weights", "none.weights"], "one, but there is no file none.weights"),
        ([*TINY, "--image-size", "0"], "--image-size: expected from 1 to 4096 pixels, got 0"),
        (["--model", "resnet20", "--weights", __file__], "test_explain.py is "),
        (["--model", "nowhere:net"], "--model: expected a module to import, got 'nowhere'"),
        (["--task", "classification"], "--task: expected with --model package.module:factory"),
        (["none.safetensors"], "there is no file none.safetensors"),
        (["none.safetensors", "--ratio", "90"], "got --ratio beside it"),
        ([__file__], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    result = explain(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_size_that_a_saved_file_cannot_take_is_bad_input(tmp_path: Path) -> None:
    prunekit.save(accelerated(BoundToSize()), tmp_path / "fast")
    for size, sentence in (
        ("64", "Expected sizes for which the captured graph holds"),
        ("0", "--image-size: expected from 1"),
    ):
        result = explain(tmp_path / "fast", "--image-size", size)
        assert result.exit_code == 2
        assert sentence in result.stderr


def test_help_has_examples() -> None:
    result = explain("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "prunekit explain --model yolov3-tiny" in result.stdout
