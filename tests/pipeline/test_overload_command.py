"""`prunekit evaluate --attack latency`: its figures, its page, resuming, and what a cap costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunekit import documents
from tests.support.commands import Options, invoke, succeed

pytestmark = pytest.mark.usefixtures("one_thread")


#: About the median score of a detector that was trained for a moment.
MEDIAN_SCORE = 0.0017


def choices(options: dict[str, Options], **more: object) -> Options:
    asked = {"attack": "latency", "latency-runs": 3, "limit": 3, "score-threshold": MEDIAN_SCORE}
    return options["evaluate"] | asked | more


def test_candidates_and_milliseconds_are_told(options: dict[str, Options]) -> None:
    asked = choices(options, **{"max-candidates": 50})
    result = succeed("evaluate", asked)
    out = Path(asked["out"])
    found = json.loads((out / "evaluation.json").read_text())
    case, timed = found["cases"]["latency"], found["overload"]["latency"]
    assert case["candidates_per_image"] > case["clean_candidates_per_image"]
    for step in ("network", "decode", "nms", "uncapped_nms"):
        assert timed[f"{step}_ms"] > 0
        assert timed[f"overload_{step}_ms_p99"] >= timed[f"overload_{step}_ms"] > 0
    assert timed["capped_ap"] == found["cases"]["none"]["ap"]
    assert "uncapped_ap" in timed
    assert f"{case['candidates_per_image']:.1f} candidates an image" in result.stdout
    page = (out / "evaluation.html").read_text()
    assert f"{case['candidates_per_image']:.1f} attacked" in page
    assert f"<td>uncapped nms</td><td>{timed['uncapped_nms_ms']:.2f}</td>" in page
    assert "At most 50 candidates" in page
    images = documents.read(out / "overload" / "images.safetensors", "images").tensors
    moved = images["attacked"] - images["clean"]
    assert len(moved) == 3
    assert 0.04 < float(moved.abs().max()) <= 0.05 + 1e-6


def test_finished_parts_are_not_repeated_and_what_is_left_is_done(options: dict[str, Options]) -> None:
    asked = choices(options)
    succeed("evaluate", asked)
    out = Path(asked["out"])
    before = (out / "evaluation.json").read_bytes()
    (out / "overload" / "timing" / "done.json").unlink()
    again = succeed("evaluate", asked)
    assert "overload: finished earlier" in again.stderr
    assert json.loads((out / "evaluation.json").read_text())["cases"] == json.loads(before)["cases"]
    whole = (out / "evaluation.json").read_bytes()
    assert "Finished earlier" in succeed("evaluate", asked).stdout
    assert (out / "evaluation.json").read_bytes() == whole


def test_the_timings_of_latency_and_of_the_attack_have_folders_of_their_own(options: dict[str, Options]) -> None:
    asked = choices(options, latency=True)
    succeed("evaluate", asked)
    found = json.loads((Path(asked["out"]) / "evaluation.json").read_text())
    assert found["latency"]["latency_ms"] > 0
    assert found["overload"]["latency"]["overload_nms_ms"] > 0


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    from prunekit.classification import resnet20
    from prunekit.pipeline.checkpoint import save_model
    from prunekit.task import ModelSpec
    from tests.support.classes_of_images import write_classes

    arguments = {"num_classes": 2, "width": 0.25, "small_images": True}
    torch.manual_seed(0)
    save_model(tmp_path / "net.safetensors", resnet20(2, 0.25, True).eval(), ModelSpec("resnet20", arguments))
    data = write_classes(tmp_path / "data", ("blue", "red"), 1, size=20)
    asked = {"weights": tmp_path / "net.safetensors", "data": data, "attack": "latency", "out": tmp_path / "out"}
    result = invoke("evaluate", asked)
    assert result.exit_code == 2
    assert "expected a detector for an attack on latency, got the model resnet20" in result.stderr
