from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.attacks import AttackLosses
from prunekit.attacks.gradient import slope_at
from prunekit.attacks.presets import STANDARD
from prunekit.detection import (
    CocoDataset,
    DetectionTask,
    Detector,
    Target,
    detection_loss,
    load_darknet_weights,
    yolov3_tiny,
)
from prunekit.detection.attack_losses import attack_losses
from prunekit.detection.boxes import Heads, split_anchors
from prunekit.detection.rates import attack_success, false_positives
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate
from prunekit.pipeline import RunConfig, SilentProgress
from tests.support.detection_oracles import bce, decode_loop, iou_scalar, mean

pytestmark = pytest.mark.usefixtures("one_thread")

ANCHORS = (((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)), ((10.0, 13.0), (16.0, 30.0)))
STRIDES = (32, 16)
NUM_CLASSES = 3
# The second image has no object.
TARGETS = [
    Target(torch.tensor([[10.0, 20, 60, 70], [80, 10, 100, 40]]), torch.tensor([0, 2])),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    Target(torch.tensor([[40.0, 8, 150, 90]]), torch.tensor([1])),
]


def random_outputs(seed: int = 0, batch: int = 3, num_classes: int = NUM_CLASSES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            batch, len(sizes) * (5 + num_classes), 96 // stride, 160 // stride, generator=generator, dtype=torch.float64
        )
        for sizes, stride in zip(ANCHORS, STRIDES, strict=True)
    ]


def losses_of(targets: list[Target] = TARGETS, num_classes: int = NUM_CLASSES) -> AttackLosses:
    return attack_losses(targets, Heads(ANCHORS, STRIDES, num_classes))


def test_the_training_losses_parts_are_components() -> None:
    outputs, losses = random_outputs(), losses_of()
    loss = detection_loss(outputs, TARGETS, Heads(ANCHORS, STRIDES, NUM_CLASSES))
    for name, part in [
        ("total", loss.total),
        ("localization", loss.box),
        ("objectness", loss.objectness),
        ("classification", loss.classification),
    ]:
        assert torch.equal(losses.components[name](outputs), part)
    assert torch.equal(losses.total(outputs), loss.total)
    assert torch.equal(losses.badness(outputs), loss.total)


@pytest.mark.parametrize(("name", "wanted"), [("vanish", 0.0), ("fabricate", 1.0)])
def test_objectness_targets_are_the_loops(name: str, wanted: float) -> None:
    outputs = random_outputs()
    found = losses_of().components[name](outputs)
    for image in range(3):
        expected = 0.0
        for logits, sizes in zip(outputs, ANCHORS, strict=True):
            t = split_anchors(logits, len(sizes), NUM_CLASSES)[image, ..., 4]
            expected -= mean([bce(value, wanted) for value in t.flatten().tolist()])
        assert found[image].item() == pytest.approx(expected)


def test_mislabel_is_minus_the_loss_towards_the_likeliest_wrong_class() -> None:
    outputs = random_outputs()
    for logits, sizes in zip(outputs, ANCHORS, strict=True):
        # Everywhere class 1 is likelier than class 2, and that likelier than class 0.
        split_anchors(logits, len(sizes), NUM_CLASSES)[..., 5:] = torch.tensor([-1.0, 0.7, 0.3], dtype=torch.float64)
    wrong = {0: 1, 2: 1, 1: 2}
    renamed = [Target(t.boxes, torch.tensor([wrong[v] for v in t.labels.tolist()]).long()) for t in TARGETS]
    expected = -detection_loss(outputs, renamed, Heads(ANCHORS, STRIDES, NUM_CLASSES)).total
    assert_close(losses_of().components["mislabel"](outputs), expected)


def test_one_class_cannot_be_mislabeled() -> None:
    targets = [Target(target.boxes, torch.zeros_like(target.labels)) for target in TARGETS]
    losses = losses_of(targets, num_classes=1)
    assert "mislabel" not in losses.components
    assert "mislabel" in losses_of().components
    outputs = random_outputs(num_classes=1)
    assert all(loss(outputs).isfinite().all() for loss in losses.components.values())
    assert losses.margin(outputs).isfinite().all()


def margin_loop(outputs: list[Tensor], target: Target) -> float:
    """The margin of one image, outputs [1, ...]."""
    decoded = decode_loop(outputs, ANCHORS, STRIDES, NUM_CLASSES)[0]
    excesses = []
    for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
        scores = [scores[label] for found, scores in decoded if iou_scalar(found, tuple(box)) >= 0.5]
        excesses.append(math.log(max([*scores, torch.finfo(torch.float64).tiny]) / 0.5))
    found_excesses = [max(excess, 0.0) for excess in excesses]
    if any(excess >= 0 for excess in excesses):
        return -mean(found_excesses)
    return -max([*excesses, math.log(torch.finfo(torch.float64).tiny)])


@pytest.mark.parametrize("seed", range(4))
def test_the_margin_is_the_loops(seed: int) -> None:
    # Sure of everything, unsure, and anything between, so that some images lose objects and some keep them.
    outputs = [logits + 4 * seed - 2 for logits in random_outputs(seed)]
    found = losses_of().margin(outputs)
    for image, target in enumerate(TARGETS):
        expected = margin_loop([logits[image : image + 1] for logits in outputs], target)
        assert found[image].item() == pytest.approx(expected)


def test_an_image_without_objects_has_nothing_to_lose() -> None:
    assert all(losses_of().margin([logits + 9 for logits in random_outputs(seed)])[1] > 0 for seed in range(3))


def test_images_do_not_see_each_other() -> None:
    outputs, together = random_outputs(), losses_of()
    for image, target in enumerate(TARGETS):
        alone = losses_of([target])
        own = [logits[image : image + 1] for logits in outputs]
        for name, loss in {**together.components, "margin": together.margin}.items():
            other = {**alone.components, "margin": alone.margin}[name]
            assert_close(loss(outputs)[image], other(own)[0], rtol=1e-12, atol=1e-14)


def test_batches_without_objects_have_slopes_all_the_same() -> None:
    torch.manual_seed(0)
    net = yolov3_tiny(num_classes=3, width=1 / 16).eval()
    x = torch.rand(2, 3, 64, 64)
    losses = attack_losses([TARGETS[1]] * 2, Heads.of(net))
    grads = {name: slope_at(net, x, loss).grad for name, loss in {**losses.components, "margin": losses.margin}.items()}
    assert all(grad.isfinite().all() for grad in grads.values())
    flat = {name for name, grad in grads.items() if grad.abs().max() == 0}
    assert flat == {"localization", "classification", "margin"}


@pytest.mark.parametrize("value", [0.0, 60.0, -60.0, 1e4, -1e4])
def test_gradients_stay_finite_on_wild_logits(value: float) -> None:
    outputs = [torch.full_like(logits, value).float().requires_grad_() for logits in random_outputs()]
    losses = losses_of()
    for loss in [*losses.components.values(), losses.margin]:
        for grad in torch.autograd.grad(loss(outputs).sum(), outputs, materialize_grads=True):
            assert grad.isfinite().all()


@pytest.fixture
def shapes(shapes_config: RunConfig) -> tuple[Detector, CocoDataset]:
    """A detector that knows eight images by heart, and these images."""
    dataset = CocoDataset.open(shapes_config.data, shapes_config.image_size)
    model = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    load_darknet_weights(model, str(shapes_config.weights))
    return model, dataset


def test_each_target_does_what_it_is_called(shapes: tuple[Detector, CocoDataset], shapes_config: RunConfig) -> None:
    model, dataset = shapes
    subject = Subject(model, DetectionTask.of(model), dataset, shapes_config, SilentProgress())

    def under(name: str) -> Evaluation:
        def attack(
            model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
        ) -> Tensor:
            chosen = AttackLosses(losses.components[name], losses.margin, {}, losses.badness)
            return STANDARD(model, x, chosen, generator)

        return evaluate(subject, attack)

    clean = evaluate(subject, None)
    success, found = {}, {}
    for name in ("vanish", "fabricate", "mislabel"):
        attacked = under(name)
        found[name] = false_positives(dataset, attacked.predictions).detections
        success[name] = attack_success(dataset, clean.predictions, attacked.predictions)
    assert success["vanish"].lost > 0.9
    assert found["vanish"] <= 1
    assert found["fabricate"] > 2 * false_positives(dataset, clean.predictions).detections
    assert success["mislabel"].mislabeled > 0.2
    assert success["vanish"].mislabeled == 0
