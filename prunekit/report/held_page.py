"""The page of a clip under one held perturbation, with a row a frame and the perturbation itself as files beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as PlotFigure
from PIL import Image
from torch import Tensor

from prunekit import documents
from prunekit.files import csv_text, write_text
from prunekit.kept_images import Pixels
from prunekit.pipeline.store import write_json
from prunekit.report.page import data_uri, template
from prunekit.report.plots import BLUE, GRAY, ORANGE
from prunekit.report.tiles import encoded
from prunekit.video.held import FrameSurvival, Held, HeldAttack, Survival

PAGE, FIGURES, FRAMES, TENSORS = "held.html", "held.json", "frames.csv", "perturbation.safetensors"


def write_held_page(
    out: Path, attack: HeldAttack, held: Held, survival: Survival, about: Mapping[str, Any]
) -> list[Path]:
    """Write the page, its figures, a row a frame, and both perturbations; return the files.

    Args:
        out: The folder.
        attack: How the perturbation was searched for.
        held: The perturbations.
        survival: What became of the clip.
        about: What the figures are of: clip, model and thresholds.
    """
    figures = {**about, "attack": attack.name, "eps": attack.config.eps, "norm": attack.config.norm}
    figures |= {"seed": attack.seed, **survival.figures()}
    write_json(out / FIGURES, figures)
    names = [field.name for field in fields(FrameSurvival)]
    rows = [[getattr(row, name) for name in names] for row in survival.frames]
    write_text(out / FRAMES, csv_text(["frame", *names[1:]], rows))
    documents.write(out / TENSORS, {"held": held.found, "random": held.random}, {"attack": attack.name})
    pictures = {"The detections by frame": _plot(survival), "The perturbation": _shown(held.found)}
    if survival.example is not None:
        pictures[f"Frame {survival.example.number} as it is"] = _png(survival.example.clean)
        pictures[f"Frame {survival.example.number} under the perturbation"] = _png(survival.example.held)
    uris = {title: data_uri(picture, "png") for title, picture in pictures.items()}
    write_text(out / PAGE, template("held.html").render(found=figures, pictures=uris))
    return [out / name for name in (PAGE, FIGURES, FRAMES, TENSORS)]


def _plot(survival: Survival) -> bytes:
    """Return detections by frame, clean and under both perturbations, as PNG."""
    figure = PlotFigure(dpi=160, layout="constrained", figsize=(7.2, 3.0))
    axes, numbers = figure.add_subplot(), [row.number for row in survival.frames]
    looks = {
        "clean": (GRAY, "as it is"),
        "random": (BLUE, "random, still there"),
        "held": (ORANGE, "held, still there"),
    }
    for name, (color, label) in looks.items():
        axes.plot(numbers, [getattr(row, name) for row in survival.frames], color=color, label=label, linewidth=1.4)
    axes.axvspan(numbers[0] - 0.5, numbers[0] + survival.computed_on - 0.5, color=GRAY, alpha=0.15, linewidth=0)
    axes.set_xlabel("frame (shaded: the perturbation was computed on these)")
    axes.set_ylabel("detections")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shown(perturbation: Tensor) -> bytes:
    """Return a perturbation as PNG, its largest change as black or white, no change as gray."""
    values = perturbation[0].permute(1, 2, 0).numpy()
    scaled = 0.5 + values / max(2 * float(np.abs(values).max()), 1e-12)
    return _png((scaled * 255).round().astype(np.uint8))


def _png(pixels: Pixels) -> bytes:
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG")
