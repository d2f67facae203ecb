"""`prunekit bench`: rows, plots, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from prunekit import cli
from prunekit.benchmark import Row, Settings, append_rows, read_rows, run_bench
from prunekit.benchmark.plot import draw, write_plot
from prunekit.benchmark.summary import curves, table
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress

TINY = ["--models", "yolov3-tiny", "--width", "0.05", "--image-size", "32", "--peers", "eager", "--runs", "2"]


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return rows of one small net at three ratios."""
    settings = Settings(
        "end-to-end", ("yolov3-tiny",), (1,), (0.0, 50.0, 90.0), ("eager",), runs=2, width=0.05, image_size=32
    )
    return run_bench(settings, None, SilentProgress())


def test_rows_go_to_standard_output_and_nothing_else_does() -> None:
    result = bench("end-to-end", *TINY, "--threads", 1, "--ratios", "90")
    assert result.exit_code == 0, result.stderr
    labels = [json.loads(line)["competitor"] for line in result.stdout.splitlines()]
    assert labels == ["torch eager", "torch eager, pruned", "prunekit"]


def test_quick_is_three_ratios_and_fewer_calls_and_the_file_is_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    command = ["end-to-end", *TINY[:-2], "--threads", 1, "--quick", "--out", out]
    first = bench(*command)
    assert first.exit_code == 0, first.stderr
    assert "prunekit, 99 %" in first.stdout
    assert [(row.ratio, row.runs) for row in read_rows(out) if row.kind == "prunekit"] == [(50, 6), (90, 6), (99, 6)]
    content = out.read_bytes()
    second = bench(*command)
    assert "not again" in second.stderr
    assert second.stdout == first.stdout
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--models", "yolov9"],
            "--models: expected some of yolov3, yolov3-tiny, yolov3-spp, resnet50, vgg16, mobilenetv2, got",
        ),
        (["--ratios", "50,100"], "--ratios: expected percentages from 0 to below 100, got 100.0"),
        (["--ratios", "-1"], "--ratios: expected percentages from 0 to below 100, got -1.0"),
        (["--ratios", "nan"], "--ratios: expected percentages from 0 to below 100, got nan"),
        (["--ratios", "half"], "--ratios: expected numbers separated by commas, got 'half'"),
        (["--threads", "0"], "--threads: expected whole numbers from 1 to 1024, got 0"),
        (["--threads", "1.5"], "--threads: expected numbers separated by commas, got '1.5'"),
        (
            ["--peers", "tvm"],
            "--peers: expected some of eager, folded, compile, onnxruntime, openvino, compile-bf16, "
            "openvino-bf16, onnxruntime-int8, openvino-int8, got 'tvm'",
        ),
        (["--runs", "1"], "--runs: expected at least 2, got 1"),
        (["--width", "0"], "--width: expected a number above 0, at most 4, got 0.0"),
        (["--image-size", "8"], "--image-size: expected a multiple of 32 pixels up to 4096, got 8"),
        (["--image-size", "40"], "--image-size: expected a multiple of 32 pixels up to 4096, got 40"),
    ],
)
@pytest.mark.parametrize("question", ["end-to-end", "layers"])
def test_bad_input_is_one_sentence(question: str, arguments: list[str], sentence: str) -> None:
    result = bench(question, *TINY, *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_memory_is_of_whole_nets() -> None:
    result = bench("layers", *TINY, "--memory")
    assert result.exit_code == 2
    assert "--memory: expected with whole nets (end-to-end), got with layers." in result.stderr


def test_a_folder_or_a_foreign_file_as_output_is_bad_input(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"name": "someone else"}\n')
    for out, sentence in ((tmp_path, "got a folder"), (foreign, "line 1: expected a row of prunekit bench")):
        result = bench("end-to-end", *TINY, "--out", out)
        assert result.exit_code == 2
        assert sentence in result.stderr
    assert foreign.read_text() == '{"name": "someone else"}\n'


def test_plots_are_pictures_with_something_in_them(rows: list[Row], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, rows)
    result = bench("plot", file, "--out", tmp_path / "speedup.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "speedup.png") as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("L")).std() > 10
    assert bench("plot", file, "--out", tmp_path / "speedup.svg").exit_code == 0
    assert ElementTree.parse(tmp_path / "speedup.svg").getroot().tag.endswith("svg")


def test_the_plot_shows_measurement_limit_and_bound(rows: list[Row]) -> None:
    figure = draw(curves(rows))
    (axes,) = figure.axes
    (measured,) = [line for line in axes.lines if str(line.get_label()).startswith("prunekit")]
    figures = {row.ratio: row for row in rows if row.kind == "prunekit"}
    np.testing.assert_allclose(np.asarray(measured.get_ydata()), [figures[r].speedup for r in (0, 50, 90)])
    bounds = [row.fastest_dense_ms / row.bound_ms for row in figures.values()]
    assert any(np.allclose(np.asarray(line.get_ydata()), bounds) for line in axes.lines if line.get_linestyle() == ":")
    (limit,) = [line for line in axes.lines if line.get_label() == "1 / (1 − sparsity)"]
    assert np.asarray(limit.get_ydata())[[0, -1]] == pytest.approx([1, 10])
    assert axes.get_yscale() == "log"
    shown = figure.get_suptitle()
    assert rows[0].cpu in shown
    assert rows[0].date[:10] in shown
    assert "1 thread" in shown


def test_layers_and_nets_are_two_panels(rows: list[Row]) -> None:
    layers = [row.model_copy(update={"question": "layers", "layer": "a layer", "count": 2}) for row in rows]
    both = curves([*rows, *layers])
    assert len(draw(both).axes) == 2
    titles = [str(table(curve).title) for curve in both]
    assert "32×32" in titles[0]
    assert "2 convolutions of 1 shape," in titles[1]


def test_what_cannot_be_drawn_is_bad_input(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png or \.svg, got 'speedup\.txt'"):
        write_plot(rows, tmp_path / "speedup.txt")
    with pytest.raises(InputError, match="got none"):
        write_plot([row for row in rows if row.kind == "peer"], tmp_path / "speedup.png")
    assert list(tmp_path.iterdir()) == []
    missing = bench("plot", tmp_path / "no.jsonl", "--out", tmp_path / "speedup.png")
    assert missing.exit_code == 2
    assert "got nothing at" in missing.stderr


@pytest.mark.parametrize("question", ["end-to-end", "layers", "plot"])
def test_help_has_examples(question: str) -> None:
    result = bench(question, "--help")
    assert result.exit_code == 0
    assert f"prunekit bench {question} " in result.stdout
    assert "Examples:" in result.stdout
