"""The choice of one convolution's implementation, by measurement on the input that reaches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.comparison import MAX_RELATIVE_RMS, check_within
from prunekit.nn.acceleration_report import LayerReport
from prunekit.nn.fusion import negative_slope
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.ops import native
from prunekit.ops.packed_conv2d import ROW_CHOICES
from prunekit.timing import time_in_turn

# A call is repeated for about this long, within these bounds: enough for a stable median of layers of 0.1 ms, and
# under 10 s for YOLOv3's 75.
_SECONDS_A_CALL = 0.03
_MIN_RUNS, _MAX_RUNS = 3, 30


def tune_layer(
    name: str, conv: nn.Conv2d, activation: nn.Module | None, x: Tensor
) -> tuple[LayerReport, MaskedConv2d | None]:
    """Time a convolution, with the activation that may be fused, dense and packed.

    Args:
        name: for the report and for errors.
        conv: in eval mode; its exact zeros are the mask.
        activation: a LeakyReLU or ReLU that alone reads the convolution's output, or None.
        x: the input, [N, C, H, W].

    Returns:
        The row for the report, and the packed module where that was faster.

    Raises:
        WrongOutputError: a packed variant differs from dense; it is not timed.
    """

    def dense() -> Tensor:
        y: Tensor = conv.forward(x)
        return y if activation is None else activation(y)

    # The activation may work in place, so its output is the only one to compare with.
    expected = dense()
    density = int(conv.weight.count_nonzero()) / max(1, conv.weight.numel())
    row = partial(LayerReport, name, tuple(x.shape), tuple(conv.weight.shape), density)
    reason = _reason_to_stay_dense(conv, density, x, expected)
    if reason:
        return row("dense", None, None, reason), None
    candidates = {f"packed, {rows} row{'s'[: rows > 1]}": _packed(conv, activation, rows) for rows in ROW_CHOICES}
    for candidate, module in candidates.items():
        check_within(expected, module(x), f"layer {name} ({candidate})", MAX_RELATIVE_RMS, "dense")
    calls: dict[str, Callable[[], object]] = {"dense": dense}
    calls |= {candidate: partial(module, x) for candidate, module in candidates.items()}
    times = {k: t.median_ms for k, t in time_in_turn(calls, _number_of_runs(dense), warm_up=1).items()}
    best = min(candidates, key=lambda candidate: times[candidate])
    if times[best] >= times["dense"]:
        return row("dense", times["dense"], times[best], "dense measured faster"), None
    return row(best, times["dense"], times[best], "measured faster"), candidates[best]


def _reason_to_stay_dense(conv: nn.Conv2d, density: float, x: Tensor, expected: Tensor) -> str | None:
    if density == 1:
        return "no weight is zero"
    if not native.is_available():
        return "the compiled extension is not there"
    if conv.weight.dtype not in (torch.float32, torch.float64) or x.dtype != conv.weight.dtype:
        return f"no kernel for {x.dtype} inputs with {conv.weight.dtype} weights"
    if not bool(expected.isfinite().all()):
        return "the output is not finite on the example input, so a packed one could not be checked"
    return None


def _packed(conv: nn.Conv2d, activation: nn.Module | None, rows: int) -> MaskedConv2d:
    masked = MaskedConv2d.from_dense(conv)
    if activation is not None:
        masked.activation, masked.negative_slope = "leaky_relu", negative_slope(activation)
    masked.pack(rows)
    return masked


def _number_of_runs(call: Callable[[], object]) -> int:
    start = time.perf_counter()
    call()
    return int(min(max(_SECONDS_A_CALL / (time.perf_counter() - start), _MIN_RUNS), _MAX_RUNS))
