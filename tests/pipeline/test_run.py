"""The main job from end to end on a detector that has learnt eight images; killed, resumed, and refused."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.detection import MODELS, load_darknet_weights
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, RunFolder, make_config, read_rows, run
from prunekit.pipeline.store import LOCK
from prunekit.prune import load_masks, sparsity
from tests.support.run_columns import AP_COLUMNS, COLUMNS

STEM = "unstructured-scaled-one-shot-ratio_"


def _with(config: RunConfig, **changes: Any) -> RunConfig:
    return make_config(**{**config.model_dump(), **changes})


def _precision(folder: RunFolder) -> list[dict[str, str]]:
    return [{name: row[name] for name in AP_COLUMNS} for row in read_rows(folder.results)]


@pytest.fixture
def copied_run(shapes_run: RunFolder, shapes_config: RunConfig, tmp_path: Path) -> RunConfig:
    """The configuration of a copy of the finished run, for tests that change it."""
    shutil.copytree(shapes_run.root, tmp_path / "copy")
    return _with(shapes_config, out=tmp_path / "copy")


def _unit_times(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (root / "units").iterdir()}


def test_the_table_has_a_row_per_ratio_and_the_promised_columns(shapes_run: RunFolder) -> None:
    rows = read_rows(shapes_run.results)
    assert [float(row["ratio"]) for row in rows] == [0, 50, 90]
    precision = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}
    promised = {"ratio", "parameters", "nonzero_parameters", "latency_ms_control", "latency_ms"}
    promised |= precision | {f"attacked_{name}" for name in precision}
    assert promised <= rows[0].keys()


def test_numbers_behave_as_pruning_and_attack_do(shapes_run: RunFolder) -> None:
    dense, half, most = read_rows(shapes_run.results)
    assert float(dense["ap50"]) > 0.8
    assert float(dense["ap"]) >= float(half["ap"]) >= float(most["ap"])
    assert float(dense["attacked_ap"]) < float(dense["ap"])
    assert [float(row["sparsity"]) for row in (dense, half, most)] == pytest.approx([0, 0.5, 0.9], abs=1e-3)
    assert int(dense["parameters"]) == int(most["parameters"]) > int(most["nonzero_parameters"])
    for row in (dense, half, most):
        control, fast = float(row["latency_ms_control"]), float(row["latency_ms"])
        assert 0 < fast <= float(row["latency_ms_p90"]) <= float(row["latency_ms_p99"])
        assert float(row["speedup"]) == pytest.approx(control / fast)


def test_masks_are_those_of_the_ratio(shapes_run: RunFolder, shapes_config: RunConfig) -> None:
    model = MODELS["yolov3-tiny"](num_classes=6, width=shapes_config.width)
    load_darknet_weights(model, str(shapes_config.weights))
    masks = [load_masks(shapes_run.masks(unit), model) for unit in shapes_config.units]
    assert [sparsity(mask) for mask in masks] == pytest.approx([0, 0.5, 0.9], abs=1e-3)
    assert not any((masks[2][name] & ~masks[1][name]).any() for name in masks[1])


def detections(folder: RunFolder, stem: str, attacked: bool, suffix: str) -> Path:
    path = folder.predictions(stem, attacked)
    return path.with_name(f"{path.name}.{suffix}")


def test_the_columns_of_a_detectors_table_are_the_ones_that_scripts_read(shapes_run: RunFolder) -> None:
    assert tuple(shapes_run.results.read_text().splitlines()[0].split(",")) == COLUMNS


def test_detections_are_written_for_people_and_for_coco(shapes_run: RunFolder) -> None:
    for stem in ("ratio_0", f"{STEM}50", f"{STEM}90"):
        for attacked in (False, True):
            results = json.loads(detections(shapes_run, stem, attacked, "json").read_text())
            with detections(shapes_run, stem, attacked, "csv").open(newline="") as file:
                assert len(list(csv.DictReader(file))) == len(results)
    clean = json.loads(detections(shapes_run, "ratio_0", False, "json").read_text())
    assert {result["image_id"] for result in clean} <= set(range(1, 9))
    assert max(result["score"] for result in clean) > 0.5


def test_the_environment_says_what_the_numbers_were_measured_on(shapes_run: RunFolder) -> None:
    environment = shapes_run.read_json("environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert environment["processor"]["name"]
    assert isinstance(environment["native_kernels"]["available"], bool)


def test_the_attack_can_be_left_out(shapes_config: RunConfig, tmp_path: Path) -> None:
    folder = run(_with(shapes_config, attack="none", ratios=(0,), limit=2, out=tmp_path / "clean"))
    (row,) = read_rows(folder.results)
    assert row["attacked_ap"] == ""
    assert (row["attack"], row["images"]) == ("none", "2")
    assert not detections(folder, "ratio_0", True, "json").exists()


def test_a_finished_run_is_not_done_again(copied_run: RunConfig) -> None:
    before = _unit_times(copied_run.out)
    run(copied_run)
    assert _unit_times(copied_run.out) == before


def test_more_ratios_reuse_the_finished_ones(copied_run: RunConfig) -> None:
    before = _unit_times(copied_run.out)
    folder = run(_with(copied_run, ratios=(0, 25, 50)))
    after = _unit_times(copied_run.out)
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {f"{STEM}25.json"}
    assert [float(row["ratio"]) for row in read_rows(folder.results)] == [0, 25, 50]


@pytest.mark.parametrize("lost", [f"units/{STEM}50.json", f"masks/{STEM}50.safetensors", f"detections/{STEM}50.csv"])
def test_a_ratio_that_lost_a_file_is_done_again_with_the_same_result(
    copied_run: RunConfig, shapes_run: RunFolder, lost: str
) -> None:
    (copied_run.out / lost).unlink()
    before = _unit_times(shapes_run.root)
    folder = run(copied_run)
    assert (copied_run.out / lost).is_file()
    redone = [name for name, at in _unit_times(copied_run.out).items() if at != before[name]]
    assert redone == [f"{STEM}50.json"]
    assert _precision(folder) == _precision(shapes_run)


@pytest.mark.parametrize("content", ["", "{}", '{"key": "another", "files": [], "row": {}}'])
def test_a_damaged_or_foreign_unit_is_no_result(copied_run: RunConfig, shapes_run: RunFolder, content: str) -> None:
    (copied_run.out / "units" / "ratio_0.json").write_text(content)
    assert _precision(run(copied_run)) == _precision(shapes_run)


def test_a_killed_run_goes_on_where_it_stopped(shapes_config: RunConfig, shapes_run: RunFolder, tmp_path: Path) -> None:
    config = _with(shapes_config, out=tmp_path / "killed")
    finished_one = config.out / "units" / "ratio_0.json"
    program = (
        "import json, sys; from prunekit.pipeline import make_config, run; run(make_config(**json.loads(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, config.model_dump_json()], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while not finished_one.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = _unit_times(config.out)
    assert "ratio_0.json" in before
    assert len(before) < 3
    for leftover in (".ratio_50.0123abcd.safetensors", ".tmpKeSwDo"):  # as a kill in the middle of a write leaves
        (config.out / "masks" / leftover).touch()

    folder = run(config)

    assert _unit_times(config.out).items() >= before.items()
    assert _precision(folder) == _precision(shapes_run)
    names = {path.relative_to(config.out) for path in config.out.rglob("*")}
    assert names == {path.relative_to(shapes_run.root) for path in shapes_run.root.rglob("*")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "global"}, r"another configuration \(scope: 'layer' there, 'global' now\)"),
        ({"limit": 4}, r"\(limit: None there, 4 now\); choose another folder"),
        ({"seed": 9}, r"\(seed: 0 there, 9 now\)"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    copied_run: RunConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(_with(copied_run, **change))


def test_a_folder_of_other_weights_is_refused(copied_run: RunConfig, tmp_path: Path) -> None:
    content = bytearray(Path(str(copied_run.weights)).read_bytes())
    content[-1] ^= 1
    (tmp_path / "other.weights").write_bytes(content)
    with pytest.raises(InputError, match=r"a run on other weights \(weights_sha256"):
        run(_with(copied_run, weights=tmp_path / "other.weights"))


def test_a_folder_of_other_data_is_refused(copied_run: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(copied_run.data, tmp_path / "data")
    annotations = tmp_path / "data" / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match="a run on other data"):
        run(_with(copied_run, data=tmp_path / "data"))


def test_data_and_weights_may_move(copied_run: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(copied_run.data, tmp_path / "data")
    shutil.copy(str(copied_run.weights), tmp_path / "moved.weights")
    before = _unit_times(copied_run.out)
    run(_with(copied_run, data=tmp_path / "data", weights=tmp_path / "moved.weights"))
    assert _unit_times(copied_run.out) == before


def test_a_folder_in_use_is_refused(copied_run: RunConfig) -> None:
    with (copied_run.out / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            run(copied_run)


@pytest.mark.parametrize("kind", ["a file", "other files"])
def test_an_out_that_is_not_ours_is_refused_and_left_alone(shapes_config: RunConfig, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    theirs = out if kind == "a file" else out / "thesis.tex"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("precious")
    with pytest.raises(InputError, match="--out: expected a"):
        run(_with(shapes_config, out=out))
    assert theirs.read_text() == "precious"
    assert list(tmp_path.rglob("*")) == ([out] if kind == "a file" else [out, theirs])
