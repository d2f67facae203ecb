"""Options that set the settings of a configuration's trainings, and what each training is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field

from prunekit.config import Config
from prunekit.pipeline.recipes import RECIPES
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import SCORE_OPTIMIZATIONS, ScoreTraining, TrainConfig


class OptionalTraining(TrainConfig):
    """A training that is left out at 0 epochs."""

    epochs: int = Field(ge=0, description="number of epochs; 0 leaves the training out")


# These settings of every training are those of the run.
SAID_ONCE = {"seed", "workers", "device"}


@dataclass(frozen=True)
class TrainingOption:
    """An option for one setting of one or more trainings.

    Attributes:
        setting: The field of `TrainConfig`; `sections` are the trainings.
        description: The option's help.
    """

    setting: str
    sections: tuple[str, ...]
    description: str

    @property
    def paths(self) -> list[tuple[str, str]]:
        """Where the setting is in a configuration."""
        return [(section, self.setting) for section in self.sections]


# Options for settings of all trainings at once; TrainConfig describes them.
_OF_ALL = {"max_steps": "max_steps", "train_batch_size": "batch_size", "batch_norm": "batch_norm",
           "train_precision": "precision", "selection": "selection", "augment": "augmentation",
           "checkpoint_every": "checkpoint_every"}  # fmt: skip
_DESCRIPTIONS = {
    "augment": "augment training images: random flips and shifts, for detectors scaling and colors too",
    "pretrain_epochs": "epochs of robust pre-training (0: the weights are already trained)",
    "optimize_epochs": "epochs of score optimization",
    "finetune_epochs": "epochs of fine-tuning after pruning",
    "pretrain_learning_rate": "peak learning rate of pre-training",
    "optimize_learning_rate": "peak learning rate of score optimization (default: 0.1 for sgd, 0.003 for adamw)",
    "finetune_learning_rate": "peak learning rate of fine-tuning",
    "score_optimizer": "optimizer of the scores: sgd as in HYDRA, for thousands of steps; adamw for fewer",
}


@cache
def training_options(kind: type[Config]) -> dict[str, TrainingOption]:
    """Return the options of a configuration's trainings; where there is one only, they are not called after it."""
    sections = tuple(name for name in ("pretrain", "optimize", "finetune") if name in kind.model_fields)
    settings = {name: (setting, sections) for name, setting in _OF_ALL.items() if sections}
    for section in sections:
        prefix = f"{section}_" if len(sections) > 1 else ""
        settings |= {f"{prefix}{setting}": (setting, (section,)) for setting in ("epochs", "learning_rate")}
    if "pretrain" in sections:
        settings |= {name: (name, ("pretrain",)) for name in ("freeze", "freeze_epochs")}
    if "optimize" in sections:
        of_scores = {"score_optimizer": "optimizer", "score_perturbation": "score_perturbation"}
        settings |= {name: (setting, ("optimize",)) for name, setting in of_scores.items()}
    return {name: TrainingOption(*found, _description(name, *found)) for name, found in settings.items()}


def _description(option: str, setting: str, sections: tuple[str, ...]) -> str:
    by_section = _DESCRIPTIONS.get(f"{sections[0]}_{setting}", "") if sections == ("optimize",) else ""
    return _DESCRIPTIONS.get(option) or by_section or str(ScoreTraining.model_fields[setting].description)


def with_trainings(kind: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration is built from, each training in full: defaults, recipe, sections, then options."""
    options = training_options(kind)
    recipe = _recipe(kind, given)
    values = {name: value for name, value in {**recipe, **given}.items() if name not in options}
    typed = {name: _typed(name, given[name]) for name in options if given.get(name) is not None}
    shared = {name: values.get(name, kind.model_fields[name].default) for name in SAID_ONCE}
    for section in {section for option in options.values() for section in option.sections}:
        found = _settings(given.get(section, {}))
        if not isinstance(found, Mapping):
            continue  # what it is instead will be said
        if said_twice := sorted(found.keys() & SAID_ONCE):
            raise ValueError(f"{option_of(said_twice[0])} is the same for all trainings: expected none in {section}")
        of_options = {options[name].setting: typed[name] for name in typed if section in options[name].sections}
        settings = _settings(kind.model_fields[section].default)
        for layer in (_settings(recipe.get(section, {})), found, of_options):
            settings |= (_of_optimizer(settings, layer) if section == "optimize" else {}) | dict(layer)
        values[section] = settings | shared
    return values


def _recipe(kind: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the recipe that was asked for says about settings of this kind of configuration."""
    name = given.get("recipe")
    if name is None or "recipe" not in kind.model_fields:
        return {}
    if name not in list(RECIPES):
        raise ValueError(f"--recipe: must be one of {', '.join(RECIPES)}, got {name!r}")
    settings = {setting: value for setting, value in RECIPES[name].settings.items() if setting in kind.model_fields}
    if given.get("scores_file") is not None:
        settings.pop("scores", None)  # those of the file are asked for
    return settings


def _settings(training: Any) -> Any:
    """Return a training's settings, without those of the whole run; what is no configuration as it is."""
    return training.model_dump(exclude=SAID_ONCE) if isinstance(training, TrainConfig) else training


def _typed(option: str, value: Any) -> Any:
    if option != "augment":
        return value
    return None if value else NO_AUGMENTATION  # None: what the task says


def _of_optimizer(settings: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what comes with another optimizer of scores: its own rate and weight decay."""
    name = layer.get("optimizer")
    if name not in list(SCORE_OPTIMIZATIONS) or name == settings["optimizer"]:
        return {}
    return SCORE_OPTIMIZATIONS[name].model_dump(include={"learning_rate", "weight_decay"})


def option_of(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def over_file(file: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file with options over them; a recipe among these takes the place of what it sets."""
    recipe = RECIPES.get(options.get("recipe", ""))
    kept = {name: value for name, value in file.items() if recipe is None or name not in recipe.settings}
    return {**kept, **options}
