"""The run folder: each variant at each ratio is a unit of work, finished once its JSON is there; nothing half-written.

Layout, all files written under a temporary name and renamed:

    config.yaml inputs.json environment.json    what was asked, of what, on what
    stages/                                     models, scores and masks, each found by what it was made of
    units/                                      a finished unit each: its key and its row
    results.csv                                 the finished rows
    masks/ detections/ acceleration/ layers/    of each unit
    compacted/                                  of each unit that lost filters: the smaller model
    examples/ plots/ report.html                to look at
    log.txt                                     appended to
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from prunekit.attacks import PRESETS, attack_identity
from prunekit.config import CONFIG, read_settings, write_settings
from prunekit.environment import installed_version
from prunekit.errors import InputError
from prunekit.files import write_text
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.results import Inputs, RatioResult, results_csv
from prunekit.pipeline.store import check_folder, claimed, digest, finished_work, flat, read_json, sha256, write_json
from prunekit.pipeline.variants import Unit
from prunekit.task import ModelSpec, Task, load_plugin, task_of
from prunekit.training.pool import is_pool, pool_names


class RunFolder:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def results(self) -> Path:
        """The table with a row per finished ratio."""
        return self.root / "results.csv"

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.root / "report.html"

    def unit(self, unit: Unit) -> Path:
        """The file that makes a unit finished."""
        return self.root / "units" / f"{unit.stem}.json"

    def masks(self, unit: Unit) -> Path:
        """The unit's masks."""
        return self.root / "masks" / f"{unit.stem}.safetensors"

    def compacted(self, unit: Unit) -> Path:
        """The unit's compacted model, which `prunekit.load` reads."""
        return self.root / "compacted" / f"{unit.stem}.prunekit"

    def layers(self, unit: Unit) -> Path:
        """What became of each layer of the unit."""
        return self.root / "layers" / f"{unit.stem}.json"

    def predictions(self, stem: str, attacked: bool) -> Path:
        """A unit's predictions: the stem of the task's files, which have suffixes."""
        return self.root / "detections" / f"{stem}{'_attacked' if attacked else ''}"

    def task(self) -> Task:
        """The task of the run's models, from config.yaml."""
        config = self.config()
        for module in config.get("plugin", ()):
            load_plugin(module)
        return task_of(ModelSpec(config["model"]))

    def config(self) -> dict[str, Any]:
        """Read what was asked."""
        return read_settings(self.root / CONFIG)

    def example(self, image_id: int, stem: str | None = None) -> Path:
        """An example image as the network sees it: clean, or attacked through the model of a unit."""
        name = "clean" if stem is None else f"{stem}_attacked"
        return self.root / "examples" / name / f"{image_id}.png"

    def log(self, text: str) -> None:
        """Append one line with the time to log.txt."""
        with (self.root / "log.txt").open("a") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {text}\n")

    def read_json(self, name: str) -> Any:
        """Read one of the folder's JSON files."""
        return read_json(self.root / name)

    def write_json(self, name: str, content: Any) -> None:
        """Write one of the folder's JSON files, atomically."""
        write_json(self.root / name, content)


class OpenRun(RunFolder):
    """A run folder that this process works in, for one configuration and its inputs."""

    def __init__(self, config: RunConfig, inputs: Inputs) -> None:
        super().__init__(config.out)
        self.inputs = inputs
        self._units = config.units
        versions = [installed_version(package) for package in ("prunekit", "torch")]
        # What the names of attacks stand for can change; the units that were done under other numbers are done again.
        learned = pool_names(config.train_attack) if is_pool(config.train_attack) else (config.train_attack,)
        attacks = {name: attack_identity(PRESETS.get(name)) for name in (config.attack, *learned)}
        self._key = digest([config.identity(), attacks, asdict(inputs), versions])

    def finished(self, unit: Unit) -> RatioResult | None:
        """Return a unit's row when it was done for this very configuration, inputs and versions, and is complete."""
        columns = finished_work(self.unit(unit), self._key, "row", self.root)
        try:
            row = None if columns is None else RatioResult(columns)
        except ValueError:  # of another version
            return None
        # The unpruned model was measured once, and is ratio 0 of every variant.
        return row and RatioResult({**row.columns, **asdict(unit.variant)})

    def finish(self, unit: Unit, row: RatioResult, files: Sequence[Path], model: Path, spec: ModelSpec) -> None:
        """Declare a unit finished; it stays so while `files` stay as they are.

        Args:
            unit: What was done.
            row: Its results.
            files: What it wrote.
            model: The file of its model: a stage's, or, at ratio 0, the weights that were given.
            spec: What builds the model again.
        """
        digests = {str(path.relative_to(self.root)): sha256(path) for path in files}
        where = model.relative_to(self.root) if model.is_relative_to(self.root) else model.absolute()
        holds = {"path": str(where), "sha256": sha256(model), "spec": asdict(spec)}
        done = {"key": self._key, "model": holds, "files": digests, "row": dict(row.columns)}
        write_json(self.unit(unit), done)
        self.write_results()

    def write_results(self) -> None:
        """Build results.csv from the finished units."""
        rows = [self.finished(unit) for unit in self._units]
        write_text(self.results, results_csv([row.columns for row in rows if row is not None]))


def check_out(config: RunConfig) -> None:
    """Raise InputError unless `config.out` is free or holds a run of the same configuration.

    Ratios and variants may differ: each pair is a unit of its own, so a run can be given more of them later.
    """
    root = config.out
    if not check_folder(root, CONFIG, "a run's"):
        return
    earlier = flat(RunFolder(root).config())
    for field, value in config.identity().items():
        if field not in earlier or earlier[field] != value:
            found = repr(earlier[field]) if field in earlier else "no such field"
            raise InputError(
                f"--out: {root} holds a run with another configuration "
                f"({field}: {found} there, {value!r} now); choose another folder, such as --out {root}-2."
            )


@contextmanager
def open_run(config: RunConfig, inputs: Inputs) -> Iterator[OpenRun]:
    """Open `config.out`, new or interrupted, for this process alone.

    Raises:
        InputError: When the folder belongs to another configuration, other inputs or another process.
    """
    check_out(config)
    folder = OpenRun(config, inputs)
    with claimed(config.out):
        if (config.out / "inputs.json").is_file():
            _check_inputs(folder, inputs)
        write_settings(config.out / CONFIG, config)
        folder.write_json("inputs.json", asdict(inputs))
        yield folder


def _check_inputs(folder: RunFolder, inputs: Inputs) -> None:
    earlier = folder.read_json("inputs.json")
    for field, value in asdict(inputs).items():
        found = str(earlier.get(field))
        if found != value:
            raise InputError(
                f"--out: {folder.root} holds a run on other {field.removesuffix('_sha256')} "
                f"({field}: {found[:12]}… there, {value[:12]}… now); "
                f"choose another folder, such as --out {folder.root}-2."
            )
