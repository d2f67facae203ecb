"""The demo of a shipped detector from end to end, on a narrow one and small images: rows, dense engines, page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prunekit.demo import DemoConfig, run_demo, shipped
from prunekit.demo.config import SHIPPED_ONE_CORE, SHIPPED_TWO_IDLE_CORES
from prunekit.detection import DetectionTask
from prunekit.environment import thread_count
from prunekit.pipeline import RunFolder, read_rows
from prunekit.pipeline.checkpoint import save_model
from prunekit.progress import SilentProgress
from prunekit.task import ModelSpec

WIDTH = 0.03


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoConfig, RunFolder]:
    package, out = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("demos") / "demo"
    task = DetectionTask(ModelSpec(shipped.MODEL, {"num_classes": 4, "width": WIDTH}))
    save_model(package / shipped.WEIGHTS, task.spec.build(), task.spec)
    config = DemoConfig.of_shipped(
        out, num_train=8, num_val=4, image_size=64, width=WIDTH, ratios=(0, 90), structure=("unstructured", "block1x4"),
        ratios_of=("block1x4=75",), precision=("float32", "int8"), peers=("eager", "folded"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, thread_count(1):
        patch.setattr(shipped, "files", lambda name: package)
        return config, run_demo(config, SilentProgress())


def test_every_variant_has_its_row_in_both_precisions(demo: tuple[DemoConfig, RunFolder]) -> None:
    rows = read_rows(demo[1].results)
    pruned = [(row["structure"], float(row["ratio"])) for row in rows if float(row["ratio"])]
    assert pruned == [("unstructured", 90), ("block1x4", 75)]
    assert all("int8_latency_ms" in row and row["threads"] == "1" for row in rows)


def test_the_page_begins_with_the_picture_and_names_the_dense_engines(demo: tuple[DemoConfig, RunFolder]) -> None:
    text, times = demo[1].report.read_text(), json.loads((demo[1].root / "dense.json").read_text())
    assert set(times) == {"torch eager", "torch eager, folded"}
    assert list(times.values()) == sorted(times.values())
    assert f"torch eager {times['torch eager']:.2f} ms" in text
    assert text.index("What to deploy") < text.index("What the model sees") < text.index("<h2>Results")


def test_nothing_is_done_twice(demo: tuple[DemoConfig, RunFolder]) -> None:
    def times() -> list[int]:
        kept = [config.weights, folder.root / "dense.json", *config.out.rglob("units/*")]
        return [path.stat().st_mtime_ns for path in kept]

    config, folder = demo
    before = times()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "unpack", lambda path: None)
        run_demo(config, SilentProgress())
    assert times() == before


def test_the_estimate_counts_structures_with_ratios_of_their_own() -> None:
    config = DemoConfig.of_shipped(
        Path(), structure=("unstructured", "filter"), ratios=(0, 75, 90), ratios_of=("filter=25,50,75",)
    )
    assert config.minutes(replace(SHIPPED_ONE_CORE, robust_epoch=0, engine=0, unit=1)) == 1 + 2 + 3
    assert config.minutes(SHIPPED_TWO_IDLE_CORES) < config.minutes(SHIPPED_ONE_CORE)
