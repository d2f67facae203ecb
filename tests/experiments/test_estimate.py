"""Estimates count the passes of what a run is asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.experiments.estimate import _passes
from prunekit.pipeline import make_config


@pytest.mark.parametrize(("certify", "samples"), [(None, 110), (False, 0)])
def test_certified_images_are_passed_once_for_each_sample(certify: bool | None, samples: int, tmp_path: Path) -> None:
    config = make_config(
        model="resnet20", weights=tmp_path / "net.pt", data=tmp_path, out=tmp_path / "run", ratios="0,50",
        attack="none", objective="smoothing", certify=certify, certify_n0=10, certify_n=100,
    )  # fmt: skip
    assert _passes(config, num_train=0, num_val=5, pretrains=False) == 2 * 5 * (2 + samples)
