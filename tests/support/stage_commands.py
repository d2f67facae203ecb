"""Detectors and choices that the stages' commands are tested with."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.commands import Options, succeed

SIZE = {"image-size": 64, "threads": 1}
COMMANDS = ["train", "score", "prune", "finetune", "evaluate"]


def train_for_a_moment(data: Path, out: Path) -> Path:
    """Train a detector from scratch for two steps; return the folder of the command."""
    untrained = {"model": "yolov3-tiny", "width": 0.03, "data": data}
    succeed("train", SIZE | untrained | {"objective": "clean", "max-steps": 2, "out": out})
    return out


def prune_filters(trained: Path, out: Path) -> Path:
    """Take 60 % of its filters from that detector; return the folder of the command."""
    succeed("prune", {"weights": trained / "model.safetensors", "ratio": 60, "structure": "filter", "out": out})
    return out


def working_options(trained: Path, pruned: Path, data: Path, folder: Path) -> dict[str, Options]:
    """Return for each command choices that work; data and weights are copies in `folder` that a test may damage."""
    shutil.copytree(data, folder / "data")
    shutil.copy(trained / "model.safetensors", folder / "net.safetensors")
    shutil.copy(trained / "model.weights", folder / "net.weights")
    shutil.copy(pruned / "model.safetensors", folder / "pruned.safetensors")
    net, data = folder / "net.safetensors", folder / "data"
    shared = SIZE | {"out": folder / "out"}
    training = shared | {"data": data, "max-steps": 1, "objective": "clean"}
    return {
        "train": training | {"weights": net},
        "score": shared | {"weights": net},
        "prune": shared | {"weights": net, "ratio": 90},
        "finetune": training | {"weights": folder / "pruned.safetensors"},
        "evaluate": shared | {"weights": net, "data": data, "attack": "fgsm"},
    }
