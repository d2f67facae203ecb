"""What earlier runs measured, on disk: one file of keys and values, in one format for all that is measured."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from prunekit.files import cache_folder, write_text

if TYPE_CHECKING:
    from typing_extensions import Self

_VERSION = 4
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class MeasurementCache(ABC, Generic[_Key, _Value]):
    """A file of measurements; a key's text is what they hold for.

    Attributes:
        NAME: for notes.
        FILE: its name in the user's folder.
        note: why the file was ignored or not written, or None.
    """

    NAME: ClassVar[str]
    FILE: ClassVar[str]

    def __init__(self, path: Path | None) -> None:
        """Read the file; None keeps measurements in memory only."""
        self._path, self._values = path, dict[str, _Value]()
        self.note: str | None = None
        self._is_changed = False
        try:
            if path is None or not path.is_file():
                return
            document = json.loads(path.read_text())
            if document["version"] != _VERSION:
                raise ValueError(f"it is of version {document['version']}, not {_VERSION}")
            self._values = {str(key): self.decode(value) for key, value in document["measurements"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.note = f"the {self.NAME} {path} was ignored ({type(error).__name__}: {error}); it is written anew"

    @classmethod
    def default(cls) -> Self:
        """Return the user's: in PRUNEKIT_CACHE, or prunekit/ in XDG_CACHE_HOME or ~/.cache.

        Who has no home folder keeps measurements in memory only, with a note.
        """
        try:
            return cls(cache_folder() / cls.FILE)
        except RuntimeError as error:
            cache = cls(None)
            cache.note = f"measurements of this run are not kept for later ones ({error})"
            return cache

    @abstractmethod
    def encode(self, value: _Value) -> list[Any]:
        """Return what the file holds for a value."""

    @abstractmethod
    def decode(self, written: Any) -> _Value:
        """Undo `encode`.

        Raises:
            ValueError: this is no value; as may TypeError, which a damaged file provokes.
        """

    def get(self, key: _Key) -> _Value | None:
        """Return what was measured for a key, or None."""
        return self._values.get(str(key))

    def put(self, key: _Key, value: _Value) -> None:
        """Remember a measurement."""
        self._values[str(key)] = value
        self._is_changed = True

    def save(self) -> None:
        """Write the file if anything is new; a folder that cannot be written leaves a note."""
        if self._path is None or not self._is_changed:
            return
        measurements = {key: self.encode(value) for key, value in self._values.items()}
        try:
            write_text(self._path, json.dumps({"version": _VERSION, "measurements": measurements}, indent=1) + "\n")
            self._is_changed = False
        except (OSError, ValueError) as error:  # a path may be none
            unread = f"{self.note}; " if self.note else ""
            self.note = f"{unread}the {self.NAME} {self._path} could not be written ({error})"
