"""The command line: bad input ends in one sentence and exit code 2, long before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prunekit import cli, doctor
from prunekit.attacks import GradientError
from prunekit.demo import DemoConfig, prepare_demo, run_demo
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, SilentProgress, read_rows

Options = dict[str, Any]


def _invoke(options: Options, *flags: str) -> Result:
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return CliRunner().invoke(cli.app, ["run", *arguments, *flags])


@pytest.fixture
def options(shapes_config: RunConfig, tmp_path: Path) -> Options:
    """A command that works; its data and weights are copies that a test may damage."""
    shutil.copytree(shapes_config.data, tmp_path / "data")
    shutil.copy(str(shapes_config.weights), tmp_path / "net.weights")
    return {
        "model": "yolov3-tiny",
        "weights": tmp_path / "net.weights",
        "data": tmp_path / "data",
        "out": tmp_path / "out",
        "ratios": "0,90",
        "width": shapes_config.width,
        "image-size": shapes_config.image_size,
        "latency-runs": 3,
        "threads": 1,
    }


def _change(**changes: Any) -> Callable[[Options], None]:
    return lambda options: options.update({name.replace("_", "-"): value for name, value in changes.items()})


def _annotations(options: Options) -> Path:
    return Path(options["data"]) / "annotations" / "instances_train.json"


def _without_categories(options: Options) -> None:
    content = json.loads(_annotations(options).read_text())
    del content["categories"]
    _annotations(options).write_text(json.dumps(content))


def _malformed_json(options: Options) -> None:
    _annotations(options).write_text('{"images": [')


def _truncated_weights(options: Options) -> None:
    weights = Path(options["weights"])
    weights.write_bytes(weights.read_bytes()[:-400])


def _image(options: Options) -> Path:
    return Path(options["data"]) / "train" / "000003.jpg"


def _no_image_at_all(options: Options) -> None:
    _image(options).write_bytes(b"no image")


def _half_an_image(options: Options) -> None:
    _image(options).write_bytes(_image(options).read_bytes()[:900])


def _a_missing_image(options: Options) -> None:
    _image(options).unlink()


def _out_is_a_file(options: Options) -> None:
    Path(options["out"]).write_text("")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_change(weights="nowhere.weights"), "nowhere.weights"),
        (_change(weights="."), ". is a folder"),
        (_change(data="nowhere"), "nowhere does not exist"),
        (_change(model="yolov3"), "floats for yolov3"),
        (_change(model="yolo"), "--model"),
        (_change(width=0.5), "floats"),
        (_change(ratios="0,100"), "--ratios: each ratio must be at least 0 and below 100 percent, got 100"),
        (_change(ratios="-1"), "--ratios: each ratio must be at least 0 and below 100 percent, got -1"),
        (_change(ratios="many"), "--ratios"),
        (_change(scores="l1"), "--scores"),
        (_change(structure="filters"), "--structure"),
        (_change(attack="brute"), "--attack"),
        (_change(image_size=100), "--image-size"),
        (_truncated_weights, "net.weights"),
        (_without_categories, "categories"),
        (_malformed_json, "instances_train.json"),
        (_no_image_at_all, "000003.jpg"),
        (_half_an_image, "000003.jpg"),
        (_a_missing_image, "000003.jpg"),
        (_out_is_a_file, "is a file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    options: Options, spoil: Callable[[Options], None], words: str
) -> None:
    spoil(options)
    result = _invoke(options)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    assert words in lines[0]
    assert result.stdout == ""
    assert not Path(options["out"]).is_dir()


def test_a_missing_option_is_exit_code_2_too(options: Options) -> None:
    del options["weights"]
    result = _invoke(options)
    assert result.exit_code == 2
    assert "--weights" in result.stderr


def test_verbose_shows_the_traceback(options: Options) -> None:
    options["weights"] = "nowhere.weights"
    assert "Traceback" not in _invoke(options).stderr
    result = _invoke(options, "-v")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (KeyboardInterrupt(), 130, "same command again"),
        (RuntimeError("[odd] thing"), 1, "RuntimeError: [odd] thing"),
        (GradientError("no slope"), 1, "Error: no slope."),
        (InputError("expected more"), 2, "Error: expected more."),
    ],
)
def test_each_kind_of_end_has_its_exit_code(
    options: Options, monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli.run_commands, "run", fail)
    result = _invoke(options)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_ends_with_a_table_and_a_report(options: Options) -> None:
    result = _invoke(options)
    assert result.exit_code == 0, result.stderr
    assert "90 %" in result.stdout
    out = Path(options["out"])
    assert str(out / "report.html") in result.stdout
    assert [float(row["ratio"]) for row in read_rows(out / "results.csv")] == [0, 90]
    assert (out / "report.html").is_file()
    plots = {path.name for path in (out / "plots").iterdir()}
    assert plots == {"average_precision.png", "latency.png", "tradeoff.png"}

    other = _invoke(options | {"scope": "global"})
    assert other.exit_code == 2
    assert "scope: 'layer' there, 'global' now" in other.stderr


def test_help_gives_examples() -> None:
    result = CliRunner().invoke(cli.app, ["run", "--help"])
    assert result.exit_code == 0
    assert "prunekit run --model yolov3-tiny" in result.stdout


def test_doctor_reports_and_succeeds() -> None:
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 0
    for word in (
        "torch",
        "triton",
        "captum",
        "pycocotools",
        "processor",
        "native CPU kernels",
        "CUDA",
        "sparse convolutions on a GPU",
        "nvcc",
    ):
        assert word in result.stdout


def test_doctor_fails_when_something_required_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no_such_package"))
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "no_such_package" in result.stdout


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    out = tmp_path_factory.mktemp("demos") / "demo"
    config = DemoConfig(out, num_train=8, num_val=4, image_size=64, width=0.03, epochs=1, ratios=(0, 50))
    with thread_count(1):
        run_demo(config, SilentProgress())
    return config


def test_the_demo_renders_trains_and_runs(small_demo: DemoConfig) -> None:
    run_folder = small_demo.out / "run"
    rows = read_rows(run_folder / "results.csv")
    variants = [(row["structure"], float(row["ratio"])) for row in rows]
    assert variants == [("none", 0), ("unstructured", 0), ("unstructured", 50), ("filter", 0), ("filter", 50)]
    assert {row["images"] for row in rows} == {"4"}
    assert (run_folder / "report.html").is_file()


def test_the_demo_goes_on_where_it_stopped(small_demo: DemoConfig) -> None:
    def times() -> list[int]:
        kept = [small_demo.weights, *(small_demo.out / "data").rglob("*.jpg"), *small_demo.out.rglob("units/*")]
        return [path.stat().st_mtime_ns for path in kept]

    before = times()
    run_demo(small_demo, SilentProgress())
    assert times() == before


def test_a_demo_that_was_killed_while_it_claimed_its_folder_can_be_given_again(tmp_path: Path) -> None:
    (tmp_path / ".demo.01234567.json").write_text("{")
    prepare_demo(DemoConfig(tmp_path, num_train=4, num_val=4, image_size=64, width=0.02, epochs=1), SilentProgress())
    assert (tmp_path / "demo.json").is_file()


def test_the_demo_refuses_a_folder_of_another(small_demo: DemoConfig, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(small_demo.out)])
    assert result.exit_code == 2
    assert "other settings" in result.stderr
    (tmp_path / "thesis.tex").write_text("")
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "other files" in result.stderr


def test_a_demo_whose_settings_are_damaged_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "Expected readable JSON" in result.stderr
