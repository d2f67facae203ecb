"""Fixtures that several test files share: a tiny data set, a detector that learnt it, a run on both."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit import task
from prunekit.attacks import PRESETS
from prunekit.detection import CocoDataset, DetectionTask, render_shapes_dataset, save_darknet_weights, yolov3_tiny
from prunekit.environment import thread_count
from prunekit.evaluation.corruptions import CORRUPTIONS
from prunekit.pipeline import RunConfig, RunFolder, SilentProgress, make_config, run
from prunekit.pipeline.recipes import RECIPES
from prunekit.prune import SCORES
from prunekit.training.config import TrainConfig
from prunekit.training.loop import train
from tests.support.commands import Options
from tests.support.shared_folder import shared_folder
from tests.support.skipped import skipped
from tests.support.stage_commands import prune_filters, train_for_a_moment, working_options

SHAPES_SIZE = 96
SHAPES_WIDTH = 0.125
#: Files that several processes begin with, the longest first, so that they end at about the same time.
LONGEST = (
    "test_accelerate_random.py",
    "test_cuda_compiles.py",
    "test_executed_ptx.py",
    "test_record_conv2d.py",
    "test_sanitizers.py",
    "test_condensed_mutants.py",
    "test_bitmap_mutants.py",
    "test_cuda_mutants.py",
    "test_killed_stages.py",
    "test_semi_structured_mutants.py",
    "test_condensed_conv2d.py",
    "test_bitmap_conv2d.py",
    "test_triton_kernels.py",
    "test_triton_compiles.py",
    "test_coco128.py",
    "test_int8_graphs.py",
    "test_int8_kernels.py",
    "test_int8_of_runs.py",
    "test_cuda_build.py",
)

#: Further files that `make check` leaves out, and what tests ask of these fixtures: a detector trained, a run on it.
SLOW = (
    *LONGEST,
    "test_adaptive_bench.py",
    "test_accelerate_gpu.py",
    "test_accelerate_kinds.py",
    "test_allocation_commands.py",
    "test_allocations_bench.py",
    "test_attack_checks.py",
    "test_benchmark.py",
    "test_benchmark_cli.py",
    "test_beyond_the_ball.py",
    "test_bitmap_compiles.py",
    "test_block_accounts.py",
    "test_carlini_wagner.py",
    "test_checkpoints.py",
    "test_classifier_commands.py",
    "test_cli_stages.py",
    "test_cli_stages_input.py",
    "test_compaction_calls.py",
    "test_compaction_files.py",
    "test_compaction_kinds.py",
    "test_compaction_pipeline.py",
    "test_compaction_proof.py",
    "test_compaction_random.py",
    "test_computed_weights.py",
    "test_conditions_of_runs.py",
    "test_corruption_commands.py",
    "test_corruptions_peer.py",
    "test_darknet_oracle.py",
    "test_deeplift.py",
    "test_demo_detector.py",
    "test_demo_duration.py",
    "test_deployed.py",
    "test_deployed_evaluation.py",
    "test_engine_arena.py",
    "test_engine_concurrency.py",
    "test_engine_errors.py",
    "test_engine_nets.py",
    "test_engine_operators.py",
    "test_engine_size_kinds.py",
    "test_engine_sizes.py",
    "test_engine_variants.py",
    "test_engines.py",
    "test_examples.py",
    "test_explain.py",
    "test_foreign_modules.py",
    "test_foreign_weights.py",
    "test_fuzz_files.py",
    "test_gpu_bench.py",
    "test_gpu_files.py",
    "test_gpu_time_limit.py",
    "test_keep_set.py",
    "test_kept_images.py",
    "test_kernel_choice.py",
    "test_limits.py",
    "test_lower_precisions.py",
    "test_mask_rule.py",
    "test_masked_conv2d_cuda.py",
    "test_masked_conv2d_formats.py",
    "test_masked_conv2d_transforms.py",
    "test_models.py",
    "test_objectives.py",
    "test_overload_command.py",
    "test_pages_in_browser.py",
    "test_parts.py",
    "test_patch_command.py",
    "test_plots.py",
    "test_plugins.py",
    "test_pool.py",
    "test_proofs.py",
    "test_readme.py",
    "test_run.py",
    "test_running.py",
    "test_score_optimization.py",
    "test_semi_structured_compiles.py",
    "test_semi_structured_conv2d.py",
    "test_shared_memory.py",
    "test_shipped_demo.py",
    "test_sparse_product.py",
    "test_stages.py",
    "test_statistics_command.py",
    "test_untouched_originals.py",
    "test_wall.py",
    "test_watch.py",
    "test_without_compiler.py",
    "test_zoo_bench.py",
)
SLOW_FIXTURES = {"shapes_weights", "shapes_run"}


def pytest_configure() -> None:
    shared_folder()  # before further processes begin, which are told of it
    _separate_compiler_cache(os.environ.get("ATEN_CPU_CAPABILITY"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say at the start of a whole run, in the process that prints, what will be skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        lines = list(skipped())
        reporter.write_line("Skipped on this machine:" if lines else "Nothing is skipped for want of anything here.")
        for line in lines:
            reporter.write_line(f"  {line}")


def _separate_compiler_cache(capability: str | None) -> None:
    """Keep torch.compile from taking what it wrote for wider vectors from its cache: it could not compile that."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor"))
    if capability and not folder.endswith(f"_{capability}"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}_{capability}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: [*LONGEST, item.path.name].index(item.path.name))


@pytest.fixture(autouse=True)
def _whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `accelerate` runs as a whole graph, however slow a busy machine makes it look."""
    monkeypatch.setattr(importlib.import_module("prunekit.nn.candidates"), "_CLEARLY_FASTER", 0.0)


@pytest.fixture(autouse=True, scope="module")
def _names_as_shipped() -> Iterator[None]:
    """Forget after each file what its tests registered, so that no test depends on which ones ran before it."""
    task.models()  # registers prunekit's own
    tables: list[Any] = [task._FAMILIES, task._TASKS, task._PLUGINS, SCORES, PRESETS, RECIPES, CORRUPTIONS]
    before, modules = [table.copy() for table in tables], set(sys.modules)
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)
    for name in set(sys.modules) - modules:
        if name.startswith("tests.plugins."):
            del sys.modules[name]  # registers again when it is loaded again


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For nets so small that a second thread is only waited for."""
    with thread_count(1):
        yield


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rendered images in COCO's layout."""
    folder = tmp_path_factory.mktemp("shapes")
    render_shapes_dataset(folder, num_images=8, image_size=SHAPES_SIZE, seed=5)
    return folder


@pytest.fixture(scope="session")
def shapes_weights(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Darknet weights of a narrow YOLOv3-tiny that has learnt the eight images by heart."""
    dataset = CocoDataset.open(shapes_data, SHAPES_SIZE)
    config = TrainConfig(epochs=150, batch_size=8, learning_rate=8e-3, sizes=(SHAPES_SIZE,), ema_decay=0.9)
    with thread_count(1):  # layers this small only wait for a second thread
        torch.manual_seed(0)
        model = yolov3_tiny(dataset.num_classes, SHAPES_WIDTH)
        trained = train(model, dataset, config, SilentProgress(), DetectionTask.of(model))
    path = tmp_path_factory.mktemp("weights") / "shapes.weights"
    save_darknet_weights(trained, path)
    return path


@pytest.fixture(scope="session")
def shapes_config(shapes_data: Path, shapes_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The main job on the eight images at three ratios."""
    return make_config(
        model="yolov3-tiny",
        weights=shapes_weights,
        data=shapes_data,
        out=tmp_path_factory.mktemp("runs") / "first",
        ratios=(0, 50, 90),
        width=SHAPES_WIDTH,
        image_size=SHAPES_SIZE,
        latency_runs=3,
        threads=1,
    )


@pytest.fixture(scope="session")
def shapes_run(shapes_config: RunConfig) -> RunFolder:
    """The finished run folder; tests read it and leave it as it is."""
    return run(shapes_config)


@pytest.fixture(scope="module")
def trained(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_for_a_moment(shapes_data, tmp_path_factory.mktemp("trained") / "net")


@pytest.fixture(scope="module")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune_filters(trained, tmp_path_factory.mktemp("pruned") / "net")


@pytest.fixture
def options(trained: Path, pruned: Path, shapes_data: Path, tmp_path: Path) -> dict[str, Options]:
    return working_options(trained, pruned, shapes_data, tmp_path)
