"""What the models of an experiment find in an image, configuration by pruning ratio: the report's third figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from prunekit.experiments.measured import Row, finished_rows, named_level
from prunekit.experiments.values import GIVEN, Values
from prunekit.files import write_bytes
from prunekit.pipeline import RunFolder
from prunekit.pipeline.examples import DESCRIPTION, NUM_EXAMPLES
from prunekit.pipeline.variants import Unit
from prunekit.report.page import unit_of
from prunekit.report.tiles import Tile, arranged, encoded
from prunekit.task import Task


@dataclass(frozen=True)
class _Trial:
    """One model, and the folder of its run."""

    name: str
    folder: RunFolder
    unit: Unit
    is_attacked: bool

    @cached_property
    def task(self) -> Task:
        return self.folder.task()

    @cached_property
    def found(self) -> Mapping[int, Any]:
        """What the model finds in the examples, by image id."""
        shown = self.task.shown(self.folder.predictions(self.unit.stem, self.is_attacked))
        return {key: shown.get(key, []) for key in self.examples}

    @cached_property
    def examples(self) -> dict[int, Mapping[str, Any]]:
        """The images that the run kept, by id."""
        return {example["id"]: example for example in self.folder.read_json(DESCRIPTION)["images"]}

    def tile(self, key: int) -> Tile:
        return self.name, self._picture(key, self.unit.stem if self.is_attacked else None, self.found[key])

    def truth(self, key: int) -> Tile:
        return "ground truth", self._picture(key, None, None)

    def _picture(self, key: int, stem: str | None, found: Any) -> Image.Image:
        with Image.open(self.folder.example(key, stem)) as image:
            return self.task.picture(image, self.examples[key], found)


def write_samples(experiment: Path, values: Values, out: Path) -> list[bytes]:
    """Draw a figure of each example image: a line a configuration, a picture a ratio, attacked if the runs were.

    All models are of the seed of the first run. Nothing is drawn where its runs' folders are gone.

    Args:
        experiment: The folder of an experiment.
        values: Its values.
        out: Gets sample-<image id>.png.

    Returns:
        The figures as JPEG.
    """
    lines = _lines(experiment, values)
    trials = [trial for line in lines for trial in line]
    if not all((trial.folder.root / DESCRIPTION).is_file() for trial in trials):
        return []
    common = [key for key in trials[0].examples if all(key in trial.examples for trial in trials)]
    images = []
    for key in common[:NUM_EXAMPLES]:
        figure = arranged([[trials[0].truth(key)], *([trial.tile(key) for trial in line] for line in lines)])
        write_bytes(out / f"sample-{key}.png", encoded(figure, "PNG"))
        images.append(encoded(figure, "JPEG"))
    return images


def _lines(experiment: Path, values: Values) -> list[list[_Trial]]:
    """Return the trials of each configuration, by ratio."""
    rows = [row for row in finished_rows(experiment) if row["structure"] != GIVEN]
    rows = [row for row in rows if row["seed"] == rows[0]["seed"]]
    lines: dict[tuple[str, ...], list[_Trial]] = {}
    for row in rows:
        configuration = tuple(named_level(name, row[name]) for name in values.factors)
        lines.setdefault(configuration, []).append(_trial(experiment, values.name(configuration), row))
    return list(lines.values())


def _trial(experiment: Path, name: str, row: Row) -> _Trial:
    unit = unit_of(row)
    caption = f"{name}, {unit.target}"
    return _Trial(caption, RunFolder(experiment / "runs" / row["run"]), unit, row["attack"] != "none")
