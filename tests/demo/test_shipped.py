"""The shipped detector: found, unpacked and described; where it is missing, one sentence."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.demo import DemoConfig, main_job, shipped
from prunekit.errors import InputError
from prunekit.pipeline.checkpoint import spec_of

MOST_BYTES = 4 * 2**20


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package's folder in the place of the real one, without a detector."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(shipped, "files", lambda name: folder)
    return folder


def test_without_a_detector_one_is_trained_and_the_others_say_so(package: Path, tmp_path: Path) -> None:
    assert DemoConfig.usual(tmp_path) == DemoConfig(tmp_path)
    assert not DemoConfig.quick(tmp_path).is_shipped
    for use in (shipped.shipped_figures, lambda: shipped.unpack(tmp_path / "x")):
        with pytest.raises(InputError, match=r"Expected the demo's detector in the package .*bench\.demo_detector"):
            use()


def test_a_detector_is_unpacked_once(package: Path, tmp_path: Path) -> None:
    (package / shipped.WEIGHTS).write_bytes(b"weights")
    (package / shipped.FIGURES).write_text(json.dumps({"clean": {"ap50": 0.9}}))
    assert shipped.is_shipped()
    assert shipped.shipped_figures()["clean"]["ap50"] == 0.9
    shipped.unpack(tmp_path / "weights" / "x")
    assert (tmp_path / "weights" / "x").read_bytes() == b"weights"
    (package / shipped.WEIGHTS).write_bytes(b"others")
    shipped.unpack(tmp_path / "weights" / "x")
    assert (tmp_path / "weights" / "x").read_bytes() == b"weights"


def test_the_run_of_the_shipped_detector_has_the_variants_that_the_page_is_about(package: Path, tmp_path: Path) -> None:
    (package / shipped.WEIGHTS).write_bytes(b"weights")
    job = main_job(DemoConfig.usual(tmp_path), tmp_path, tmp_path)
    pruned = [(unit.variant.structure, unit.ratio) for unit in job.units if unit.is_pruned]
    assert pruned == [("unstructured", 75), ("unstructured", 90), ("block1x4", 75), ("filter", 50)]
    assert (job.pretrain.epochs, job.latency_threads, job.deploys_int8) == (0, 1, True)
    assert (job.optimize.epochs, job.finetune.epochs, job.allocation) == (1, 2, ("lamp",))
    quick = main_job(DemoConfig.quick(tmp_path), tmp_path, tmp_path)
    assert [unit.ratio for unit in quick.units] == [0, 75]


def test_the_detector_in_the_package_is_small_robust_and_of_the_width_that_the_demo_builds() -> None:
    if not shipped.is_shipped():
        pytest.skip("the package has no detector: python -m bench.demo_detector makes it")
    path = Path(str(files("prunekit.demo"))) / shipped.WEIGHTS
    spec, figures = spec_of(path), shipped.shipped_figures()
    assert spec is not None
    assert (spec.name, spec.arguments["width"]) == (shipped.MODEL, shipped.WIDTH)
    assert path.stat().st_size <= MOST_BYTES
    assert {value.dtype for name, value in load_file(path).items() if name.endswith("conv.weight")} == {torch.float16}
    assert figures["clean"]["ap50"] > figures["paper"]["ap50"] > 0.2
