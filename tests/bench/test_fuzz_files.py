"""Damaged files of every kind end in one sentence or in right results; `python -m bench.fuzz_files` tries more."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from bench.fuzz_files import KINDS, fuzz, main
from bench.mutations import mutate
from prunekit.errors import InputError

DATA = ("coco", "image", "darknet", "detector", "masks")
COUNT = int(os.environ.get("PRUNEKIT_FILES", "100"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("one_thread")
def test_damaged_files_are_refused_or_right(name: str, tmp_path: Path) -> None:
    count = COUNT if name in DATA else max(COUNT // 5, 1)  # models take longer: a graph is checked and run
    outcome = fuzz(KINDS[name](), range(count), seed=1, folder=tmp_path)
    assert outcome.mutations == count
    assert outcome.first_fault is None
    assert outcome.refused + outcome.right == count


class Careless:
    """A kind whose reader believes everything."""

    name = "careless"

    def write(self, folder: Path) -> Path:
        (folder / "numbers.json").write_text(json.dumps({"numbers": [1, 2, 3]}))
        return folder / "numbers.json"

    def open(self, path: Path) -> object:
        if not path.read_bytes():
            raise InputError("expected numbers, but the file is empty")
        return sum(json.loads(path.read_bytes())["numbers"])

    def is_right(self, expected: object, found: object) -> bool:
        return expected == found


def test_faults_are_found_counted_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fuzz(Careless(), range(200), seed=0, folder=tmp_path)
    assert outcome.faults > 100
    assert outcome.refused > 0
    assert outcome.first_fault is not None
    number = int(outcome.first_fault.partition(":")[0])
    assert fuzz(Careless(), [number], seed=0, folder=tmp_path).first_fault == outcome.first_fault
    monkeypatch.setattr("bench.fuzz_files.KINDS", {"careless": Careless})
    assert main(["--count", "50"]) == 1


class Wrong(Careless):
    def is_right(self, expected: object, found: object) -> bool:
        return False


def test_a_kind_whose_valid_file_is_wrong_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="valid file"):
        fuzz(Wrong(), range(5), seed=0, folder=tmp_path)


def test_mutations_are_seeded_and_change_something() -> None:
    header = json.dumps({"__metadata__": {"prunekit": json.dumps({"format": "a", "n": [1, 2]})}}).encode()
    for content in (b"\x00" * 40, b'{"a": [1, {"b": "c"}]}', len(header).to_bytes(8, "little") + header + b"data"):
        found = [mutate(content, random.Random(seed)) for seed in range(100)]
        assert found == [mutate(content, random.Random(seed)) for seed in range(100)]
        assert content not in found
        assert len(set(found)) > 50
