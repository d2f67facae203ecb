"""Which corruptions an evaluation goes through."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from prunekit.config import Config
from prunekit.evaluation.corruptions.catalog import Cell, parse_corruptions


class CorruptionConfig(Config):
    """Whether a model is evaluated under common corruptions, and under which."""

    corruptions: str | None = Field(
        None,
        description="also evaluate under common corruptions: benchmark (15 at 5 severities each), validation (4 more), "
        "all, or names such as fog,snow:3, a severity behind the colon",
    )
    corruption_baseline: Path | None = Field(
        None,
        description="corruptions.csv from evaluating a baseline classifier on the same images; mCE is relative to its "
        "errors",
    )

    @field_validator("corruptions")
    @classmethod
    def _known_corruptions(cls, text: str | None) -> str | None:
        if text is not None:
            parse_corruptions(text)
        return text

    @model_validator(mode="after")
    def _baseline_of_something(self) -> CorruptionConfig:
        if self.corruption_baseline is not None and self.corruptions is None:
            raise ValueError("--corruption-baseline is for mCE of --corruptions: add --corruptions")
        return self

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The corruptions that were asked for, each at each of its severities; none where they were not."""
        return () if self.corruptions is None else parse_corruptions(self.corruptions)
