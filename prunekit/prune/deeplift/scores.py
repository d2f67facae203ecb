"""DeepLIFT scores of convolution weights: one forward and one backward pass for all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.prune.deeplift.contributions import Sink, WeightContributions
from prunekit.prune.deeplift.graph import check_graph
from prunekit.prune.deeplift.replay import Recorder, Replay, Rule
from prunekit.prune.deeplift.rescale import RESCALE_HANDLERS, rescale
from prunekit.prune.deeplift.reveal_cancel import reveal_cancel
from prunekit.prune.layers import prunable_layers
from prunekit.prune.scores import scaled_scores

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


@dataclass(frozen=True)
class Contributions:
    """Signed contributions: layer name → [N, *the weight's shape], and the sums that they must give."""

    layers: dict[str, Tensor]
    completeness: Completeness


def deeplift_scores(
    model: nn.Module, comparisons: Iterable[Comparison], rule: RuleName = "rescale", tolerance: float | None = None
) -> dict[str, Tensor]:
    """Score every convolution weight by its mean absolute contribution over all images.

    The model may be in any mode: it runs in eval mode and is left as it was.

    Args:
        model: any module; its `nn.Conv2d` layers are scored.
        comparisons: the batches.
        rule: "rescale", or "reveal_cancel", which keeps rises and falls apart and takes about three times as long.
        tolerance: largest error of completeness relative to `Completeness.size`; 1024 roundings of the
            images' dtype if None (1.2e-4 for float32).

    Returns:
        Layer name → scores >= 0 of the layer's weight's shape.

    Raises:
        CompletenessError: contributions do not add up to the target's change in some image.
        InputError: no images, or a model or target with a step that DeepLIFT has no rule for.
    """
    totals = {name: torch.zeros_like(conv.weight.detach()) for name, conv in prunable_layers(model).items()}

    def add(layer: str, image: int, contributions: Tensor) -> None:
        totals[layer] += contributions.abs()

    num_images = 0
    for comparison in comparisons:
        attribute(model, comparison, rule, tolerance, add)
        num_images += len(comparison.x)
    if num_images == 0:
        raise InputError("Expected at least one image to compute DeepLIFT scores from, got none.")
    return {name: total / num_images for name, total in totals.items()}


def deeplift_contributions(
    model: nn.Module, comparison: Comparison, rule: RuleName = "rescale", tolerance: float | None = None
) -> Contributions:
    """Return the signed contributions per image: N times the model's size in memory.

    Args:
        model: see `deeplift_scores`.
        comparison: the images.
        rule: see `deeplift_scores`.
        tolerance: see `deeplift_scores`.
    """
    layers = {
        name: conv.weight.new_zeros(len(comparison.x), *conv.weight.shape, requires_grad=False)
        for name, conv in prunable_layers(model).items()
    }

    def keep(layer: str, image: int, contributions: Tensor) -> None:
        layers[layer][image] = contributions

    completeness = attribute(model, comparison, rule, tolerance, keep)
    return Contributions(layers, completeness)


def initial_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepLIFT scores into a start for optimised scores: the weights' signs, and HYDRA's scale per layer."""
    layers = prunable_layers(model)
    return {name: scaled_scores(score * layers[name].weight.detach().sign()) for name, score in scores.items()}


def data_mean(batches: Iterable[Tensor]) -> Tensor:
    """Average images [N, C, H, W] over all batches: a reference [1, C, H, W] shared by all images."""
    total, count, dtype = None, 0, torch.float32
    for x in batches:
        batch_sum = x.sum(dim=0, keepdim=True, dtype=torch.float64)
        total = batch_sum if total is None else total + batch_sum
        count, dtype = count + len(x), x.dtype
    if total is None or count == 0:
        raise InputError("Expected at least one image to average, got none.")
    return (total / count).to(dtype)


def attribute(
    model: nn.Module, comparison: Comparison, rule: RuleName, tolerance: float | None, sink: Sink
) -> Completeness:
    """Send each layer's contributions, image by image, to `sink`; check that they are complete."""
    _check_comparison(comparison, rule)
    x, x_ref = comparison.x.detach(), comparison.x_ref.detach()
    with _held_still(model), parametrize.cached():  # cached: one tensor per weight, whichever way it is computed
        weights = WeightContributions(prunable_layers(model), len(x), sink)
        leaf = x.clone().requires_grad_()
        t, t_ref = _run(model, leaf, x_ref, comparison.target, RULES[rule](weights), weights)
        check_graph(t)
        (multiplier,) = torch.autograd.grad(t.sum(), leaf, allow_unused=True)
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
    if x_ref.shape[1:] != x.shape[1:] or len(x_ref) not in (1, len(x)):
        raise InputError(
            f"Expected a reference of shape {[1, *x.shape[1:]]} or {list(x.shape)}, got {list(x_ref.shape)}."
        )


@contextmanager
def _held_still(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode and its parameters as constants; afterwards all is as it was."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


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
        with Replay(rule.handlers, model_calls.calls):
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
