"""Tensors and a JSON document in one file: what is written comes back, and damage is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from prunekit import documents
from prunekit.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)


def _tensors() -> dict[str, Tensor]:
    shared = torch.arange(12.0)
    return {
        **{f"t{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(DTYPES)},
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(2.5),
        "part": shared[3:7],
        "whole": shared,
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }


def _are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("document", [None, {"format": "x", "list": [1, None, "é"]}])
def test_what_is_written_comes_back(document: dict[str, object] | None, tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.safetensors"
    documents.write(path, _tensors(), document)
    for content in (documents.read(path, "x"), documents.read(documents.to_bytes(_tensors(), document), "x")):
        assert content.document == (document or {})
        assert content.has_digest
        assert _are_equal(content.tensors, _tensors())
    assert documents.read_document(path, "x") == (document or {})
    assert documents.read(path, "x").format == (document or {}).get("format", "")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    document = {"format": "a model", "n": 3}
    whole = documents.to_bytes(_tensors(), document)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        content = documents.read(bytes(damaged), "a model")
    except InputError:
        return
    # The byte may be of the document's key, and readers ask for a format; or of the digest's.
    known = {key: value for key, value in content.document.items() if key in document}
    assert known in (document, {})
    assert not content.has_digest or content.document == document
    assert _are_equal(content.tensors, _tensors())


def test_files_of_others_have_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"prunekit": '{"format": "x"}'})
    assert not documents.read(path, "x").has_digest


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    documents.write(path, {"a": torch.ones(1000)})
    tensors = documents.read(path, "x").tensors
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["a"], torch.ones(1000))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "but there is no file"),
        (b"", "cannot be read"),
        (b"x" * 100, "cannot be read"),
        (documents.to_bytes({}, None)[:-1], "cannot be read"),
    ],
)
def test_bad_files_end_in_one_sentence(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    for read in (documents.read, documents.read_document):
        with pytest.raises(InputError, match=f"^Expected a model.*{sentence}.*\\.$"):
            read(path, "a model")
    with pytest.raises(InputError, match="is a folder"):
        documents.read(tmp_path, "a model")


@pytest.mark.parametrize("text", ["[]", "3", "{", "null"])
def test_a_document_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"prunekit": text})
    with pytest.raises(InputError, match=r"cannot be read|not a JSON object"):
        documents.read(path, "a model")


@pytest.mark.parametrize("document", [None, {}, {"format": "a", "numbers": [1, 2.5, float("inf")], "text": "ž"}])
def test_equal_content_is_equal_bytes(document: dict[str, Any] | None) -> None:
    # safetensors writes several entries of a header in an order that differs from call to call.
    assert len({documents.to_bytes(_tensors(), document) for _ in range(40)}) == 1
