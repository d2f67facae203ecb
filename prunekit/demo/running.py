"""How the demo is done. Every part is kept in its folder and done once: started again, it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunekit.benchmark.dense import time_dense_engines
from prunekit.demo import shipped
from prunekit.demo.config import DemoConfig
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.experiments.rendered import Rendered, prepare_rendered, render_images
from prunekit.pipeline import Progress, RunConfig, RunFolder, make_config, run
from prunekit.pipeline.checkpoint import example_image, find_checkpoint
from prunekit.pipeline.store import check_folder, read_json, write_json
from prunekit.report import DENSE, write_report

# Robust pre-training of a net this small needs the rate that trained it: at a gentle one it stays as fragile as it was.
_TRAINED: dict[str, Any] = {
    "objective": "n-fgsm", "pretrain_learning_rate": 1.2e-2, "finetune_learning_rate": 6e-3, "score_images": 64,
}  # fmt: skip
# As it was trained, with a cheaper attack: one step of eps leaves a robust detector robust for so few steps. At adamw's
# usual rate two thirds of the kept weights change, and scores forget what they began with; at this one a sixth do.
_SHIPPED: dict[str, Any] = {
    "objective": "pgd-at", "train_attack": "fgsm", "optimize_learning_rate": 5e-4, "finetune_learning_rate": 2e-3,
    "train_batch_size": 8, "calibration_images": 64, "latency_runs": 50,
}  # fmt: skip
# What the demo is told and its run is told again.
_OF_THE_RUN = (
    "seed", "width", "image_size", "ratios", "ratios_of", "structure", "scores", "pruning", "allocation",
    "precision", "latency_threads", "pretrain_epochs", "optimize_epochs", "finetune_epochs",
)  # fmt: skip
_DENSE_RUNS = 50


def run_demo(config: DemoConfig, progress: Progress) -> RunFolder:
    """Do what is left of the demo: images, detector, main job, dense engines, page; return the run's folder.

    Raises:
        InputError: When the folder holds a demo with other settings, or other files.
    """
    folder = run(prepare_demo(config, progress), progress)
    _compare(config, folder, progress)
    write_report(folder)
    return folder


def prepare_demo(config: DemoConfig, progress: Progress) -> RunConfig:
    """Render the images and unpack or train the detector, or find them; return the main job on them.

    Raises:
        InputError: When the folder holds a demo with other settings, or other files.
    """
    _claim(config)
    if config.is_shipped:
        sizes = (config.num_train, config.num_val, config.image_size)
        render_images(config.out, *sizes, config.seed, progress, config.style)
        shipped.unpack(config.weights)
    else:
        progress.message("The package has no trained detector, or a smaller one was asked for: training one first.")
        choices = {name: getattr(config, name) for name in Rendered.model_fields}
        prepare_rendered(Rendered(**choices), config.out, config.seed, progress)
    return main_job(config, config.out / "data" / "train", config.out / "data" / "val")


def main_job(config: DemoConfig, train_data: Path, data: Path) -> RunConfig:
    """Return the run that the demo ends with."""
    return make_config(
        model=shipped.MODEL,
        weights=config.weights,
        data=data,
        train_data=train_data,
        out=config.out / "run",
        score_optimizer="adamw",
        augment=False,
        **(_SHIPPED if config.is_shipped else _TRAINED),
        **{name: getattr(config, name) for name in _OF_THE_RUN},
    )


def next_steps(folder: RunFolder) -> str:
    """Return what to look at now, and the command for the user's own data."""
    return (
        f"\nLook at {folder.report} first; every number is in {folder.results}.\n"
        "\nYour own data, in COCO's layout (annotations/*.json beside a folder of images),\n"
        "and darknet weights trained on its classes:\n"
        "\n  prunekit run --model yolov3-tiny --weights yolov3-tiny.weights --data coco128/ \\\n"
        "      --ratios 0,25,50,75,90,95 --attack paper --out runs/first\n"
        "\nAny torch model, pruned by anyone: fast = prunekit.accelerate(model, example_input)"
    )


def _compare(config: DemoConfig, folder: RunFolder, progress: Progress) -> None:
    """Time the unpruned detector on dense engines, for the page, where that was asked for and is not done."""
    if not config.peers or (folder.root / DENSE).is_file():
        return
    model, x = find_checkpoint(folder.root, "ratio_0").model, example_image(config.image_size)
    with thread_count(config.latency_threads):
        found = time_dense_engines(model, x, config.peers, _DENSE_RUNS, progress)
    folder.write_json(DENSE, found)


def _claim(config: DemoConfig) -> None:
    """Make the folder this demo's, or raise InputError."""
    path = config.out / "demo.json"
    settings = json.loads(json.dumps({name: v for name, v in asdict(config).items() if name != "out"}))
    if check_folder(config.out, path.name, "a demo's"):
        if read_json(path) != settings:
            raise InputError(
                f"--out: {config.out} holds a demo with other settings; choose another folder, "
                f"such as --out {config.out}-{config.seed}."
            )
    else:
        write_json(path, settings)
