"""The HTML report: one page that opens offline, made from a run folder's files alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from prunekit.files import write_text
from prunekit.pipeline import RunFolder, read_rows
from prunekit.pipeline.examples import DESCRIPTION
from prunekit.pipeline.variants import AS_GIVEN, Unit, Variant
from prunekit.report.pictures import LabelledBox, draw_boxes
from prunekit.report.plots import GIVEN, UNPRUNED, Row, is_comparison, variants, write_plots

T = TypeVar("T")

SHOWN_SCORE = 0.3  # detections below it clutter a picture; all of them count for AP
MAX_SHOWN = 4


def write_report(folder: RunFolder) -> Path:
    """Draw the plots of a run and write its report.html; return the page's path.

    Raises:
        InputError: When the folder holds no results.
    """
    rows = read_rows(folder.results)
    shown = _shown(rows)
    plots = write_plots(rows, folder.root / "plots")
    loader = Environment(
        loader=PackageLoader("prunekit", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = loader.get_template("report.html").render(
        rows=rows,
        table=_table(rows),
        has_compacted=any(row.get("latency_ms_compacted") for row in rows),
        is_comparison=is_comparison(rows),
        plots={name: data_uri(path.read_bytes(), "png") for name, path in plots.items()},
        shown=shown,
        trained=bool(folder.read_json("config.json")["train_data"]),
        galleries=_galleries(folder, shown, is_attacked=rows[0]["attack"] != "none"),
        shown_score=SHOWN_SCORE,
        config=folder.read_json("config.json"),
        environment=folder.read_json("environment.json"),
        machines=sorted({(row["processor"], row["instruction_set"], row["threads"]) for row in rows}),
    )
    write_text(folder.report, page)
    return folder.report


def data_uri(image: bytes, kind: str) -> str:
    """Return an image file's bytes as a URI that needs no other file; `kind` is png or jpeg."""
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()


def _table(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Return the rows with the full names of their variants; the unpruned model that they share is there once."""
    table = []
    for row in (row for group in variants(rows).values() for row in group):
        name = ", ".join((row["structure"], row["scores"], row["pruning"])) if float(row["ratio"]) > 0 else UNPRUNED
        table.append((GIVEN if row["structure"] == "none" else name, row))
    return table


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Choose up to `MAX_SHOWN` units, of all variants: stem → heading."""
    units = {}
    for name, group in variants(rows).items():
        for row in group:
            unit = Unit(Variant(row["structure"], row["scores"], row["pruning"]), float(row["ratio"]))
            prefix = f"{name}, " if name and unit.ratio > 0 else ""
            units[unit.stem] = unit.label if unit.variant == AS_GIVEN else f"{prefix}{unit.ratio:g} % pruned"
    return dict(_spread(list(units.items()), MAX_SHOWN))


def _galleries(folder: RunFolder, shown: Iterable[str], is_attacked: bool) -> list[dict[str, Any]]:
    """Return one gallery per example image: its ground truth, and its detections clean and attacked."""
    description = folder.read_json(DESCRIPTION)
    categories = description["categories"]
    names = {category["id"]: (label, category["name"]) for label, category in enumerate(categories)}
    kinds = {"clean": False, "attacked": True} if is_attacked else {"clean": False}
    found = {
        (stem, attacked): _detections_by_image(folder.detections(stem, attacked, "json"))
        for stem in shown
        for attacked in kinds.values()
    }
    return [
        {
            "file_name": image["file_name"],
            "truth": _truth(folder, image, categories),
            "rows": {
                kind: [
                    _detected(folder, image, names, found[stem, attacked], stem if attacked else None) for stem in shown
                ]
                for kind, attacked in kinds.items()
            },
        }
        for image in description["images"]
    ]


def _truth(folder: RunFolder, image: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> str:
    boxes = [
        LabelledBox(tuple(box), label, categories[label]["name"])
        for box, label in zip(image["boxes"], image["labels"], strict=True)
    ]
    return _picture(folder.example(image["id"]), boxes, image["width"])


def _detected(
    folder: RunFolder,
    image: Mapping[str, Any],
    names: Mapping[int, tuple[int, str]],
    found: Mapping[int, Sequence[Mapping[str, Any]]],
    attacked_through: str | None,
) -> str:
    results = [result for result in found.get(image["id"], []) if result["score"] >= SHOWN_SCORE]
    boxes = [
        LabelledBox(_xyxy(result["bbox"]), *names[result["category_id"]], result["score"])
        for result in sorted(results, key=lambda result: float(result["score"]))
    ]
    return _picture(folder.example(image["id"], attacked_through), boxes, image["width"])


def _picture(path: Path, boxes: Sequence[LabelledBox], original_width: int) -> str:
    with Image.open(path) as image:
        return data_uri(draw_boxes(image, boxes, original_width), "jpeg")


def _detections_by_image(path: Path) -> dict[int, list[dict[str, Any]]]:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for result in json.loads(path.read_text()):
        by_image.setdefault(result["image_id"], []).append(result)
    return by_image


def _xyxy(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items, first and last among them, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
