"""The demo: a data set that is rendered, a detector that is trained on it, and the five steps on both.

Every part is kept in the demo's folder and done once: started again, the demo goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prunekit.errors import InputError
from prunekit.experiments.rendered import Rendered, prepare_rendered, weights_file
from prunekit.pipeline import Progress, RunConfig, RunFolder, make_config, run
from prunekit.pipeline.store import check_folder, write_json
from prunekit.report import write_report

# Robust pre-training of a net this small needs the rate that trained it: at a gentle one it stays as fragile as it was.
PRETRAIN_LEARNING_RATE, FINETUNE_LEARNING_RATE = 1.2e-2, 6e-3
SCORE_IMAGES = 64
# What the demo is told and its run is told again.
_OF_THE_RUN = (
    "seed", "width", "image_size", "ratios", "structure", "scores", "pruning",
    "pretrain_epochs", "optimize_epochs", "finetune_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """Minutes that the parts of the demo take, for the default images and width.

    Attributes:
        clean_epoch: One epoch of training from scratch.
        robust_epoch: One epoch of adversarial training.
        unit: Evaluating, accelerating and timing one model.
    """

    clean_epoch: float
    robust_epoch: float
    unit: float


# Measured on a server from 2024 with two cores: two threads and nothing else running; one thread beside other work. Two
# idle cores from 2021, with AVX2, were as slow as the latter.
TWO_IDLE_CORES, ONE_CORE = Pace(0.06, 0.105, 0.12), Pace(0.17, 0.30, 0.16)


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does; `duration` says how long the defaults take.

    Attributes:
        out: Folder for data, weights and the run.
        seed: Of data and training.
        num_train: Rendered training images.
        num_val: Rendered images for evaluation, from another seed.
        image_size: Side of the network's input in pixels.
        width: YOLOv3-tiny's channels relative to darknet's.
        epochs: Passes over the training images, clean, from scratch.
        ratios: Pruning ratios in percent.
        structure, scores, pruning: The variants, as in `RunConfig`.
        pretrain_epochs, optimize_epochs, finetune_epochs: Passes of adversarial training.
    """

    out: Path
    seed: int = 0
    num_train: int = 1200
    num_val: int = 150
    image_size: int = 128
    width: float = 0.25
    epochs: int = 24
    ratios: tuple[float, ...] = (0, 75, 90)
    structure: tuple[str, ...] = ("unstructured", "filter")
    scores: tuple[str, ...] = ("scaled",)
    pruning: tuple[str, ...] = ("optimized",)
    pretrain_epochs: int = 15
    optimize_epochs: int = 1
    finetune_epochs: int = 2

    @classmethod
    def full(cls, out: Path, seed: int = 0) -> DemoConfig:
        """Return the demo that compares both scores and both prunings at the report's nine ratios."""
        return cls(
            out,
            seed,
            ratios=(0, 25, 50, 65, 75, 85, 90, 95, 99),
            scores=("scaled", "deeplift"),
            pruning=("one-shot", "optimized"),
        )

    @property
    def duration(self) -> str:
        """Roughly how long it takes, in words."""
        return (
            f"about {self.minutes(TWO_IDLE_CORES):.0f} minutes on two idle cores with AVX-512, "
            f"{self.minutes(ONE_CORE):.0f} on older or busy ones"
        )

    def minutes(self, pace: Pace) -> float:
        """Return a rough estimate of the time it takes, in minutes, from the number of its parts and their pace."""
        units = len(self.structure) * len(self.scores) * (sum(ratio > 0 for ratio in self.ratios))
        optimized, all_units = units * ("optimized" in self.pruning), units * len(self.pruning)
        epochs = self.pretrain_epochs + optimized * self.optimize_epochs + all_units * self.finetune_epochs
        return pace.clean_epoch * self.epochs + pace.robust_epoch * epochs + pace.unit * (all_units + 2)

    @property
    def weights(self) -> Path:
        """The trained weights, in darknet's format."""
        return weights_file(self.out)


def run_demo(config: DemoConfig, progress: Progress) -> RunFolder:
    """Render, train, and do the main job, or what is left of it; return the run's folder.

    Raises:
        InputError: When the folder holds a demo with other settings, or other files.
    """
    folder = run(prepare_demo(config, progress), progress)
    write_report(folder)
    return folder


def prepare_demo(config: DemoConfig, progress: Progress) -> RunConfig:
    """Render the data and train the detector, or find them; return the main job on them.

    Raises:
        InputError: When the folder holds a demo with other settings, or other files.
    """
    _claim(config)
    sizes = {name: getattr(config, name) for name in Rendered.model_fields}
    prepare_rendered(Rendered(**sizes), config.out, config.seed, progress)
    return main_job(config, config.out / "data" / "train", config.out / "data" / "val")


def main_job(config: DemoConfig, train_data: Path, data: Path) -> RunConfig:
    """Return the run that the demo ends with."""
    return make_config(
        model="yolov3-tiny",
        weights=config.weights,
        data=data,
        train_data=train_data,
        out=config.out / "run",
        objective="n-fgsm",
        score_optimizer="adamw",
        pretrain_learning_rate=PRETRAIN_LEARNING_RATE,
        finetune_learning_rate=FINETUNE_LEARNING_RATE,
        augment=False,
        score_images=SCORE_IMAGES,
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


def _claim(config: DemoConfig) -> None:
    """Make the folder this demo's, or raise InputError."""
    path = config.out / "demo.json"
    settings = json.loads(json.dumps({name: v for name, v in asdict(config).items() if name != "out"}))
    if check_folder(config.out, path.name, "a demo's"):
        if json.loads(path.read_text()) != settings:
            raise InputError(
                f"--out: {config.out} holds a demo with other settings; choose another folder, "
                f"such as --out {config.out}-{config.seed}."
            )
    else:
        write_json(path, settings)
