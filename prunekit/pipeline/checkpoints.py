"""Training states in one file each: safetensors, with a description as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.pipeline.described_tensors import read_described, save_described
from prunekit.pipeline.train_config import TrainConfig
from prunekit.pipeline.train_state import TrainState

FORMAT = "prunekit training state 1"


def save_checkpoint(path: str | Path, state: TrainState, config: TrainConfig) -> None:
    """Write a state atomically: the file is complete, or still the one before.

    Args:
        path: The safetensors file.
        state: What to write.
        config: The settings that led to it; loading asks for the same ones.
    """
    tensors = _separate({name: value.detach().cpu().contiguous() for name, value in state.tensors().items()})
    description = {"step": state.step, "config": config.identity(), "sha256": tensors_digest(tensors)}
    save_described(path, tensors, FORMAT, description)


def load_checkpoint(path: str | Path, config: TrainConfig) -> TrainState:
    """Read a state that `save_checkpoint` wrote; `optimise` checks that it is the model's.

    Args:
        path: The safetensors file.
        config: The settings to go on with.

    Raises:
        InputError: When the file is missing, damaged, none of ours, or of other settings.
    """
    description, tensors = read_described(path, FORMAT, "a training state")
    if not isinstance(description.get("step"), int):
        raise InputError(f"expected a training state at {path}, but it does not say its step")
    expected = json.loads(json.dumps(config.identity()))
    for name, value in expected.items():
        found = description["config"].get(name)
        if found != value:
            raise InputError(f"expected the training state {path} to be of {name} {value!r}, but it is of {found!r}")
    if tensors_digest(tensors) != description["sha256"]:
        raise InputError(f"expected the training state {path} to be as it was written, but its content is damaged")
    return TrainState.from_tensors(description["step"], tensors)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, as hexadecimal digits; their order does not matter, every bit does."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, as tied weights do: the format stores each by itself."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return separate
