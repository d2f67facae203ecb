"""Every layout of labeled images is told by what is there, split the same way always, and refused in one sentence."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from prunekit.classification import ClassificationData
from prunekit.classification.sources import Pixels
from prunekit.errors import InputError
from prunekit.kept_images import KeptImages
from tests.support.classes_of_images import write_classes
from tests.support.external_files import cifar10

RNG = np.random.default_rng(0)


def picture(size: int = 8, mode: str = "RGB") -> Image.Image:
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def write_parts(root: Path) -> Path:
    write_classes(root / "train", per_class=21)
    write_classes(root / "test", per_class=4)
    return root


def cifar_record(label: tuple[int, ...], pixels: Pixels) -> bytes:
    return bytes([*label, *pixels.transpose(2, 0, 1).ravel()])


PIXELS = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
LABELS = (3, 0, 9, 3)
MNIST_LABELS = {"train": LABELS, "t10k": LABELS}


def write_cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    records = [cifar_record((label,), pixels) for label, pixels in zip(LABELS, PIXELS, strict=True)]
    for number in (1, 2):
        (folder / f"data_batch_{number}.bin").write_bytes(b"".join(records))
    (folder / "test_batch.bin").write_bytes(b"".join(records))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    return root


def write_cifar100(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    records = [cifar_record((1, 10 * label), pixels) for label, pixels in zip(LABELS, PIXELS, strict=True)]
    (root / "train.bin").write_bytes(b"".join(records))
    (root / "test.bin").write_bytes(b"".join(records))
    return root


def write_svhn(root: Path, labels: Sequence[float] = LABELS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    column = np.array([[10 if label == 0 else label] for label in labels])
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": PIXELS.transpose(1, 2, 3, 0), "y": column})
    return root


def idx(values: Pixels) -> bytes:
    return struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape) + bytes(values.ravel())


def write_mnist(root: Path, compressed: bool = False, parts: Mapping[str, Sequence[int]] = MNIST_LABELS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for stem, labels in parts.items():
        for kind, values in (("images-idx3", PIXELS[..., 0]), ("labels-idx1", np.array(labels, dtype=np.uint8))):
            content = idx(np.ascontiguousarray(values))
            name = f"{stem}-{kind}-ubyte"
            (root / (f"{name}.gz" if compressed else name)).write_bytes(
                gzip.compress(content) if compressed else content
            )
    return root


def write_tiny_imagenet(root: Path) -> Path:
    for name in ("n01", "n02"):
        (root / "train" / name / "images").mkdir(parents=True)
        for index in range(3):
            picture(64).save(root / "train" / name / "images" / f"{name}_{index}.JPEG", format="JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for index in range(3):
        picture(64).save(root / "val" / "images" / f"val_{index}.JPEG", format="JPEG")
    lines = [f"val_{index}.JPEG\t{name}\t0\t0\t9\t9" for index, name in enumerate(("n02", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("write", "classes", "label", "first"),
    [
        (write_cifar10, 10, list(LABELS), PIXELS[0]),
        (write_cifar100, 100, [10 * label for label in LABELS], PIXELS[0]),
        (write_svhn, 10, list(LABELS), PIXELS[0]),
        (write_mnist, 10, list(LABELS), PIXELS[0][..., :1].repeat(3, axis=2)),
        (lambda root: write_mnist(root, True), 10, list(LABELS), PIXELS[0][..., :1].repeat(3, axis=2)),
    ],
    ids=["CIFAR-10", "CIFAR-100", "SVHN", "MNIST", "MNIST.gz"],
)
def test_arrays_give_their_pixels_and_labels(
    write: Callable[[Path], Path], classes: int, label: list[int], first: Pixels, tmp_path: Path
) -> None:
    data = ClassificationData.open(write(tmp_path / "set"))
    assert (data.subset, data.image_size, len(data.classes)) == ("test", 32, classes)
    assert data.labels == label
    assert torch.equal((data[0].image * 255).round().to(torch.uint8).permute(1, 2, 0), torch.tensor(first))
    assert (data[1].target, data[1].image_id) == (label[1], 1)
    assert data.training().subset == "train"
    assert data.example(0)["class"] == data.classes[label[0]]


def test_letters_in_mnists_format_have_classes_from_1(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(1, 27, dtype=np.uint8)))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((26, 28, 28), dtype=np.uint8)))
    assert len(ClassificationData.open(tmp_path / "train").classes) == 27


def test_cifars_classes_have_their_names(tmp_path: Path) -> None:
    data = ClassificationData.open(write_cifar10(tmp_path))
    assert data.example(0)["class"] == "cat"
    assert len(data.training()) == 8


def test_tiny_imagenet_is_told_by_its_table(tmp_path: Path) -> None:
    data = ClassificationData.open(write_tiny_imagenet(tmp_path))
    assert (data.subset, data.image_size, data.classes, data.labels) == ("test", 64, ["n01", "n02"], [1, 0, 1])
    assert data.training().labels == [0, 1, 0, 1, 0, 1]


def test_folders_are_read_class_by_class_in_turn(tmp_path: Path) -> None:
    write_classes(tmp_path, per_class=2)
    picture().save(tmp_path / "dog" / "more.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = ClassificationData.open(tmp_path)
    assert data.labels == [0, 1, 0, 1, 1]
    assert [data.example(index)["file_name"] for index in (0, 1, 4)] == ["cat/0.png", "dog/0.png", "dog/more.png"]
    assert data.training() is data  # images of one kind
    assert len(ClassificationData.open(tmp_path, limit=3)) == 3
    assert data.part(2).labels == [0, 1]
    assert data.examples(2) == [0, 2]


def test_the_holdout_is_of_the_training_set_and_the_test_set_stays_apart(tmp_path: Path) -> None:
    root = write_parts(tmp_path)
    test, train = ClassificationData.open(root), ClassificationData.open(root).training()
    holdout, again = ClassificationData.open(root / "holdout"), ClassificationData.open(root / "holdout")
    names = [{data.example(index)["file_name"] for index in range(len(data))} for data in (train, holdout, again)]
    assert (len(test), len(train), len(holdout)) == (8, 38, 4)
    assert holdout.labels == [0, 1, 0, 1]
    assert not names[0] & names[1]
    assert names[1] == names[2]
    assert len(ClassificationData.open(root / "train")) == 42  # the folder itself, whole
    assert test.identity() == train.identity()


def test_a_val_folder_beside_test_is_the_holdout(tmp_path: Path) -> None:
    write_classes(write_parts(tmp_path) / "val", per_class=2)
    assert len(ClassificationData.open(tmp_path).training()) == 42
    assert len(ClassificationData.open(tmp_path / "holdout")) == 4
    with pytest.raises(InputError, match="does not exist"):
        ClassificationData.open(tmp_path / "nothing")


def test_images_of_several_sizes_are_cropped_to_one(tmp_path: Path) -> None:
    write_classes(tmp_path)
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255  # the middle is white
    Image.fromarray(wide).save(tmp_path / "cat" / "0.png")
    assert ClassificationData.open(tmp_path).image_size == 224
    data = ClassificationData.open(tmp_path, image_size=10)
    assert torch.equal(data[0].image, torch.ones(3, 10, 10))
    assert data[1].image.shape == (3, 10, 10)


def test_gray_and_16_bit_images_become_rgb(tmp_path: Path) -> None:
    write_classes(tmp_path)
    picture(mode="L").save(tmp_path / "cat" / "0.png")
    Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16)).save(tmp_path / "dog" / "0.png")
    data = ClassificationData.open(tmp_path)
    assert torch.equal(data[0].image[0], data[0].image[2])
    assert torch.equal(data[1].image, torch.full((3, 8, 8), 100 / 255))
    gray = ClassificationData.open(tmp_path, grayscale=True)[2].image
    assert torch.equal(gray[0], gray[1])


def test_other_modes_become_rgb_of_the_same_values(tmp_path: Path) -> None:
    write_classes(tmp_path, per_class=4)
    values = np.full((8, 8), 257 * 50, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "cat" / "0.tif")
    Image.fromarray(np.full((8, 8, 2), (70, 9), dtype=np.uint8), "LA").save(tmp_path / "cat" / "1.png")
    Image.fromarray(np.full((8, 8, 4), (10, 20, 30, 0), dtype=np.uint8)).save(tmp_path / "cat" / "2.png")
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).convert("P").save(tmp_path / "cat" / "3.png")
    (tmp_path / "cat" / "0.png").unlink()
    found = {
        entry["file_name"]: index for index in range(8) for entry in [ClassificationData.open(tmp_path).example(index)]
    }
    data = ClassificationData.open(tmp_path)
    for name, color in (
        ("0.tif", (50, 50, 50)),
        ("1.png", (70, 70, 70)),
        ("2.png", (10, 20, 30)),
        ("3.png", (200,) * 3),
    ):
        pixels = data[found[f"cat/{name}"]].image * 255
        assert torch.equal(pixels.round(), torch.tensor(color).float()[:, None, None].expand(3, 8, 8))


def test_an_image_of_32_bits_is_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(write_classes(tmp_path) / "cat" / "0.tif")
    data = ClassificationData.open(tmp_path)
    with pytest.raises(InputError, match=r"0\.tif cannot be decoded \(its pixels are of 32 bits"):
        [data[index] for index in range(len(data))]


def test_batches_and_kept_images_are_the_decoded_ones(tmp_path: Path) -> None:
    data = ClassificationData.open(write_parts(tmp_path))
    batch = data.collate([data[2], data[1]])
    assert batch.images.shape == (2, 3, 8, 8)
    assert (batch.targets.tolist(), batch.image_ids) == ([0, 1], [2, 1])
    first, data.kept = data[0].image, KeptImages()
    assert torch.equal(data[0].image, first)
    assert data.is_kept(0)
    assert torch.equal(data[0].image, first)


def test_what_identifies_an_image_is_its_bytes_and_class(tmp_path: Path) -> None:
    before = ClassificationData.open(write_parts(tmp_path)).fingerprint(0)
    assert ClassificationData.open(tmp_path).fingerprint(0) == before
    picture().save(tmp_path / "test" / "cat" / "0.png")
    assert ClassificationData.open(tmp_path).fingerprint(0) != before


def _cut(path: Path, by: int = 7) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def _class_without_images(root: Path) -> None:
    write_classes(root)
    (root / "empty").mkdir()


def _another_encoding(root: Path) -> None:
    write_classes(root)
    (root / "cat").rename(root / "\udcff")


def _loose_images(root: Path) -> None:
    for index in range(3):
        picture().save(root / f"{index}.png")


def _cut_cifar(root: Path) -> None:
    _cut(write_cifar10(root) / "cifar-10-batches-bin" / "data_batch_2.bin")


def _bad_cifar_label(root: Path) -> None:
    (write_cifar10(root) / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(cifar_record((10,), PIXELS[0]))


def _pickled_cifar(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(b"\x80\x02")


def _other_mat(root: Path) -> None:
    savemat(root / "test_32x32.mat", {"images": np.zeros((3, 3)), "y": np.zeros(3)})


def _mat_beside(root: Path) -> None:
    savemat(root / "digitStruct.mat", {"images": np.zeros((3, 3))})


def _cut_mat(root: Path) -> None:
    _cut(write_svhn(root) / "test_32x32.mat", 900)


def _hdf5_mat(root: Path) -> None:
    (root / "test_32x32.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))


def _cut_mnist(root: Path) -> None:
    _cut(write_mnist(root) / "t10k-images-idx3-ubyte")


def _cut_gzip(root: Path) -> None:
    _cut(write_mnist(root, True) / "t10k-images-idx3-ubyte.gz", 60)


def _no_mnist_labels(root: Path) -> None:
    (write_mnist(root) / "t10k-labels-idx1-ubyte").unlink()


def _another_class_to_test(root: Path) -> None:
    write_classes(write_parts(root) / "test", classes=("emu",))


def _unknown_tiny_class(root: Path) -> None:
    (write_tiny_imagenet(root) / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty folder": (lambda root: None, "a folder for each class in .*, got none"),
    "images without a class": (_loose_images, "a folder for each class in .*, got 3 images without one"),
    "one class": (lambda root: write_classes(root, classes=("cat",)), "at least two classes in .*, got only 'cat'"),
    "a class of another encoding": (_another_encoding, r"names of classes in UTF-8 in .*, got '\\udcff'"),
    "a class without images": (_class_without_images, "folder of every class, got none in .*empty"),
    "another class to test": (_another_class_to_test, "the classes of the training set, got 'emu'"),
    "a truncated CIFAR batch": (_cut_cifar, r"records of 3073 bytes in .*data_batch_2\.bin, got 12285 bytes"),
    "a CIFAR label": (_bad_cifar_label, r"labels below 10 in .*test_batch\.bin, got 10"),
    "CIFAR in pickles": (_pickled_cifar, "binary version in .*, got the Python version"),
    "another .mat": (_other_mat, "SVHN's X of 32×32×3×N bytes and y in .*, got y of 1×3"),
    "a truncated .mat": (_cut_mat, r"SVHN's digits in .*test_32x32\.mat, but it cannot be read"),
    "a folder of other .mat files": (_mat_beside, "a folder for each class in .*, got none"),
    "an empty part": (lambda root: (root / "train").mkdir(), "a folder for each class in .*train, got none"),
    "one class to train": (
        lambda root: write_classes(root / "train", ("cat",)),
        "at least two classes in .*, got only",
    ),
    "a new .mat": (_hdf5_mat, r"SVHN's digits in .*test_32x32\.mat, but it cannot be read"),
    "a truncated MNIST file": (_cut_mnist, r"4096 values behind the header of .*ubyte, got 4089"),
    "a truncated .gz": (_cut_gzip, "cannot be decompressed"),
    "MNIST without labels": (_no_mnist_labels, "the labels of .* beside it, got none"),
    "an SVHN label": (lambda root: write_svhn(root, [*LABELS[:-1], 11]), r"labels from 1 to 10 in .*\.mat, got 11"),
    "half an SVHN label": (lambda root: write_svhn(root, [*LABELS[:-1], 0.5]), r"labels from 1 to 10 .*, got 0\.5"),
    "an MNIST label to test": (
        lambda root: write_mnist(root, parts={"train": LABELS, "t10k": [*LABELS[:-1], 12]}),
        "labels below 10 in .*t10k-labels-idx1-ubyte, got 12",
    ),
    "an MNIST label to train": (
        lambda root: write_mnist(root, parts={"train": [*LABELS[:-1], 200]}),
        "images of every class up to 200 in .*train-labels-idx1-ubyte, got none of",
    ),
    "a class of no folder": (_unknown_tiny_class, "a class of train/ in each line of .*, got 'val_0.JPEG"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_data_set_is_one_sentence(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    write(tmp_path)
    with pytest.raises(InputError, match=f"^Expected .*{words}") as caught:
        ClassificationData.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_mat_file_of_another_set_named_itself_is_one_sentence(tmp_path: Path) -> None:
    savemat(tmp_path / "faces.mat", {"X": np.zeros((3, 24, 24)), "y": np.zeros(3)})
    with pytest.raises(
        InputError, match=r"SVHN's X of 32×32×3×N bytes and y in .*faces\.mat, got X of 3×24×24 float64"
    ):
        ClassificationData.open(tmp_path / "faces.mat")


def test_an_image_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = write_classes(tmp_path) / "cat" / "1.png"
    _cut(path, 40)
    data = ClassificationData.open(tmp_path, image_size=8)
    with pytest.raises(InputError, match=r"Expected a complete image, but .*1\.png cannot be decoded"):
        data.fingerprint(2)
    path.write_text("no image")
    with pytest.raises(InputError, match=r"Expected a readable image, but .*1\.png cannot be read"):
        ClassificationData.open(tmp_path)
    with pytest.raises(InputError, match="limit of at least 1 image, got 0"):
        ClassificationData.open(tmp_path, limit=0)


def test_cifar10_as_folders_of_photos() -> None:
    data = ClassificationData.open(cifar10())
    train = data.training()
    assert (data.image_size, len(data.classes), data.classes[3]) == (32, 10, "cat")
    assert (len(data), len(train), len(ClassificationData.open(cifar10() / "holdout"))) == (2000, 9000, 1000)
    assert sorted(train.labels[:10]) == list(range(10))
    assert 0.3 < float(torch.stack([train[index].image for index in range(50)]).mean()) < 0.6
