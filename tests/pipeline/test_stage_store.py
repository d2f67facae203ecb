"""Stages are found by what they were made of, and believed only while every file is what it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.pipeline.store import (
    CLAIM,
    DONE,
    LOCK,
    STATE,
    StageFolder,
    WorkStore,
    check_folder,
    claimed,
    command_store,
    flat,
    sha256,
)

CONFIG: dict[str, Any] = {"ratio": 50.0, "layers": ("a", "b")}
INPUTS = {"model": "0" * 64}


def _finished(folder: StageFolder) -> StageFolder:
    folder.file("masks").write_bytes(b"masks")
    folder.file(STATE).write_bytes(b"state")
    folder.finish({"churn": 0.25}, "masks")
    return folder


def test_a_stage_is_finished_when_it_says_so_and_drops_what_it_kept_for_resuming(tmp_path: Path) -> None:
    folder = WorkStore(tmp_path).open("prune", CONFIG, INPUTS)
    assert folder.result() is None
    _finished(folder)
    again = WorkStore(tmp_path).open("prune", CONFIG, INPUTS)
    assert again == folder
    assert again.result() == {"churn": 0.25}
    assert again.output("masks") == hashlib.sha256(b"masks").hexdigest()
    assert not folder.file(STATE).exists()


def test_of_two_that_share_a_store_one_works_and_the_other_waits_for_it(tmp_path: Path) -> None:
    one, other = (WorkStore(tmp_path, is_shared=True).open("prune", CONFIG, INPUTS) for _ in range(2))
    assert one.result() is None
    found: list[dict[str, Any] | None] = []
    thread = threading.Thread(target=lambda: found.append(other.result()))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    _finished(one)
    thread.join(10)
    assert found == [one.result()] == [{"churn": 0.25}]


@pytest.mark.parametrize(
    ("stage", "config", "inputs"),
    [
        ("score", CONFIG, INPUTS),
        ("prune", CONFIG | {"ratio": 60.0}, INPUTS),
        ("prune", CONFIG | {"more": None}, INPUTS),
        ("prune", CONFIG, {"model": "1" * 64}),
        ("prune", CONFIG, INPUTS | {"data": "0" * 64}),
    ],
)
def test_other_work_has_another_folder(
    tmp_path: Path, stage: str, config: dict[str, Any], inputs: dict[str, str]
) -> None:
    folder = _finished(WorkStore(tmp_path).open("prune", CONFIG, INPUTS))
    other = WorkStore(tmp_path).open(stage, config, inputs)
    assert other.path != folder.path
    assert other.result() is None


def test_another_version_of_torch_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WorkStore(tmp_path).open("prune", CONFIG, INPUTS)
    monkeypatch.setattr("prunekit.pipeline.store.installed_version", lambda package: f"99 of {package}")
    assert WorkStore(tmp_path).open("prune", CONFIG, INPUTS).path != folder.path


def test_the_order_of_choices_and_the_kind_of_sequence_do_not_matter(tmp_path: Path) -> None:
    folder = WorkStore(tmp_path).open("prune", CONFIG, INPUTS)
    turned = {"layers": ["a", "b"], "ratio": 50.0}
    assert WorkStore(tmp_path).open("prune", turned, INPUTS) == folder


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", "{}", '{"key": 1, "files": [], "result": {}}'])
def test_half_a_record_or_a_foreign_one_is_no_result(tmp_path: Path, content: str | None) -> None:
    folder = _finished(WorkStore(tmp_path).open("prune", CONFIG, INPUTS))
    if content is None:
        folder.file(DONE).unlink()
    else:
        folder.file(DONE).write_text(content)
    assert folder.result() is None


@pytest.mark.parametrize("change", [{"files": []}, {"files": {"masks": 3}}, {"result": 3}, {"key": "another"}])
def test_a_record_that_was_changed_is_no_result(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = _finished(WorkStore(tmp_path).open("prune", CONFIG, INPUTS))
    folder.file(DONE).write_text(json.dumps(json.loads(folder.file(DONE).read_text()) | change))
    assert folder.result() is None


@pytest.mark.parametrize("content", [None, b"", b"Masks", b"masks "])
def test_a_result_whose_file_was_changed_or_removed_is_none(tmp_path: Path, content: bytes | None) -> None:
    folder = _finished(WorkStore(tmp_path).open("prune", CONFIG, INPUTS))
    if content is None:
        folder.file("masks").unlink()
    else:
        folder.file("masks").write_bytes(content)
    assert folder.result() is None


def test_a_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000 + b"end"
    (tmp_path / "large").write_bytes(content)
    assert sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_a_commands_own_stage_lies_in_its_folder_and_others_inside(tmp_path: Path) -> None:
    with command_store(tmp_path / "out", "prune") as store:
        assert store.open("prune", CONFIG, INPUTS).path == tmp_path / "out"
        assert store.open("score", {}, INPUTS).path == tmp_path / "out" / "score"
        _finished(store.open("prune", CONFIG, INPUTS))
    with command_store(tmp_path / "out", "prune") as store:
        assert store.open("prune", CONFIG, INPUTS).result() == {"churn": 0.25}


def test_a_command_killed_before_its_own_stage_began_finds_its_folder_again(tmp_path: Path) -> None:
    with command_store(tmp_path / "out", "prune") as store:
        store.open("score", {}, INPUTS)  # and killed here
    with command_store(tmp_path / "out", "prune") as store:
        _finished(store.open("prune", CONFIG, INPUTS))
    with pytest.raises(InputError, match=r"config\.ratio"), command_store(tmp_path / "out", "prune") as store:
        store.open("prune", CONFIG | {"ratio": 60.0}, INPUTS)
    with (
        pytest.raises(InputError, match="results of the stage prune, not of score"),
        command_store(tmp_path / "out", "score"),
    ):
        pass


@pytest.mark.parametrize(
    ("config", "inputs", "words"),
    [
        (CONFIG | {"ratio": 60.0}, INPUTS, r"config.ratio: 50.0 there, 60.0 now"),
        ({"layers": ("a", "b")}, INPUTS, r"config.ratio: 50.0 there, nothing now"),
        (CONFIG, {"model": "1" * 64}, r"inputs.model: 000000000000… there, 111111111111… now"),
    ],
)
def test_a_commands_folder_stays_with_its_work(
    tmp_path: Path, config: dict[str, Any], inputs: dict[str, str], words: str
) -> None:
    store = WorkStore(tmp_path, "prune")
    store.open("prune", CONFIG, INPUTS)
    with pytest.raises(InputError, match=words) as caught:
        store.open("prune", config, inputs)
    assert f"--out {tmp_path}-2." in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_claim_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / CLAIM).write_text(content)
    with pytest.raises(InputError, match="is damaged"), command_store(tmp_path, "prune"):
        pass


def test_nested_values_have_dotted_names() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "e": [2]}


def test_a_folder_is_for_one_process_and_leftovers_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not check_folder(out, "marker", "mine")
    with claimed(out), pytest.raises(InputError, match="another process is working"), claimed(out):
        pass
    (out / "inside").mkdir()
    kept = [out / "marker", out / ".hidden", out / "inside" / ".a.0123456.json"]
    leftovers = [out / ".a.01234567.json", out / "inside" / ".a.0123abcd", out / "inside" / ".tmpKeSwDo"]
    for path in (*kept, *leftovers):
        path.touch()
    with claimed(out), (out / LOCK).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [path for path in (*kept, *leftovers) if path.exists()] == kept
    assert check_folder(out, "marker", "mine")
