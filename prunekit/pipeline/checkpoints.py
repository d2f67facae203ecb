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
    save_described(path, state.tensors(), FORMAT, {"step": state.step, "config": config.identity()})


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
        raise InputError(f"Expected a training state at {path}, but it does not say its step.")
    expected = json.loads(json.dumps(config.identity()))
    for name, value in expected.items():
        found = description["config"].get(name)
        if found != value:
            raise InputError(f"Expected the training state {path} to be of {name} {value!r}, but it is of {found!r}.")
    return TrainState.from_tensors(description["step"], tensors)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, as hexadecimal digits; their order does not matter, every bit does."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
