"""Which models a run makes: ways to prune, each at several ratios."""

from __future__ import annotations

from dataclasses import dataclass

UNIFORM = "uniform"


@dataclass(frozen=True)
class Variant:
    """One way to prune; a run follows each of them through all ratios.

    Attributes:
        structure: What is dropped, a key of `STRUCTURES`; "none" for the unpruned model that all variants share.
        scores: What ranks it, a key of `SCORES`.
        pruning: "one-shot", or "optimized" scores.
        allocation: What shares it among layers, a key of `ALLOCATIONS`.
    """

    structure: str
    scores: str
    pruning: str
    allocation: str = UNIFORM

    @property
    def parts(self) -> tuple[str, ...]:
        """What tells it from others; uniform ratios go without saying."""
        allocation = (self.allocation,) if self.allocation != UNIFORM else ()
        return (self.structure, self.scores, self.pruning, *allocation)

    @property
    def name(self) -> str:
        """For people and files: unstructured, scaled, one-shot."""
        return ", ".join(self.parts)


#: The weights as they were given, evaluated beside what robust pre-training made of them.
AS_GIVEN = Variant("none", "none", "as given")


@dataclass(frozen=True)
class Unit:
    """One variant at one ratio or budget: what is finished or not.

    Attributes:
        variant: The way to prune.
        ratio: In percent; 0 with a budget.
        budget: What may be left, "" for a ratio.
    """

    variant: Variant
    ratio: float
    budget: str = ""

    @property
    def is_pruned(self) -> bool:
        """Whether anything goes."""
        return self.ratio > 0 or bool(self.budget)

    @property
    def shared(self) -> str:
        """The budget that an allocation shares; "" where every layer has the unit's ratio."""
        return self.budget or (f"{self.ratio!r}%" if self.ratio and self.variant.allocation != UNIFORM else "")

    @property
    def stem(self) -> str:
        """The stem of the unit's files; the unpruned model is every variant's ratio 0."""
        if self.variant == AS_GIVEN:
            return "as_given"
        if not self.is_pruned:
            return "ratio_0"
        target = self.budget.replace("=", "_").replace("%", "_percent").replace(" ", "") or f"ratio_{self.ratio:g}"
        return f"{'-'.join(self.variant.parts)}-{target}"

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.variant == AS_GIVEN:
            return "weights as given"
        return f"{self.variant.name}, {self.target}" if self.is_pruned else "unpruned"

    @property
    def target(self) -> str:
        """What people call how much is pruned: 50 %, or the budget."""
        return self.budget or f"{self.ratio:g} %"
