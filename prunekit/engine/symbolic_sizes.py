"""torch's symbolic sizes (SymInt, sympy) as expressions of the inputs' sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

from prunekit.engine.size_expressions import Expression
from prunekit.engine.size_names import definitions_of
from prunekit.engine.size_rule import SizeRule

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)

# sympy's and torch's classes by name, as torch adds some from version to version.
_FUNCTIONS = {
    "Add": "add", "Mul": "mul", "Max": "max", "Min": "min", "And": "and", "Or": "or", "Not": "not", "Abs": "abs",
    "FloorDiv": "floordiv", "CleanDiv": "floordiv", "IntTrueDiv": "truediv", "FloatTrueDiv": "truediv",
    "Mod": "mod", "PythonMod": "mod", "CeilToInt": "ceil", "ceiling": "ceil", "FloorToInt": "floor", "floor": "floor",
    "TruncToInt": "trunc", "RoundToInt": "round", "RoundDecimal": "round", "ToFloat": "float", "Pow": "pow",
    "PowByNatural": "pow", "FloatPow": "pow", "OpaqueUnaryFn_sqrt": "sqrt",
    "Equality": "eq", "Unequality": "ne", "StrictLessThan": "lt", "LessThan": "le", "StrictGreaterThan": "gt",
    "GreaterThan": "ge",
}  # fmt: skip


class UnknownSizeError(Exception):
    """A size is computed from pixels, or in a way that the expressions do not have."""


class SymbolTable:
    """Which dimension of which input each symbol of an exported program is."""

    def __init__(self, inputs: Sequence[fx.Node]) -> None:
        """`inputs` are the placeholders of the forward's tensors."""
        values = [node.meta.get("val") for node in inputs]
        self.shapes = [tuple(value.shape) if isinstance(value, Tensor) else () for value in values]
        self.env = next((_env(s) for shape in self.shapes for s in shape if isinstance(s, torch.SymInt)), None)
        self._places: dict[sympy.Symbol, Expression] = {}
        for at, shape in enumerate(self.shapes):
            for dim, size in enumerate(shape):
                expr = _expr(size)
                if isinstance(expr, sympy.Symbol):
                    self._places.setdefault(expr, ["size", at, dim])
        self._definitions = definitions_of(self.env) if isinstance(self.env, ShapeEnv) else {}
        for i, name in enumerate(self._definitions):  # as if they were the shape of one more input
            self._places[name] = ["size", len(self.shapes), i]

    def allow_guards(self) -> None:
        """Let what a reader decides by a symbolic size become one more guard; torch freezes them after exporting."""
        if isinstance(self.env, ShapeEnv):
            self.env.frozen = False

    def expression(self, value: Any) -> Expression:
        """Return a size, int or symbolic, as an expression.

        Raises:
            UnknownSizeError: It is none of the inputs' sizes alone.
        """
        return self._expression(_expr(value)) if isinstance(value, SYMBOLIC) else value

    def input_shapes(self) -> list[list[Expression]]:
        """Return what each dimension of each input must be: an expression, which is ["size", ...] where it is free."""
        return [[self.expression(size) for size in shape] for shape in self.shapes]

    def rule(self, values: dict[str, list[Expression]]) -> SizeRule:
        """Return for which sizes the program holds, where `values` are shapes of what torch computes.

        Raises:
            UnknownSizeError: That depends on something else than sizes.
        """
        steps = [self._expression(self.env.replace(expr)) for expr in self._definitions.values()] if self.env else []
        return SizeRule(self.input_shapes(), self.guards(), values, steps)

    def guards(self) -> list[Expression]:
        """Return what must be true of the inputs' sizes for the program to hold.

        Raises:
            UnknownSizeError: A guard is about something else.
        """
        if self.env is None:
            return []
        exprs = [self.env.replace(guard.expr) for guard in self.env.guards]
        exprs += list(self._ranges())
        found: dict[str, Expression] = {}
        for expr in exprs:
            if expr != sympy.true:
                found.setdefault(str(expr), self._expression(expr))
        return list(found.values())

    def _ranges(self) -> Iterator[sympy.Basic]:
        assert self.env is not None
        for symbol, bounds in self.env.var_to_range.items():
            if symbol in self._places:
                if isinstance(bounds.lower, sympy.Integer) and bounds.lower > 0:
                    yield sympy.Ge(symbol, bounds.lower, evaluate=False)
                if isinstance(bounds.upper, sympy.Integer):
                    yield sympy.Le(symbol, bounds.upper, evaluate=False)

    def _expression(self, expr: sympy.Basic) -> Expression:
        if isinstance(expr, sympy.Symbol):
            if expr not in self._places:
                raise UnknownSizeError(f"{expr} is no input's size")
            return self._places[expr]
        if expr in (sympy.true, sympy.false):
            return bool(expr)
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Rational):
            return ["ratio", int(expr.p), int(expr.q)]
        if isinstance(expr, sympy.Float):
            return float(expr)
        word = _FUNCTIONS.get(type(expr).__name__)
        if word is None:
            raise UnknownSizeError(f"{type(expr).__name__} is not known of sizes")
        return [word, *(self._expression(arg) for arg in expr.args)]


def _env(size: Any) -> Any:
    return size.node.shape_env


def _expr(value: Any) -> Any:
    return value.node.expr if isinstance(value, SYMBOLIC) else value


def is_unbacked(value: Any) -> bool:
    """Return whether a size is known only when the model runs, as that of torch.nonzero's result."""
    return isinstance(value, SYMBOLIC) and not value.node.has_hint()


def hint_of(value: Any) -> Any:
    """Return a size as it was on the example."""
    return value.node.hint if isinstance(value, SYMBOLIC) else value


def holds_symbols(value: Any) -> bool:
    """Return whether a symbolic size is in an argument."""
    if isinstance(value, (list, tuple)):
        return any(holds_symbols(item) for item in value)
    return isinstance(value, SYMBOLIC)


def are_always_equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether two shapes are equal for all sizes of the inputs, without adding a guard."""
    return len(a) == len(b) and all(_is_always_equal(x, y) for x, y in zip(a, b, strict=True))


def are_equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether two shapes are equal for all sizes of the inputs.

    Where they are equal on the example, neither 1 there, and not for all sizes, that becomes a guard, and they are.
    """
    return len(a) == len(b) and all(_is_equal(x, y) for x, y in zip(a, b, strict=True))


def _is_equal(a: Any, b: Any) -> bool:
    if _is_always_equal(a, b):
        return True
    if not holds_symbols([a, b]) or is_unbacked(a) or is_unbacked(b):
        return False
    return hint_of(a) == hint_of(b) != 1 and bool(a == b)


def _is_always_equal(a: Any, b: Any) -> bool:
    return statically_known_true(a == b) if holds_symbols([a, b]) else bool(a == b)


def value_of(node: Any) -> Any:
    """Return a size that an exported node stands for, or the argument itself."""
    if isinstance(node, fx.Node):
        value = node.meta.get("val")
        return value if isinstance(value, (*SYMBOLIC, bool, int, float)) else node
    if isinstance(node, (list, tuple)):
        return [value_of(item) for item in node]
    if isinstance(node, Mapping):
        return {key: value_of(item) for key, item in node.items()}
    return node
