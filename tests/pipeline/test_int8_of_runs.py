"""A run that deploys in int8 too: its columns, its page, and what it is calibrated on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit.evaluation.latency as latency_module
import prunekit.pipeline.overload as overload_module
from prunekit.detection import CocoDataset
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.corruptions.catalog import Cell
from prunekit.evaluation.corruptions.summary import corrupted
from prunekit.evaluation.evaluate import Subject, evaluate
from prunekit.evaluation.overload import candidate_counts
from prunekit.nn import AccelerationReport
from prunekit.nn.saving import load
from prunekit.ops import native
from prunekit.pipeline import RunFolder, SilentProgress, make_config, read_rows, run
from prunekit.pipeline.int8 import calibration_images, int8_columns, read_int8, write_int8
from prunekit.pipeline.overload import IMAGES, read_images
from prunekit.pipeline.store import WorkStore
from prunekit.report import write_report
from tests.support.int8_everywhere import accelerate_in_int8

GOOD = {"model": "yolov3-tiny", "weights": "tiny.weights", "data": "coco", "out": "run", "train_data": "coco"}


class Numbered:
    """Training data whose images are their own numbers."""

    def __len__(self) -> int:
        return 50

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, None]]:
        for i in order:
            yield torch.full((1, 3, 2, 2), i, dtype=torch.uint8), None


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 49]), (50, list(range(50))), (200, list(range(50)))])
def test_calibration_images_come_from_all_over_the_data(count: int, expected: list[int]) -> None:
    found = [round(float(image[0, 0, 0, 0]) * 255) for image in calibration_images(Numbered(), count, 0)]
    assert found == expected


def test_int8_needs_images_to_calibrate_on() -> None:
    with pytest.raises(InputError, match="--precision int8 needs images to learn from: add --train-data"):
        make_config(**{**GOOD, "train_data": None}, precision="float32,int8")
    with pytest.raises(InputError, match="--precision: must be one of float32, int8, got 'int4'"):
        make_config(**GOOD, precision="int4")


@pytest.fixture(scope="module")
def choices(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model": "yolov3-tiny", "width": 0.03, "data": shapes_data, "train_data": shapes_data, "image_size": 64,
        "out": tmp_path_factory.mktemp("int8") / "run", "ratios": "0,60", "structure": "filter", "objective": "clean",
        "pretrain_epochs": 1, "finetune_epochs": 0, "max_steps": 1, "attack": "fgsm", "latency_runs": 3, "threads": 1,
        "precision": "float32,int8", "calibration_images": 2, "conditions": "corruptions,patch,latency",
        "corruption_cells": "fog:1", "patch_passes": 1, "score_threshold": 0.0017, "limit": 8,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(choices: dict[str, Any]) -> Iterator[RunFolder]:
    """A run that takes int8 wherever it is possible, and tunes nothing."""
    if not native.is_available():
        pytest.skip("no native kernels")
    with pytest.MonkeyPatch.context() as patch, thread_count(1):
        for module in (latency_module, overload_module):
            patch.setattr(module, "accelerate", accelerate_in_int8)
        yield run(make_config(**choices))


def test_a_run_evaluates_and_times_what_it_deploys_in_int8(folder: RunFolder) -> None:
    rows = read_rows(folder.results)
    assert len(rows) == 2
    for row in rows:
        assert float(row["int8_latency_ms"]) > 0
        assert int(row["int8_layers"]) > 5
        assert 0 < float(row["int8_relative_rms"]) < 1
        assert 0 <= float(row["int8_ap"]) <= 1
        assert 0 <= float(row["int8_attacked_ap"]) <= 1
    report = json.loads(next((folder.root / "acceleration").glob("*-int8.json")).read_text())
    assert "calibrated on 2 inputs" in " ".join(report["notes"])
    page = write_report(folder).read_text()
    assert "In int8" in page
    assert "What to deploy" in page


def test_what_it_deploys_in_int8_meets_every_condition(folder: RunFolder) -> None:
    for row in read_rows(folder.results):
        for kind in ("corrupted", "unpatched", "random_patch", "patched", "overload"):
            assert 0 <= float(row[f"int8_{kind}_ap"]) <= 1
        assert float(row["int8_overload_candidates_per_image"]) >= 0
        steps = sum(float(row[f"int8_ms_overload_{step}"]) for step in ("network", "decode", "nms"))
        assert float(row["int8_ms_overload"]) == pytest.approx(steps)
        assert float(row["int8_ms_deployed"]) > 0


def test_it_sees_the_images_that_its_float32_model_was_attacked_by(folder: RunFolder) -> None:
    seen: dict[str, dict[bool, Mapping[str, Tensor]]] = {}
    for stage in (folder.root / "stages").glob("overload-*"):
        inputs = json.loads((stage / "done.json").read_text())["inputs"]
        seen.setdefault(inputs["model"], {})["deployed" in inputs] = read_images(stage / IMAGES)
    assert len(seen) == 2
    for of_float32, of_int8 in ((found[False], found[True]) for found in seen.values()):
        assert torch.equal(of_float32["clean"], of_int8["clean"])
        assert torch.equal(of_float32["attacked"], of_int8["attacked"])
        assert not torch.equal(of_int8["clean"], of_int8["attacked"])


def test_its_figures_are_those_of_the_kept_model(folder: RunFolder, choices: dict[str, Any]) -> None:
    models = [*(folder.root / "stages").glob("int8-*/model.safetensors")]
    assert len(models) == 2
    task, config = folder.task(), make_config(**choices)
    dataset = CocoDataset.open(choices["data"], 64, limit=choices["limit"])
    kept = {json.loads(path.with_name("done.json").read_text())["result"]["relative_rms"]: path for path in models}
    for row in read_rows(folder.results):
        model = load(kept[float(row["int8_relative_rms"])])
        subject = Subject(model, task.for_data(dataset), dataset, config, SilentProgress())
        found = evaluate(corrupted(subject, Cell("fog", 1)), None).figures["ap"]
        assert float(row["int8_corrupted_ap"]) == pytest.approx(found or 0, abs=1e-9)
        outputs = (model(batch.images) for batch in subject.batches(""))
        counts = [*chain(*(candidate_counts(subject.task, batch, config) for batch in outputs))]
        assert float(row["int8_candidates_per_image"]) == pytest.approx(sum(counts) / len(counts), abs=1e-9)


def test_the_page_has_a_line_for_each_model_in_int8(folder: RunFolder) -> None:
    page = write_report(folder).read_text()
    table = re.search(r"<h3>What it meets in use</h3>(.*?)</table>", page, re.DOTALL)
    assert table is not None
    lines = re.findall(r"<tr><td>([^<]*)</td>(.*?)</tr>", table[1])
    assert [name.endswith(", int8") for name, _ in lines] == [False, True, False, True]
    for (_, cells), row in zip(lines[1::2], read_rows(folder.results), strict=True):
        assert f"<td>{float(row['int8_patched_ap']):.3f}</td>" in cells
        assert cells.endswith(f"<td>{float(row['int8_ms_overload']):.2f}</td>")


def test_finished_work_on_models_in_int8_is_not_repeated(
    folder: RunFolder, choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("done again")

    before = read_rows(folder.results)
    for unit in (folder.root / "units").glob("*.json"):
        unit.unlink()
    for name in ("conditions.write_cell", "conditions.write_judged", "conditions._write_overload", "unit.write_int8"):
        monkeypatch.setattr(f"prunekit.pipeline.{name}", refuse)
    run(make_config(**choices))
    for row, earlier in zip(read_rows(folder.results), before, strict=True):
        same = [name for name in row if name.startswith("int8_") and "ms" not in name]
        assert len(same) > 10
        assert [row[name] for name in same] == [earlier[name] for name in same]


def test_a_model_that_stays_float32_is_a_stage_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = AccelerationReport([], 1, None, 0, 1.0, 1.0, 0.0, ["stays float32: no"])
    monkeypatch.setattr("prunekit.pipeline.int8.in_int8", lambda *_: (None, report))
    stage = WorkStore(tmp_path).open("int8", {}, {})
    chosen, files = write_int8(stage, nn.Identity(), torch.zeros(1), [], SilentProgress())
    stage.finish(chosen, *files)
    found = read_int8(stage, chosen)
    assert found.model is None
    assert found.report["notes"] == ["stays float32: no"]
    assert {*int8_columns(found.chosen, None, {}).values()} == {None}


def test_a_model_that_stays_float32_has_empty_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast(nn.Module):
        report = AccelerationReport([], 1, None, 0, 1.0, 1.0, 0.0, ["stays float32: no"])

    monkeypatch.setattr(latency_module, "accelerate", lambda *_, **__: Fast())
    model, report = latency_module.in_int8(nn.Identity(), torch.zeros(1), [])
    assert model is None
    assert report.notes == ["stays float32: no"]
