"""Choices of earlier runs, on disk: keyed by processor, instruction set, threads, shape and density."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.engine.filters import ConvChoice
from prunekit.files import cache_folder, write_text
from prunekit.ops.native import native_status
from prunekit.processor import processor

_VERSION = 3


@dataclass(frozen=True)
class TuningKey:
    """What a choice depends on beside the processor.

    Attributes:
        weight: [K, C / groups, R, S].
        stride, padding, dilation, groups: As in nn.Conv2d.
        size: [H, W] of the input.
        pitches: Of the input's and the output's rows.
        density: To two digits.
        weight_bits: Of a kept weight, 32 or 16.
        threads, lanes: Of the engine.
        work: Multiply-adds of kept weights; for order, no part of the key.
    """

    weight: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    pitches: tuple[int, int]
    density: float
    weight_bits: int
    threads: int
    lanes: int
    work: int = field(compare=False)

    def __str__(self) -> str:
        parts = asdict(self)
        del parts["work"]
        return json.dumps({"processor": _machine(), **parts}, sort_keys=True)


@cache
def _machine() -> str:
    return processor().name


class TuningCache:
    """The file of choices.

    Attributes:
        note: Why the file was ignored, or None.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file; None keeps choices in memory only."""
        self._path, self._choices = path, dict[str, list[int]]()
        self.note: str | None = None
        self._is_changed = False
        self._prefix = f"{native_status().instruction_set}:"
        try:
            if path is None or not path.is_file():
                return
            document = json.loads(path.read_text())
            if document["version"] != _VERSION:
                raise ValueError(f"it is of version {document['version']}, not {_VERSION}")
            self._choices = {str(key): _checked(value) for key, value in document["choices"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.note = f"the tuning cache {path} was ignored ({type(error).__name__}: {error}); it is written anew"

    @classmethod
    def default(cls) -> TuningCache:
        """Return the user's: PRUNEKIT_CACHE, or prunekit/ in XDG_CACHE_HOME or ~/.cache.

        Who has no home folder keeps choices in memory only, with a note.
        """
        try:
            chosen = cache_folder()
        except RuntimeError as error:
            cache = cls(None)
            cache.note = f"choices of this run are not kept for later ones ({error})"
            return cache
        return cls(chosen / "tuning.json")

    def get(self, key: TuningKey) -> ConvChoice | None:
        """Return the choice for a key, or None."""
        words = self._choices.get(self._prefix + str(key))
        return None if words is None else ConvChoice(*words)

    def put(self, key: TuningKey, choice: ConvChoice) -> None:
        """Remember a choice."""
        self._choices[self._prefix + str(key)] = [
            choice.rows, choice.tile_vectors, choice.channel_block, choice.row_parts, choice.repeats,
        ]  # fmt: skip
        self._is_changed = True

    def save(self) -> None:
        """Write the file if anything is new; a folder that cannot be written leaves a note."""
        if self._path is None or not self._is_changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({"version": _VERSION, "choices": self._choices}, indent=1) + "\n")
            self._is_changed = False
        except (OSError, ValueError) as error:  # a path may be none
            unread = f"{self.note}; " if self.note else ""
            self.note = f"{unread}the tuning cache {self._path} could not be written ({error})"


def _checked(words: Any) -> list[int]:
    if not isinstance(words, list) or len(words) != 5 or not ConvChoice(*words).is_sound:
        raise ValueError(f"{words!r} is no choice")
    return [int(w) for w in words]
