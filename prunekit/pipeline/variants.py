"""Which models a run makes: ways to prune, each at several ratios."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to prune; a run follows each of them through all ratios.

    Attributes:
        structure: What is dropped, a key of `STRUCTURES`; "none" for the unpruned model that all variants share.
        scores: What ranks it, a key of `SCORES`.
        pruning: "one-shot", or "optimized" scores.
    """

    structure: str
    scores: str
    pruning: str

    @property
    def name(self) -> str:
        """For people and files: unstructured, scaled, one-shot."""
        return f"{self.structure}, {self.scores}, {self.pruning}"


#: The weights as they were given, evaluated beside what robust pre-training made of them.
AS_GIVEN = Variant("none", "none", "as given")


@dataclass(frozen=True)
class Unit:
    """One variant at one ratio: what is finished or not."""

    variant: Variant
    ratio: float

    @property
    def stem(self) -> str:
        """The stem of the unit's files; the unpruned model is every variant's ratio 0."""
        if self.variant == AS_GIVEN:
            return "as_given"
        if self.ratio == 0:
            return "ratio_0"
        parts = (self.variant.structure, self.variant.scores, self.variant.pruning)
        return f"{'-'.join(parts)}-ratio_{self.ratio:g}"

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.variant == AS_GIVEN:
            return "weights as given"
        return "unpruned" if self.ratio == 0 else f"{self.variant.name}, {self.ratio:g} %"
