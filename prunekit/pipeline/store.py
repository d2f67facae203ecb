"""Content-addressed stages: the same work on the same inputs is done once, and what is there is verified.

A stage's key is the digest of its name, its configuration, the digests of what goes in, and the versions of prunekit
and torch. In a run its folder is `<root>/<stage>-<key's first 12 digits>/`; `done.json`, written last, lists each file
with its SHA-256. A stage that was killed has no `done.json`: it finds its folder again, with whatever state it saved.

The folder of one stage's command belongs to one piece of work for good: `stage.json`, written first, says which, and a
command with other settings or inputs is refused instead of mixing its files with those that are there. What the stage
needs beforehand lies in folders inside.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prunekit.environment import installed_version
from prunekit.errors import InputError
from prunekit.files import check_writable_folder, write_text

DONE = "done.json"
#: The file in which a training stage keeps what it needs to go on.
STATE = "state.safetensors"
CLAIM = "stage.json"
LOCK = ".lock"
# What prunekit.files.atomic_path, and safetensors beneath it, leave behind when a process is killed while it writes.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?|\.tmp[0-9A-Za-z]{6}")
_KEY_DIGITS = 12


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder.

    Attributes:
        path: Where it is.
        key: What identifies the stage's work.
        description: Stage, configuration and inputs, for people who look into the folder.
        lock: Of a store that several processes use: held while the work is done.
    """

    path: Path
    key: str
    description: Mapping[str, Any]
    lock: FileLock | None = None

    def file(self, name: str) -> Path:
        """Return the path of one of the stage's files."""
        return self.path / name

    def result(self) -> dict[str, Any] | None:
        """Return the finished stage's result after verifying every file, or None when it must be done (again).

        While another process does this very work, wait for it.
        """
        found = finished_work(self.file(DONE), self.key, "result")
        if found is None and self.lock is not None and not self.lock.is_locked:
            self.lock.acquire()  # until it is finished, or this process ends
            found = finished_work(self.file(DONE), self.key, "result")
            if found is not None:
                self.lock.release()
        return found

    def output(self, name: str) -> str:
        """Return the SHA-256 of a finished stage's file, to hand to the next stage as input."""
        files: dict[str, str] = json.loads(self.file(DONE).read_text())["files"]
        return files[name]

    def finish(self, result: Mapping[str, Any], *names: str) -> None:
        """Declare the stage finished with these files; the state that was kept for resuming goes."""
        files = {name: sha256(self.file(name)) for name in names}
        done = {"key": self.key, **self.description, "files": files, "result": dict(result)}
        write_json(self.file(DONE), done)
        self.file(STATE).unlink(missing_ok=True)
        if self.lock is not None:
            self.lock.release()


@dataclass(frozen=True)
class WorkStore:
    """Gives every piece of work its folder.

    Attributes:
        root: Where the folders are.
        stage: In a run, "": each piece has a folder that is found by its key. In a command's folder, the stage that
            works in the root itself; any other has a folder of its name inside, and both are claimed for good.
        is_shared: Whether several processes use it at the same time.
    """

    root: Path
    stage: str = ""
    is_shared: bool = False

    def open(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> StageFolder:
        """Return the folder of this very work, made if it is new.

        Args:
            stage: Its name, such as "finetune".
            config: JSON-able choices that the result depends on, and no others.
            inputs: Name → SHA-256 of everything that goes in.

        Raises:
            InputError: When it was claimed for other work.
        """
        description = describe(stage, config, inputs)
        key = digest([description])
        if self.stage:
            path = self.root if stage == self.stage else self.root / stage
            _claim(path, description, self.root)
        else:
            path = self.root / f"{stage}-{key[:_KEY_DIGITS]}"
            path.mkdir(parents=True, exist_ok=True)
        return StageFolder(path, key, description, FileLock(path / LOCK) if self.is_shared else None)


def finished_work(path: Path, key: str, result: str, root: Path | None = None) -> dict[str, Any] | None:
    """Return the result of finished work; None unless it is the key's, and each of its files as it was then.

    Args:
        path: The JSON file.
        key: What identifies the work.
        result: What the file calls the result.
        root: What the names of its files are relative to, if not the folder of `path`.
    """
    try:
        done = json.loads(path.read_text())
        files = {(root or path.parent) / name: expected for name, expected in done["files"].items()}
        is_whole = done["key"] == key and all(sha256(file) == expected for file, expected in files.items())
        return dict(done[result]) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half a file, or another one
        return None


def describe(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return all that identifies a piece of work, as it comes back from JSON."""
    versions = {package: installed_version(package) for package in ("prunekit", "torch")}
    description = {"stage": stage, "config": dict(config), "inputs": dict(inputs), "versions": versions}
    return dict(json.loads(json.dumps(description)))


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Expected readable JSON at {path}: {error}.") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people, too, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the digest of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def check_folder(root: Path, marker: str, what: str) -> bool:
    """Return whether `root` holds what the file `marker` stands for; raise InputError if it holds anything else.

    Args:
        root: The folder that --out names.
        marker: The file that is written first.
        what: Whose folder is expected, as in "a run's".
    """
    check_writable_folder(root, "--out")
    if not any(not path.name.startswith(".") for path in root.glob("*")):
        return False
    if not (root / marker).is_file():
        raise InputError(f"--out: expected a new folder or {what}, but {root} holds other files; choose another.")
    return True


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Make the folder if it is new, and work in it alone; the system releases it when the process ends, however.

    Raises:
        InputError: When another process works in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        claim = FileLock(root / LOCK).acquire(blocking=False)
    except Timeout:
        raise InputError(f"--out: another process is working in {root}; choose another folder.") from None
    with claim:
        for path in root.rglob(".*"):
            if path.is_file() and _LEFTOVER.fullmatch(path.name):
                path.unlink()
        yield


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
def command_store(root: Path, stage: str) -> Iterator[WorkStore]:
    """Open the folder, new or interrupted, for this process alone."""
    check_command_folder(root, stage)
    with claimed(root):
        if not (root / CLAIM).is_file():
            # What is needed beforehand is written first; a process killed meanwhile must find its folder again.
            write_json(root / CLAIM, {"stage": stage})
        yield WorkStore(root, stage)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _claim(path: Path, description: Mapping[str, Any], root: Path) -> None:
    """Make a folder this work's for good, or raise InputError that names the first thing that differs."""
    # What is known of a stage's work before the results that it starts from are there.
    first = {"stage": description["stage"]}
    earlier = _read_claim(path) if (path / CLAIM).is_file() else first
    if earlier == first:
        write_json(path / CLAIM, description)
        return
    before, after = flat(earlier), flat(description)
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            raise InputError(
                f"--out: {root} holds the results of other choices ({field}: "
                f"{_show(before.get(field))} there, {_show(after.get(field))} now); "
                f"choose another folder, such as --out {root}-2."
            )


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


def digest(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of JSON-able values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
