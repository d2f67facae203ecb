"""A pool of attacks: how likely each is, that training remembers it to the bit, and what is refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import PRESETS, PgdConfig, pgd
from prunekit.errors import InputError
from prunekit.training.config import TrainConfig
from prunekit.training.loop import optimize
from prunekit.training.objectives import ObjectiveConfig, TrainBatch, make_objective
from prunekit.training.pool import EVEN_SHARE, FORGETTING, SHARPNESS, chances, drawn, noted, pool_names
from prunekit.training.selection import HoldoutLoss
from prunekit.training.state import TrainState, load_checkpoint, save_checkpoint
from tests.support.commands import Options, invoke, results, succeed
from tests.support.training_problems import ClassifierLosses, labeled_images, small_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

POOL = ("fgsm", "paper", "hydra")
CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=0.05, checkpoint_every=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def losses(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_chances_are_exponential_in_the_losses_with_an_even_share() -> None:
    values = [0.5, 1.0, 3.0]
    weights = [math.exp(SHARPNESS * value / 1.5) for value in values]
    expected = [(1 - EVEN_SHARE) * weight / sum(weights) + EVEN_SHARE / 3 for weight in weights]
    assert chances(losses(*values)).tolist() == pytest.approx(expected)
    assert chances(losses(*(100 * value for value in values))).tolist() == pytest.approx(expected)
    assert chances(losses(0.0, 0.0)).tolist() == [0.5, 0.5]
    assert float(chances(losses(1e300, 0.0)).sum()) == pytest.approx(1.0)


def test_what_was_not_met_yet_comes_first() -> None:
    assert chances(losses(math.nan, 5.0, math.nan)).tolist() == [0.5, 0.0, 0.5]
    assert {drawn(losses(math.nan, 5.0, math.nan), generator(seed)) for seed in range(30)} == {0, 2}


def test_draws_have_their_chances() -> None:
    known, shared = losses(0.5, 1.0, 3.0), generator()
    counts = torch.bincount(torch.tensor([drawn(known, shared) for _ in range(4000)]), minlength=3)
    assert (counts / 4000).tolist() == pytest.approx(chances(known).tolist(), abs=0.03)


def test_an_average_follows_its_own_losses() -> None:
    pool = losses(math.nan, 2.0)
    noted(pool, 0, 4.0)
    assert pool.tolist() == [4.0, 2.0]
    noted(pool, 0, 0.0)
    assert pool.tolist() == pytest.approx([4.0 * (1 - FORGETTING), 2.0])


def test_a_batch_is_trained_on_under_the_attack_that_was_drawn() -> None:
    model, x = small_classifier().eval(), torch.rand(4, 3, 8, 8, generator=generator(1))
    targets, task = torch.tensor([0, 2, 1, 1]), ClassifierLosses()
    objective = make_objective("pgd-at", task, ObjectiveConfig(pool=POOL))
    pool = losses(7.0, math.nan, 7.0)  # so the second one is drawn
    found = objective(model, TrainBatch(x, targets, pool=pool), generator())
    attack = PRESETS["paper"]
    assert isinstance(attack, PgdConfig)
    x_adv = pgd(model, x, task.attack_losses(targets).total, attack)
    clean, attacked = task.loss(model, x, targets).mean(), task.loss(model, x_adv, targets).mean()
    torch.testing.assert_close(found, clean + attacked)
    assert pool.tolist() == pytest.approx([7.0, float(attacked), 7.0])


def run(state: TrainState | None = None, **more: Any) -> TrainState:
    model = small_classifier()
    objective = make_objective("pgd-at", ClassifierLosses(), ObjectiveConfig(pool=POOL))
    return optimize(model, dict(model.named_parameters()), labeled_images(), objective, CONFIG, state, **more)


@pytest.mark.parametrize("stop", [1, 2, 7])
def test_resuming_ends_in_the_same_bits(stop: int, tmp_path: Path) -> None:
    class Log:
        rows: list[dict[str, float]]

        def __init__(self) -> None:
            self.rows = []

        def step(self, step: int, values: Any) -> None:
            self.rows.append({"step": step, **values})

    whole, rest, saved = Log(), Log(), tmp_path / "state.safetensors"

    def keep(state: TrainState) -> None:
        if state.step == stop:
            save_checkpoint(saved, state, CONFIG)

    expected = run(save=keep, log=whole)
    actual = run(load_checkpoint(saved, CONFIG), log=rest)
    assert rest.rows == whole.rows[stop:]
    assert expected.pool is not None
    assert expected.pool.isfinite().all()
    for name, value in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], value), name
    assert sum(value for name, value in whole.rows[-1].items() if name.startswith("chance_")) == pytest.approx(1.0)


def test_a_holdout_is_judged_under_all_of_the_pool() -> None:
    model, data, task = small_classifier().eval(), labeled_images(), ClassifierLosses()

    def judged(**knobs: Any) -> float:
        objective = make_objective("pgd-at", task, ObjectiveConfig(**knobs))
        return HoldoutLoss(data, objective, CONFIG)(model)

    attack = {name: PRESETS[name] for name in ("fgsm", "paper")}
    alone = [judged(attack=one) for one in attack.values()]
    assert judged(pool=tuple(attack)) == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pool:paper", "expected at least two different attacks"),
        ("pool:paper,paper", "expected at least two different attacks"),
        ("pool:paper,autoattack", "expected attacks among fgsm, paper"),
        ("pool:paper,patch", "got 'patch'"),
    ],
)
def test_pools_that_cannot_be_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        pool_names(text)


def test_other_objectives_take_one_attack() -> None:
    with pytest.raises(InputError, match="expected one attack for the objective trades"):
        make_objective("trades", ClassifierLosses(), ObjectiveConfig(pool=POOL))


def trained(shapes_data: Path, out: Path, **more: Any) -> Options:
    untrained = {"model": "yolov3-tiny", "width": 0.03, "data": shapes_data, "image-size": 64, "threads": 1, "out": out}
    return untrained | {"train-attack": "pool:fgsm,paper", "max-steps": 4, **more}


def test_the_command_logs_the_chances_and_is_known_by_its_pool(shapes_data: Path, tmp_path: Path) -> None:
    asked = trained(shapes_data, tmp_path / "first")
    succeed("train", asked)
    with (tmp_path / "first" / "losses.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["chance_fgsm"]) + float(row["chance_paper"]) for row in rows] == pytest.approx([1.0] * 4)
    succeed("train", trained(shapes_data, tmp_path / "second"))
    assert results(tmp_path / "first") == results(tmp_path / "second")
    other = invoke("train", trained(shapes_data, tmp_path / "first", **{"train-attack": "pool:fgsm,hydra"}))
    assert other.exit_code == 2
    assert "pool" in other.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"train-attack": "pool:fgsm"}, "--train-attack: expected at least two different attacks"),
        ({"objective": "trades"}, "--train-attack: a pool is for the objective pgd-at, got trades."),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    shapes_data: Path, tmp_path: Path, more: Options, sentence: str
) -> None:
    result = invoke("train", trained(shapes_data, tmp_path / "out", **more))
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_training_mode_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).train()
    objective = make_objective("pgd-at", ClassifierLosses(), ObjectiveConfig(pool=POOL))
    batch = TrainBatch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), pool=losses(*[math.nan] * 3))
    assert objective(model, batch, generator()).requires_grad
    assert model.training
