"""DeepLIFT for all layers at once: one pass on the reference, one forward and one backward on the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.nn.computed_weights import held_weights
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import own_random_state
from prunekit.prune.deeplift.contributions import Sink, WeightContributions
from prunekit.prune.deeplift.graph import check_graph
from prunekit.prune.deeplift.replay import Recorder, Replay, Rule
from prunekit.prune.deeplift.rescale import RESCALE_HANDLERS, rescale
from prunekit.prune.deeplift.reveal_cancel import reveal_cancel
from prunekit.prune.layers import prunable_layers

RuleName = Literal["rescale", "reveal_cancel"]
RULES: dict[RuleName, Callable[[WeightContributions], Rule]] = {"rescale": rescale, "reveal_cancel": reveal_cancel}
Target = Callable[[Any], Tensor]

# Errors of completeness as multiples of eps · `Completeness.size`, measured with official yolov3-tiny weights on
# COCO128: at most 10 for zeros, data mean and attacked images, 140 for changes of 0.001 per pixel, where rounding
# is large beside Δx. The target's change itself is 0.1 to 25 % of that size, so a wrong rule stands out.
TOLERANCE_IN_ROUNDINGS = 1024


class CompletenessError(ArithmeticError):
    """The contributions of an image do not add up to the change of its target: they would mean nothing."""


@dataclass(frozen=True)
class Comparison:
    """Images, what they are compared with, and what is to be explained.

    Attributes:
        x: images [N, ...].
        x_ref: references: one for all, [1, ...], or one per image, [N, ...].
        target: maps the model's outputs to one number per image, [N].
    """

    x: Tensor
    x_ref: Tensor
    target: Target


@dataclass(frozen=True)
class Completeness:
    """What the contributions of each image add up to, and what they should; float64 [N] each.

    Attributes:
        found: Σ C over the convolutions that read the input, plus what reaches the target around them.
        expected: t(x) - t(x_ref).
        size: |t(x)| + |t(x_ref)| + Σ |C|, what rounding is relative to.
    """

    found: Tensor
    expected: Tensor
    size: Tensor


def attribute(
    model: nn.Module, comparison: Comparison, rule: RuleName, tolerance: float | None, sink: Sink
) -> Completeness:
    """Send each layer's contributions, image by image, to `sink`; check that they are complete."""
    _check_comparison(comparison, rule)
    x, x_ref = comparison.x.detach(), comparison.x_ref.detach()
    with (
        held_still(model),
        own_random_state(),
        _as_constants(model),
        _full_precision(x.device.type),
        held_weights(prunable_layers(model)) as layers,
    ):
        weights = WeightContributions(layers, len(x), sink)
        leaf = x.clone().requires_grad_()
        t, t_ref = _run(model, leaf, x_ref, comparison.target, RULES[rule](weights), weights)
        check_graph(t)
        (multiplier,) = torch.autograd.grad(t, leaf, torch.ones_like(t), allow_unused=True)
        weights.finish()
    # What reads the input besides convolutions; those sent no multipliers back.
    rest = torch.zeros_like(x) if multiplier is None else multiplier * (x - x_ref)
    completeness = _add_up(weights, rest, t.detach(), t_ref)
    _check(completeness, TOLERANCE_IN_ROUNDINGS * torch.finfo(x.dtype).eps if tolerance is None else tolerance)
    return completeness


def _check_comparison(comparison: Comparison, rule: RuleName) -> None:
    x, x_ref = comparison.x, comparison.x_ref
    if rule not in RULES:
        raise InputError(f"Expected the rule of DeepLIFT to be one of {', '.join(RULES)}, got {rule!r}.")
    if not x.is_floating_point() or x_ref.dtype != x.dtype:
        raise InputError(f"Expected images and reference of one floating-point dtype, got {x.dtype} and {x_ref.dtype}.")
    if x_ref.shape[1:] != x.shape[1:] or len(x_ref) not in (1, len(x)):
        raise InputError(
            f"Expected a reference of shape {[1, *x.shape[1:]]} or {list(x.shape)}, got {list(x_ref.shape)}."
        )


@contextmanager
def _as_constants(model: nn.Module) -> Iterator[None]:
    """Run the model with its parameters as constants; afterwards all is as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep autocast and TensorFloat-32 away: their roundings, 1000 times larger, would trip the gate."""
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _run(
    model: nn.Module, x: Tensor, x_ref: Tensor, target: Target, rule: Rule, weights: WeightContributions
) -> tuple[Tensor, Tensor]:
    """Return t(x) [N], whose backward pass follows the rule, and t(x_ref) [N]."""
    with torch.no_grad():
        with Recorder(rule.handlers) as model_calls:
            outputs_ref = model(x_ref.clone())
        # One reference for all images: the model met it once, the target needs it beside every image.
        outputs_ref = pytree.tree_map(lambda output: _repeat_to(len(x), output), outputs_ref)
        with Recorder(RESCALE_HANDLERS) as target_calls:
            t_ref = target(outputs_ref)
    with torch.enable_grad():
        weights.model_input = rule.enter(x, x_ref)
        with Replay(rule.handlers, model_calls.calls, rule.rows_per_image):
            outputs = model(weights.model_input)
        outputs = pytree.tree_map(rule.leave, outputs, outputs_ref)
        with Replay(RESCALE_HANDLERS, target_calls.calls):
            t = target(outputs)
    if t.shape != (len(x),) or t_ref.shape != (len(x),):
        raise InputError(f"Expected the target to be one number for each of {len(x)} images, got {list(t.shape)}.")
    return t, t_ref


def _repeat_to(num_images: int, output: Any) -> Any:
    if isinstance(output, Tensor) and output.shape[:1] == (1,) and num_images > 1:
        return output.expand(num_images, *output.shape[1:])
    return output


def _add_up(weights: WeightContributions, rest: Tensor, t: Tensor, t_ref: Tensor) -> Completeness:
    rest, t, t_ref = rest.flatten(1).double().cpu(), t.double().cpu(), t_ref.double().cpu()
    return Completeness(
        found=weights.first_sum + rest.sum(dim=1),
        expected=t - t_ref,
        size=t.abs() + t_ref.abs() + weights.first_size + rest.abs().sum(dim=1),
    )


def _check(completeness: Completeness, tolerance: float) -> None:
    found, expected, size = completeness.found, completeness.expected, completeness.size
    is_complete = (found - expected).abs() <= tolerance * size  # False where anything is nan
    if not is_complete.all():
        image = int((~is_complete).nonzero()[0])
        raise CompletenessError(
            f"DeepLIFT's contributions of image {image} of the batch add up to {found[image]:.9g}, but the target "
            f"changes by {expected[image]:.9g}; they may differ by {tolerance * size[image]:.3g}."
        )
