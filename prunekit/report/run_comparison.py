"""One page on several runs: what they were told differently, and their models next to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.files import write_text
from prunekit.pipeline import RunFolder, read_rows
from prunekit.pipeline.results import results_csv
from prunekit.pipeline.store import flat
from prunekit.pipeline.variants import AS_GIVEN, Unit
from prunekit.report.page import template, unit_of
from prunekit.report.plots import GIVEN, UNPRUNED, Row

_MEASURED_ON = ("processor", "instruction_set", "threads")
#: A row with the name of its run.
Trial = tuple[str, Row]


def write_run_comparison(folders: Sequence[RunFolder], out: Path) -> Path:
    """Write comparison.html and comparison.csv; return the page's path.

    Args:
        folders: The runs, finished or interrupted, in their order on the page.
        out: Gets both files.

    Raises:
        InputError: When a folder holds no results.
    """
    runs = dict(zip(_names(folders), folders, strict=True))
    rows = {name: read_rows(folder.results) for name, folder in runs.items()}
    trials = [(name, row) for name, found in rows.items() for row in found]
    write_text(out / "comparison.csv", results_csv([{"run": name, **row} for name, row in trials]))
    page = template("comparison.html").render(
        runs=list(runs),
        settings=_differing({name: _settings(folder, rows[name]) for name, folder in runs.items()}),
        sections=_sections(trials),
        figures=list(dict.fromkeys(figure for folder in folders for figure in folder.task().figures)),
    )
    write_text(out / "comparison.html", page)
    return out / "comparison.html"


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """Return what the page calls each run: its folder's name, or the whole path where names are the same."""
    short = [folder.root.name for folder in folders]
    return short if len({*short}) == len(short) else [str(folder.root) for folder in folders]


def _settings(folder: RunFolder, rows: Sequence[Row]) -> dict[str, Any]:
    """Return all that a run was told, of which content it is and what it ran on, by dotted names."""
    packages = folder.read_json("environment.json")["packages"]
    inputs = {name: digest[:12] for name, digest in folder.read_json("inputs.json").items()}
    machine = {name: rows[0][name] for name in _MEASURED_ON if rows}
    versions = {name: packages.get(name) for name in ("prunekit", "torch")}
    return {name: value for name, value in flat(folder.config()).items() if name != "out"} | inputs | machine | versions


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs: name → what people read, by run."""
    names = dict.fromkeys(name for found in settings.values() for name in found)
    values = {name: [_shown(found.get(name)) for found in settings.values()] for name in names}
    return {name: found for name, found in values.items() if len({*found}) > 1}


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return "–" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _sections(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Group trials by structure and by ratio or budget; the unpruned model of a run is there once."""
    found: dict[str, dict[tuple[str, str], Trial]] = {}
    for name, row in trials:
        unit = unit_of(row)
        found.setdefault(_heading(unit), {}).setdefault((name, unit.stem), (name, row))
    sections = {heading: list(group.values()) for heading, group in found.items()}
    structures = list(dict.fromkeys(row["structure"] for _, row in trials))
    return dict(sorted(sections.items(), key=lambda section: _place(section[1][0][1], structures)))


def _place(row: Row, structures: Sequence[str]) -> tuple[bool, bool, int, float]:
    """Return what sections are sorted by: what was given, what is unpruned, then structure and ratio."""
    unit = unit_of(row)
    return unit.variant != AS_GIVEN, unit.is_pruned, structures.index(row["structure"]), float(row["ratio"])


def _heading(unit: Unit) -> str:
    if not unit.is_pruned:
        return GIVEN if unit.variant == AS_GIVEN else UNPRUNED
    return f"{unit.variant.structure}, {unit.target}"
