"""--config: what a run wrote is read again, typed options win, and a file that is wrong is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit.pipeline import RunConfig, RunFolder
from tests.support.commands import Options, invoke, succeed, tree

pytestmark = pytest.mark.usefixtures("one_thread")


def _times(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (root / "units").iterdir()}


def test_a_run_is_found_again_by_what_it_wrote(shapes_run: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(shapes_run.root, copy)
    before, written = _times(copy), (copy / "config.yaml").read_text()
    result = succeed("run", {"config": copy / "config.yaml", "out": copy})
    assert _times(copy) == before
    assert result.stderr.count("finished earlier") == 3
    assert (copy / "config.yaml").read_text() == written.replace(str(shapes_run.root), str(copy))


def test_typed_options_win_over_the_file(shapes_run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "other"
    typed = {"ratios": "0", "attack": "none", "finetune-epochs": 3, "score-optimizer": "adamw"}
    succeed("run", {"config": shapes_run.root / "config.yaml", "out": out} | typed)
    before, after = (yaml.safe_load((root / "config.yaml").read_text()) for root in (shapes_run.root, out))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"out", "ratios", "attack", "finetune", "optimize"}
    assert after["finetune"] == before["finetune"] | {"epochs": 3}
    assert after["optimize"] == before["optimize"] | {
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "weight_decay": 0.0,
    }
    assert before["threads"] == 1


def test_the_same_options_without_the_file_are_the_same_run(
    shapes_run: RunFolder, shapes_config: RunConfig, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(shapes_run.root, copy)
    before = _times(copy)
    names = ("model", "weights", "data", "width", "image_size", "latency_runs", "threads")
    options: Options = {name.replace("_", "-"): getattr(shapes_config, name) for name in names}
    succeed("run", options | {"ratios": "0,50,90", "out": copy})
    assert _times(copy) == before


def test_training_writes_what_it_reads(options: dict[str, Options], tmp_path: Path) -> None:
    first = Path(options["train"]["out"])
    succeed("train", options["train"] | {"learning-rate": 0.002})
    second = tmp_path / "second"
    succeed("train", {"config": first / "config.yaml", "out": second})
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert "Finished earlier" in succeed("train", {"config": first / "config.yaml"}).stdout
    refused = invoke("train", {"config": first / "config.yaml", "learning-rate": 0.003})
    assert refused.exit_code == 2
    assert "config.training.learning_rate: 0.002 there, 0.003 now" in refused.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a file that can be read"),
        ("a: [", "is no YAML"),
        ("- a", "got list"),
        ("epochz: 3", "Expected no setting epochz, got 3"),
        ("pretrain: {epochz: 3}", "Expected no setting pretrain.epochz, got 3"),
        ("pretrain: {epochs: many}", "pretrain.epochs: input should be a valid integer"),
        ("pretrain: {epochs: 0}", "pretrain.epochs: input should be greater than or equal to 1, got 0"),
        ("seed: some", "--seed: input should be a valid integer"),
        ("ratios: [0]", "Expected no setting ratios"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_nothing_is_written(
    options: dict[str, Options], tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "wrong.yaml").write_text(content)
    out = Path(options["train"]["out"])
    result = invoke("train", options["train"] | {"config": tmp_path / "wrong.yaml"})
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    assert words in lines[0]
    assert result.stdout.strip() == ""
    assert tree(out) == {}
    assert not out.is_dir()


def test_what_the_file_lacks_must_be_typed(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("model: yolov3-tiny\nout: o\n")
    result = invoke("run", {"config": tmp_path / "part.yaml", "data": tmp_path})
    assert result.exit_code == 2
    assert "--weights" in result.stderr


def test_a_typed_option_that_is_wrong_is_named_beside_a_file(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("pretrain: {epochs: 2, learning_rate: 1e-3}\n")
    result = invoke("train", options["train"] | {"config": tmp_path / "good.yaml", "epochs": 0})
    assert "Error: --epochs: input should be greater than or equal to 1, got 0." in result.stderr
