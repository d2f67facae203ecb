"""The training loop learns, averages, freezes what it should, stops when it must, and repeats itself bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from prunekit.detection import MODELS, CocoDataset, DetectionTask, Target, load_darknet_weights
from prunekit.evaluation.evaluate import Subject, evaluate
from prunekit.pipeline import RunConfig, SilentProgress
from prunekit.progress import Description
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import SCORE_OPTIMIZATION, TrainConfig, learning_rate_factor
from prunekit.training.data import ImagesInMemory, ImagesOnDisk, training_batches
from prunekit.training.loop import optimize, train
from prunekit.training.objectives import (
    OBJECTIVES,
    VERIFIED,
    Clean,
    FreeAdversarialTraining,
    TrainBatch,
    make_objective,
)
from prunekit.training.state import TrainState, load_averages, tensors_of
from tests.support.training_problems import (
    ClassifierLosses,
    Recorder,
    changed,
    labeled_images,
    linear_classifier,
    rectangles,
    small_classifier,
    small_detector,
    snapshot,
    trainable,
)

T = TypeVar("T")
CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, augmentation=NO_AUGMENTATION)
SGD = SCORE_OPTIMIZATION.updated(epochs=3, batch_size=4, augmentation=NO_AUGMENTATION, learning_rate=0.05)
CLEAN = Clean(ClassifierLosses())


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, num_steps=100, warmup=0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0)


def test_a_plain_sgd_step_is_the_textbook_one() -> None:
    model, data = linear_classifier(), ImagesInMemory(torch.rand(4, 1, 1, 61), torch.tensor([0, 1, 1, 0]))
    config = SGD.updated(max_steps=3, learning_rate=0.5, momentum=0.9, weight_decay=0.1, schedule="constant")
    weight, bias = torch.zeros(2, 61, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    images = data.images.flatten(1).double() - 0.5
    labels = data.targets
    assert isinstance(labels, Tensor)
    wanted = nn.functional.one_hot(labels, 2).double()
    for _ in range(3):
        slope = (torch.softmax(images @ weight.T + bias, dim=1) - wanted) / 4
        velocity = 0.9 * velocity + slope.T @ images + 0.1 * weight
        bias_velocity = 0.9 * bias_velocity + slope.sum(0)  # biases do not decay
        weight, bias = weight - 0.5 * velocity, bias - 0.5 * bias_velocity
    optimize(model, trainable(model), data, CLEAN, config)
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(linear.weight.double(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(linear.bias.double(), bias, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped_to_the_given_length() -> None:
    model, data = linear_classifier(), ImagesInMemory(torch.rand(4, 1, 1, 61), torch.tensor([0, 1, 1, 0]))
    config = SGD.updated(max_steps=1, learning_rate=1.0, weight_decay=0.0, max_grad_norm=1e-3)
    log = Recorder()
    optimize(model, trainable(model), data, CLEAN, config, log=log)
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert log.rows[0]["grad_norm"] > 0.01, "the log names the length before clipping"


def test_only_the_chosen_parameters_train_and_the_module_is_left_as_found() -> None:
    model = small_classifier().eval()
    model[4].bias.requires_grad_(False)
    before = snapshot(model)
    chosen = {"0.weight": model.get_parameter("0.weight")}
    optimize(model, chosen, labeled_images(), CLEAN, CONFIG)
    running = {f"{norm}.{name}" for norm in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(before, model) == {"0.weight"} | running
    assert not any(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("mode", "norm_tensors_that_change"),
    [
        ("live", {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}),
        ("frozen-statistics", {"weight", "bias"}),
        ("frozen", set()),
    ],
)
@pytest.mark.parametrize("objective", ["clean", "pgd-at", "free"])
def test_batch_normalization_trains_as_configured(
    mode: str, norm_tensors_that_change: set[str], objective: str
) -> None:
    model = small_classifier()
    before = snapshot(model)
    config = CONFIG.updated(batch_norm=mode)
    optimize(model, trainable(model), labeled_images(), make_objective(objective, ClassifierLosses()), config)
    norms = {name for name in changed(before, model) if name.startswith(("1.", "5."))}
    assert norms == {f"{norm}.{name}" for norm in (1, 5) for name in norm_tensors_that_change}


def test_the_average_follows_the_weights_at_its_rate_and_faster_in_the_beginning() -> None:
    model = small_classifier()
    config = CONFIG.updated(ema_decay=0.3)  # from the third step on
    seen = [snapshot(model)]
    state = optimize(
        model, trainable(model), labeled_images(), CLEAN, config, after_step=[lambda _: seen.append(snapshot(model))]
    )
    for name in ("0.weight", "5.running_var"):
        expected = seen[0][name].double()
        for decay, current in zip([2 / 11, 3 / 12, *[0.3] * 7], seen[1:], strict=True):
            expected = decay * expected + (1 - decay) * current[name].double()
        torch.testing.assert_close(state.averages[name].double(), expected, atol=1e-6, rtol=1e-5)
    assert state.averages["1.num_batches_tracked"] == 9
    other = small_classifier(seed=1)
    load_averages(state, other)
    assert torch.equal(other.get_parameter("0.weight"), state.averages["0.weight"])


def test_hooks_run_after_each_update_and_before_it_is_saved_and_logged() -> None:
    model = small_classifier()
    mask = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    weight = model.get_parameter("0.weight")

    def freeze(step: int) -> dict[str, float]:
        with torch.no_grad():
            weight.masked_fill_(~mask, 0)
        return {"churn": step / 10}

    saved: list[TrainState] = []
    log = Recorder()
    config = CONFIG.updated(checkpoint_every=4)
    optimize(
        model,
        trainable(model),
        labeled_images(),
        CLEAN,
        config,
        save=lambda state: saved.append(state.clone()),
        log=log,
        after_step=[freeze],
    )
    assert [state.step for state in saved] == [4, 8, 9]
    assert all((state.module["0.weight"][~mask] == 0).all() for state in saved)
    assert [row["churn"] for row in log.rows] == [step / 10 for step in range(1, 10)]
    assert [row["step"] for row in log.rows] == list(range(1, 10))
    assert [row["epoch"] for row in log.rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_free_adversarial_training_replays_each_batch_and_makes_as_many_steps() -> None:
    seen: list[Tensor] = []

    class Watched(FreeAdversarialTraining):
        def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
            seen.append(batch.x)
            return super().__call__(model, batch, generator)

    model = small_classifier()
    log = Recorder()
    config = CONFIG.updated(epochs=8)
    optimize(model, trainable(model), labeled_images(8), Watched(ClassifierLosses()), config, log=log)
    assert len(seen) == 16
    assert [torch.equal(a, b) for a, b in pairwise(seen)] == [step % 4 != 3 for step in range(15)]
    assert [row["epoch"] for row in log.rows] == [0] * 8 + [1] * 8


def test_every_epoch_shows_every_image_once_and_in_another_order() -> None:
    data = ImagesInMemory(torch.arange(11).view(11, 1, 1, 1).float() / 10, torch.arange(11))
    batches = training_batches(data, CONFIG, first=0)
    epochs = [torch.cat([next(batches)[1] for _ in range(3)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    later = training_batches(data, CONFIG, first=4)
    assert next(later)[1].tolist() == epochs[1][4:8]


def test_workers_do_not_change_the_batches(shapes_data: object) -> None:
    data = ImagesOnDisk(CocoDataset.open(str(shapes_data), 64))
    config = TrainConfig(epochs=1, batch_size=3, sizes=(32, 64))

    def batches(workers: int) -> Iterator[tuple[Tensor, list[Target]]]:
        return training_batches(data, config.updated(workers=workers), first=1)

    for (x, targets), (expected, expected_targets), _ in zip(batches(2), batches(0), range(4), strict=False):
        assert torch.equal(x, expected)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(targets, expected_targets, strict=True))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in VERIFIED])
@pytest.mark.parametrize("case", ["two classes", "one class", "no objects"])
def test_detectors_train_with_every_objective_on_awkward_data(objective: str, case: str) -> None:
    num_classes = 1 if case == "one class" else 2
    model = small_detector(num_classes)
    data = rectangles(3, num_classes, empty=case == "no objects")
    before = snapshot(model)
    config = TrainConfig(epochs=1, max_steps=2, batch_size=2)
    optimize(model, trainable(model), data, make_objective(objective, DetectionTask.of(model)), config)
    assert all(value.isfinite().all() for value in tensors_of(model).values())
    untouched = set(tensors_of(model)) - changed(before, model)
    assert untouched <= {name for name, _ in model.named_parameters() if name.endswith("norm.bias")}


def test_bfloat16_comes_close_to_float32() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = small_classifier()
        model[3] = nn.Identity()
        log = Recorder()
        config = CONFIG.updated(epochs=10, precision=precision)
        optimize(model, trainable(model), labeled_images(), CLEAN, config, log=log)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        losses[precision] = torch.tensor([row["loss"] for row in log.rows])
    assert not torch.equal(losses["bfloat16"], losses["float32"])
    torch.testing.assert_close(losses["bfloat16"][:5], losses["float32"][:5], atol=0.03, rtol=0.03)
    assert float(losses["bfloat16"][-3:].mean()) < 0.7 * float(losses["bfloat16"][:3].mean())


def test_eight_images_are_learnt_by_heart(shapes_config: RunConfig) -> None:
    dataset = CocoDataset.open(shapes_config.data, shapes_config.image_size)
    model = MODELS["yolov3-tiny"](dataset.num_classes, shapes_config.width).eval()
    load_darknet_weights(model, str(shapes_config.weights))
    subject = Subject(model, DetectionTask.of(model), dataset, shapes_config, SilentProgress())
    found = evaluate(subject, None, "", lambda *seen: None)
    assert (found.figures["ap50"] or 0) > 0.8


def test_the_same_seed_trains_the_same_weights_whatever_happened_before(shapes_config: RunConfig) -> None:
    dataset = CocoDataset.open(shapes_config.data, 64)

    def trained(seed: int) -> dict[str, Tensor]:
        model = small_detector(dataset.num_classes)
        torch.rand(seed + 1)  # moves the global generator
        config = TrainConfig(epochs=2, batch_size=3, sizes=(32, 64), seed=seed)
        return tensors_of(train(model, dataset, config, SilentProgress(), DetectionTask.of(model)))

    first, second, other = trained(7), trained(7), trained(8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_progress_bar_shows_the_loss_and_what_is_left() -> None:
    shown: list[str] = []

    class Bars(SilentProgress):
        def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
            assert total == 9
            assert callable(description)
            shown.append(description())
            for item in items:
                yield item
                shown.append(description())

    model = small_classifier()
    log = Recorder()
    optimize(model, trainable(model), labeled_images(), CLEAN, CONFIG, log=log, progress=Bars())
    assert shown == ["training", *(f"training, loss {row['loss']:.3f}" for row in log.rows)]


@pytest.mark.parametrize(("channels", "is_channels_last"), [(4, False), (16, True)])
def test_strided_projections_of_few_channels_train_in_nchw(channels: int, is_channels_last: bool) -> None:
    """oneDNN's gradient of such filters writes past its buffer in channels-last memory."""
    seen: list[Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.project = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 1, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.stem(x))
            outputs: Tensor = self.project(seen[-1]).mean((2, 3))
            return outputs

    torch.manual_seed(0)
    net, data = Net(), ImagesInMemory(torch.rand(4, 3, 8, 8), torch.arange(4))

    optimize(net, trainable(net), data, CLEAN, CONFIG)
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [is_channels_last] * len(seen)
