"""Training states in one file each: safetensors, with a description as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.errors import InputError
from prunekit.files import atomic_path
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
    description = {
        "format": FORMAT,
        "step": state.step,
        "config": config.identity(),
        "sha256": tensors_digest(tensors),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"prunekit": json.dumps(description)})


def load_checkpoint(path: str | Path, config: TrainConfig) -> TrainState:
    """Read a state that `save_checkpoint` wrote; `optimise` checks that it is the model's.

    Args:
        path: The safetensors file.
        config: The settings to go on with.

    Raises:
        InputError: When the file is missing, damaged, none of ours, or of other settings.
    """
    description, tensors = _read(Path(path))
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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected a training state at {path}, but reading it failed: {error}") from None
    try:
        description = json.loads(metadata["prunekit"])
        is_ours = description["format"] == FORMAT and isinstance(description["step"], int)
    except (KeyError, TypeError, ValueError):
        is_ours = False
    if not is_ours:
        raise InputError(f"expected a training state at {path}, but the file is none that prunekit wrote")
    return description, tensors
