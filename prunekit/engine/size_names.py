"""Names for sizes that are computed from others, so that expressions stay short.

Each layer of a network with TensorFlow's padding reads its input's size three times: after five of them an expression
has 10^4 words, and torch takes minutes. So what changes an image's size gets, where that is a long expression, a new
symbol for it, which this module remembers; an operator that does nothing carries it in the traced program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import sympy
import torch
import torch.export._trace
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

#: The operator's name in a traced program.
NAMED_SIZES = "prunekit_capture.named_sizes.default"
# Words of an expression that gets a name; (height + 2·padding - kernel) // stride + 1 has 9.
_MOST_WORDS = 12
_definitions: WeakKeyDictionary[ShapeEnv, dict[sympy.Expr, Any]] = WeakKeyDictionary()


@torch.library.custom_op("prunekit_capture::named_sizes", mutates_args=())
def named_sizes(x: Tensor) -> Tensor:
    """Return a copy of `x`; while a program is traced, its sizes have names."""
    return x.clone()


@named_sizes.register_fake
def _named_sizes_fake(x: Tensor) -> Tensor:
    return x.new_empty([_named(size) for size in x.shape])


def with_named_sizes(x: object) -> object:
    """Return a traced image of which sizes are long expressions with names for them; anything else as it is."""
    if isinstance(x, Tensor) and x.dim() == 4 and any(_is_long(size) for size in x.shape):
        return named_sizes(x)
    return x


def definitions_of(env: ShapeEnv) -> dict[sympy.Symbol, sympy.Expr]:
    """Return which expression each name in a program's environment stands for, in an order to compute them."""
    return {size.node.expr: expr for expr, size in _definitions.get(env, {}).items()}


def _is_long(size: Any) -> bool:
    if not isinstance(size, torch.SymInt) or not size.node.has_hint():
        return False
    return sum(1 for _ in sympy.preorder_traversal(size.node.expr)) > _MOST_WORDS


def _named(size: Any) -> Any:
    if not _is_long(size):
        return size
    env = size.node.shape_env
    known = _definitions.setdefault(env, {})
    if size.node.expr not in known:
        source = ConstantSource(f"named_size_{len(known)}")
        symbol = env.create_symbol(
            size.node.hint, source, DimDynamic.DYNAMIC, None, positive=None, do_not_specialize_zero_one=True
        )
        known[size.node.expr] = env.create_symintnode(symbol, hint=size.node.hint, source=source)
    return known[size.node.expr]


@contextmanager
def guards_on_names() -> Iterator[None]:
    """Keep guards that mention a name from torch.export, which looks for inputs that they are about."""
    module = torch.export._trace
    solve = getattr(module, "produce_guards_and_solve_constraints", None)
    if solve is None:
        yield
        return

    def solve_others(fake_mode: Any, *args: Any, **kwargs: Any) -> Any:
        env = fake_mode.shape_env
        guards, names = list(env.guards), set(definitions_of(env))
        env.guards[:] = [guard for guard in guards if not guard.expr.free_symbols & names]
        try:
            return solve(fake_mode, *args, **kwargs)
        finally:
            env.guards[:] = guards

    with mock.patch.object(module, "produce_guards_and_solve_constraints", solve_others):
        yield
