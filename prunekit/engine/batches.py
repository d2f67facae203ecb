"""Which shapes of inputs a graph takes, and whether a batch may be run in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.comparison import compare, tolerance
from prunekit.engine.graph import Graph
from prunekit.errors import InputError, WrongOutputError
from prunekit.structure import flatten


def check_shapes(
    graph: Graph, shapes: Sequence[Sequence[int]], example: Sequence[Sequence[int]], names: Sequence[str] | None = None
) -> None:
    """Refuse shapes of inputs for which a graph does not hold.

    Args:
        graph: captured on inputs of shapes `example`.
        shapes: of the inputs that came.
        example: of those at capture.
        names: of the inputs for the message; None: the graph's.

    Raises:
        InputError: it does not; the sentence says for which shapes it does.
    """
    names = names or graph.inputs
    refusal = _refusal(graph, shapes, example, names)
    if refusal is None:
        return
    parts = _parts(shapes, graph.split_batch)
    if parts is None or _refusal(graph, parts, example, names) is not None:
        raise InputError(refusal + ".")


def _refusal(
    graph: Graph, shapes: Sequence[Sequence[int]], example: Sequence[Sequence[int]], names: Sequence[str]
) -> str | None:
    if graph.rule is not None and [list(s) for s in shapes] != [list(s) for s in example]:
        return graph.rule.refusal(shapes, names)
    for name, shape, expected in zip(names, shapes, example, strict=True):
        is_free = graph.is_size_free and len(shape) == 4 and shape[1] == expected[1]
        if not is_free and list(shape) != list(expected):
            why = "" if graph.is_size_free else "; the model was captured for that size only"
            return f"Expected {list(expected)} as the shape of {name}, got {list(shape)}{why}"
    return None


def _parts(shapes: Sequence[Sequence[int]], split: int) -> list[list[int]] | None:
    """Return the shapes of one part of a batch that is run in parts of `split`; None where it cannot be."""
    batches = {shape[0] if shape else 0 for shape in shapes}
    if not split or len(batches) != 1 or not (batch := batches.pop()) or batch % split:
        return None
    return [[split, *shape[1:]] for shape in shapes]


def has_free_batch(graph: Graph, example: Sequence[Sequence[int]]) -> bool:
    """Return whether a graph, captured on inputs of shapes `example`, takes twice as many images by itself."""
    doubled = [[2 * shape[0], *shape[1:]] if len(shape) else [] for shape in example]
    return _refusal(graph, doubled, example, graph.inputs) is None


def check_batch(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether a model treats the images of a batch independently: twice the batch gives two outputs in a row.

    The model, in eval mode, is run on `inputs`, on other inputs of the same shapes, and on both as one batch, each
    time on copies. A model that normalizes over the batch, or that does not run on another batch, does not.

    Args:
        model: without randomness.
        inputs: of one batch, which is their first dimension.
    """
    if not inputs or any(x.dim() == 0 for x in inputs) or len({len(x) for x in inputs}) != 1 or not len(inputs[0]):
        return False
    others = [_changed(x) for x in inputs]
    try:
        with torch.no_grad():
            first, second = (flatten(model(*(x.clone() for x in half))) for half in (inputs, others))
            both = flatten(model(*(torch.cat([x, y]) for x, y in zip(inputs, others, strict=True))))
        return _is_joined(first, second, both, len(inputs[0]))
    except Exception:  # a forward that is bound to a batch may raise anything
        return False


def _is_joined(first: Any, second: Any, both: Any, batch: int) -> bool:
    if first[1].differs_from(second[1]) or first[1].differs_from(both[1]) or not both[0]:
        return False
    if any(y.dim() == 0 or len(y) != batch for y in first[0]):
        return False
    joined = [torch.cat([a, b]) for a, b in zip(first[0], second[0], strict=True)]
    try:
        found = compare(joined, both[0])
    except WrongOutputError:
        return False
    return found.elements > 0 and found.relative_rms <= tolerance(joined)


def _changed(x: Tensor) -> Tensor:
    """Return an input like `x` with other pixels: brighter, darker and mirrored, as a statistic would notice."""
    if not x.is_floating_point():
        return x.flip(-1)
    return x.flip(-1) * 1.5 + 0.25 * x.abs().mean()
