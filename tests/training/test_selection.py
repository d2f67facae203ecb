"""What is selected by held-out images is the epoch that did best on them, whether or not training was interrupted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.errors import InputError
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import TrainConfig
from prunekit.training.data import ImagesInMemory
from prunekit.training.loop import optimize
from prunekit.training.objectives import Clean, ObjectiveConfig, PgdAdversarialTraining, Smoothing
from prunekit.training.selection import HoldoutLoss, held_out
from prunekit.training.state import TrainState, load_best
from tests.support.training_problems import ClassifierLosses, labeled_images, small_classifier, snapshot, trainable

CONFIG = TrainConfig(epochs=4, batch_size=8, learning_rate=1e-2, augmentation=NO_AUGMENTATION, checkpoint_every=1)
CLEAN = Clean(ClassifierLosses())


class Scripted:
    """Says these losses one after the other, and remembers the models that it said them of."""

    def __init__(self, *losses: float) -> None:
        self.losses, self.models, self.modes = list(losses), list[dict[str, torch.Tensor]](), list[bool]()

    def __call__(self, model: nn.Module) -> float:
        self.models.append(snapshot(model))
        self.modes.append(model.training)
        return self.losses[len(self.models) - 1]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_epoch_is_kept_and_training_goes_on_as_without(ema_decay: float | None) -> None:
    config, judge = CONFIG.updated(ema_decay=ema_decay), Scripted(3.0, 1.0, 2.0, 1.0)
    model, same, data = small_classifier(), small_classifier(), labeled_images(20)
    state = optimize(model, trainable(model), data, CLEAN, config, judge=judge)
    without = optimize(same, trainable(same), data, CLEAN, config)
    assert all(torch.equal(without.module[name], value) for name, value in state.module.items())
    assert judge.modes == [False] * 4
    assert float(state.best_loss or 0) == 1.0
    load_best(state, model)
    found, second = snapshot(model), judge.models[1]
    assert all(torch.equal(found[name], second[name]) for name in second)
    assert not all(torch.equal(found[name], judge.models[3][name]) for name in found)


def test_an_interrupted_selection_ends_in_the_same_weights() -> None:
    saved, data = list[TrainState](), labeled_images(20)
    model, resumed = small_classifier(), small_classifier()
    losses = (2.0, 3.0, 1.0, 4.0)
    keep = lambda state: saved.append(state.clone())  # noqa: E731
    whole = optimize(model, trainable(model), data, CLEAN, CONFIG, save=keep, judge=Scripted(*losses))
    for stop, left in ((3, losses[1:]), (4, losses[1:]), (10, losses[3:])):  # three steps an epoch
        state = TrainState.from_tensors(stop, saved[stop - 1].tensors())
        again = optimize(resumed, trainable(resumed), data, CLEAN, CONFIG, state=state, judge=Scripted(*left))
        assert again.tensors().keys() == whole.tensors().keys()
        assert all(torch.equal(value, whole.tensors()[name]) for name, value in again.tensors().items())


def test_the_loss_on_a_holdout_is_of_attacked_images_and_moves_nothing() -> None:
    model, holdout = small_classifier().eval(), labeled_images(20)
    before, generator = snapshot(model), torch.get_rng_state()
    attack = PRESETS["standard"]
    assert isinstance(attack, PgdConfig)
    knobs = ObjectiveConfig(attack=attack)
    losses = {
        kind: HoldoutLoss(holdout, kind(ClassifierLosses(), knobs), CONFIG)
        for kind in (Clean, Smoothing, PgdAdversarialTraining)
    }
    attacked = losses[PgdAdversarialTraining](model)
    assert attacked > losses[Clean](model) == losses[Smoothing](model)
    assert attacked == losses[PgdAdversarialTraining](model)  # from the same random starts
    with torch.no_grad():
        x = holdout.images.float() / 255 if holdout.images.dtype == torch.uint8 else holdout.images
        expected = ClassifierLosses().loss(model, x, torch.as_tensor(holdout.targets)).mean()
    assert losses[Clean](model) == pytest.approx(float(expected), rel=1e-5)
    assert all(torch.equal(before[name], value) for name, value in snapshot(model).items())
    assert torch.equal(generator, torch.get_rng_state())


def test_every_tenth_image_is_held_out() -> None:
    data = ImagesInMemory(torch.arange(25.0).reshape(25, 1, 1, 1), torch.arange(25))
    rest, holdout = held_out(data)
    seen = [next(part.batches(range(len(part)), 25, 0))[1].tolist() for part in (rest, holdout)]
    assert seen[1] == [9, 19]
    assert sorted(seen[0] + seen[1]) == list(range(25))


def test_too_few_images_to_hold_one_out() -> None:
    with pytest.raises(InputError, match="Expected at least 10 training images to hold one out, got 9"):
        held_out(ImagesInMemory(torch.zeros(9, 1, 1, 1), torch.zeros(9)))
