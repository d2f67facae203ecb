"""What runs and commands are told about budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from prunekit.config import Config
from prunekit.evaluation.sensitivity import SensitivityConfig
from prunekit.prune import parse_budget
from prunekit.prune.budgets import EXAMPLES

SENSITIVITIES = "sensitivities.csv"


class BudgetChoices(Config):
    """How much may be left, and what decides where."""

    keep_stem_and_heads: bool = Field(False, description="do not prune the first convolution and the heads")
    sensitivities: Path | None = Field(
        None,
        description=f"{SENSITIVITIES} of prunekit sensitivity, for the allocation mrs (default: measured on training "
        "images)",
    )
    sensitivity: SensitivityConfig = Field(SensitivityConfig(), description="how sensitivities are measured")

    @field_validator("budget", check_fields=False)
    @classmethod
    def _readable(cls, budgets: Any) -> Any:
        for budget in budgets if isinstance(budgets, tuple) else (budgets,):
            if budget is not None:
                parse_budget(budget)
        return budgets

    @model_validator(mode="after")
    def _sensitivities_are_asked_for(self) -> BudgetChoices:
        allocation: str | tuple[str, ...] = getattr(self, "allocation", "mrs")  # rounds always go by them
        if self.sensitivities is not None and "mrs" not in allocation:
            raise ValueError("--sensitivities is what --allocation mrs goes by: add that, or leave it")
        return self


BUDGET = f"what the pruned model may cost, instead of a ratio: {EXAMPLES}"
