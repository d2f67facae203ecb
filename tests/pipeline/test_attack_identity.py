"""A finished piece of work is found again only under the very attack that it was done with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.attacks import PRESETS, Attack, PgdConfig, attack_identity
from prunekit.pipeline import make_config
from prunekit.pipeline.checkpoint import Training
from prunekit.pipeline.results import Inputs
from prunekit.pipeline.run_folder import OpenRun
from prunekit.pipeline.steps import _identity
from prunekit.training.config import TrainConfig
from prunekit.training.objectives import ObjectiveConfig

#: One attack of each class that a preset has, with every field away from its default's edge.
ATTACKS: dict[str, Any] = {type(attack).__name__: attack for attack in reversed(PRESETS.values())}
ATTACKS["PgdConfig"] = PgdConfig(eps=0.05, step_size=0.01, steps=4, random_start=True, restarts=2)
FIELDS = [(kind, field.name) for kind, attack in ATTACKS.items() for field in dataclasses.fields(attack)]


def changed(attack: Any, field: str) -> Any:
    """Return the attack with another value in one field."""
    value = getattr(attack, field)
    if isinstance(value, bool):
        return dataclasses.replace(attack, **{field: not value, "restarts": 1})
    if isinstance(value, tuple):
        return dataclasses.replace(attack, **{field: value[:1]})
    if isinstance(value, str):
        return dataclasses.replace(attack, **{field: {"linf": "l2", "l2": "linf"}[value]})
    return dataclasses.replace(
        attack, **{field: value + 1 if isinstance(value, int) else value * 0.5 + 0.125 * (not value)}
    )


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_of_every_attack_is_part_of_its_identity(kind: str, field: str) -> None:
    before, after = attack_identity(ATTACKS[kind]), attack_identity(changed(ATTACKS[kind], field))
    assert {name for name in before if before[name] != after[name]} <= {field, "restarts"}
    assert before[field] != after[field]
    assert json.loads(json.dumps(before)) == before
    assert attack_identity(dataclasses.replace(ATTACKS[kind])) == before


def key_of(tmp_path: Path, **choices: Any) -> str:
    config = make_config(model="yolov3-tiny", weights="w", data="d", out=tmp_path, **choices)
    return OpenRun(config, Inputs("w", "d", "t"))._key


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_runs_key_changes_with_every_number_of_its_attack(
    kind: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "paper", ATTACKS[kind])
    before = key_of(tmp_path, attack="paper", train_attack="fgsm")
    assert key_of(tmp_path, attack="paper", train_attack="fgsm") == before
    monkeypatch.setitem(PRESETS, "paper", changed(ATTACKS[kind], field))
    assert key_of(tmp_path, attack="paper", train_attack="fgsm") != before


@pytest.mark.parametrize("field", [field for kind, field in FIELDS if kind == "PgdConfig"])
def test_training_and_its_run_are_known_by_the_numbers_of_the_training_attack(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = (ATTACKS["PgdConfig"], changed(ATTACKS["PgdConfig"], field))
    keys, identities = [], []
    for attack in attacks:
        monkeypatch.setitem(PRESETS, "paper", attack)
        keys.append(key_of(tmp_path, attack="none", train_attack="paper"))
        training = Training(None, "", "pgd-at", ObjectiveConfig(attack=attack))  # type: ignore[arg-type]
        identities.append(json.dumps(_identity(training, TrainConfig(epochs=1))))
    assert len(set(keys)) == len(set(identities)) == 2


def test_attacks_of_ones_own_are_known_by_what_they_hold() -> None:
    class Shift:
        def __init__(self, by: float) -> None:
            self.by, self._calls = by, 0

        def __call__(self, model: Any, x: torch.Tensor, losses: Any, generator: Any = None) -> torch.Tensor:
            return x + self.by

    def nothing(model: Any, x: torch.Tensor, losses: Any, generator: Any = None) -> torch.Tensor:
        return x

    shift: Attack = Shift(0.1)
    assert attack_identity(shift) == attack_identity(Shift(0.1)) != attack_identity(Shift(0.2))
    assert attack_identity(nothing)["attack"].endswith("nothing")
    assert attack_identity(None) == {}
