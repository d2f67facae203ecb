"""For which sizes of its inputs a graph holds, and what it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunekit.engine.size_expressions import Expression, Shapes, describe, evaluate, is_constant


@dataclass(frozen=True)
class SizeRule:
    """What torch.export found while it traced the forward with symbols for sizes.

    Attributes:
        shapes: Of each input, what each dimension must be: ["size", input, dim] of itself where it is free, else a
            number or an expression of other dimensions.
        guards: What must be true of the sizes: each comes from a branch that the forward took.
        values: Shapes that the values which torch computes must have. A branch on the rank or shape of one of them
            that left no guard shows here.
        steps: Sizes that others are computed from, each from inputs and earlier ones. Expressions read them as the
            shape of one more input.
    """

    shapes: list[list[Expression]]
    guards: list[Expression] = field(default_factory=list)
    values: dict[str, list[Expression]] = field(default_factory=dict)
    steps: list[Expression] = field(default_factory=list)

    def with_steps(self, shapes: Shapes) -> list[Sequence[int]]:
        """Return what expressions are evaluated for: the inputs' shapes and the steps' values.

        Raises:
            ValueError, ArithmeticError: a step has no value there.
        """
        values: list[int] = []
        extended = [*shapes, values]
        for step in self.steps:
            values.append(int(evaluate(step, extended)))
        return extended

    def refusal(self, shapes: Shapes, names: Sequence[str]) -> str | None:
        """Return "Expected ..., got ..." without a full stop where the graph does not hold for inputs of `shapes`.

        Args:
            shapes: of the inputs.
            names: of the inputs.
        """
        for at, (rule, shape) in enumerate(zip(self.shapes, shapes, strict=True)):
            is_fixed = [is_constant(expected) for expected in rule]
            if len(shape) != len(rule) or any(
                fixed and expected != size for fixed, expected, size in zip(is_fixed, rule, shape, strict=True)
            ):
                return f"Expected {self._written(at, names)} as the shape of {names[at]}, got {list(shape)}"
        for at, (rule, shape) in enumerate(zip(self.shapes, shapes, strict=True)):
            for dim, (expected, size) in enumerate(zip(rule, shape, strict=True)):
                if not _is_true(["eq", expected, size], shapes):
                    return self._expectation(f"{names[at]}.shape[{dim}] = {describe(expected, names)}", shapes, names)
        try:
            extended = self.with_steps(shapes)
        except ArithmeticError:
            return self._expectation("its layers have inputs", shapes, names)
        for guard in self.guards:
            if not _is_true(guard, extended):
                return self._expectation(describe(guard, names), shapes, names)
        return None

    def _written(self, at: int, names: Sequence[str]) -> str:
        """Return an input's shape with a letter for each size that is free, such as [N, 3, H, W]."""
        rule = self.shapes[at]
        letters = "NCHW" if len(rule) == 4 else "NABCDEFG"
        own = [
            letters[dim % len(letters)] if size == ["size", at, dim] else describe(size, names)
            for dim, size in enumerate(rule)
        ]
        return f"[{', '.join(own)}]"

    def _expectation(self, rule: str, shapes: Shapes, names: Sequence[str]) -> str:
        got = ", ".join(f"{name} of shape {list(shape)}" for name, shape in zip(names, shapes, strict=True))
        return f"Expected sizes for which the captured graph holds ({rule}), got {got}"

    def is_free(self, at: int, dim: int) -> bool:
        """Return whether a dimension of an input may have other sizes than the example's."""
        return dim < len(self.shapes[at]) and not is_constant(self.shapes[at][dim])

    @property
    def frees_images(self) -> bool:
        """Whether the height and width of an image may change."""
        return any(len(s) == 4 and self.is_free(at, 2) and self.is_free(at, 3) for at, s in enumerate(self.shapes))

    def to_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> SizeRule:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        rule = cls(
            [list(shape) for shape in document["shapes"]],
            list(document["guards"]),
            {name: list(shape) for name, shape in document["values"].items()},
            list(document["steps"]),
        )
        ones = [[1] * len(shape) for shape in rule.shapes] + [[1] * len(rule.steps)]
        for expression in [
            *rule.steps,
            *rule.guards,
            *(size for s in (*rule.shapes, *rule.values.values()) for size in s),
        ]:
            _is_true(expression, ones)  # a ValueError where it is no expression
        return rule


def _is_true(expression: Expression, shapes: Shapes) -> bool:
    try:
        return bool(evaluate(expression, shapes))
    except ArithmeticError:  # torch would have met it, too
        return False
