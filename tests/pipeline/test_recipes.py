"""A recipe's settings reach the trainings, options and files win over them, and they survive config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.config import read_settings, write_settings
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, make_config
from prunekit.pipeline.command_config import FinetuneStage, PruneStage, TrainStage
from prunekit.pipeline.recipes import RECIPES, Recipe, register_recipe
from prunekit.pipeline.training_options import over_file
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import TrainConfig
from tests.support.commands import Options, invoke, tree

GOOD: dict[str, Any] = {"model": "yolov3-tiny", "weights": "w", "data": "d", "train_data": "t", "out": "o"}
EPOCHS_AND_RATES = {"pretrain": (100, 0.1), "optimize": (20, 0.1), "finetune": (100, 0.01)}


def hydra(**choices: Any) -> RunConfig:
    return make_config(**GOOD, recipe="hydra", **choices)


def follows_hydra(training: TrainConfig) -> bool:
    """What Sehwag et al.'s code has for all three trainings, written down once more."""
    sgd = (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
    plain = (training.warmup, training.max_grad_norm, training.ema_decay, training.max_steps) == (0, None, None, None)
    if (varied := training.augmentation) is None:
        return False  # what the task says
    crops = (varied.flip, varied.crop, varied.translate, varied.scale, varied.hue, varied.fill) == (0.5, 4, 0, 0, 0, 0)
    return sgd and plain and crops and training.schedule == "cosine" and training.batch_size == 128


def test_hydra_reaches_every_training() -> None:
    config = hydra()
    for section, (epochs, rate) in EPOCHS_AND_RATES.items():
        training = getattr(config, section)
        assert (training.epochs, training.learning_rate) == (epochs, rate)
        assert follows_hydra(training)
        assert not follows_hydra(getattr(make_config(**GOOD), section))
    assert (config.objective, config.train_attack, config.attack) == ("trades", "hydra", "hydra")
    assert (config.structure, config.scores, config.pruning) == (("unstructured",), ("scaled",), ("optimized",))
    assert (config.scope, config.keep_stem_and_heads, config.share_scores_at) == ("layer", False, None)


def test_hydra_attacks_with_ten_steps_of_two_in_a_ball_of_eight() -> None:
    attack = PRESETS["hydra"]
    assert isinstance(attack, PgdConfig)
    assert attack == PgdConfig(8 / 255, step_size=2 / 255, steps=10, random_start=True)
    assert (attack.norm, attack.restarts) == ("linf", 1)


def test_commands_take_what_they_have() -> None:
    shared = {name: GOOD[name] for name in ("model", "weights", "data", "out")} | {"recipe": "hydra"}
    for training in (TrainStage(**shared).pretrain, FinetuneStage(**shared).finetune):
        assert follows_hydra(training)
        assert training.epochs == 100
    pruning = PruneStage(**shared, ratio=90)
    assert follows_hydra(pruning.optimize)
    assert (pruning.optimize_scores, pruning.scores, pruning.optimize.epochs) == (True, "scaled", 20)
    assert PruneStage(**shared, ratio=90, scores_file="s").scores is None


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"pretrain_epochs": 0}, "pretrain.epochs", 0),
        ({"finetune_epochs": 3}, "finetune.epochs", 3),
        ({"finetune_learning_rate": 0.5}, "finetune.learning_rate", 0.5),
        ({"finetune": {"momentum": 0.5}}, "finetune.momentum", 0.5),
        ({"objective": "pgd-at"}, "objective", "pgd-at"),
        ({"attack": "strong"}, "attack", "strong"),
        ({"pruning": "one-shot"}, "pruning", ["one-shot"]),
        ({"scope": "global"}, "scope", "global"),
        ({"score_optimizer": "adamw"}, "optimize.learning_rate", 0.003),
    ],
)
def test_what_is_given_wins_and_all_else_stays(options: dict[str, Any], name: str, value: Any) -> None:
    changed, unchanged = hydra(**options).model_dump(mode="json"), hydra().model_dump(mode="json")
    section, _, setting = name.rpartition(".")
    assert (changed[section][setting] if section else changed[setting]) == value
    others = changed.keys() - {section or setting}
    assert {other: changed[other] for other in others} == {other: unchanged[other] for other in others}


def test_options_of_all_trainings_win_in_each() -> None:
    config = hydra(train_batch_size=32, augment=False)
    for training in (config.pretrain, config.optimize, config.finetune):
        assert (training.batch_size, training.augmentation) == (32, NO_AUGMENTATION)


@pytest.mark.parametrize("choices", [{}, {"finetune_epochs": 3, "scope": "global", "score_optimizer": "adamw"}])
def test_a_recipe_survives_its_file(choices: dict[str, Any], tmp_path: Path) -> None:
    config = hydra(**choices)
    write_settings(tmp_path / "config.yaml", config)
    read = RunConfig(**read_settings(tmp_path / "config.yaml"))
    assert read == config
    assert read.recipe == "hydra"
    assert read.identity() == config.identity()


def test_a_file_may_name_a_recipe_and_change_it() -> None:
    config = make_config(**GOOD, **{"recipe": "hydra", "pretrain": {"epochs": 0}, "finetune": {"learning_rate": 0.02}})
    assert config.pretrain == hydra(pretrain_epochs=0).pretrain
    assert config.finetune == hydra(finetune_learning_rate=0.02).finetune


def test_a_recipe_that_is_typed_takes_the_place_of_what_the_file_says() -> None:
    file = make_config(**GOOD, finetune_epochs=3, attack="strong", seed=5).model_dump(mode="json")
    config = RunConfig(**over_file(file, {"recipe": "hydra", "finetune_learning_rate": 0.5}))
    assert config == hydra(seed=5, finetune_learning_rate=0.5)
    assert RunConfig(**over_file(file, {"seed": 6})).finetune.epochs == 3


def test_a_recipe_is_no_part_of_what_was_done() -> None:
    config = hydra()
    spelled_out = RunConfig(**{**config.model_dump(mode="json"), "recipe": None})
    assert spelled_out.identity() == config.identity()
    assert hydra(scope="global").identity() != config.identity()


def test_recipes_of_ones_own(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: RECIPES.pop("gentle"))
    register_recipe("gentle", Recipe("fine-tuning for long", {"finetune": {"epochs": 500}, "scope": "global"}))
    config = make_config(**GOOD, recipe="gentle")
    assert config.scope == "global"
    assert config.finetune == make_config(**GOOD, finetune_epochs=500).finetune
    with pytest.raises(InputError, match="registered already"):
        register_recipe("gentle", RECIPES["hydra"])
    assert TrainStage(model="yolov3-tiny", data="d", out="o", recipe="gentle").pretrain.epochs == 20


@pytest.mark.parametrize("command", ["run", "train"])
def test_an_unknown_recipe_is_one_sentence(command: str, tmp_path: Path) -> None:
    options: Options = {"model": "yolov3-tiny", "weights": "w", "data": tmp_path, "out": tmp_path / "out"}
    result = invoke(command, options | {"recipe": "hydrant"})
    assert result.exit_code == 2
    assert result.stderr.strip() == f"Error: --recipe: must be one of {', '.join(RECIPES)}, got 'hydrant'."
    assert tree(tmp_path) == {}
    for settings in ({"recipe": ["hydra"]}, {"recipe": 3}):
        with pytest.raises(InputError, match="--recipe: must be one of hydra"):
            make_config(**GOOD | settings)


@pytest.mark.parametrize("command", ["run", "train"])
def test_help_lists_the_recipes(command: str) -> None:
    words = " ".join(invoke(command, {"help": True}).stdout.replace("│", " ").split())
    assert f"which other options change: {', '.join(RECIPES)}" in words
