"""`prunekit run --conditions`: each model's figures corrupted, patched and under overload, in one row."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.evaluation.corruptions.summary import corrupted
from prunekit.evaluation.evaluate import Subject, evaluate
from prunekit.pipeline import RunFolder, SilentProgress, make_config, run
from prunekit.pipeline.checkpoint import find_checkpoint
from prunekit.report import write_report
from prunekit.task import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def choices(shapes_data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model": "yolov3-tiny", "width": 0.03, "weights": trained / "model.safetensors", "data": shapes_data,
        "out": tmp_path_factory.mktemp("runs") / "first", "ratios": (0, 90), "attack": "fgsm", "image_size": 64,
        "latency_runs": 3, "threads": 1, "conditions": "corruptions,patch,latency", "corruption_cells": "fog:1,fog:5",
        "patch_passes": 1, "score_threshold": 0.0017,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(choices: dict[str, Any]) -> RunFolder:
    return run(make_config(**choices))


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.results.open() as file:
        return [*csv.DictReader(file)]


def test_each_row_has_every_condition(folder: RunFolder, choices: dict[str, Any]) -> None:
    rows = rows_of(folder)
    assert [float(row["ratio"]) for row in rows] == [0, 90]
    for row in rows:
        for column in ("corrupted_ap", "unpatched_ap", "random_patch_ap", "patched_ap", "overload_ap"):
            assert 0 <= float(row[column]) <= 1
        assert float(row["overload_candidates_per_image"]) >= float(row["candidates_per_image"])
        steps = sum(float(row[f"ms_overload_{step}"]) for step in ("network", "decode", "nms"))
        assert float(row["ms_overload"]) == pytest.approx(steps)
        assert float(row["ms_deployed"]) > 0


def test_corrupted_is_the_mean_over_the_cells(folder: RunFolder, choices: dict[str, Any]) -> None:
    config = make_config(**choices)
    artifact = find_checkpoint(choices["weights"], None, ModelSpec("yolov3-tiny"))
    dataset = artifact.task.open_data(choices["data"], 64, False, None)
    config = config.updated(corruption_cells="fog:1,fog:5")
    subject = Subject(artifact.model, artifact.task, dataset, config, SilentProgress())
    found = [evaluate(corrupted(subject, cell), None).figures["ap"] for cell in config.cells]
    assert len(found) == 2
    assert float(rows_of(folder)[0]["corrupted_ap"]) == pytest.approx(sum(value or 0 for value in found) / 2, abs=1e-9)


def test_the_report_shows_them_on_one_table(folder: RunFolder) -> None:
    page = write_report(folder).read_text()
    table = re.search(r"<h3>What it meets in use</h3>(.*?)</table>", page, re.DOTALL)
    assert table is not None
    for heading in ("AP, clean", "corrupted", "random patch", "trained patch", "overload"):
        assert f"<th>{heading}</th>" in table[1]
    for row in rows_of(folder):
        assert f"<td>{float(row['ms_overload']):.2f}</td>" in table[1]
        assert f"<td>{float(row['patched_ap']):.3f}</td>" in table[1]
    assert "mean over fog:1,fog:5" in table[1]


def test_finished_conditions_are_not_repeated(
    folder: RunFolder, choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("done again")

    before = rows_of(folder)
    for unit in (folder.root / "units").glob("*.json"):
        unit.unlink()
    for name in ("write_cell", "write_patch", "_write_overload"):
        monkeypatch.setattr(f"prunekit.pipeline.conditions.{name}", refuse)
    run(make_config(**choices))
    timed = ("ms", "speedup", "layers")  # which may differ, as it is measured anew
    for row, earlier in zip(rows_of(folder), before, strict=True):
        same = [name for name in row if not any(word in name for word in timed)]
        assert [row[name] for name in same] == [earlier[name] for name in same]


def test_a_report_without_conditions_has_no_such_table(folder: RunFolder, choices: dict[str, Any]) -> None:
    plain = {**choices, "conditions": "", "out": folder.root.with_name("plain"), "ratios": (0,), "attack": "none"}
    assert make_config(**{**plain, "conditions": ()}).cells == ()
    found = run(make_config(**{**plain, "conditions": ()}))
    assert "What it meets in use" not in write_report(found).read_text()
    assert not {name for name in rows_of(found)[0] if name.startswith(("overload", "patched", "ms_"))}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"conditions": "rain"}, "--conditions: must be one of corruptions, patch, latency, got 'rain'"),
        ({"corruption_cells": "rain"}, "rain"),
        ({"conditions": "patch", "patch_goal": "zebra"}, "--patch-goal: expected one of vanish"),
    ],
)
def test_conditions_that_cannot_be_are_refused(
    choices: dict[str, Any], tmp_path: Path, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        run(make_config(**{**choices, **wrong, "out": tmp_path / "out"}))
