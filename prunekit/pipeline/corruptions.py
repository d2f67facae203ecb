"""A model's figures under corruptions, each corruption at each severity a piece of work of its own on disk."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from prunekit.errors import InputError
from prunekit.evaluation.corruptions.catalog import Cell, CorruptPixels
from prunekit.evaluation.corruptions.summary import CorruptionSummary, corrupted, main_figure, require_corruptible
from prunekit.evaluation.evaluate import Subject, evaluate, finite_or_none
from prunekit.files import write_bytes, write_text
from prunekit.kept_images import KeptPixels, Pixels
from prunekit.pipeline.results import results_csv
from prunekit.pipeline.store import StageFolder
from prunekit.task import Data

#: The folder of the cells in that of an evaluation, the table of all of them, and an image in a cell's folder.
CELLS, TABLE, EXAMPLE = "corruptions", "corruptions.csv", "example.png"
#: The severity that the example is shown at.
EXAMPLE_SEVERITY = 3
CLEAN_EXAMPLE = "clean"
Figures = Mapping[str, float | None]
#: Accuracy of another classifier by cell.
Baseline = Mapping[Cell, float]


def keep_decoded(dataset: Data) -> None:
    """Keep images as decoded, as far as they fit: every cell corrupts the same ones."""
    require_corruptible(dataset).decoded = KeptPixels()


def write_cell(folder: StageFolder, subject: Subject, cell: Cell) -> tuple[dict[str, Any], list[str]]:
    """Evaluate a model on corrupted images; return its figures, and the names of the files that were written."""
    found = evaluate(corrupted(subject, cell), None, cell.name)
    figures = {name: finite_or_none(value) for name, value in found.figures.items()}
    if cell.severity != EXAMPLE_SEVERITY:
        return figures, []
    _write_image(folder.file(EXAMPLE), _example(subject, cell))
    return figures, [EXAMPLE]


def write_clean_example(folder: StageFolder, subject: Subject) -> tuple[dict[str, Any], list[str]]:
    """Write the image that cells show corrupted, as it is."""
    _write_image(folder.file(EXAMPLE), _example(subject, None))
    return {}, [EXAMPLE]


def write_table(out: Path, clean: Figures, cells: Mapping[Cell, Figures], about: Mapping[str, Any]) -> Path:
    """Write a row a cell, the clean images before them as corruption "none" of severity 0.

    Args:
        out: The evaluation's folder.
        clean: The figures on clean images.
        cells: The figures under corruptions.
        about: What every row says of the model and the data.
    """
    by_cell = {Cell("none", 0): clean, **cells}
    names = dict.fromkeys(name for figures in cells.values() for name in figures)
    rows = [
        {
            "corruption": cell.corruption,
            "severity": cell.severity,
            **{name: figures.get(name) for name in names},
            **about,
        }
        for cell, figures in by_cell.items()
    ]
    write_text(out / TABLE, results_csv(rows))
    return out / TABLE


def summarized(
    subject: Subject, clean: Figures, cells: Mapping[Cell, Figures], is_classifier: bool, baseline: Baseline | None
) -> CorruptionSummary:
    """Return what the figures amount to."""
    figure = subject.task.figures[0]
    values = {cell: main_figure(figures, figure) for cell, figures in cells.items()}
    return CorruptionSummary(figure, main_figure(clean, figure), values, is_classifier, baseline)


def read_baseline(path: Path, cells: tuple[Cell, ...], data_sha256: str) -> Baseline:
    """Read another classifier's accuracies.

    Args:
        path: A corruptions.csv; of its columns, corruption, severity and accuracy suffice.
        cells: What has to be in there.
        data_sha256: The data's digest; if the table says one, it has to be this.

    Raises:
        InputError: When it is no such table, or is of other data.
    """
    rows = {(row.get("corruption"), row.get("severity")): row for row in _read_rows(path)}
    found = {}
    for cell in cells:
        row = rows.get((cell.corruption, str(cell.severity)))
        if row is None:
            raise InputError(f"--corruption-baseline: expected {cell.name} in {path}, got no such row.")
        if row.get("data_sha256") not in (None, "", data_sha256):
            raise InputError(
                f"--corruption-baseline: expected figures on the same images at the same size, got others in {path}."
            )
        found[cell] = _accuracy(row.get("accuracy"), cell, path)
    return found


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(path.read_text())))
    except (OSError, ValueError, csv.Error):
        raise InputError(f"--corruption-baseline: expected a corruptions.csv, but {path} cannot be read.") from None


def _accuracy(text: str | None, cell: Cell, path: Path) -> float:
    try:
        accuracy = float(text or "")
    except ValueError:
        accuracy = -1.0
    if not 0 <= accuracy <= 1:
        raise InputError(
            f"--corruption-baseline: expected an accuracy from 0 to 1 of {cell.name} in {path}, got {text!r}."
        )
    return accuracy


def _example(subject: Subject, cell: Cell | None) -> Pixels:
    """Return the first image that is worth showing, as decoded and corrupted."""
    dataset = require_corruptible(subject.dataset)
    changed = dataset if cell is None else dataset.changed(CorruptPixels(cell, subject.config.seed))
    pixels: Pixels = changed.pixels(next(iter(subject.dataset.examples(1)), 0))
    return pixels


def _write_image(path: Path, pixels: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
