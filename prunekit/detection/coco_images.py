"""The image files of a COCO JSON: where they lie, which can be used, and in which frame they were annotated.

The JSON's width and height say the frame: the pixels as stored, or as displayed after turning them by EXIF's
orientation. Where both have the same size (orientations 2 to 4, and squares) or the JSON says no size, the data set's
other images decide: pixels are turned if some of the sizes are the displayed ones only and none is the stored one
only. Otherwise pixels are taken as stored: COCO's annotators worked in browsers of 2014, which ignored orientations
(that changed in 2020), and pycocotools' users read files that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.coco_json import ImageEntry, ImageRecord, Skip
from prunekit.detection.image_files import ImageHeader, is_file, read_header, read_image
from prunekit.errors import InputError

OnBadImage = Literal["error", "skip"]


def find_image_folder(annotation_file: Path, images: Iterable[ImageEntry]) -> Path:
    """Return the first folder near the annotation file that holds one of the images.

    Raises:
        InputError: None does.
    """
    own_folder = annotation_file.resolve().parent
    root = own_folder.parent if own_folder.name == "annotations" else own_folder
    folders = [folder for pattern in ("*/", "*/*/") for folder in root.glob(pattern) if folder.is_dir()]
    # Splits may repeat file names, so instances_val2017.json prefers a folder val2017.
    folders.sort(key=lambda folder: (folder.name not in annotation_file.stem, len(folder.parts), folder))
    names = [entry.file_name for entry in images]
    for spelling in range(len(_spellings(names[0]))):
        for name in names:
            for folder in [root, *folders]:
                if is_file(folder / _spellings(name)[spelling]):
                    return folder
    raise InputError(
        f"Expected the images of {annotation_file} in {root} or a folder in it, "
        f"but found none of the {len(names)}, such as {names[0][:200]}"
    )


def open_images(
    entries: Mapping[int | str, ImageEntry], folder: Path, on_bad_image: OnBadImage
) -> tuple[dict[int | str, ImageRecord], list[Skip]]:
    """Read the images' headers and return a record, without annotations yet, for each that can be used.

    Args:
        entries: By the key of its id, what the JSON says of an image.
        folder: Where they lie.
        on_bad_image: Whether an image that cannot be used is an error or skipped. For skipping, every image is
            decoded, since a file that ends early has a good header.

    Raises:
        InputError: An image, or all of them, cannot be used.
    """
    headers: dict[int | str, ImageHeader] = {}
    names = {key: _name_in(folder, entry.file_name) for key, entry in entries.items()}
    bad: list[Skip] = []
    for key, entry in entries.items():
        try:
            headers[key] = read_header(folder / names[key], entry.size)
        except UnusableError as error:
            bad.append(Skip(f"image {folder / names[key]}", error.reason, error.kind))
    is_displayed = _frame_is_displayed((entries[key].size, header) for key, header in headers.items())
    records = {key: _record(entries[key], names[key], header, is_displayed) for key, header in headers.items()}
    if on_bad_image == "skip":
        bad += _without_undecodable(records, folder)
    if bad and (on_bad_image == "error" or not records):
        more = f" and {len(bad) - 1} more have problems" if len(bad) > 1 else ""
        raise InputError(
            f"Expected every image of the data set to be readable, but {bad[0].what} {bad[0].reason}{more}"
        )
    return records, bad


def _spellings(file_name: str) -> tuple[str, str, str]:
    """Return a name as it is, with Windows' separators replaced, and without its folders."""
    with_slashes = file_name.replace("\\", "/")
    return file_name, with_slashes, with_slashes.rpartition("/")[2]


def _name_in(folder: Path, file_name: str) -> str:
    """Return the spelling of a name under which the folder has a file; as it is where it has none."""
    return next((name for name in _spellings(file_name) if is_file(folder / name)), file_name)


def _frame_is_displayed(images: Iterable[tuple[tuple[int, int] | None, ImageHeader]]) -> bool:
    """Return whether the sizes that tell the two frames apart are all of displayed pixels."""
    telling = [(size, header) for size, header in images if size and header.size != header.displayed_size]
    return bool(telling) and all(size == header.displayed_size for size, header in telling)


def _record(entry: ImageEntry, name: str, header: ImageHeader, is_displayed: bool) -> ImageRecord:
    size = entry.size or (header.displayed_size if is_displayed else header.size)
    upright = header.orientation != 1 and (size != header.size or (is_displayed and size == header.displayed_size))
    return ImageRecord(entry.id, name, *size, upright=upright)


def _without_undecodable(records: dict[int | str, ImageRecord], folder: Path) -> list[Skip]:
    """Take out the records whose images cannot be decoded, and return them as skips."""
    bad = []
    for key, record in list(records.items()):
        try:
            read_image(folder / record.file_name, record.width, record.height, record.upright)
        except InputError as error:
            reason = str(error).partition(f"{folder / record.file_name} ")[2] or str(error)
            bad.append(Skip(f"image {folder / record.file_name}", reason, "images that cannot be decoded"))
            del records[key]
    return bad
