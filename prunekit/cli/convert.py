"""`prunekit convert`: COCO's annotation JSON from other layouts of detection data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.ending import Verbose, tell, user_errors
from prunekit.detection import CocoDataset, write_coco_json
from prunekit.errors import InputError
from prunekit.files import check_writable_file

CONVERT_EXAMPLES = """
Examples:

  prunekit convert plates/ --split train --out plates/annotations/train.json

  prunekit convert VOC2007/ --split test --out VOC2007-test.json

Commands read such folders as --data too, without converting them.
"""


def convert_command(
    source: Annotated[
        Path,
        typer.Argument(help="folder in YOLO's layout (data.yaml) or Pascal VOC's (Annotations/*.xml), or a data.yaml"),
    ],
    out: Annotated[Path, typer.Option(help="COCO annotation JSON to write; images stay where they are")],
    split: Annotated[
        str | None, typer.Option(help="split to convert: train, val, test, … (default: the one to evaluate on)")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Convert a detection data set in YOLO's or Pascal VOC's layout to COCO's annotation JSON."""
    with user_errors(verbose):
        if out.suffix != ".json":
            raise InputError(f"--out: expected a .json file to write, got {out}.")
        check_writable_file(out, "--out")
        data = CocoDataset.open(source, split=split)
        boxes = write_coco_json(data, out)
        for note in data.notes():
            tell(note)
        if data.splits:
            tell(f"Split: {data.split} (of {', '.join(data.splits)})")
        tell(f"Written: {out} ({len(data)} images, {boxes} boxes, {data.num_classes} classes)")
