"""The folder of one stage's command: the stage's files lie in it, what it needs beforehand in folders inside.

Unlike a run's `stages/`, such a folder belongs to one piece of work for good: `stage.json`, written first, says which,
and a command with other settings or inputs is refused instead of mixing its files with those that are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.files import write_text
from prunekit.pipeline.claimed_folder import check_folder, claimed
from prunekit.pipeline.config import digest
from prunekit.pipeline.stage_store import StageFolder, describe

CLAIM = "stage.json"


@dataclass(frozen=True)
class CommandStore:
    """Gives the command's own stage the folder itself, and any other a folder of its name inside."""

    root: Path
    stage: str

    def open(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> StageFolder:
        """Return the folder of this very work; see `Store`.

        Raises:
            InputError: When it was claimed for other work.
        """
        path = self.root if stage == self.stage else self.root / stage
        description = describe(stage, config, inputs)
        earlier = _read_claim(path) if (path / CLAIM).is_file() else _first_claim(stage)
        if earlier == _first_claim(stage):
            _write_claim(path, description)
        else:
            self._require_same(earlier, description)
        return StageFolder(path, digest([description]), description)

    def _require_same(self, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, after = flat(earlier), flat(now)
        for field in sorted(before.keys() | after.keys()):
            if before.get(field) != after.get(field):
                raise InputError(
                    f"--out: {self.root} holds the results of other choices ({field}: "
                    f"{_show(before.get(field))} there, {_show(after.get(field))} now); "
                    f"choose another folder, such as --out {self.root}-2."
                )


def check_command_folder(root: Path, stage: str) -> None:
    """Raise InputError, before any work, unless `root` is free or this kind of stage's."""
    if check_folder(root, CLAIM, f"one of the stage {stage}"):
        found = _read_claim(root).get("stage")
        if found != stage:
            raise InputError(
                f"--out: {root} holds the results of the stage {found}, not of {stage}; choose another folder, "
                f"such as --out {root}-2."
            )


@contextmanager
def command_store(root: Path, stage: str) -> Iterator[CommandStore]:
    """Open the folder, new or interrupted, for this process alone."""
    check_command_folder(root, stage)
    with claimed(root):
        if not (root / CLAIM).is_file():
            # What is needed beforehand is written first; a process killed meanwhile must find its folder again.
            _write_claim(root, _first_claim(stage))
        yield CommandStore(root, stage)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _first_claim(stage: str) -> dict[str, Any]:
    """Return what is known of a stage's work before the results that it starts from are there."""
    return {"stage": stage}


def _write_claim(path: Path, claim: Mapping[str, Any]) -> None:
    write_text(path / CLAIM, json.dumps(claim, indent=2) + "\n")


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        claim = json.loads((path / CLAIM).read_text())
    except (OSError, ValueError):
        claim = None
    if not isinstance(claim, dict):
        raise InputError(f"--out: expected {path / CLAIM} to say whose results lie there, but it is damaged.")
    return claim


def _show(value: Any) -> str:
    """Return a value for people: a digest's first digits are enough."""
    if value is None:
        return "nothing"
    is_digest = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}…" if is_digest else repr(value)
