"""A configuration goes through YAML without a bit of it changing, and a file of a few settings is completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit.config import Config, read_settings, write_settings
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, make_config
from prunekit.pipeline.command_config import FinetuneStage, PruneStage, TrainStage
from prunekit.pipeline.results import Inputs
from prunekit.pipeline.run_folder import OpenRun
from prunekit.pipeline.training_options import training_options
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import SCORE_OPTIMIZATIONS
from tests.support import ROOT

GOOD: dict[str, Any] = {"model": "yolov3-tiny", "weights": "w", "data": "d", "out": "o"}
ODD: dict[str, Any] = {
    "train_data": "t",
    "ratios": (0, 100 / 3, 99.99),
    "width": 0.1 + 0.2,
    "scores": "scaled,deeplift",
    "pruning": "one-shot,optimized",
    "pretrain_epochs": 3,
    "pretrain_learning_rate": 1e-4,
    "optimize_learning_rate": 1 / 3,
    "finetune_learning_rate": 3e-7,
    "max_steps": 17,
    "train_batch_size": 5,
    "augment": False,
    "batch_norm": "frozen-statistics",
    "checkpoint_every": 7,
    "seed": 11,
    "share_scores_at": 85,
}


def through_yaml(config: RunConfig, folder: Path) -> RunConfig:
    write_settings(folder / "config.yaml", config)
    return RunConfig(**read_settings(folder / "config.yaml"))


def keys(config: RunConfig) -> list[str]:
    """What units and trainings are found by."""
    trainings = (config.pretrain, config.optimize, config.finetune)
    own = [json.dumps(training.identity(), sort_keys=True) for training in trainings]
    return [OpenRun(config, Inputs("w", "d", "t"))._key, json.dumps(config.identity(), sort_keys=True), *own]


@pytest.mark.parametrize("choices", [{}, ODD, {"score_optimizer": "adamw"}])
def test_nothing_changes_on_the_way_through_yaml(choices: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(**GOOD, **choices)
    read = through_yaml(config, tmp_path)
    assert read == config
    assert keys(read) == keys(config)
    assert through_yaml(read, tmp_path) == config


def test_keys_tell_settings_of_every_training_apart() -> None:
    config = make_config(**GOOD)
    for section in ("pretrain", "optimize", "finetune"):
        other = RunConfig(**config.model_dump() | {section: {"momentum": 0.8}})
        assert keys(other)[:2] != keys(config)[:2]
        assert sum(a != b for a, b in zip(keys(other), keys(config), strict=True)) == 3


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    write_settings(tmp_path / "config.yaml", make_config(**GOOD, ratios=(0, 50)))
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert lines[:3] == ["model: yolov3-tiny", "weights: w", "data: d"]
    assert "ratios: [0.0, 50.0]" in lines
    section = lines[lines.index("finetune:") + 1 :]
    assert section[0] == "  epochs: 20"
    assert sum(line.strip().startswith("seed:") for line in lines) == 1


def test_options_set_the_settings_of_trainings() -> None:
    config = make_config(**GOOD, **ODD)
    assert (config.pretrain.epochs, config.optimize.epochs, config.finetune.epochs) == (3, 20, 20)
    assert (config.pretrain.learning_rate, config.finetune.learning_rate) == (1e-4, 3e-7)
    for training in (config.pretrain, config.optimize, config.finetune):
        assert (training.max_steps, training.batch_size, training.seed) == (17, 5, 11)
        assert training.augmentation == NO_AUGMENTATION
        assert training.batch_norm == "frozen-statistics"
        assert training.checkpoint_every == 7
    assert make_config(**GOOD).finetune.augmentation is None  # the task's


def test_what_all_trainings_share_follows_the_run() -> None:
    config = make_config(**GOOD, seed=3, device="cuda", workers=2)
    later = make_config(**{**config.model_dump(), "seed": 4})
    assert [(t.seed, t.device, t.workers) for t in (later.pretrain, later.optimize, later.finetune)] == [
        (4, "cuda", 2)
    ] * 3


def test_a_section_is_completed_and_options_win_over_it() -> None:
    config = make_config(**GOOD, finetune={"momentum": 0.5, "epochs": 7}, finetune_epochs=9, train_batch_size=4)
    default = make_config(**GOOD).finetune
    assert config.finetune == default.updated(momentum=0.5, epochs=9, batch_size=4)


def test_the_file_that_the_documentation_shows_is_one() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text()
    config = make_config(**yaml.safe_load(page.split("```yaml")[1].split("```")[0]))
    assert (config.pretrain.epochs, config.finetune.momentum, config.finetune.ema_decay) == (5, 0.95, None)


@pytest.mark.parametrize(
    ("file", "options", "rate", "decay"),
    [
        ({"optimizer": "adamw"}, {}, 0.003, 0.0),
        ({"optimizer": "adamw", "learning_rate": 0.01}, {}, 0.01, 0.0),
        ({"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0.5}, {"score_optimizer": "adamw"}, 0.003, 0.0),
        ({"optimizer": "adamw", "learning_rate": 0.02}, {"score_optimizer": "adamw"}, 0.02, 0.0),
        ({"optimizer": "adamw"}, {"score_optimizer": "sgd", "optimize_learning_rate": 0.4}, 0.4, 1e-4),
    ],
)
def test_another_optimizer_of_scores_brings_its_rate_and_decay(
    file: dict[str, Any], options: dict[str, Any], rate: float, decay: float
) -> None:
    optimize = make_config(**GOOD, optimize=file, **options).optimize
    assert (optimize.learning_rate, optimize.weight_decay) == (rate, decay)
    assert optimize.optimizer in SCORE_OPTIMIZATIONS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochz": 3}, r"Expected no setting epochz, got 3\."),
        ({"finetune": {"epochz": 3}}, r"Expected no setting finetune\.epochz, got 3\."),
        ({"finetune": {"augmentation": {"flop": 1}}}, r"Expected no setting finetune\.augmentation\.flop, got 1\."),
        ({"finetune": {"epochs": "many"}}, r"finetune\.epochs: input should be a valid integer.*got 'many'\."),
        ({"finetune": {"batch_size": 0}}, r"finetune\.batch_size: .*greater than or equal to 1, got 0\."),
        ({"pretrain": {"augmentation": {"hue": 2}}}, r"pretrain\.augmentation\.hue: .*got 2\."),
        ({"pretrain": {"precision": "float16"}}, r"pretrain\.precision: must be one of float32, bfloat16, int8, got"),
        ({"optimize": {"epochs": 0}}, r"optimize\.epochs: .*got 0\."),
        ({"finetune": {"epochs": True}}, r"finetune\.epochs: must be neither true nor false, got True\."),
        ({"optimize": {"optimizer": ["sgd"]}}, r"optimize\.optimizer: must be one of sgd, adamw, got \['sgd'\]\."),
        ({"scores": [3]}, r"--scores: input should be a valid string, got 3\."),
        ({"plugin": 3}, r"--plugin: .*got 3\."),
        ({"device": []}, r"--device: .*got \[\]\."),
        ({"optimize": 3}, r"--optimize: .*got 3\."),
        ({"finetune": {"seed": 3}}, r"--seed is the same for all trainings: expected none in finetune\."),
        ({"optimize_epochs": 0}, r"--optimize-epochs: .*got 0\."),
        ({"pretrain_epochs": -1}, r"--pretrain-epochs: .*got -1\."),
        ({"finetune_learning_rate": 0}, r"--finetune-learning-rate: .*greater than 0, got 0\."),
        ({"train_batch_size": 0}, r"--train-batch-size: .*got 0\."),
        ({"max_steps": 0}, r"--max-steps: .*got 0\."),
        ({"ratios": "many"}, r"--ratios: expected numbers separated by commas, such as 0,50,90, got 'many'\."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_option_or_its_path(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{sentence}") as caught:
        make_config(**(GOOD | settings))
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"^--data: expected a value, got none\.$"):
        make_config(model="yolov3-tiny", weights="w", out="o")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1", r"is no YAML \(line 2\)|is no YAML \(line 1\)"),
        (b"a: b: c", r"is no YAML \(line 1\)"),
        (b"\xff\xfe\x00\x01", "is no YAML"),
        (b"day: 2020-99-99", "is no YAML"),
        (b"!!python/object/apply:os.getcwd []", "is no YAML"),
        (b"[" * 1200, "is no YAML"),
        (b"- a\n- b", "got list"),
        (b"", "got NoneType"),
        (b"1: 2", "Expected settings by name"),
    ],
)
def test_files_of_something_else_are_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_file_and_a_folder_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="is not a file that can be read"):
            read_settings(path)


@pytest.mark.parametrize("kind", [RunConfig, TrainStage, FinetuneStage, PruneStage])
def test_options_keep_their_names(kind: type[Config]) -> None:
    shared = {
        "max_steps",
        "train_batch_size",
        "batch_norm",
        "train_precision",
        "selection",
        "augment",
        "checkpoint_every",
    }
    own = {"epochs", "learning_rate"}
    if kind is RunConfig:
        own = {f"{section}_{name}" for section in ("pretrain", "optimize", "finetune") for name in own}
    own |= {"score_optimizer", "score_perturbation"} if kind in (RunConfig, PruneStage) else set()
    own |= {"freeze", "freeze_epochs"} if kind in (RunConfig, TrainStage) else set()
    assert training_options(kind).keys() == shared | own
    assert all(option.description for option in training_options(kind).values())
