"""What the readers of other layouts than COCO's return: the same facts in COCO's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.detection.coco_json import Skip


@dataclass(frozen=True)
class Layout:
    """A split of a data set.

    Attributes:
        source: What messages call it.
        root: The folder that file names are relative to.
        content: `images`, `annotations` and `categories` as in COCO's JSON, not checked yet.
        skipped: Entries that are not in it.
        split: Which part it is; "" where there is one only.
        splits: The parts that the data set has.
        learn_from: The part to learn from beside this one; this one where there is no other.
    """

    source: Path
    root: Path
    content: dict[str, list[Any]]
    skipped: Sequence[Skip]
    split: str
    splits: tuple[str, ...]
    learn_from: str
