"""Train the detector that is shipped for the demo, robustly, on images that are rendered.

    python -m bench.demo_detector --out runs/demo-detector

A narrow YOLOv3-tiny is trained clean, then on images attacked in two steps, then on those of the preset `paper`. The
results are detector.safetensors, in float16, and detector.json with how it was trained and what it reaches on other
images, clean and under `paper`; copied into prunekit/demo/, they are what `prunekit demo` works on. Given again, the
command goes on from the last 200 steps. The same seed, threads and versions on the same kind of processor give the
same weights. On two quiet cores with AVX2 this takes between one and two hours.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from bench.scripts import Row, command_line, one_sentence
from prunekit.attacks import PgdConfig
from prunekit.attacks.presets import EPS, PAPER
from prunekit.cli.ending import error_console
from prunekit.console import ConsoleProgress
from prunekit.demo.shipped import FIGURES, IMAGE_SIZE, MODEL, STYLE, WEIGHTS, WIDTH
from prunekit.detection import CocoDataset
from prunekit.detection.coco import SIZE_STEP
from prunekit.environment import describe_environment, thread_count
from prunekit.experiments.rendered import ShortTraining, render_images
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace, save_model, untrained
from prunekit.pipeline.command_config import EvaluateStage
from prunekit.pipeline.evaluate_command import evaluate_stage
from prunekit.pipeline.results import data_digest
from prunekit.pipeline.steps import pretrain
from prunekit.pipeline.store import WorkStore, sha256, write_json
from prunekit.progress import Progress
from prunekit.task import ModelSpec
from prunekit.training.augment import AugmentConfig
from prunekit.training.config import TrainConfig
from prunekit.training.data import read_into_memory
from prunekit.training.objectives import ObjectiveConfig

BATCH_SIZE = 8
# Flips, places and sizes, and brightness as scenes differ in it anyway.
AUGMENTATION = AugmentConfig(scale=0.2, translate=0.1, brightness=0.2, contrast=0.2)
# Two thirds of the time of `paper`'s five steps, for an attack nearly as strong on a net that is not robust yet.
TWO_STEPS = PgdConfig(EPS, step_size=0.6 * EPS, steps=2, random_start=True)
SHOWN = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class Stage:
    """One of the trainings, in their order.

    Attributes:
        name: Of its option for epochs, and for people.
        objective: What it minimizes; pgd-at adds the loss of attacked images to that of clean ones.
        attack: What attacks the images.
        epochs: Passes over all images.
        learning_rate: The peak.
        scale: Side of the images relative to `IMAGE_SIZE`. Three quarters cost half as much, and what is learned from
            them holds at full size once the last stage has moved the statistics of normalization there.
    """

    name: str
    objective: str
    attack: PgdConfig
    epochs: int
    learning_rate: float
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Side of the images in pixels, the nearest that the detector takes."""
        return SIZE_STEP * round(self.scale * IMAGE_SIZE / SIZE_STEP)

    def facts(self) -> Row:
        """Return what to write down of it."""
        return {name: getattr(self, name) for name in ("name", "objective", "epochs", "learning_rate", "size")}


STAGES = (
    Stage("clean", "clean", PAPER, epochs=5, learning_rate=8e-3, scale=0.75),
    Stage("short", "pgd-at", TWO_STEPS, epochs=16, learning_rate=8e-3, scale=0.75),
    Stage("paper", "pgd-at", PAPER, epochs=2, learning_rate=3e-3),
)


def train_detector(
    stages: Sequence[Stage], images: CocoDataset, folder: Path, seed: int, progress: Progress, width: float = WIDTH
) -> Checkpoint:
    """Train the stages one after another, or what is left of them.

    Args:
        stages: The trainings; those of no epochs are left out.
        images: To learn from.
        folder: Gets a folder for each stage, with its state while it is not finished, its losses and its model.
        seed: Of weights, anchors, batches and attacks.
        progress: Shown step by step.
        width: Channels relative to YOLOv3-tiny's.
    """
    task = ShortTraining(ModelSpec(MODEL, {"num_classes": images.num_classes, "width": width})).fitted(images, seed)
    found, workspace = untrained(task, seed), Workspace(WorkStore(folder / "stages"), progress)
    digest, data = data_digest(images, progress), read_into_memory(images, progress)
    for stage in (stage for stage in stages if stage.epochs):
        begin = time.perf_counter()
        training = Training(data, digest, stage.objective, ObjectiveConfig(attack=stage.attack))
        found = pretrain(workspace, found, training, _settings(stage, seed))
        progress.message(f"{stage.name}: {stage.epochs} epochs, {(time.perf_counter() - begin) / 60:.1f} min")
    return found


def _settings(stage: Stage, seed: int) -> TrainConfig:
    return TrainConfig(
        epochs=stage.epochs, learning_rate=stage.learning_rate, batch_size=BATCH_SIZE, augmentation=AUGMENTATION,
        sizes=(stage.size,), ema_decay=0.995, seed=seed,
    )  # fmt: skip


def in_half(model: nn.Module) -> nn.Module:
    """Return a copy with convolutions in float16; normalization, whose variances can be tiny, stays in float32."""
    smaller = copy.deepcopy(model)
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            module.half()
    return smaller


def write_detector(found: Checkpoint, folder: Path) -> Path:
    """Write the weights as they are shipped; return the file."""
    path = folder / WEIGHTS
    save_model(path, in_half(found.model), found.task.spec)
    return path


def measured(path: Path, data: Path, threads: int | None, progress: Progress) -> Row:
    """Return the average precision of the weights in a file, clean and under `paper`."""
    stage = EvaluateStage(
        weights=path, data=data, attack=("paper",), image_size=IMAGE_SIZE, threads=threads,
        out=path.parent / "evaluations" / sha256(path)[:12],
    )  # fmt: skip
    cases = evaluate_stage(stage, progress).cases
    names = {"clean": "none", "paper": "paper"}
    return {name: {figure: cases[case][figure] for figure in SHOWN} for name, case in names.items()}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="by default torch's choice; other numbers give other weights")
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-val", type=int, default=300)
    parser.add_argument("--width", type=float, default=WIDTH)
    for stage in STAGES:
        parser.add_argument(f"--{stage.name}-epochs", type=int, default=stage.epochs)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Train, write and measure the detector."""
    args = parsed(argv)
    stages = [replace(stage, epochs=getattr(args, f"{stage.name}_epochs")) for stage in STAGES]
    with one_sentence(), ConsoleProgress(error_console) as progress, thread_count(args.threads):
        train, val = render_images(args.out, args.num_train, args.num_val, IMAGE_SIZE, args.seed, progress, STYLE)
        images = CocoDataset.open(train, IMAGE_SIZE)
        found = train_detector(stages, images, args.out, args.seed, progress, args.width)
        path = write_detector(found, args.out)
        figures = measured(path, val, args.threads, progress)
        facts = {"command": f"python -m bench.demo_detector {' '.join(argv)}", "images": args.num_train}
        facts |= {"held_out_images": args.num_val, "seed": args.seed, "environment": describe_environment()}
        trained = [
            {"name": s.name, "epochs": s.epochs, "learning_rate": s.learning_rate, "size": s.size} for s in stages
        ]
        write_json(args.out / FIGURES, {**figures, "stages": trained, **facts})
    print(f"{path}: AP50 {figures['clean']['ap50']:.3f} clean, {figures['paper']['ap50']:.3f} under paper")


if __name__ == "__main__":
    main(sys.argv[1:])
