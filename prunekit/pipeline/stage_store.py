"""Content-addressed stages: the same work on the same inputs is done once, and what is there is verified.

A stage's key is the digest of its name, its configuration, the digests of what goes in, and the versions of prunekit
and torch. Its folder is `<root>/<stage>-<key's first 12 digits>/`; `done.json`, written last, lists each file with
its SHA-256. A stage that was killed has no `done.json`: it finds its folder again, with whatever state it saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunekit.files import write_text
from prunekit.pipeline.config import digest
from prunekit.pipeline.environment import installed_version

DONE = "done.json"
_KEY_DIGITS = 12


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder.

    Attributes:
        path: Where it is.
        key: What identifies the stage's work.
        description: Stage, configuration and inputs, for people who look into the folder.
    """

    path: Path
    key: str
    description: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Return the path of one of the stage's files."""
        return self.path / name

    def result(self) -> dict[str, Any] | None:
        """Return the finished stage's result after verifying every file, or None when it must be done (again)."""
        try:
            done = json.loads(self.file(DONE).read_text())
            is_whole = done["key"] == self.key and all(
                sha256(self.file(name)) == expected for name, expected in done["files"].items()
            )
            return dict(done["result"]) if is_whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half a file, or another one
            return None

    def output(self, name: str) -> str:
        """Return the SHA-256 of a finished stage's file, to hand to the next stage as input."""
        files: dict[str, str] = json.loads(self.file(DONE).read_text())["files"]
        return files[name]

    def finish(self, result: Mapping[str, Any], *names: str) -> None:
        """Declare the stage finished with these files; the state that was kept for resuming goes."""
        files = {name: sha256(self.file(name)) for name in names}
        done = {"key": self.key, **self.description, "files": files, "result": dict(result)}
        write_text(self.file(DONE), json.dumps(done, indent=2) + "\n")
        self.file(STATE).unlink(missing_ok=True)


#: The file in which a training stage keeps what it needs to go on.
STATE = "state.safetensors"


class Store(Protocol):
    """Gives every piece of work its folder."""

    def open(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> StageFolder:
        """Return the folder of this very work, made if it is new.

        Args:
            stage: Its name, such as "finetune".
            config: JSON-able choices that the result depends on, and no others.
            inputs: Name → SHA-256 of everything that goes in.
        """
        ...


@dataclass(frozen=True)
class StageStore:
    """The folder in which stages find each other's work: one folder a piece of work, found by its key."""

    root: Path

    def open(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> StageFolder:
        """Return the folder of this very work, made if it is new; see `Store`."""
        description = describe(stage, config, inputs)
        key = digest([description])
        folder = StageFolder(self.root / f"{stage}-{key[:_KEY_DIGITS]}", key, description)
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder


def describe(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return all that identifies a piece of work, as it comes back from JSON."""
    versions = {package: installed_version(package) for package in ("prunekit", "torch")}
    description = {"stage": stage, "config": dict(config), "inputs": dict(inputs), "versions": versions}
    return dict(json.loads(json.dumps(description)))


def sha256(path: Path) -> str:
    """Return the digest of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
