"""What the demo does, and about how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.benchmark.peers import EAGER, FLOAT32_PEERS
from prunekit.demo import shipped
from prunekit.experiments.rendered import weights_file

_USUAL_IMAGES = 1200  # that a `Pace` is for


@dataclass(frozen=True)
class Pace:
    """Minutes that the parts of the demo take, with 1200 training images and the default width.

    Attributes:
        clean_epoch: One epoch of training from scratch.
        robust_epoch: One epoch of adversarial training.
        unit: Evaluating, accelerating and timing one model.
        engine: Building and timing one dense engine.
    """

    clean_epoch: float
    robust_epoch: float
    unit: float
    engine: float = 0.0


# Measured on a server from 2024 with two cores: two threads and nothing else running; one thread beside other work. Two
# idle cores from 2021, with AVX2, were as slow as the latter.
TWO_IDLE_CORES, ONE_CORE = Pace(0.06, 0.105, 0.12), Pace(0.17, 0.30, 0.16)
# The shipped detector takes a hundred milliseconds of a core with AVX2 to learn from an image, clean and attacked, and
# 160 to be evaluated on one.
SHIPPED_TWO_IDLE_CORES, SHIPPED_ONE_CORE = Pace(0, 1.15, 0.5, 0.15), Pace(0, 2.3, 0.9, 0.3)


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does; `duration` says how long it takes.

    The defaults train a small detector from scratch.

    Attributes:
        out: Folder for data, weights and the run.
        seed: Of data and training.
        num_train: Rendered training images.
        num_val: Rendered images for evaluation, from another seed.
        image_size: Side of the network's input in pixels.
        width: YOLOv3-tiny's channels relative to darknet's.
        epochs: Passes over the training images, clean, from scratch.
        ratios: Pruning ratios in percent.
        structure, scores, pruning, allocation: The variants, as in `RunConfig`.
        pretrain_epochs, optimize_epochs, finetune_epochs: Passes of adversarial training.
        is_shipped: Whether the detector comes with the package: nothing is trained before it is pruned.
        style: Of the images, a key of `prunekit.detection.shapes.STYLES`.
        ratios_of: Structures' own ratios, as in `RunConfig`.
        precision: What is deployed, as in `RunConfig`.
        latency_threads: Likewise.
        peers: Dense engines to compare with, keys of `PEERS`; those that are not installed are left out.
    """

    out: Path
    seed: int = 0
    num_train: int = _USUAL_IMAGES
    num_val: int = 150
    image_size: int = 128
    width: float = 0.25
    epochs: int = 24
    ratios: tuple[float, ...] = (0, 75, 90)
    structure: tuple[str, ...] = ("unstructured", "filter")
    scores: tuple[str, ...] = ("scaled",)
    pruning: tuple[str, ...] = ("optimized",)
    allocation: tuple[str, ...] = ("uniform",)
    pretrain_epochs: int = 15
    optimize_epochs: int = 1
    finetune_epochs: int = 2
    is_shipped: bool = False
    style: str = "flat"
    ratios_of: tuple[str, ...] = ()
    precision: tuple[str, ...] = ("float32",)
    latency_threads: int | None = None
    peers: tuple[str, ...] = ()

    @classmethod
    def usual(cls, out: Path, seed: int = 0) -> DemoConfig:
        """Return the demo of the shipped detector, or of one that is trained first where the package has none."""
        if not shipped.is_shipped():
            return cls(out, seed)
        return cls.of_shipped(
            out,
            seed,
            num_train=320,
            num_val=80,
            finetune_epochs=2,
            structure=("unstructured", "block1x4", "filter"),
            ratios_of=("block1x4=75", "filter=50"),
            precision=("float32", "int8"),
            peers=FLOAT32_PEERS,
        )

    @classmethod
    def quick(cls, out: Path, seed: int = 0) -> DemoConfig:
        """Return a demo of about a minute: unstructured zeros alone, little fine-tuning, few images, one engine."""
        if shipped.is_shipped():
            few = {"num_train": 200, "num_val": 16, "ratios": (0, 75), "pruning": ("one-shot",), "peers": (EAGER,)}
            return cls.of_shipped(out, seed, structure=("unstructured",), **few)
        return cls(
            out, seed, num_train=300, num_val=40, epochs=8, ratios=(0, 90), structure=("unstructured",),
            pretrain_epochs=3, finetune_epochs=1,
        )  # fmt: skip

    @classmethod
    def full(cls, out: Path, seed: int = 0) -> DemoConfig:
        """Return the demo that trains, and compares both scores and both prunings at the report's nine ratios."""
        return cls(
            out,
            seed,
            ratios=(0, 25, 50, 65, 75, 85, 90, 95, 99),
            scores=("scaled", "deeplift"),
            pruning=("one-shot", "optimized"),
        )

    @classmethod
    def of_shipped(cls, out: Path, seed: int = 0, **choices: object) -> DemoConfig:
        """Return a demo of the shipped detector on images of its kind.

        LAMP shares the ratio among layers: the few steps that there is time for do not mend what equal shares take from
        the layers with few weights.
        """
        fitting = {"image_size": shipped.IMAGE_SIZE, "style": shipped.STYLE, "width": shipped.WIDTH}
        trained = {"epochs": 0, "pretrain_epochs": 0, "optimize_epochs": 1, "finetune_epochs": 1}
        usual = {"allocation": ("lamp",), "latency_threads": 1}
        settings: dict[str, object] = {**fitting, **trained, **usual, **choices}
        return cls(out, seed, is_shipped=True, **settings)  # type: ignore[arg-type]

    @property
    def duration(self) -> str:
        """Roughly how long it takes, in words."""
        idle, busy = (SHIPPED_TWO_IDLE_CORES, SHIPPED_ONE_CORE) if self.is_shipped else (TWO_IDLE_CORES, ONE_CORE)
        shortest, longest = _words(self.minutes(idle)), _words(self.minutes(busy))
        cores = "two idle cores" if self.is_shipped else "two idle cores with AVX-512"
        return f"about {shortest} on {cores}, {longest} on older or busy ones"

    def minutes(self, pace: Pace) -> float:
        """Return a rough estimate of the time it takes, in minutes, from the number of its parts and their pace."""
        units = self._pruned_units * len(self.scores)
        optimized, all_units = units * ("optimized" in self.pruning), units * len(self.pruning)
        epochs = self.pretrain_epochs + optimized * self.optimize_epochs + all_units * self.finetune_epochs
        learning = self.num_train / _USUAL_IMAGES * (pace.clean_epoch * self.epochs + pace.robust_epoch * epochs)
        models = all_units + (1 if self.is_shipped else 2)
        return learning + pace.unit * models + pace.engine * len(self.peers)

    @property
    def _pruned_units(self) -> int:
        """Structures times ratios."""
        own = dict(text.split("=") for text in self.ratios_of)
        shared = sum(ratio > 0 for ratio in self.ratios)
        return sum(len(own[name].split(",")) if name in own else shared for name in self.structure)

    @property
    def weights(self) -> Path:
        """The detector before pruning: as shipped, or in darknet's format what was trained."""
        return self.out / "weights" / shipped.WEIGHTS if self.is_shipped else weights_file(self.out)


def _words(minutes: float) -> str:
    return f"{minutes:.0f} minute{'s' if round(minutes) != 1 else ''}"
