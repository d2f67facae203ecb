"""The names that options take, listed when a value is checked: plugins may have added some."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.evaluation.sensitivity import METHODS
from prunekit.nn.int8 import PRECISIONS
from prunekit.pipeline.condition_config import CONDITIONS
from prunekit.pipeline.scoring import REFERENCES
from prunekit.prune import ALLOCATIONS, SCOPES, SCORES, STRUCTURES
from prunekit.prune.deeplift import RULES
from prunekit.training.objectives import OBJECTIVES

PRUNINGS = ("one-shot", "optimized")


def _adversarial_training() -> list[str]:
    return [name for name, attack in PRESETS.items() if isinstance(attack, PgdConfig)]


#: Option → what lists its names when a value is checked: plugins may have added some.
KNOWN_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "scores": lambda: SCORES,
    "structure": lambda: STRUCTURES,
    "pruning": lambda: PRUNINGS,
    "attack": lambda: [*PRESETS, "none"],
    "scope": lambda: SCOPES,
    "objective": lambda: OBJECTIVES,
    "train_attack": _adversarial_training,
    "reference": lambda: REFERENCES,
    "rule": lambda: RULES,
    "allocation": lambda: ALLOCATIONS,
    "method": lambda: METHODS,
    "conditions": lambda: CONDITIONS,
    "precision": lambda: PRECISIONS,
}
