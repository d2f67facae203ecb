"""accelerate: every convolution on the implementation that measured fastest on this machine.

    fast = accelerate(model, example_input)
    print(fast.report)

The exact zeros of each weight are its mask. Each convolution is timed dense and packed, on the input that reaches it
from `example_input`, after its packed output was found equal; where dense is faster, it stays dense. Nothing is
chosen by rule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
    replace_module,
)
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.tuning import MAX_RELATIVE_RMS, WrongOutputError, tune_layer
from prunekit.ops import native_status
from prunekit.timing import relative_rms, time_in_turn

_WHOLE_MODEL_RUNS = 3


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
        times = time_in_turn({"before": lambda: model(*inputs), "after": lambda: fast(*inputs)}, _WHOLE_MODEL_RUNS)
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
            rows[name], winner = tune_layer(name, conv, follower, x.detach())
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


def _largest_difference(expected: object, actual: object) -> float:
    """Return the largest relative RMS over the outputs' tensors, whatever their nesting."""
    pairs = zip(tree_leaves(expected), tree_leaves(actual), strict=True)
    return max((relative_rms(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)
