"""Pictures of an evaluation under corruptions: a heat map of the figure, and what corruptions look like."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as PlotFigure
from PIL import Image

from prunekit.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Cell
from prunekit.evaluation.corruptions.summary import CorruptionSummary
from prunekit.files import write_bytes
from prunekit.pipeline.corruptions import CELLS, CLEAN_EXAMPLE, EXAMPLE, EXAMPLE_SEVERITY
from prunekit.report.tiles import Tile, arranged, encoded

HEAT_MAP, EXAMPLES = "corruptions.png", "corruption-examples.png"
_COLUMNS, _SIDE = 5, 200  # of the examples: pictures a line, and the longest side of one in pixels
_ROW, _AROUND, _WIDTH = 0.26, 1.5, 5.6  # inches


def write_corruption_plots(out: Path, summary: CorruptionSummary) -> list[Path]:
    """Draw what `prunekit evaluate --corruptions` found; return the files.

    Args:
        out: The evaluation's folder, whose cells hold the example pictures.
        summary: The figures.
    """
    files = {HEAT_MAP: _heat_map(summary)}
    if (examples := _examples(out, summary)) is not None:
        files[EXAMPLES] = examples
    for name, content in files.items():
        write_bytes(out / name, content)
    return [out / name for name in files]


def _heat_map(summary: CorruptionSummary) -> bytes:
    """Return the figure by corruption and severity as PNG, from 0 to the clean figure or what is above it."""
    names = list(dict.fromkeys(cell.corruption for cell in summary.values))
    found = [[summary.values.get(Cell(name, severity)) for severity in SEVERITIES] for name in names]
    values = np.array(found, dtype=float)  # None becomes nan
    most = max((value for value in (summary.clean, *summary.values.values()) if value), default=1.0)
    figure = PlotFigure(dpi=160, layout="constrained", figsize=(_WIDTH, _AROUND + _ROW * len(names)))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=most, aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        color = "black" if value > most / 2 else "white"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(SEVERITIES)), [str(severity) for severity in SEVERITIES])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axes.set_xlabel("severity")
    clean = "" if summary.clean is None else f", clean {summary.clean:.3f}"
    axes.set_title(f"{summary.figure.name}{clean}", loc="left", fontsize=10, color="#444444")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _examples(out: Path, summary: CorruptionSummary) -> bytes | None:
    """Return one image under each corruption at severity 3 as PNG; None where no cell is of that severity."""
    cells = [Cell(name, EXAMPLE_SEVERITY) for name in CORRUPTIONS]
    shown = [cell for cell in cells if cell in summary.values]
    tiles = [_tile(out, CLEAN_EXAMPLE, CLEAN_EXAMPLE)]
    tiles += [_tile(out, cell.name, cell.corruption.replace("_", " ")) for cell in shown]
    lines = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return encoded(arranged(lines), "PNG") if shown else None


def _tile(out: Path, name: str, caption: str) -> Tile:
    """Return a picture, a large one made smaller, a small one enlarged so that single pixels show."""
    with Image.open(out / CELLS / name / EXAMPLE) as image:
        zoom = _SIDE / max(image.size)
        size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        how = Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX
        return caption, image.convert("RGB").resize(size, how)
