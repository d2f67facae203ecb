"""Image files of every kind, in the frame that their annotations were made in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunekit.detection import CocoDataset
from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.image_files import read_header, read_image
from prunekit.errors import InputError

#: What a viewer shows: 24 × 16 pixels, white where the object is.
WIDTH, HEIGHT, BOX = 24, 16, (2, 1, 12, 5)
SHOWN = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
SHOWN[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
#: Orientation → how a camera stored those pixels: EXIF's names of the edges where the stored rows and columns begin.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],  # row 0 is the top, column 0 the right side
    3: SHOWN[::-1, ::-1],  # bottom, right
    4: SHOWN[::-1],  # bottom, left
    5: SHOWN.transpose(1, 0, 2),  # left, top
    6: np.rot90(SHOWN),  # right, top: a quarter turn clockwise shows it
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: np.rot90(SHOWN, -1),  # left, bottom
}
FORMATS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def save(path: Path, pixels: Any, orientation: int, format: str = "PNG") -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format, exif=exif, **FORMATS[format])


def box_in(pixels: Any) -> list[int]:
    """Return the box of what is white, xywh."""
    ys, xs = (np.asarray(pixels)[..., 0] > 127).nonzero()
    return [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def write(folder: Path, stored: dict[int, Any], boxes: dict[int, list[int]], sizes: dict[int, Any]) -> Path:
    """Write an image for each orientation, and annotations in the frame that boxes and sizes say."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for number, pixels in stored.items():
        save(folder / f"{number}.png", pixels, number)
        size = {"width": sizes[number][0], "height": sizes[number][1]} if sizes else {}
        images.append({"id": number, "file_name": f"{number}.png", **size})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": boxes[number]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def assert_boxes_fit(dataset: CocoDataset) -> None:
    """Require that every sample is white in its box and black elsewhere."""
    for sample in (dataset[index] for index in range(len(dataset))):
        x1, y1, x2, y2 = sample.boxes[0].round().int().tolist()
        inside = sample.image[0, y1:y2, x1:x2]
        assert float(inside[2:-2, 2:-2].min()) > 0.9
        whole = sample.image[0].clone()
        whole[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = 0
        assert float((whole > 0.6).sum()) == 0  # the border is 0.5


def frame(which: str, pixels: dict[int, Any]) -> dict[int, Any]:
    """Return each orientation's pixels in the frame of the annotations."""
    return pixels if which == "stored" else dict.fromkeys(pixels, SHOWN)


@pytest.mark.parametrize("which", ["stored", "displayed"])
def test_all_orientations_of_a_data_set_are_read_in_the_frame_of_its_sizes(which: str, tmp_path: Path) -> None:
    annotated = frame(which, STORED)
    sizes = {number: pixels.shape[1::-1] for number, pixels in annotated.items()}
    boxes = {number: box_in(pixels) for number, pixels in annotated.items()}
    dataset = CocoDataset.open(write(tmp_path / "a", STORED, boxes, sizes), 96)
    assert [record.upright for record in dataset.images] == [which == "displayed" and n != 1 for n in STORED]
    assert_boxes_fit(dataset)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("which", ["stored", "displayed"])
def test_a_size_that_tells_the_frames_apart_decides_by_itself(which: str, orientation: int, tmp_path: Path) -> None:
    stored = {orientation: STORED[orientation]}
    annotated = frame(which, stored)[orientation]
    path = write(tmp_path / "a", stored, {orientation: box_in(annotated)}, {orientation: annotated.shape[1::-1]})
    assert_boxes_fit(CocoDataset.open(path, 96))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_pixels_are_taken_as_stored_where_nothing_tells(orientation: int, tmp_path: Path) -> None:
    stored = {orientation: STORED[orientation]}
    boxes = {orientation: box_in(STORED[orientation])}
    for sizes in ({orientation: (WIDTH, HEIGHT)}, {}):
        dataset = CocoDataset.open(write(tmp_path / "a", stored, boxes, sizes), 96)
        assert not dataset.images[0].upright
        assert_boxes_fit(dataset)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_without_a_size_is_taken_as_stored(orientation: int, tmp_path: Path) -> None:
    stored = {orientation: STORED[orientation]}
    dataset = CocoDataset.open(write(tmp_path / "a", stored, {orientation: box_in(STORED[orientation])}, {}), 96)
    assert (dataset.images[0].width, dataset.images[0].height) == (HEIGHT, WIDTH)
    assert_boxes_fit(dataset)


def test_sizes_that_contradict_each_other_leave_doubtful_images_as_stored(tmp_path: Path) -> None:
    stored = {number: STORED[number] for number in (3, 6, 8)}
    sizes = {3: (WIDTH, HEIGHT), 6: (WIDTH, HEIGHT), 8: (HEIGHT, WIDTH)}
    boxes = {3: box_in(STORED[3]), 6: box_in(SHOWN), 8: box_in(STORED[8])}
    dataset = CocoDataset.open(write(tmp_path / "a", stored, boxes, sizes), 96)
    assert [record.upright for record in dataset.images] == [False, True, False]
    assert_boxes_fit(dataset)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_stored_and_displayed_pixels_come_out_of_every_format(format: str, orientation: int, tmp_path: Path) -> None:
    path, stored = tmp_path / "image", STORED[orientation]
    save(path, stored, orientation, format)
    height, width = stored.shape[:2]
    assert read_header(path, None).size == (width, height)
    assert read_header(path, (width, height)).displayed_size == (WIDTH, HEIGHT)
    tolerance = 60 if format == "JPEG" else 0
    found = np.asarray(read_image(path, width, height)).astype(int)
    assert np.abs(found - stored).max() <= tolerance
    shown = np.asarray(read_image(path, WIDTH, HEIGHT, upright=True)).astype(int)
    assert np.abs(shown - SHOWN).max() <= tolerance


def test_damaged_exif_data_are_passed_over(tmp_path: Path) -> None:
    for exif in (b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00nonsense", b"Exif\x00\x00"):
        Image.fromarray(SHOWN).save(tmp_path / "image", "JPEG", exif=exif)
        assert read_header(tmp_path / "image", (WIDTH, HEIGHT)).orientation == 1
        assert read_image(tmp_path / "image", WIDTH, HEIGHT).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("mode", "format"),
    [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [(mode, "TIFF") for mode in ("CMYK", "YCbCr", "L", "I;16", "F", "I")]
    + [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "GIF"), ("RGB", "BMP"), ("RGBA", "WEBP")],
)
def test_every_kind_of_pixels_becomes_rgb_or_a_sentence(mode: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    gray = Image.fromarray(SHOWN[..., 0])
    if mode == "I;16":
        image: Image.Image = Image.fromarray(SHOWN[..., 0].astype(np.uint16) * 257)
    else:
        image = gray.convert("RGB" if mode in ("CMYK", "YCbCr") else "L").convert(mode)
    image.save(path, format)
    if mode in ("F", "I"):
        with pytest.raises(InputError, match="cannot be decoded"):
            read_image(path, WIDTH, HEIGHT)
        return
    found = read_image(path, WIDTH, HEIGHT)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - SHOWN).max() <= (60 if format in ("JPEG", "WEBP") else 1)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_counts(format: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels) for pixels in (SHOWN, 255 - SHOWN)]
    frames[0].save(tmp_path / "image", format, save_all=True, append_images=frames[1:], **FORMATS.get(format, {}))
    assert np.array_equal(np.asarray(read_image(tmp_path / "image", WIDTH, HEIGHT)), SHOWN)


def noise(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((160, 120), 80).convert("RGB").save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0, 0.001, 0.3, 0.9])
def test_a_file_that_ends_early_is_skipped_when_the_data_set_is_opened(
    format: str, kept: float, tmp_path: Path
) -> None:
    whole = noise(format)
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)] if name == "b" else whole)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 12]} for i in range(3)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = CocoDataset.open(tmp_path / "a.json", 64, on_bad_image="skip")
    assert [record.id for record in dataset.images] == [0, 2]
    assert [dataset[index].boxes.shape for index in range(2)] == [(1, 4), (1, 4)]
    (skip,) = dataset.skipped
    assert skip.what == f"image {tmp_path / 'b'}"
    assert skip.kind in ("images that cannot be decoded", "images that cannot be read")
    with pytest.raises(InputError, match="/b "):
        CocoDataset.open(tmp_path / "a.json", 64)[1]


def test_a_header_is_all_that_is_read_of_a_whole_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in FORMATS:
        Image.fromarray(SHOWN).save(tmp_path / format, format)
    monkeypatch.setattr(Image.Image, "load", None)
    for format in FORMATS:
        assert read_header(tmp_path / format, None).size == (WIDTH, HEIGHT)
        assert read_header(tmp_path / format, (WIDTH, HEIGHT)).orientation == 1


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    (tmp_path / "empty").touch()
    for name, words in {"text": "cannot be read", "empty": "cannot be read", "nowhere": "is missing"}.items():
        with pytest.raises(UnusableError, match=words):
            read_header(tmp_path / name, None)
