"""The task of classifiers: accuracy, what an attack took, files of predictions, pictures, the form of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from prunekit.classification import ClassificationData, ClassificationTask
from prunekit.classification.task import Prediction
from prunekit.errors import InputError
from prunekit.task import ModelSpec, models, task_of
from tests.support.classes_of_images import write_classes

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 4.0], [1.0, 0.5, 0.0]])


@pytest.fixture
def data(tmp_path: Path) -> ClassificationData:
    """Four images of the classes 0, 1, 2 and 0."""
    write_classes(tmp_path / "set", ("cat", "dog", "emu, tall"), per_class=2)
    return ClassificationData.open(tmp_path / "set", limit=4)


@pytest.fixture
def task(data: ClassificationData) -> ClassificationTask:
    return ClassificationTask(ModelSpec("resnet20", {"width": 0.25})).for_data(data)


def predictions(*labels: int) -> dict[int, Prediction]:
    return {key: Prediction(label, torch.eye(3)[label] * 0.7 + 0.1) for key, label in enumerate(labels)}


def test_accuracy_and_what_an_attack_took(task: ClassificationTask, data: ClassificationData) -> None:
    clean, attacked = predictions(0, 1, 1, 0), predictions(2, 1, 2, 1)
    assert data.labels == [0, 1, 2, 0]
    assert task.metrics(clean, data) == {"accuracy": 0.75}
    assert task.success(clean, attacked, data) == {"attack_success": pytest.approx(2 / 3)}
    assert task.success(predictions(1, 0, 0, 1), attacked, data) == {"attack_success": None}
    under, transferred = {"accuracy": 0.5}, {"accuracy": 0.6}
    assert task.columns({"accuracy": 0.75}, under, transferred, {"attack_success": 0.1}) == {
        "accuracy": 0.75, "attacked_accuracy": 0.5, "transfer_accuracy": 0.6, "attack_success_rate": 0.1,
    }  # fmt: skip
    assert list(task.columns({"accuracy": 0.75}, None, None, None).values()) == [0.75, None, None, None]


def test_predictions_are_the_most_probable_class_and_come_back_from_their_file(
    task: ClassificationTask, data: ClassificationData, tmp_path: Path
) -> None:
    batch = data.collate([data[index] for index in range(4)])
    found = task.predict(torch.nn.Identity(), LOGITS, batch, None)  # type: ignore[arg-type]
    assert [found[key].label for key in batch.image_ids] == [0, 1, 2, 0]
    torch.testing.assert_close(found[2].probabilities, LOGITS[2].exp() / LOGITS[2].exp().sum())
    (file,) = task.save_predictions(tmp_path / "clean", found, data)
    assert file.read_text().splitlines()[0] == 'image_id,class,predicted,cat,dog,"emu, tall"'
    again = task.load_predictions(tmp_path / "clean", data)
    assert [found.label for found in again.values()] == [0, 1, 2, 0]
    torch.testing.assert_close(again[1].probabilities, found[1].probabilities, rtol=1e-5, atol=1e-6)
    assert task.shown(tmp_path / "clean")[2]["class"] == "emu, tall"
    assert task.shown(tmp_path / "clean")[2]["probability"] == pytest.approx(float(found[2].probabilities[2]), rel=1e-5)


def test_losses_and_what_deeplift_explains_are_of_the_true_class(task: ClassificationTask) -> None:
    labels = torch.tensor([0, 2, 2, 1])
    expected = [-float(row.log_softmax(0)[label]) for row, label in zip(LOGITS, labels, strict=True)]
    torch.testing.assert_close(task.loss(torch.nn.Identity(), LOGITS, labels), torch.tensor(expected))
    assert task.attribution(LOGITS, labels).tolist() == [2.0, 1.0, 4.0, 0.5]
    assert (task.attack_losses(labels).margin(LOGITS) > 0).tolist() == [False, True, False, True]
    assert task.divergence(LOGITS, LOGITS).abs().max() < 1e-6
    assert task.divergence(LOGITS.flip(0), LOGITS).min() > 0


def test_the_form_follows_the_size_of_the_images_unless_the_model_says_it(tmp_path: Path) -> None:
    for size, is_small in ((64, True), (65, False)):
        write_classes(tmp_path / str(size), size=size)
        data = ClassificationData.open(tmp_path / str(size))
        spec = task_of(ModelSpec("resnet18")).for_data(data).spec
        assert spec.arguments == {"num_classes": 2, "small_images": is_small}
        said = task_of(ModelSpec("resnet18", {"small_images": not is_small})).for_data(data).spec
        assert said.arguments["small_images"] is not is_small
    vit = task_of(ModelSpec("mobilevit-s"))
    assert vit.for_data(ClassificationData.open(tmp_path / "64")).input_multiple == 16
    with pytest.raises(InputError, match="--image-size: expected a multiple of 64 for mobilevit-s, got 65"):
        vit.for_data(ClassificationData.open(tmp_path / "65"))


def test_the_families_are_registered() -> None:
    assert {"resnet18", "resnet20", "resnet50", "wrn28-4", "vgg16-bn", "mobilenetv2", "mobilevit-s"} <= set(models())
    with pytest.raises(InputError, match="num_classes to be a whole number of at least 2, got 1"):
        task_of(ModelSpec("resnet20", {"num_classes": 1}))
    with pytest.raises(InputError, match="width to be a number above 0 and up to 4, got 9"):
        task_of(ModelSpec("resnet20", {"width": 9}))


def test_pictures_tell_right_from_wrong(task: ClassificationTask, data: ClassificationData) -> None:
    image, example = Image.new("RGB", (32, 32), "white"), data.example(0)
    truth = task.picture(image, example, None)
    right = task.picture(image, example, {"class": "cat", "probability": 0.9})
    wrong = task.picture(image, example, {"class": "dog", "probability": 0.6})
    colors = [picture.getpixel((0, 0)) for picture in (truth, right, wrong)]
    assert len(set(colors)) == 3
    assert truth.size == right.size
    assert truth.getpixel((truth.width // 2, truth.width // 2)) == (255, 255, 255)
