"""What a data set's folder holds, told from its files: CIFAR, SVHN, MNIST, Tiny-ImageNet, or a folder a class."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.classification.sources import Array, Files, Pixels, Source, class_folders, read_folders
from prunekit.detection.image_files import SUFFIXES
from prunekit.errors import InputError, first_line

TRAIN, HOLDOUT, TEST = PARTS = ("train", "holdout", "test")
_SIDE = 32  # pixels, of CIFAR's and SVHN's images
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801  # first words of MNIST's files: bytes in three dimensions, in one
_PICKLED_CIFAR = ("cifar-10-batches-py", "cifar-100-python", "batches.meta", "meta")
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Sources:
    """A data set's classes, and its images by part: those of `PARTS` that are there, or "" for images of one kind."""

    classes: Sequence[str]
    parts: Mapping[str, Source]


def read_sources(root: Path) -> Sources:
    """Read what a folder, or one of SVHN's files, holds.

    Raises:
        InputError: It is no data set, a file is damaged, or there are fewer than two classes.
    """
    if not root.exists():
        raise InputError(f"Expected a folder with labeled images, but {root} does not exist.")
    found = next((found for read in _READERS if (found := read(root)) is not None), None)
    if found is None:
        raise InputError(f"Expected a folder with images in a folder for each class, or a known data set, got {root}.")
    if strange := [name for name in found.classes if any("\ud800" <= letter <= "\udfff" for letter in name)]:
        raise InputError(f"Expected names of classes in UTF-8 in {root}, got {strange[0]!r}.")
    if len(found.classes) < 2:
        raise InputError(f"Expected at least two classes in {root}, got only {found.classes[0]!r}.")
    return found


def _cifar(root: Path) -> Sources | None:
    """Read CIFAR-10's or CIFAR-100's binary version: records of one or two labels and 3·32·32 bytes."""
    root = next((root / name for name in ("cifar-10-batches-bin", "cifar-100-binary") if (root / name).is_dir()), root)
    if any((root / name).exists() for name in _PICKLED_CIFAR):
        raise InputError(f"Expected CIFAR's binary version in {root}, got the Python version, which is pickled.")
    tens = {TRAIN: sorted(root.glob("data_batch_*.bin")), TEST: sorted(root.glob("test_batch.bin"))}
    hundreds = {TRAIN: sorted(root.glob("train.bin")), TEST: sorted(root.glob("test.bin"))}
    for files, num_labels, num_classes, names in (
        (tens, 1, 10, "batches.meta.txt"),
        (hundreds, 2, 100, "fine_label_names.txt"),
    ):
        if any(files.values()):
            classes = _names(root / names, num_classes)
            return Sources(
                classes,
                {part: _cifar_part(paths, num_labels, len(classes), part) for part, paths in files.items() if paths},
            )
    return None


def _cifar_part(paths: Sequence[Path], num_labels: int, num_classes: int, part: str) -> Array:
    record = num_labels + 3 * _SIDE**2
    batches = []
    for path in paths:
        values = np.fromfile(path, dtype=np.uint8)
        if not len(values) or len(values) % record:
            raise InputError(f"Expected records of {record} bytes in {path}, got {len(values)} bytes.")
        batches.append(values.reshape(-1, record))
    records = np.concatenate(batches)
    images = records[:, num_labels:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Array(images, _labels(records[:, num_labels - 1], num_classes, paths[0]), part)


def _svhn(root: Path) -> Sources | None:
    """Read SVHN's cropped digits, in MATLAB files; digit 0 is their label 10."""
    files = {TRAIN: root / "train_32x32.mat", TEST: root / "test_32x32.mat"}
    if root.suffix == ".mat" and root.is_file():
        files = {"": root}
    found = {part: path for part, path in files.items() if path.is_file()}
    return Sources(_DIGITS, {part: _svhn_part(path) for part, path in found.items()}) if found else None


def _svhn_part(path: Path) -> Array:
    from scipy.io import loadmat  # it takes a third of a second to import

    try:
        content: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy's reader raises whatever a damaged file makes it stumble over
        raise InputError(
            f"Expected SVHN's digits in {path}, but it cannot be read: {first_line(error).rstrip('.')}."
        ) from None
    x, y = content.get("X"), content.get("y")
    if x is None or y is None or x.ndim != 4 or x.shape[:3] != (_SIDE, _SIDE, 3) or x.dtype != np.uint8:
        raise InputError(f"Expected SVHN's X of 32×32×3×N bytes and y in {path}, got {_shapes(content)}.")
    if y.size != x.shape[3]:
        raise InputError(f"Expected a label for each of the {x.shape[3]} images in {path}, got {y.size}.")
    if strange := sorted({*y.reshape(-1).tolist()} - {*range(11)}):
        raise InputError(f"Expected labels from 1 to 10 in {path}, got {strange[-1]}.")
    return Array(x.transpose(3, 0, 1, 2), (y.reshape(-1).astype(int) % 10).tolist(), path.stem)


def _mnist(root: Path) -> Sources | None:
    """Read MNIST's files and those of sets in its format, compressed or not."""
    root = next(
        (folder for folder in (root, root / "raw", root / "MNIST" / "raw") if _idx(folder, "t10k-images")), root
    )
    parts = {}
    for part, stem in ((TRAIN, "train"), (TEST, "t10k")):
        images, labels = _idx(root, f"{stem}-images"), _idx(root, f"{stem}-labels")
        if images is not None:
            if labels is None:
                raise InputError(f"Expected the labels of {images} beside it, got none.")
            parts[part] = (_read_idx(images, _IDX_IMAGES), _read_idx(labels, _IDX_LABELS), labels)
    if not parts:
        return None
    _, numbers, path = parts.get(TRAIN) or parts[TEST]
    num_classes = _num_classes(numbers, path)
    sources: dict[str, Source] = {}
    for part, (pixels, numbers, path) in parts.items():
        if len(pixels) != len(numbers):
            raise InputError(f"Expected a label for each of {len(pixels)} images in {path}, got {len(numbers)}.")
        sources[part] = Array(pixels[..., None], _labels(numbers, num_classes, path), part)
    return Sources([str(number) for number in range(num_classes)], sources)


def _num_classes(labels: Pixels, path: Path) -> int:
    """Return MNIST's ten or as many as there are labels; those of letters begin with 1."""
    highest = int(labels.max())
    absent = sorted({*range(1, highest)} - {*labels.tolist()})
    if highest >= 10 and absent:
        raise InputError(f"Expected images of every class up to {highest} in {path}, got none of {absent[0]}.")
    return max(10, highest + 1)


def _idx(root: Path, stem: str) -> Path | None:
    kind = "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"
    names = (f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz"))
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_idx(path: Path, magic: int) -> Pixels:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        said = first_line(error).rstrip(".")
        raise InputError(f"Expected MNIST's format in {path}, but it cannot be decompressed: {said}.") from None
    dims = magic & 0xFF
    header = np.frombuffer(content[: 4 * (1 + dims)], dtype=">i4") if len(content) >= 4 * (1 + dims) else np.zeros(1)
    if int(header[0]) != magic:
        raise InputError(f"Expected MNIST's format in {path}, which begins with 0x{magic:08x}, got another beginning.")
    shape = tuple(int(size) for size in header[1:])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + dims))
    if values.size != np.prod(shape) or not values.size:
        raise InputError(f"Expected {np.prod(shape)} values behind the header of {path}, got {values.size}.")
    return values.reshape(shape)


def _tiny_imagenet(root: Path) -> Sources | None:
    """Read Tiny-ImageNet: a folder for each class to train, and a table of the validation images, which test."""
    table = root / "val" / "val_annotations.txt"
    if not table.is_file():
        return None
    if not (root / "train").is_dir():
        raise InputError(f"Expected Tiny-ImageNet's train/ beside val/ in {root}, got none.")
    classes = [folder.name for folder in class_folders(root / "train")]
    paths, labels = [], []
    for line in table.read_text(errors="replace").splitlines():
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes:
            raise InputError(f"Expected a file and a class of train/ in each line of {table}, got {line[:60]!r}.")
        paths.append(table.parent / "images" / name)
        labels.append(classes.index(label))
    if not paths:
        raise InputError(f"Expected the validation images in {table}, got an empty file.")
    return Sources(classes, {TRAIN: read_folders(root / "train", classes), TEST: Files(paths, labels)})


def _folders(root: Path) -> Sources | None:
    """Read folders of images: of the classes, or of the parts and in these of the classes."""
    if not root.is_dir():
        return None
    present = [folder.name for folder in class_folders(root)]
    test = next((name for name in (TEST, "val", "validation") if name in present), None)
    if TRAIN not in present and test is None:
        return Sources(present, {"": read_folders(root, present)}) if present else _no_classes(root)
    names = {TRAIN: TRAIN, TEST: test, HOLDOUT: "val" if test == TEST else None}
    folders = {part: root / name for part, name in names.items() if name in present}
    first = next(iter(folders.values()))
    classes = [folder.name for folder in class_folders(first)]
    if not classes:
        return _no_classes(first)
    return Sources(classes, {part: read_folders(folder, classes) for part, folder in folders.items()})


def _no_classes(root: Path) -> Sources | None:
    images = sum(path.suffix.lower() in SUFFIXES for path in root.iterdir())
    found = f"{images} images without one" if images else "none"
    raise InputError(f"Expected a folder for each class in {root}, got {found}.")


_READERS: tuple[Callable[[Path], Sources | None], ...] = (_cifar, _svhn, _mnist, _tiny_imagenet, _folders)


def _names(path: Path, count: int) -> list[str]:
    """Read the classes' names, a line each; their numbers where there is no such file."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = [line.strip() for line in lines if line.strip()]
    if names and len(names) != count:
        raise InputError(f"Expected the names of {count} classes in {path}, got {len(names)}.")
    return names or [str(number) for number in range(count)]


def _labels(values: Any, num_classes: int, path: Path) -> list[int]:
    if values.max() >= num_classes:
        raise InputError(f"Expected labels below {num_classes} in {path}, got {values.max()}.")
    labels: list[int] = values.tolist()
    return labels


def _shapes(content: Mapping[str, Any]) -> str:
    arrays = {name: value for name, value in content.items() if not name.startswith("__")}
    return ", ".join(
        f"{name} of {'×'.join(map(str, value.shape))} {value.dtype}" for name, value in arrays.items()
    ) or ("neither of them")
