"""What a file is that was given where another one was expected: told from its bytes, and nothing in it is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

_HEAD = 4096  # bytes looked at
_MOST_NAMES, _LONGEST_NAME = 6, 60
_OLD_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: Beginnings of files, and what starts so.
_MAGICS = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself has to be fetched with git lfs pull"),
)


def kind_of_file(path: str | Path) -> str | None:
    """Return what a file is, as the end of "but FILE is …"; None where its bytes say nothing, as darknet's weights.

    A PyTorch file's entries are read with `weights_only` and without their numbers, or not at all.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head:
        return "an empty file"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if _is_pickle(head):
        return _kind_of_checkpoint(path) if _OLD_TORCH_MAGIC in head[:32] else "a pickled object, which is never loaded"
    if is_safetensors(path):
        return "a safetensors file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for magic, kind in _MAGICS if head.startswith(magic)), None) or _kind_of_text(head)


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as safetensors do: a length, and a JSON object of that length."""
    try:
        with Path(path).open("rb") as file:
            length, rest = int.from_bytes(file.read(8), "little"), file.read(1)
            return rest == b"{" and length <= Path(path).stat().st_size - 8
    except OSError:
        return False


def is_checkpoint(path: str | Path) -> bool:
    """Return whether torch.save wrote a file, in its format of today or of before 2020; nothing in it is executed."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(Path(path)).startswith("a PyTorch checkpoint")
    return _is_pickle(head) and _OLD_TORCH_MAGIC in head[:32]


def _kind_of_text(head: bytes) -> str | None:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        # The last character may be cut in two.
        text = head.decode(encoding) if len(head) < _HEAD else head[:-4].decode(encoding, "ignore")
    except UnicodeDecodeError:
        return None
    if any(not (character.isprintable() or character.isspace()) for character in text):
        return None
    lowered = text.lstrip().lower()
    if lowered.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page, as a download that failed leaves it"
    if lowered.startswith("<"):
        return "an XML file"
    lines = [line.strip() for line in lowered.splitlines() if line.strip() and not line.strip().startswith(("#", ";"))]
    if lines and lines[0] in ("[net]", "[network]"):
        return "a darknet .cfg file, which describes a network and holds no weights"
    return "a JSON file" if lowered.startswith(("{", "[")) else "a text file"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive, perhaps a PyTorch checkpoint that is cut off"
    endings = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in endings:
        return "a TorchScript model, whose code is not loaded"
    if "data.pkl" in endings:
        return _kind_of_checkpoint(path)
    if endings & {"archive_format", "models/model.json", "serialized_exported_program.json"}:
        return "a program that torch.export saved"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    return "a zip archive"


def _is_pickle(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _kind_of_checkpoint(path: Path) -> str:
    """Describe what torch.save wrote, and how its tensors get out."""
    load = "torch.load(FILE, weights_only=True)"
    try:
        classes = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if classes:
            load = "the code that it needs"
            content = f"of pickled objects such as {_listed(classes)}"
        else:
            with path.open("rb") as file:  # not the path: torch goes by the suffix
                content = _content(torch.load(file, map_location="meta", weights_only=True))
    except Exception:  # whatever a damaged or old file makes torch stumble over
        content = "of an old format, or damaged"
    return (
        f"a PyTorch checkpoint (torch.save) {content}, and pickled files are not loaded: "
        f"export its state dict with {load} and safetensors.torch.save_file"
    )


def _content(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return f"of a {type(loaded).__name__}"
    if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
        return f"of a state dict with {len(loaded)} tensors"
    return f"with {_listed([str(key) for key in loaded]) or 'nothing'} at its top"


def _listed(names: list[str]) -> str:
    shown = [name[:_LONGEST_NAME] for name in names[:_MOST_NAMES]]
    return ", ".join(shown) + (" and more" if len(names) > _MOST_NAMES else "")
