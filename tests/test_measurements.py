"""The one cache of measurements, by what the engine's tuning and the choice of GPU kernels keep in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.engine.filters import ConvChoice
from prunekit.engine.tuning_cache import TuningCache, TuningKey
from prunekit.measurements import MeasurementCache
from prunekit.ops import native
from prunekit.ops.cuda.cache import KernelCache, KernelTimes
from prunekit.ops.cuda.choice import key_of
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.cost import RecordLaunch

Cache = type[MeasurementCache[Any, Any]]
TUNING_KEY = TuningKey((4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 16), (17, 17), 0.1, 32, 2, 8, work=100)
PROBLEM = ConvProblem(64, 32, (3, 3), 1, 0.05, 1, (20, 20), padding=(1, 1))
KERNEL_KEY = key_of(PROBLEM, torch.float32, GPUS["a100"], False, "inference")
LAUNCH = RecordLaunch(8, 1, 4, 8, 4, 1, 2)
NUMBERS = list(astuple(LAUNCH))

CHOICE, TIMES = ConvChoice(2, 3, 1), KernelTimes("record", LAUNCH, 1e-5, 2e-5)
CACHES: dict[str, tuple[Cache, Any, Any]] = {
    "tuning": (TuningCache, TUNING_KEY, CHOICE),
    "kernels": (KernelCache, KERNEL_KEY, TIMES),
    "no kernel": (KernelCache, KERNEL_KEY, KernelTimes(None, None, 1e-5, 2e-5)),
}
caches = pytest.mark.parametrize(("cache", "key", "value"), CACHES.values(), ids=CACHES)
#: What is no value, by the cache.
WRONG: dict[Cache, list[object]] = {
    TuningCache: [["one", 1, 1, 1, 1], [3, 1, 1, 1, 1], [True, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1], None, 1],
    KernelCache: [
        ["record", NUMBERS[:6], 1e-5, 1e-5],
        ["record", [0, *NUMBERS[1:]], 1e-5, 1e-5],
        ["record", NUMBERS, -1.0, 1e-5],
        ["record", NUMBERS, 1e-5],
        ["another", NUMBERS, 1e-5, 1e-5],
        ["condensed", NUMBERS, 1e-5, 1e-5],
        [None, NUMBERS, 1e-5, 1e-5],
        None,
    ],
}
DAMAGES: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a brace": lambda text: "{",
    "a list": lambda text: "[]",
    "nested": lambda text: "[" * 100_000,
    "no version": lambda text: json.dumps({"measurements": json.loads(text)["measurements"]}),
    "another version": lambda text: json.dumps({**json.loads(text), "version": 1}),
    "no measurements": lambda text: json.dumps({**json.loads(text), "measurements": None}),
    "a list of measurements": lambda text: json.dumps({**json.loads(text), "measurements": [1]}),
}


def _written(cache: Cache, path: Path, key: Any, value: Any) -> MeasurementCache[Any, Any]:
    measured = cache(path)
    measured.put(key, value)
    measured.save()
    return measured


def _check_is_ignored(cache: Cache, path: Path, key: Any, value: Any) -> None:
    """A damaged file is ignored with a note of one line, and written anew."""
    again = cache(path)
    assert again.note is not None
    assert again.note.startswith(f"the {cache.NAME} {path} was ignored (")
    assert "\n" not in again.note
    assert again.get(key) is None
    _written(cache, path, key, value)
    assert cache(path).note is None
    assert cache(path).get(key) == value


@caches
def test_what_is_put_comes_back_from_the_file(cache: Cache, key: Any, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache.json"
    assert _written(cache, path, key, value).note is None
    assert cache(path).get(key) == value
    assert set(json.loads(path.read_text())) == {"version", "measurements"}


@caches
def test_nothing_new_writes_nothing(cache: Cache, key: Any, value: Any, tmp_path: Path) -> None:
    cache(tmp_path / "cache.json").save()
    assert not list(tmp_path.iterdir())
    _written(cache, tmp_path / "cache.json", key, value)
    (tmp_path / "cache.json").write_text("")
    cache(tmp_path / "cache.json").save()
    assert (tmp_path / "cache.json").read_text() == ""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@caches
def test_a_damaged_file_is_ignored_with_a_note(
    cache: Cache, key: Any, value: Any, damage: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "cache.json"
    _written(cache, path, key, value)
    path.write_text(damage(path.read_text()))
    _check_is_ignored(cache, path, key, value)


@caches
def test_a_file_of_what_is_no_value_is_ignored_with_a_note(cache: Cache, key: Any, value: Any, tmp_path: Path) -> None:
    for wrong in WRONG[cache]:
        path = tmp_path / "cache.json"
        _written(cache, path, key, value)
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "measurements": {"a key": wrong}}))
        _check_is_ignored(cache, path, key, value)


@pytest.mark.parametrize("place", ["file/cache.json", "folder", "x" * 300, "nul\0"])
@caches
def test_a_file_that_cannot_be_written_leaves_a_note(
    cache: Cache, key: Any, value: Any, place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert "could not be written" in str(_written(cache, tmp_path / place, key, value).note)


@caches
def test_whoever_has_no_home_folder_keeps_no_measurements(
    cache: Cache, key: Any, value: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("PRUNEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "not kept for later ones (Could not determine home directory.)" in str(cache.default().note)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = cache.default()
    measured.put(key, value)
    measured.save()
    assert (tmp_path / "prunekit" / cache.FILE).is_file()
    assert measured.note is None


def test_a_choice_holds_for_one_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TuningCache(None)
    cache.put(TUNING_KEY, CHOICE)
    status = native.NativeStatus(True, "another", (), (), None)
    monkeypatch.setattr("prunekit.engine.tuning_cache.native_status", lambda: status)
    assert cache.get(TUNING_KEY) is None
