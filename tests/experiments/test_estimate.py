"""Estimates count the passes of what a run is asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.experiments import Plan, plan_jobs
from prunekit.experiments.estimate import _clean_passes, _passes
from prunekit.pipeline import make_config


@pytest.mark.parametrize(("certify", "samples"), [(None, 110), (False, 0)])
def test_certified_images_are_passed_once_for_each_sample(certify: bool | None, samples: int, tmp_path: Path) -> None:
    config = make_config(
        model="resnet20", weights=tmp_path / "net.pt", data=tmp_path, out=tmp_path / "run", ratios="0,50",
        attack="none", objective="smoothing", certify=certify, certify_n0=10, certify_n=100,
    )  # fmt: skip
    assert _passes(config, num_train=0, num_val=5, pretrains=False) == 2 * 5 * (2 + samples)


def test_each_seed_of_rendered_images_has_a_clean_training(tmp_path: Path) -> None:
    plan = Plan(
        rendered={"num_train": 10, "num_val": 4, "image_size": 64, "epochs": 3},
        settings={"objective": "clean"}, factors={"grayscale": [False, True]}, ratios=[0, 50], seeds=[0, 1],
    )  # fmt: skip
    assert _clean_passes(plan, plan_jobs(plan, tmp_path)) == 2 * 3 * 10 * 3
