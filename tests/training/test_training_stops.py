"""Training stops with a sentence where it must, and at a step boundary when it is asked to."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import SCORE_OPTIMIZATION, TrainConfig
from prunekit.training.data import ImagesInMemory
from prunekit.training.loop import TrainingDivergedError, optimize
from prunekit.training.objectives import OBJECTIVES, Clean, Objective, TrainBatch, make_objective
from prunekit.training.state import TrainState
from tests.support.training_problems import (
    ClassifierLosses,
    Recorder,
    changed,
    labeled_images,
    small_classifier,
    trainable,
)

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, augmentation=NO_AUGMENTATION)
CLEAN = Clean(ClassifierLosses())


@pytest.fixture(autouse=True)
def _sigint_interrupts() -> Iterator[None]:
    """Restore Python's handler: a shell's background jobs inherit an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Raises(Objective):
    """The clean loss, but not a number from the given step on."""

    calls = 0

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        type(self).calls += 1
        return self.mean_loss(model, batch.x, batch.targets) * (math.nan if type(self).calls >= 6 else 1.0)


def test_a_loss_that_is_not_finite_ends_training_with_a_sentence() -> None:
    model = small_classifier()
    saved: list[TrainState] = []
    config = CONFIG.updated(checkpoint_every=2)
    Raises.calls = 0
    log = Recorder()
    with pytest.raises(TrainingDivergedError, match="step 6: the loss is nan") as caught:
        optimize(
            model,
            trainable(model),
            labeled_images(),
            Raises(ClassifierLosses()),
            config,
            save=lambda state: saved.append(state.clone()),
            log=log,
        )
    assert f"the last finite loss was {log.rows[4]['loss']:g}" in str(caught.value)
    assert saved[-1].step == 4
    assert all(value.isfinite().all() for value in saved[-1].module.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_that_explodes_says_so_whatever_the_objective(objective: str) -> None:
    model = small_classifier()
    config = SCORE_OPTIMIZATION.updated(
        epochs=40, batch_size=4, learning_rate=1e30, weight_decay=0.5, augmentation=NO_AUGMENTATION
    )
    with pytest.raises(TrainingDivergedError, match="last finite loss was"):
        optimize(model, trainable(model), labeled_images(), make_objective(objective, ClassifierLosses()), config)


def test_ctrl_c_finishes_the_step_saves_it_and_is_raised() -> None:
    model = small_classifier()
    saved: list[TrainState] = []

    class Interrupted(Clean):
        def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
            if not saved and model.get_buffer("1.num_batches_tracked") == 4:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(model, batch, generator)

    with pytest.raises(KeyboardInterrupt):
        optimize(
            model,
            trainable(model),
            labeled_images(),
            Interrupted(ClassifierLosses()),
            CONFIG,
            save=lambda state: saved.append(state.clone()),
        )
    assert [state.step for state in saved] == [5]
    assert changed(saved[0].module, model) == set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    class Stuck(Clean):
        def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second interrupt was held back as well")

    model = small_classifier()
    with pytest.raises(KeyboardInterrupt):
        optimize(model, trainable(model), labeled_images(), Stuck(ClassifierLosses()), CONFIG)


def test_no_images_and_no_parameters_are_refused() -> None:
    model = small_classifier()
    nothing = ImagesInMemory(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="at least one training image"):
        optimize(model, trainable(model), nothing, CLEAN, CONFIG)
    with pytest.raises(InputError, match="at least one parameter"):
        optimize(model, {}, labeled_images(), CLEAN, CONFIG)
    with pytest.raises(InputError, match=r"'0\.weight' is none of them"):
        optimize(model, {"0.weight": nn.Parameter(torch.zeros(1))}, labeled_images(), CLEAN, CONFIG)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    model = small_classifier()
    config = CONFIG.updated(device="cuda")
    with pytest.raises(InputError, match=r"Expected a GPU for the device 'cuda', but .*; use the device cpu"):
        optimize(model, trainable(model), labeled_images(), CLEAN, config)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    model = small_classifier()
    with pytest.raises(InputError, match="Expected the device to be cpu, cuda"):
        optimize(model, trainable(model), labeled_images(), CLEAN, CONFIG.updated(device=device))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"max_steps": 0},
        {"batch_size": 0},
        {"optimizer": "adam"},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"ema_decay": 1.0},
        {"warmup": 2.0},
        {"batch_norm": "eval"},
        {"precision": "float16"},
        {"sizes": (0,)},
        {"max_grad_norm": 0.0},
    ],
)
def test_impossible_knobs_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
        CONFIG.updated(**wrong)
