"""accelerate: every convolution on the implementation that measured fastest on this machine.

    fast = accelerate(model, example_input)
    print(fast.report)

The exact zeros of each weight are its mask. Each convolution is timed dense and packed, on the input that reaches it
from `example_input`, after its packed output was found equal; where dense is faster, it stays dense. Nothing is
chosen by rule.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import InputError
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.fusion import (
    Followers,
    Fusible,
    find_fusible,
    fold_batch_norms,
    has_foreign_hooks,
    negative_slope,
    replace_module,
)
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.ops import native_status
from prunekit.ops.packed_conv2d import ROW_CHOICES
from prunekit.timing import relative_rms, time_in_turn

#: An accelerated layer or model may differ from its original by this, in relative RMS: float32 rounding, no more.
MAX_RELATIVE_RMS = 1e-4
# A call is repeated for about this long, within these bounds: enough for a stable median of layers of 0.1 ms, and
# under 10 s for YOLOv3's 75.
_SECONDS_A_CALL = 0.03
_MIN_RUNS, _MAX_RUNS = 3, 30


class WrongOutputError(RuntimeError):
    """An accelerated layer or model does not compute what the original computes."""


def accelerate(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> nn.Module:
    """Return an inference copy of `model` that is as fast as its zeros allow; the model itself is left alone.

    In the copy, which is in eval mode and whose parameters are frozen, BatchNorm is folded into convolutions, and
    convolutions that measured faster on their packed filter are MaskedConv2d, with a following LeakyReLU or ReLU
    fused where the trace allows it. The copy has the model's class and takes any input that the model takes; its
    `report` (an `AccelerationReport`) says what was chosen, and why.

    Args:
        model: any module on the CPU; its nn.Conv2d layers may have been pruned by anyone, by any means.
        example_input: the forward's tensor, or a sequence of its positional arguments, of the size to be fast at.

    Raises:
        InputError: the model is not on the CPU, or does not run on the example.
        WrongOutputError: the copy's outputs differ from the model's by more than 1e-4 relative RMS.
    """
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    _check_devices(model, inputs)
    with torch.no_grad(), _evaluating(model):
        expected = _run(model, inputs)
        fast = _inference_copy(model)
        fusible = find_fusible(fast)
        folded = fold_batch_norms(fast, fusible)
        rows = _tune_layers(fast, inputs, fusible)
        difference = _largest_difference(expected, fast(*inputs))
        if not difference <= MAX_RELATIVE_RMS:  # also when it is nan
            raise WrongOutputError(
                f"the accelerated model differs from the original by {difference:.3g} relative RMS; expected at most "
                f"{MAX_RELATIVE_RMS:g}. Not-a-number means that an output is not finite on this example input."
            )
        times = time_in_turn({"before": lambda: model(*inputs), "after": lambda: fast(*inputs)}, _MIN_RUNS)
    fast.report = AccelerationReport(  # type: ignore[assignment]
        rows=rows,
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        batch_norms_folded=folded,
        before_ms=times["before"].median_ms,
        after_ms=times["after"].median_ms,
        relative_rms=difference,
        notes=[note for note in (native_status().reason, fusible.reason) if note],
    )
    return fast


def _check_devices(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    if not all(isinstance(x, Tensor) for x in inputs):
        found = ", ".join(type(x).__name__ for x in inputs)
        raise InputError(f"accelerate expects example_input to be a tensor or a sequence of tensors; got {found}.")
    devices = {str(t.device) for t in [*model.parameters(), *model.buffers(), *inputs]}
    if devices - {"cpu"}:
        raise InputError(f"accelerate runs on the CPU; model and example_input are on {', '.join(sorted(devices))}.")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> object:
    try:
        return model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"the model does not run on example_input of shape {shapes}: {error}") from error


def _inference_copy(model: nn.Module) -> nn.Module:
    """Copy the model frozen, with pruned and parametrised convolutions made plain ones of the same weight."""
    try:
        fast = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # deepcopy runs foreign code
        raise InputError(f"accelerate cannot copy the model ({type(model).__name__}): {error}") from error
    for name, conv in _convolutions(fast).items():
        is_derived = "weight" not in conv._parameters
        if is_derived and not has_foreign_hooks(conv):
            plain = MaskedConv2d.from_dense(conv).to_dense().requires_grad_(False)
            replace_module(fast, name, plain)
    return fast


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name}


def _tune_layers(fast: nn.Module, inputs: Sequence[Tensor], fusible: Fusible) -> list[LayerReport]:
    """Run the model once; time each convolution when its input arrives; then swap in what won."""
    rows: dict[str, LayerReport] = {}
    winners: dict[str, MaskedConv2d] = {}

    def tune(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        if name not in rows:
            activation = fusible.followers.get(name, Followers()).activation
            follower = fast.get_submodule(activation) if activation else None
            rows[name], winner = _tune_layer(name, conv, follower, x.detach())
            if winner is not None:
                winners[name] = winner

    hooks = [
        conv.register_forward_pre_hook(lambda conv, args, name=name: tune(name, conv, args[0]))
        for name, conv in _convolutions(fast).items()
        if not has_foreign_hooks(conv)
    ]
    fast(*inputs)
    for hook in hooks:
        hook.remove()
    for name, winner in winners.items():
        replace_module(fast, name, winner)
        activation = fusible.followers.get(name, Followers()).activation
        if activation:
            replace_module(fast, activation, nn.Identity())
    return list(rows.values())


def _tune_layer(
    name: str, conv: nn.Conv2d, activation: nn.Module | None, x: Tensor
) -> tuple[LayerReport, MaskedConv2d | None]:
    """Time a convolution, with the activation that may be fused, dense and packed."""

    def dense() -> Tensor:
        y: Tensor = conv.forward(x)
        return y if activation is None else activation(y)

    # The activation may work in place, so its output is the only one to compare with.
    expected = dense()
    row = partial(LayerReport, name, tuple(x.shape), tuple(conv.weight.shape), _density(conv))
    reason = _reason_to_stay_dense(conv, x, expected)
    if reason:
        return row("dense", None, None, reason), None
    candidates = {f"packed, {rows} row{'s'[: rows > 1]}": _packed(conv, activation, rows) for rows in ROW_CHOICES}
    for candidate, module in candidates.items():
        difference = relative_rms(expected, module(x))
        if not difference <= MAX_RELATIVE_RMS:
            raise WrongOutputError(
                f"layer {name} ({candidate}) differs from dense by {difference:.3g} relative RMS; "
                f"expected at most {MAX_RELATIVE_RMS:g}."
            )
    calls: dict[str, Callable[[], object]] = {"dense": dense}
    calls |= {candidate: partial(module, x) for candidate, module in candidates.items()}
    times = {k: t.median_ms for k, t in time_in_turn(calls, _number_of_runs(dense), warm_up=1).items()}
    best = min(candidates, key=lambda candidate: times[candidate])
    if times[best] >= times["dense"]:
        return row("dense", times["dense"], times[best], "dense measured faster"), None
    return row(best, times["dense"], times[best], "measured faster"), candidates[best]


def _density(conv: nn.Conv2d) -> float:
    return int(conv.weight.count_nonzero()) / max(1, conv.weight.numel())


def _reason_to_stay_dense(conv: nn.Conv2d, x: Tensor, expected: Tensor) -> str | None:
    if _density(conv) == 1:
        return "no weight is zero"
    if not native_status().available:
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


def _largest_difference(expected: object, actual: object) -> float:
    """Return the largest relative RMS over the outputs' tensors, whatever their nesting."""
    pairs = zip(tree_leaves(expected), tree_leaves(actual), strict=True)
    return max((relative_rms(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)
