"""What a run is told about further conditions that each of its models is evaluated under."""

from __future__ import annotations

from pydantic import Field, field_validator

from prunekit.evaluation.corruptions.catalog import Cell, parse_corruptions
from prunekit.evaluation.patch import PATCH, PatchOptions

CORRUPTIONS, LATENCY = "corruptions", "latency"
CONDITIONS = (CORRUPTIONS, PATCH, LATENCY)


class ConditionChoices(PatchOptions):
    """What a run is told about them."""

    conditions: tuple[str, ...] = Field(
        (),
        description=f"also evaluate each model under one or more of: {', '.join(CONDITIONS)}",
    )
    corruption_cells: str = Field(
        "benchmark",
        description="corruptions that --conditions corruptions is a mean over, as --corruptions of evaluate",
    )

    @field_validator("corruption_cells")
    @classmethod
    def _known_corruptions(cls, text: str) -> str:
        parse_corruptions(text)
        return text

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The corruptions, each at each of its severities."""
        return parse_corruptions(self.corruption_cells) if CORRUPTIONS in self.conditions else ()
