"""The page of one model's evaluation: every figure that was asked for, made from the folder's files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.evaluation.patch import PATCH
from prunekit.files import write_text
from prunekit.pipeline.deployed_config import DEPLOYED
from prunekit.pipeline.deployed_evaluation import comparison, digits_of
from prunekit.pipeline.evaluate_command import EVALUATION
from prunekit.pipeline.overload import CANDIDATES, steps_under_overload
from prunekit.pipeline.patch import EXAMPLE, PICTURE
from prunekit.report.corruption_plots import EXAMPLES, HEAT_MAP
from prunekit.report.page import data_uri, template
from prunekit.task import Figure

PAGE = "evaluation.html"
_PATCH = (PICTURE, EXAMPLE)
#: What stands beside a task's own figures, where a case has it.
_ALSO = {"attack_success": "attack success", CANDIDATES: "candidates an image"}


def write_evaluation_page(out: Path, figures: Sequence[Figure]) -> Path:
    """Write the page of an evaluation; return its path.

    Args:
        out: The evaluation's folder.
        figures: The task's.
    """
    found = json.loads((out / EVALUATION).read_text())
    columns = {figure.column: figure.name for figure in figures}
    columns |= {name: title for name, title in _ALSO.items() if any(name in case for case in found["cases"].values())}
    page = template("evaluation.html").render(
        found=found,
        columns=columns,
        figure=figures[0],
        overload={name: _overload(found, name) for name in found.get("overload", {})},
        deployed=comparison(found, figures[0]) if DEPLOYED in found else {},
        digits_of=digits_of,
        patch=found.get(PATCH),
        patch_pictures=[data_uri((out / PATCH / name).read_bytes(), "png") for name in _PATCH if PATCH in found],
        corruptions=[data_uri((out / name).read_bytes(), "png") for name in _pictures(out, found)],
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _overload(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what the page says of an attack on latency."""
    case, timed = found["cases"][name], found["overload"][name]
    before, after = case[f"clean_{CANDIDATES}"], case[CANDIDATES]
    factor = after / before if before else None
    return {"before": before, "after": after, "factor": factor, "steps": steps_under_overload(timed), **timed}


def _pictures(out: Path, found: Mapping[str, Any]) -> list[str]:
    """Return the plots of corruptions that are there."""
    return [name for name in (HEAT_MAP, EXAMPLES) if "corruptions" in found and (out / name).is_file()]
