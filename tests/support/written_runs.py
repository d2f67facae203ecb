"""Run folders that nothing ran in: the files that pages and exports read."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit.files import csv_text
from prunekit.pipeline import RunFolder

COLUMNS = (
    "ratio", "structure", "scores", "pruning", "ap", "attacked_ap", "latency_ms_control", "latency_ms", "threads",
    "instruction_set", "processor", "allocation", "budget",
)  # fmt: skip


def written_run(root: Path, seed: int, threads: int, *rows: tuple[object, ...]) -> RunFolder:
    """Write a run; a row has the columns up to attacked_ap, allocation and budget."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(
        f"model: yolov3-tiny\nseed: {seed}\nout: {root}\nfinetune: {{epochs: {seed + 1}}}\n"
    )
    (root / "inputs.json").write_text(json.dumps({"data_sha256": "d" * 64}))
    (root / "environment.json").write_text(json.dumps({"packages": {"torch": "2.13", "prunekit": "0.1.0"}}))
    machine = (9.0, 4.5, threads, "avx2", "one")
    lines = [(*row[:6], *machine, *row[6:]) for row in rows]
    (root / "results.csv").write_text(csv_text(COLUMNS, lines))
    return RunFolder(root)
