"""A run that drops filters reports the compacted model; `prunekit compact` makes one from runs, folders and files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import prunekit
from prunekit import cli
from prunekit.compaction import Certificate
from prunekit.console import compacted_table
from prunekit.detection import save_darknet_weights, yolov3_tiny
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, RunFolder, make_config, read_rows, run
from prunekit.pipeline.checkpoint import find_checkpoint, open_checkpoint, requested_spec
from prunekit.report import write_report
from prunekit.task import task_of
from tests.support.commands import succeed

WIDTH, SIZE = 0.06, 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = yolov3_tiny(6, WIDTH).eval()
    net.initialize()
    path = tmp_path_factory.mktemp("weights") / "net.weights"
    save_darknet_weights(net, path)
    return path


@pytest.fixture(scope="module")
def config(weights: Path, shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return make_config(
        model="yolov3-tiny",
        weights=weights,
        data=shapes_data,
        out=tmp_path_factory.mktemp("runs") / "filters",
        ratios=(0, 50),
        structure=("filter",),
        attack="none",
        width=WIDTH,
        image_size=SIZE,
        limit=2,
        latency_runs=3,
        threads=1,
    )


@pytest.fixture(scope="module")
def filter_run(config: RunConfig) -> RunFolder:
    return run(config)


def compact_command(source: Path, *options: object) -> Result:
    return CliRunner().invoke(cli.app, ["compact", str(source), *map(str, options)])


def test_the_table_has_the_compacted_model_beside_the_control(filter_run: RunFolder, config: RunConfig) -> None:
    dense, half = read_rows(filter_run.results)
    for name in ("latency_ms_compacted", "latency_ms_compacted_accelerated", "compacted_parameters", "compacted_macs"):
        assert dense[name] == ""  # nothing was dropped
        assert float(half[name]) > 0
    assert int(half["compacted_parameters"]) < int(half["parameters"])
    certificate = prunekit.load(filter_run.compacted(config.units[-1])).certificate
    assert isinstance(certificate, Certificate)
    assert int(half["compacted_macs"]) == certificate.macs_after < int(half["macs"])
    if certificate.multiple_of == 1:  # what is rounded up is masked and costs
        assert certificate.macs_after == int(half["kept_macs"])
        assert int(half["compacted_parameters"]) < 0.5 * int(half["parameters"])
    assert float(half["compacted_difference"]) <= 1e-10
    fastest = min(float(half["latency_ms_compacted"]), float(half["latency_ms_compacted_accelerated"]))
    assert float(half["compacted_speedup"]) == pytest.approx(float(half["latency_ms_control"]) / fastest)
    assert "compacted" in write_report(filter_run).read_text()
    table = compacted_table(read_rows(filter_run.results))
    assert table is not None
    assert table.row_count == 1
    assert compacted_table([dense]) is None


def test_the_compacted_model_of_a_unit_answers_as_the_masked_one(filter_run: RunFolder, config: RunConfig) -> None:
    unit = config.units[-1]
    small = prunekit.load(filter_run.compacted(unit))
    assert sum(p.numel() for p in small.parameters()) == int(read_rows(filter_run.results)[-1]["compacted_parameters"])
    assert not filter_run.compacted(config.units[0]).exists()


def test_a_run_s_unit_is_compacted_rounded_and_exported(filter_run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "small.prunekit"
    result = compact_command(
        filter_run.root, "--out", out, "--multiple-of", 2, "--export", "onnx", "--image-size", SIZE, "--threads", 1
    )
    assert result.exit_code == 0, result.stderr
    assert "channels removed" in result.stdout
    small = prunekit.load(out)
    widths = [len(m.weight) for n, m in small.named_modules() if isinstance(m, torch.nn.Conv2d) and "head" not in n]
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 96, 64)
    for a, b in zip(small(x), session.run(None, {session.get_inputs()[0].name: x.numpy()}), strict=True):
        assert torch.allclose(a, torch.from_numpy(b), rtol=1e-3, atol=1e-4)
    assert sum(width % 2 for width in widths) <= 1  # a layer that is odd may be whole


def test_units_that_nothing_was_dropped_from_are_found(config: RunConfig, weights: Path, tmp_path: Path) -> None:
    changes = {"pretrain_epochs": 1, "max_steps": 1, "train_data": config.data, "objective": "clean"}
    changes |= {"ratios": (0,), "finetune_epochs": 0, "weights": shutil.copy(weights, tmp_path / "net.weights")}
    folder = run(make_config(**{**config.model_dump(), **changes, "out": tmp_path / "run"}))
    assert [path.name.partition("-")[0] for path in (folder.root / "stages").iterdir()] == ["pretrain"]
    (pretrained,) = folder.root.glob("stages/*/model.safetensors")
    for unit, source in (("as_given", weights), ("ratio_0", pretrained)):
        task = task_of(requested_spec("yolov3-tiny", WIDTH).updated(num_classes=6))
        expected = open_checkpoint(source, task).model.state_dict()
        found = find_checkpoint(folder.root, unit)
        assert found.masks is None
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    (tmp_path / "net.weights").unlink()
    with pytest.raises(InputError, match=r"Expected the model of as_given at .*net\.weights, got none"):
        find_checkpoint(folder.root, "as_given")
    (tmp_path / "net.weights").write_bytes(b"others")
    with pytest.raises(InputError, match="got another file"):
        find_checkpoint(folder.root, "as_given")
    assert run(make_config(**{**config.model_dump(), **changes, "weights": weights, "out": tmp_path / "run"}))


def test_a_stage_s_folder_and_a_darknet_file_are_compacted(weights: Path, shapes_data: Path, tmp_path: Path) -> None:
    named = {"model": "yolov3-tiny", "width": WIDTH, "image-size": SIZE, "threads": 1, "data": shapes_data}
    succeed("prune", named | {"weights": weights, "structure": "filter", "ratio": 40, "out": tmp_path / "pruned"})
    for source, options in (
        (tmp_path / "pruned", []),
        (weights, ["--model", "yolov3-tiny", "--width", WIDTH, "--num-classes", 6]),
    ):
        out = tmp_path / "small.prunekit"
        shared = ["--multiple-of", 1, "--image-size", SIZE, "--threads", 1]
        result = compact_command(source, "--out", out, *shared, *options)
        assert result.exit_code == 0, result.stderr
        assert len(prunekit.load(out)(torch.rand(1, 3, SIZE, SIZE))) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--unit", "ratio_99"], "--unit: expected one of filter-scaled-one-shot-ratio_50"),
        (["--multiple-of", 0], "--multiple-of: expected a whole number of at least 1"),
        (["--export", "tflite"], "--export: expected one of onnx, torch"),
        (["--image-size", 63], "--image-size: expected a multiple of 32"),
        (["--model", "yolov9"], "--model: expected one of"),
    ],
)
def test_bad_input_is_one_sentence(filter_run: RunFolder, tmp_path: Path, options: list[object], sentence: str) -> None:
    result = compact_command(filter_run.root, "--out", tmp_path / "small.prunekit", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr.replace("\n", " ")
    assert result.stderr.count("Error") == 1
    assert not (tmp_path / "small.prunekit").exists()


def test_a_source_that_is_no_detector_is_refused(tmp_path: Path, weights: Path) -> None:
    for source, sentence in (
        (tmp_path, "to be a run folder or a stage's"),
        (tmp_path / "none.weights", "one, but there is no file "),
        (weights, "--model:"),
    ):
        result = compact_command(source, "--out", tmp_path / "small.prunekit")
        assert result.exit_code == 2
        assert sentence in result.stderr
