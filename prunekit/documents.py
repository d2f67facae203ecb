"""Tensors and a JSON document in one safetensors file, under a digest: every file that prunekit writes and reads again.

The document is the header's entry "prunekit", and the digest the document's last key (the header's entry where there
is no document): BLAKE2b over the document's text without it and each tensor's name, dtype, shape and bytes. One
entry because safetensors writes several in an order that differs from call to call, and equal content has to be equal
files. The digest tells damage, not forgery: whoever writes a file on purpose can write its digest too, so readers check
what the document says as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit.errors import InputError, first_line
from prunekit.file_kinds import is_safetensors, kind_of_file
from prunekit.files import atomic_path

_DOCUMENT, _DIGEST = "prunekit", "digest"
_LENGTH_BYTES = 8  # of the header, at a safetensors file's begin


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        document: The JSON object of its header; empty where there is none.
        tensors: By name.
        has_digest: Whether the file carried one; it was right then.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    has_digest: bool

    @property
    def format(self) -> str:
        """What kind of file the document says it is; "" for a document without such an entry."""
        return str(self.document.get("format", ""))


def write(path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None = None) -> None:
    """Write a file under a temporary name and then rename it.

    Args:
        path: The file; missing folders are made.
        tensors: By name, on any device; they may share memory.
        document: JSON-able; None leaves it out.

    Raises:
        OSError: It cannot be written.
    """
    whole = _on_cpu(tensors)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(whole, temporary, metadata=_metadata(whole, document))


def to_bytes(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None = None) -> bytes:
    """Return what `write` would write."""
    whole = _on_cpu(tensors)
    return bytes(safetensors.torch.save(whole, metadata=_metadata(whole, document)))


def read(source: str | Path | bytes, what: str) -> Content:
    """Read a file, or what `to_bytes` returned.

    Args:
        source: The file's path, or its bytes.
        what: What the message says was expected, such as "a training state".

    Raises:
        InputError: There is no such file, it is none of safetensors, its document is no JSON object, or the digest
            is not that of what the file holds.
    """
    where = "" if isinstance(source, bytes) else f" at {source}"
    if not isinstance(source, bytes):
        _check_is_file(source, what)
    try:
        metadata, tensors = _read_bytes(source) if isinstance(source, bytes) else _read_file(Path(source))
        document, digest = _document_and_digest(metadata)
        is_damaged = digest is not None and digest != _digest(tensors, document if _DOCUMENT in metadata else None)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise InputError(f"Expected {what}{where}, but it cannot be read: {_why(source, error)}.") from None
    if is_damaged:
        raise InputError(f"Expected {what}{where}, but the file is damaged: its content does not match its digest.")
    return Content(document, tensors, digest is not None)


def read_document(path: str | Path, what: str) -> dict[str, Any]:
    """Return a file's document without reading its tensors, and so without checking the digest.

    Raises:
        InputError: There is no such file, it is none of safetensors, or its document is no JSON object.
    """
    _check_is_file(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            document, _ = _document_and_digest(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"Expected {what} at {path}, but it cannot be read: {_why(path, error)}.") from None
    return document


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, of which no two share memory, as safetensors wants them."""
    whole: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        start = here.untyped_storage().data_ptr()
        is_alone = here.numel() * here.itemsize == here.untyped_storage().nbytes() and start not in taken
        whole[name] = here if is_alone else here.clone()
        taken.add(start)
    return whole


def _metadata(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None) -> dict[str, str]:
    digest = {_DIGEST: _digest(tensors, document)}
    return digest if document is None else {_DOCUMENT: json.dumps({**document, **digest})}


def _document_and_digest(metadata: Mapping[str, str]) -> tuple[dict[str, Any], Any]:
    """Return the document, empty where there is none, and the digest, None where there is none.

    Raises:
        ValueError: The document is not a JSON object.
    """
    if _DOCUMENT not in metadata:
        return {}, metadata.get(_DIGEST)
    document = json.loads(metadata[_DOCUMENT])
    if not isinstance(document, dict):
        raise ValueError("its document is not a JSON object")
    return document, document.pop(_DIGEST, None)


def _digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None) -> str:
    found = hashlib.blake2b(digest_size=16)
    # As text, which numbers in other types or in another order change.
    for part in _parts(tensors, None if document is None else json.dumps(document)):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _parts(tensors: Mapping[str, Tensor], text: str | None) -> Iterable[Any]:
    yield (text or "").encode()
    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""


def _check_is_file(path: str | Path, what: str) -> None:
    if not Path(path).is_file():
        found = f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}"
        raise InputError(f"Expected {what}, but {found}.")


def _read_file(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Read a file; its tensors get memory of their own.

    The file's own are mapped: they would change with the file. They are aligned to nothing but their element, too, and
    kernels that depend on alignment would round otherwise than on the tensors that were saved: MKL's matrix-vector
    product on AVX2 did, by 1e-7 relative.
    """
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _read_bytes(data: bytes) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return header.get("__metadata__") or {}, tensors


def _why(source: str | Path | bytes, error: Exception) -> str:
    """Return what kind of file it is, where it is another one than safetensors, or what reading it said."""
    kind = None if isinstance(source, bytes) or is_safetensors(source) else kind_of_file(source)
    return first_line(error).rstrip(".") if kind is None else f"it is {kind}"


def read_description(path: str | Path, file_format: str, what: str) -> dict[str, Any]:
    """Return a file's description without reading its tensors.

    Args:
        path: The safetensors file.
        file_format: The one it was saved with.
        what: What the message says was expected: "a training state".

    Raises:
        InputError: When the file is missing, damaged, or none of that format that prunekit wrote.
    """
    return _of_format(read_document(path, what), file_format, what, path)


def read_described(path: str | Path, file_format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's description and its tensors by name; arguments and errors are `read_description`'s."""
    content = read(path, what)
    return _of_format(content.document, file_format, what, path), content.tensors


def _of_format(description: dict[str, Any], file_format: str, what: str, path: str | Path) -> dict[str, Any]:
    if description.get("format") != file_format:
        raise InputError(f"Expected {what} at {path}, but the file is none that prunekit wrote.")
    return description
