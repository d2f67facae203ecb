"""`prunekit evaluate --attack patch`: which images it is trained and judged on, resuming, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit import documents
from prunekit.attacks.patch import Area, PatchConfig
from prunekit.detection import CocoDataset
from prunekit.evaluation import patch as patches
from prunekit.evaluation.patch import PastePatch, halves, visible_area
from prunekit.pipeline import patch as work
from tests.support.commands import Options, invoke, results, succeed

pytestmark = pytest.mark.usefixtures("one_thread")


class Stopped(Exception):
    """What ends the process."""


def choices(options: dict[str, Options], **more: Any) -> Options:
    return options["evaluate"] | {"attack": "patch", "patch-passes": 2, "batch-size": 3, **more}


def test_halves_share_no_image_and_leave_none_out(shapes_data: Path) -> None:
    dataset = CocoDataset.open(shapes_data, 64)
    first, second = ({half.example(index)["id"] for index in range(len(half))} for half in halves(dataset))
    assert len(first) == len(second) == 4
    assert first | second == {record.id for record in dataset.images}


def test_the_visible_area_is_the_image_without_its_border(shapes_data: Path) -> None:
    dataset = CocoDataset.open(shapes_data, 64)
    for (width, height), area in {(96, 96): Area(0, 0, 64, 64), (96, 48): Area(16, 0, 48, 64)}.items():
        dataset.images[0] = replace(dataset.images[0], width=width, height=height)
        assert visible_area(dataset, 0) == area


def test_every_patch_lies_where_the_seed_and_the_image_say() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    config = PatchConfig(pixels=4)
    bright, dark = (PastePatch(torch.full((3, 4, 4), value), config, seed=1) for value in (0.9, 0.2))
    covered = bright(pixels, 7) > 0
    assert np.array_equal(covered, dark(pixels, 7) > 0)
    assert not np.array_equal(covered, bright(pixels, 8) > 0)
    assert not np.array_equal(covered, PastePatch(bright.patch, config, seed=2)(pixels, 7) > 0)
    assert 8 <= covered[:, :, 0].any(axis=1).sum() <= 15
    assert pixels.max() == 0


def test_a_patch_is_trained_judged_and_shown(options: dict[str, Options]) -> None:
    asked = choices(options)
    result = succeed("evaluate", asked)
    out = Path(asked["out"])
    found = json.loads((out / "evaluation.json").read_text())["patch"]
    assert (found["goal"], found["trained_on"], found["evaluated_on"]) == ("vanish", 4, 4)
    assert all("ap" in found[kind] for kind in ("clean", "random", "trained"))
    assert "Patch (vanish): AP" in result.stdout
    patch = documents.read(out / "patch" / "patch.safetensors", "a patch").tensors["patch"]
    assert 0.05 <= float(patch.min()) < float(patch.max()) <= 0.95
    with Image.open(out / "patch" / "patch.png") as image:
        assert np.array_equal(np.asarray(image), (patch * 255).round().byte().permute(1, 2, 0).numpy())
    assert (out / "evaluation.html").read_text().count("data:image/png") == 2
    assert "patch: finished earlier" in succeed("evaluate", asked).stderr


def test_a_class_is_shown_more_often_than_clean(options: dict[str, Options]) -> None:
    names = [category.name for category in CocoDataset.open(options["evaluate"]["data"], 64).categories]
    asked = choices(options, **{"patch-goal": names[0]})
    succeed("evaluate", asked)
    found = json.loads((Path(asked["out"]) / "evaluation.json").read_text())["patch"]
    assert found["goal"] == names[0]
    assert found["trained"]["goal_detections_per_image"] >= 0


def test_a_stopped_training_goes_on_to_the_same_bits(
    options: dict[str, Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, stopped = (choices(options, out=tmp_path / name, **{"patch-passes": 3}) for name in ("whole", "stopped"))
    succeed("evaluate", whole)
    train, passes = patches.train_patch, list[int]()

    def stopping(*arguments: Any) -> Any:
        for number, state in enumerate(train(*arguments)):
            passes.append(number)
            yield state
            if len(passes) == 2:
                raise Stopped

    monkeypatch.setattr(work, "train_patch", stopping)
    assert isinstance(invoke("evaluate", stopped).exception, SystemExit)
    assert len(passes) == 2
    succeed("evaluate", stopped)
    assert len(passes) == 3
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"patch-goal": "zebra"}, "--patch-goal: expected one of vanish, "),
        ({"limit": 1}, "--attack: expected at least two images for a patch"),
        ({"attack": "patches"}, "--attack: must be one of"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict[str, Options], more: Options, sentence: str) -> None:
    result = invoke("evaluate", choices(options, **more))
    assert result.exit_code == 2
    assert sentence in result.stderr
