"""The HTML report: one page that opens offline, made from a run folder's files alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from prunekit.evaluation.patch import PATCH
from prunekit.files import write_text
from prunekit.pipeline import RunFolder, read_rows
from prunekit.pipeline.condition_config import CORRUPTIONS, LATENCY
from prunekit.pipeline.examples import DESCRIPTION, NUM_EXAMPLES
from prunekit.pipeline.overload import CANDIDATES
from prunekit.pipeline.variants import AS_GIVEN, UNIFORM, Unit, Variant
from prunekit.report.allocation_plots import write_allocation_plot
from prunekit.report.plots import GIVEN, UNPRUNED, Row, is_comparison, variants, write_plots
from prunekit.report.tradeoff_plot import gains, write_tradeoff_plot
from prunekit.task import Figure, Task, TellsFlips

T = TypeVar("T")

MAX_SHOWN = 4
#: What dense engines take for the unpruned model, name → milliseconds, where somebody has timed them.
DENSE = "dense.json"


def write_report(folder: RunFolder) -> Path:
    """Draw the plots of a run and write its report.html; return the page's path.

    Raises:
        InputError: When the folder holds no results.
    """
    rows, task, config = read_rows(folder.results), folder.task(), folder.config()
    shown = _shown(rows)
    plots = write_plots(rows, folder.root / "plots", task.figures)
    plots["tradeoff"] = folder.root / "plots" / "tradeoff.png"
    dense = folder.read_json(DENSE) if (folder.root / DENSE).is_file() else {}
    write_tradeoff_plot(plots["tradeoff"], rows, task.figures[0], dense)
    if layers := _layers(folder, rows):
        plots["allocation"] = folder.root / "plots" / "allocation.png"
        write_allocation_plot(plots["allocation"], layers)
    table, conditions = _table(rows), _conditions(rows[0], task.figures[0], config)
    page = template("report.html").render(
        rows=rows,
        table=table,
        gains=gains(rows, task.figures[0], dense),
        dense=dense,
        has_compacted=any(row.get("latency_ms_compacted") for row in rows),
        is_comparison=is_comparison(rows),
        plots={name: data_uri(path.read_bytes(), "png") for name, path in plots.items()},
        shown=shown,
        figures=task.figures,
        proven=_proven(rows[0]),
        conditions=conditions,
        in_use=_in_use(table, conditions),
        steps=[name.removesuffix("_ms") for name in rows[0] if name.endswith("_ms") and name != "latency_ms"],
        accuracy=task.describe(config),
        trainings=_trainings(config),
        galleries=_galleries(folder, task, shown, is_attacked=rows[0]["attack"] != "none"),
        tells_flips=rows[0]["attack"] != "none" and isinstance(task, TellsFlips),
        config=config,
        environment=folder.read_json("environment.json"),
        machines=sorted({(row["processor"], row["instruction_set"], row["threads"]) for row in rows}),
    )
    write_text(folder.report, page)
    return folder.report


def template(name: str) -> Template:
    """Return a page's template, which escapes what is put into it and knows no empty names."""
    loader = PackageLoader("prunekit", "report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)


def data_uri(image: bytes, kind: str) -> str:
    """Return an image file's bytes as a URI that needs no other file; `kind` is png or jpeg."""
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()


def _trainings(config: Mapping[str, Any]) -> list[str]:
    """Return how long each training of a run took at most; nothing where it had nothing to learn from."""
    stages = {"pretrain": "pre-training", "optimize": "optimized scores", "finetune": "fine-tuning"}
    if not config["train_data"]:
        return []
    if "optimized" not in config["pruning"]:
        del stages["optimize"]
    return [_training(name, config[stage]) for stage, name in stages.items() if config[stage]["epochs"]]


def _training(name: str, settings: Mapping[str, Any]) -> str:
    end = f", ended after {settings['max_steps']} steps" if settings["max_steps"] else ""
    return f"{settings['epochs']} epochs of {name} (batch normalization {settings['batch_norm']}{end})"


def _table(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Return the rows with the full names of their variants; the unpruned model that they share is there once."""
    table = []
    for row in (row for group in variants(rows).values() for row in group):
        name = unit_of(row).variant.name if float(row["ratio"]) > 0 else UNPRUNED
        table.append((GIVEN if row["structure"] == "none" else name, row))
    return table


def _proven(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns on what is proven, with their headings."""
    certified = "certified_accuracy_"
    names = {"verified_accuracy": "verified", "mean_certified_radius": "mean radius", "abstained": "abstained"}
    names |= {name: f"certified at {name.removeprefix(certified)}" for name in columns if name.startswith(certified)}
    return {name: names[name] for name in columns if name in names}


def _conditions(row: Row, figure: Figure, config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the columns on what a model meets in use, each with its heading and its digits; none if not asked for."""
    asked = config.get("conditions") or []
    patch, overload = PATCH in asked, LATENCY in asked
    shown = {
        figure.column: (f"{figure.name}, clean", 3, True),
        f"attacked_{figure.column}": ("attacked", 3, row["attack"] != "none"),
        f"corrupted_{figure.column}": ("corrupted", 3, CORRUPTIONS in asked),
        f"unpatched_{figure.column}": ("no patch", 3, patch),
        f"random_patch_{figure.column}": ("random patch", 3, patch),
        f"patched_{figure.column}": ("trained patch", 3, patch),
        CANDIDATES: ("clean", 1, overload),
        f"overload_{CANDIDATES}": ("overload", 1, overload),
        "ms_deployed": ("clean", 2, overload),
        "ms_overload": ("overload", 2, overload),
    }
    return {column: (title, digits) for column, (title, digits, is_shown) in shown.items() if asked and is_shown}


def _in_use(table: Sequence[tuple[str, Row]], columns: Iterable[str]) -> list[tuple[str, Row]]:
    """Return the table's rows for these columns, each followed by that of its model in int8, where there is one."""
    found = []
    for name, row in table:
        found.append((name, row))
        in_int8 = {column: row.get(f"int8_{column}", "") for column in columns}
        if any(in_int8.values()):
            found.append((f"{name}, int8", {**row, **in_int8}))
    return found


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Choose up to `MAX_SHOWN` units, of all variants: stem → heading."""
    units = {}
    for name, group in variants(rows).items():
        for row in group:
            unit = unit_of(row)
            prefix, what = f"{name}, " if name and unit.is_pruned else "", unit.budget or f"{unit.ratio:g} % pruned"
            units[unit.stem] = unit.label if unit.variant == AS_GIVEN else f"{prefix}{what}"
    return dict(_spread(list(units.items()), MAX_SHOWN))


def _layers(folder: RunFolder, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Return the layers of the units at the last budget or ratio by their labels; none where all ratios are uniform.

    Sensitivities are those that any of them knows, milliseconds those of the unpruned model where it was timed.
    """
    units = [unit for unit in map(unit_of, rows) if unit.is_pruned and folder.layers(unit).is_file()]
    if not any(unit.shared for unit in units):
        return {}
    last = [unit for unit in units if (unit.ratio, unit.budget) == (units[-1].ratio, units[-1].budget)]
    found = {unit.label: json.loads(folder.layers(unit).read_text()) for unit in last}
    whole = folder.layers(Unit(last[-1].variant, 0))
    ms = {row["layer"]: row["ms"] for row in json.loads(whole.read_text())} if whole.is_file() else {}
    known = {
        row["layer"]: row["sensitivity"] for rows in found.values() for row in rows if row["sensitivity"] is not None
    }
    for row in (row for rows in found.values() for row in rows):
        row |= {"ms": ms.get(row["layer"], row["ms"]), "sensitivity": known.get(row["layer"])}
    return found


def unit_of(row: Row) -> Unit:
    """Return the unit of a row; rows of earlier versions have neither allocation nor budget."""
    variant = Variant(row["structure"], row["scores"], row["pruning"], row.get("allocation") or UNIFORM)
    budget = row.get("budget", "")
    return Unit(variant, 0.0 if budget else float(row["ratio"]), budget)


def _galleries(folder: RunFolder, task: Task, shown: Iterable[str], is_attacked: bool) -> list[dict[str, Any]]:
    """Return one gallery per example image: the truth, and what was found in it clean and attacked."""
    kinds = {"clean": False, "attacked": True} if is_attacked else {"clean": False}
    found = {
        (stem, attacked): task.shown(folder.predictions(stem, attacked))
        for stem in shown
        for attacked in kinds.values()
    }
    return [
        {
            "file_name": example["file_name"],
            "truth": _picture(folder, task, example, None),
            "rows": {
                kind: [
                    _picture(folder, task, example, found[stem, attacked].get(example["id"], []), stem, attacked)
                    for stem in shown
                ]
                for kind, attacked in kinds.items()
            },
        }
        for example in _chosen(folder.read_json(DESCRIPTION)["images"], task, list(shown), found, is_attacked)
    ]


def _chosen(
    examples: Sequence[Mapping[str, Any]], task: Task, stems: Sequence[str], found: Mapping[Any, Any], is_attacked: bool
) -> list[Mapping[str, Any]]:
    """Return the examples to show: those first whose answer an attack flipped in the most of the units."""

    def flips(example: Mapping[str, Any]) -> int:
        if not is_attacked or not isinstance(task, TellsFlips):
            return 0
        key = example["id"]
        return sum(task.flipped(example, found[stem, False][key], found[stem, True][key]) for stem in stems)

    return sorted(examples, key=flips, reverse=True)[:NUM_EXAMPLES]


def _picture(
    folder: RunFolder, task: Task, example: Mapping[str, Any], found: Any, stem: str = "", attacked: bool = False
) -> str:
    """Return a picture as a JPEG, a tenth of a photo's PNG, in a URI."""
    buffer = io.BytesIO()
    with Image.open(folder.example(example["id"], stem if attacked else None)) as image:
        picture = task.picture(image, example, found)
        picture.save(buffer, format="JPEG", quality=90, subsampling=0)  # full color resolution: thin lines
    return data_uri(buffer.getvalue(), "jpeg")


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items, first and last among them, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
