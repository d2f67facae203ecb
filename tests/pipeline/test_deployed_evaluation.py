"""`prunekit evaluate --deployed` and `--precision int8`: the same images for what is deployed as for its checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit.evaluation.latency as latency_module
import prunekit.pipeline.deployed_evaluation as deployed_module
import prunekit.pipeline.overload as overload_module
import prunekit.pipeline.patch as patch_module
from prunekit import compact, save
from prunekit.detection import CocoDataset, DetectionTask, yolov3_tiny
from prunekit.environment import thread_count
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate
from prunekit.nn import AccelerationReport
from prunekit.ops import native
from prunekit.pipeline.checkpoint import example_image, find_checkpoint
from prunekit.pipeline.deployed_evaluation import comparison, digits_of
from tests.support.commands import Options, invoke, succeed
from tests.support.int8_everywhere import accelerate_in_int8
from tests.support.stage_commands import working_options

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.is_available(), reason="no native kernels"),
]

#: About the median score of a detector that was trained for a moment.
MEDIAN_SCORE = 0.0017


@pytest.fixture(scope="module", autouse=True)
def _untuned() -> Iterator[None]:
    """Take int8 wherever it is possible, and tune nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (latency_module, overload_module, deployed_module):
            patch.setattr(module, "accelerate", accelerate_in_int8)
        yield


@pytest.fixture(scope="module")
def asked(trained: Path, pruned: Path, shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Everything at once, of a detector that lost filters."""
    folder = tmp_path_factory.mktemp("deployed")
    choices = working_options(trained, pruned, shapes_data, folder)["evaluate"]
    pruned = folder / "pruned.safetensors"
    save(compact(find_checkpoint(pruned).model, example_image(64)), folder / "small.prunekit")
    return choices | {
        "weights": pruned, "deployed": folder / "small.prunekit", "precision": "float32,int8",
        "calibration-data": choices["data"], "calibration-images": 3, "corruptions": "fog:1,contrast:3",
        "attack": "fgsm,patch,latency", "latency-runs": 3, "limit": 4, "score-threshold": MEDIAN_SCORE,
        "max-candidates": 200, "latency": True, "patch-passes": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def told(asked: Options) -> str:
    """What a finished evaluation says."""
    with thread_count(1):
        return succeed("evaluate", asked).stdout


def found_in(asked: Options) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(asked["out"]) / "evaluation.json").read_text())
    return found


def test_every_figure_is_there_for_what_is_deployed(asked: Options, told: str) -> None:
    found, out = found_in(asked), Path(asked["out"])
    assert {*found["deployed"]} == {"small", "int8"}
    for name, one in found["deployed"].items():
        assert {*one["cases"]} == {"none", "fgsm", "latency"}
        assert one["cases"]["fgsm"]["mean_linf"] == pytest.approx(found["cases"]["fgsm"]["mean_linf"], abs=1e-6)
        assert one["overload"]["latency"]["overload_nms_ms"] > 0
        assert one["latency"]["latency_ms"] > 0
        assert {*one["corruptions"]["by_cell"]} == {"fog-1", "contrast-3"}
        assert one["patch"]["evaluated_on"] == found["patch"]["evaluated_on"] == 2
        assert (out / "deployed" / name / "corruptions.csv").is_file()
        assert (out / "deployed" / name / "fgsm" / "detections.csv").is_file()
    small = found["deployed"]["small"]
    for case in found["cases"]:
        assert small["cases"][case]["ap"] == pytest.approx(found["cases"][case]["ap"], abs=0.002)
    for kind in ("clean", "random", "trained"):
        assert small["patch"][kind]["ap"] == pytest.approx(found["patch"][kind]["ap"], abs=0.002)
    under = found["cases"]["latency"]["candidates_per_image"]
    assert small["cases"]["latency"]["candidates_per_image"] == pytest.approx(under, rel=0.02)
    assert small["corruptions"]["mean"] == pytest.approx(found["corruptions"]["mean"], abs=0.002)
    chosen = json.loads((out / "deployed" / "int8" / "done.json").read_text())["result"]
    assert chosen["int8_layers"] > 5
    assert 0 < chosen["relative_rms"] < 1
    _, _, table = told.partition("What is deployed")
    for heading, value in comparison(found, DetectionTask.figures[0])["int8"].items():
        row = next(line for line in table.splitlines() if heading in line)
        assert row.split("│")[4].strip() == ("–" if value is None else f"{value:.{digits_of(heading)}f}")


def test_the_page_compares_them(asked: Options, told: str) -> None:
    found, page = found_in(asked), (Path(asked["out"]) / "evaluation.html").read_text()
    table = re.search(r"<h2>What is deployed</h2>(.*?)</table>", page, re.DOTALL)
    assert table is not None
    for heading in (
        "AP, clean", "AP, fgsm", "corrupted, mean", "AP, no patch", "AP, random patch", "AP, trained patch",
        "candidates, latency", "ms, latency", "ms, network",
    ):  # fmt: skip
        assert f"<th>{heading}</th>" in table[1]
    assert "The patch is the one that was trained on the checkpoint, on the 2 images" in table[1]
    rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", table[1])
    assert [name for name, _ in rows] == ["checkpoint", "small", "int8"]
    timed = found["deployed"]["int8"]["overload"]["latency"]
    steps = sum(timed[f"overload_{step}_ms"] for step in ("network", "decode", "nms"))
    assert f"<td>{steps:.2f}</td>" in rows[2][1]
    whole = found["overload"]["latency"]
    assert "overload_uncapped_nms_ms" in whole
    steps = sum(whole[f"overload_{step}_ms"] for step in ("network", "decode", "nms"))
    assert f"<td>{steps:.2f}</td>" in rows[0][1]


def test_what_was_finished_is_not_repeated(asked: Options, told: str) -> None:
    out, before = Path(asked["out"]), found_in(asked)
    model = (out / "deployed" / "int8" / "model.safetensors").stat().st_mtime_ns
    (out / "deployed" / "int8" / "corruptions" / "fog-1" / "done.json").unlink()
    (out / "deployed" / "small" / "fgsm" / "done.json").unlink()
    (out / "deployed" / "small" / "patch" / "done.json").unlink()
    succeed("evaluate", asked)
    assert found_in(asked) == before
    assert (out / "deployed" / "int8" / "model.safetensors").stat().st_mtime_ns == model
    assert "Finished earlier" in succeed("evaluate", asked).stdout


def test_what_is_deployed_sees_the_checkpoint_s_patch_on_the_same_images(
    asked: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[nn.Module, Tensor]]()

    def recording(subject: Subject, *arguments: Any) -> Evaluation:
        images = [subject.dataset[index].image for index in range(len(subject.dataset))]
        seen.append((subject.model, torch.stack(images)))
        return evaluate(subject, *arguments)

    monkeypatch.setattr(patch_module, "evaluate", recording)
    goal = CocoDataset.open(asked["data"], 64).categories[0].name
    brief = {"attack": "patch", "corruptions": None, "latency": None, "precision": None, "calibration-data": None}
    options = asked | brief | {"patch-goal": goal, "out": tmp_path / "out"}
    result = succeed("evaluate", options)
    models, images = zip(*seen, strict=True)
    checkpoint, small = models[0], models[3]
    assert [model is checkpoint for model in models] == [True] * 3 + [False] * 3
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in checkpoint.parameters())
    assert all(torch.equal(one, other) for one, other in zip(images[:3], images[3:], strict=True))
    assert not any(torch.equal(images[0], patched) for patched in images[1:3])
    found = found_in(options)
    row = comparison(found, DetectionTask.figures[0])["small"]
    for kind, called in {"clean": "no patch", "random": "random patch", "trained": "trained patch"}.items():
        figures = found["deployed"]["small"]["patch"][kind]
        assert row[f"AP, {called}"] == figures["ap"]
        assert row[f"goal detections, {called}"] == figures["goal_detections_per_image"]
    assert "trained patch" in result.stdout


def test_a_model_that_stays_float32_is_told_and_left_out(
    asked: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fast(nn.Module):
        report = AccelerationReport([], 1, None, 0, 1.0, 1.0, 0.0, ["stays float32: no"])

    monkeypatch.setattr(latency_module, "accelerate", lambda *_, **__: Fast())
    brief = {"attack": "none", "corruptions": None, "latency": None, "deployed": None, "out": tmp_path / "out"}
    result = succeed("evaluate", asked | brief)
    assert "not deployed in int8: stays float32: no" in result.stderr
    assert "deployed" not in found_in(asked | brief)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"calibration-data": None}, "--precision int8 needs images to be calibrated on: add --calibration-data"),
        ({"deployed": "runs/int8.safetensors"}, "--deployed: expected files of different names"),
        (
            {"deployed": "absent.prunekit"},
            "Expected a model saved by prunekit.save, but there is no file absent.prunekit",
        ),
    ],
)
def test_what_cannot_be_deployed_is_refused(asked: Options, more: Options, sentence: str) -> None:
    result = invoke("evaluate", asked | more)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_another_models_file_is_refused(asked: Options, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = yolov3_tiny(9, 0.03).eval()
    save(compact(other, example_image(64)), tmp_path / "other.prunekit")
    result = invoke("evaluate", asked | {"deployed": tmp_path / "other.prunekit"})
    assert result.exit_code == 2
    assert "Expected a yolov3-tiny of 6 classes" in result.stderr
