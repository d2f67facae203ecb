"""The ranges of a graph's values on example inputs, for int8: all of what was seen, or the part that matters most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.engine.graph import Graph
from prunekit.engine.program import Program
from prunekit.engine.quantization import levels_of, quantization_of, values_of
from prunekit.errors import InputError

_BINS = 2048
#: Of the numbers of a tensor, the share that "percentile" cuts off at each end.
_CUT_OFF = 1e-4
# Shares of the range that "mse" tries.
_SHARES = torch.linspace(0.2, 1.0, 41).tolist()


@dataclass
class _Seen:
    low: float = 0.0
    high: float = 0.0
    counts: Tensor | None = None

    @property
    def centers(self) -> Tensor:
        """The middle of each bin."""
        step = (self.high - self.low) / _BINS
        return self.low + step * (torch.arange(_BINS) + 0.5)


def observe(
    graph: Graph, names: Sequence[str], inputs: Sequence[Sequence[Tensor]], method: str
) -> dict[str, tuple[float, float]]:
    """Run a float32 graph on inputs, and return a range of each value.

    Args:
        graph: fused and compressed.
        names: of values that are float32 images.
        inputs: each the graph's tensors.
        method: of `METHODS`.

    Raises:
        InputError: a value was not finite on one of the inputs, or the graph does not hold for one.
    """
    seen = {name: _Seen() for name in names}
    for values in _runs(graph, names, inputs):
        for name, value in values.items():
            low, high = value.aminmax()
            if not bool(low.isfinite() & high.isfinite()):
                raise InputError(f"Expected finite values in calibration, got nan or inf in {_layer(graph, name)}.")
            seen[name].low, seen[name].high = min(seen[name].low, float(low)), max(seen[name].high, float(high))
    if METHODS[method] is _whole:
        return {name: (found.low, found.high) for name, found in seen.items()}
    for values in _runs(graph, names, inputs):
        for name, value in values.items():
            found = seen[name]
            counts = torch.histc(value, _BINS, found.low, found.high) if found.high > found.low else torch.zeros(_BINS)
            found.counts = counts if found.counts is None else found.counts + counts
    return {name: METHODS[method](found) for name, found in seen.items()}


def _runs(graph: Graph, names: Sequence[str], inputs: Sequence[Sequence[Tensor]]) -> Iterator[dict[str, Tensor]]:
    program = Program(replace(graph, outputs=list(names)), {})
    for tensors in inputs:
        yield dict(zip(names, program.run(tensors), strict=True))


def _layer(graph: Graph, name: str) -> str:
    return next((node.layer for node in graph.nodes if node.name == name and node.layer), f"value {name}")


def _whole(seen: _Seen) -> tuple[float, float]:
    return seen.low, seen.high


def _percentile(seen: _Seen) -> tuple[float, float]:
    assert seen.counts is not None
    total = float(seen.counts.sum())
    below = seen.counts.cumsum(0) / max(total, 1.0)
    low = int((below < _CUT_OFF).sum())
    high = int((below < 1 - _CUT_OFF).sum())
    step = (seen.high - seen.low) / _BINS
    return seen.low + low * step, seen.low + min(high + 1, _BINS) * step


def _least_squares(seen: _Seen) -> tuple[float, float]:
    """Return the part of the range whose levels are nearest to what was seen, in the mean square."""
    assert seen.counts is not None
    centers, counts = seen.centers, seen.counts

    def error(share: float) -> float:
        quantization = quantization_of(share * seen.low, share * seen.high)
        return float((counts * (values_of(levels_of(centers, quantization), quantization) - centers) ** 2).sum())

    best = min(reversed(_SHARES), key=error)
    return best * seen.low, best * seen.high


#: Ways to find a range by name: all that was seen, without the outermost values, or with the least squared error.
METHODS: dict[str, Callable[[_Seen], tuple[float, float]]] = {
    "minmax": _whole,
    "percentile": _percentile,
    "mse": _least_squares,
}
