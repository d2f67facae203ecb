"""Scores and masks in files: one tensor for each prunable layer, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.files import atomic_path, copied_tensors
from prunekit.prune.layers import prunable_layers


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one tensor a layer as a safetensors file, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: str | Path, what: str) -> dict[str, Tensor]:
    """Read a safetensors file; `what` says in the message what was expected in it."""
    try:
        with safe_open(path, framework="pt") as file:
            return copied_tensors(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"Expected a safetensors file of {what} at {path}, but reading it failed: {error}.") from None


def check_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, kind: str, is_right: Callable[[Tensor], bool]
) -> None:
    """Raise InputError unless each prunable layer of `model`, and nothing else, has a tensor that fits its weight.

    Args:
        model: The model that the tensors are for.
        tensors: Layer name → tensor of the layer's weight's shape.
        source: What the message calls them: a file's path, say.
        kind: What the message calls one of them.
        is_right: Whether a tensor is of that kind.
    """
    layers = prunable_layers(model)
    missing, unknown = sorted(layers.keys() - tensors.keys()), sorted(tensors.keys() - layers.keys())
    if missing or unknown:
        raise InputError(
            f"Expected {source} to name the model's {len(layers)} convolutions, "
            f"but it lacks {missing[:3] or 'none'} and has the unknown {unknown[:3] or 'none'}."
        )
    for name, conv in layers.items():
        tensor, shape = tensors[name], tuple(conv.weight.shape)
        if not is_right(tensor) or tuple(tensor.shape) != shape:
            raise InputError(
                f"Expected {source} to hold a {kind} of shape {shape} for layer {name!r}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}."
            )
