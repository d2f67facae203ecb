"""Runs sent to MLflow, where MLFLOW_TRACKING_URI says where it keeps them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from prunekit.extras import check_extra
from prunekit.pipeline import RunFolder, read_rows
from prunekit.pipeline.store import digest, flat, read_json, sha256
from prunekit.report.page import unit_of
from prunekit.report.plots import Row

_SENT = "mlflow.json"


def send_to_mlflow(folders: Sequence[RunFolder]) -> str:
    """Send what was not sent yet; return a sentence about it, or "" where MLFLOW_TRACKING_URI is not set.

    Each way to prune becomes a run of MLflow in the experiment that MLFLOW_EXPERIMENT_NAME names: its settings are the
    parameters, the numbers of its rows the metrics, with ratios, rounded to whole percent, as steps. Results that are
    there do not depend on it, so whatever goes wrong is said and not raised.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return ""
    try:
        check_extra("mlflow", "MLFLOW_TRACKING_URI")
        sent = sum(_send_if_new(folder, uri) for folder in folders)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"Not sent to MLflow: {reason}"
    return f"Sent to MLflow: {sent} of {len(folders)} runs; the others were there."


def _send_if_new(folder: RunFolder, uri: str) -> bool:
    key, path = digest([uri, sha256(folder.results)]), folder.root / _SENT  # the address may hold a password
    if path.is_file() and read_json(path) == {"key": key}:
        return False
    rows = read_rows(folder.results)
    for name, group in groupby(rows, lambda row: unit_of(row).variant.name):
        _send(folder, name, list(group))
    folder.write_json(_SENT, {"key": key})
    return True


def _send(folder: RunFolder, name: str, rows: Sequence[Row]) -> None:
    import mlflow  # takes seconds

    with mlflow.start_run(run_name=f"{folder.root.name}: {name}"):
        mlflow.log_params(_parameters(folder.config(), rows[0]))
        for row in rows:
            mlflow.log_metrics(_numbers(row), step=round(float(row["ratio"])))


def _parameters(config: Mapping[str, Any], row: Row) -> dict[str, str]:
    """Return all settings by dotted names; those that a run goes through have the row's level."""
    within = {name: row[name] for name in ("structure", "scores", "pruning", "allocation") if row.get(name)}
    settings = {**flat(config), **within}
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in settings.items()}


def _numbers(row: Row) -> dict[str, float]:
    numbers = {}
    for name, text in row.items():
        try:
            numbers[name] = float(text)
        except ValueError:  # a name, or an empty cell
            continue
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
