"""Weights of other programs: state dicts in .pt, .pth and .safetensors files, by the names of the usual CIFAR networks.

Nothing in a file is executed: torch reads with `weights_only`, and a file that needs more is refused. ResNets are known
by the names of pytorch-cifar and torchvision (conv1, layer1.0.bn2, shortcut.0 or downsample.0, linear or fc), VGG-16 by
features.N and classifier.N; AdversarialPruningBenchmark's checkpoints have these. Pixels are normalized by the file's
own tensors "mean" and "std" (or "mu" and "sigma"); without them the network gets pixels in [0, 1] as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunekit.classification.blocks import Normalize
from prunekit.classification.resnet import ResNet
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file

State = dict[str, Tensor]

_UNDER = ("state_dict", "model", "net", "model_state_dict")  # keys of checkpoints that hold the state dict
_PREFIX = "module."  # of nn.DataParallel
_STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
_COUNTER = "num_batches_tracked"  # absent from old files; nothing here reads it


def load_state_dict(model: nn.Module, path: Path) -> None:
    """Read a classifier's weights, strictly: every tensor of the file has its place, and none is missing.

    Raises:
        InputError: The file holds no state dict, or one of another model; the model is left as it was.
    """
    state = _renamed(model, _state_dict(_read(path), path))
    own = model.state_dict()
    state = {key: value for key, value in own.items() if key.endswith(_COUNTER)} | state
    wrong = _difference(own, state)
    if wrong:
        raise InputError(
            f"--weights: expected the weights of a {type(model).__name__} like the data's in {path}, {wrong}."
        )
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    try:
        if is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file:  # not the path: torch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"--weights: expected a state dict in {path}, got a damaged file: {error}.") from None
    except Exception:  # whatever a damaged or foreign file makes torch stumble over
        found = kind_of_file(path) or "of no known kind"
        raise InputError(f"--weights: expected a file with a state dict, but {path} is {found}.") from None


def _state_dict(content: Any, path: Path) -> State:
    """Return the state dict that a file holds at its top or under one of the usual keys."""
    if isinstance(content, Mapping):
        for found in (content, *(content.get(key) for key in _UNDER)):
            if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
                return {str(key).removeprefix(_PREFIX): value for key, value in found.items()}
    keys = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise InputError(
        f"--weights: expected a state dict of tensors in {path}, at its top or under {', '.join(_UNDER)}, got {keys}."
    )


def _renamed(model: nn.Module, state: State) -> State:
    """Return a state dict under the model's own names, with what normalizes its pixels."""
    if not any(isinstance(module, Normalize) for module in model.modules()) or "normalize.mean" in state:
        return state
    statistics = {"normalize.mean": torch.zeros(3, 1, 1), "normalize.std": torch.ones(3, 1, 1)}
    statistics |= {
        f"normalize.{_STATISTICS[key]}": value.view(3, 1, 1)
        for key, value in state.items()
        if key in _STATISTICS and value.numel() == 3
    }
    return statistics | {_own_name(model, key): value for key, value in state.items() if key not in _STATISTICS}


def _own_name(model: nn.Module, key: str) -> str:
    if not isinstance(model, ResNet):
        return key
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(.*)", key):
        stage, block, rest = int(match[1]), int(match[2]), match[3]
        return f"blocks.{sum(model.block_counts[: stage - 1]) + block}.{_in_block(rest)}"
    key = re.sub(r"^(linear|fc)\.", "head.", key)
    return re.sub(r"^(conv|bn)1\.", lambda found: f"stem.{int(found[1] == 'bn')}.", key)


def _in_block(key: str) -> str:
    key = re.sub(r"^downsample\.", "shortcut.", key)
    return re.sub(
        r"^(conv|bn)(\d)\.", lambda found: f"body.{3 * (int(found[2]) - 1) + int(found[1] == 'bn')}.", key
    )  # convolution, batch normalization, ReLU


def _difference(own: State, state: State) -> str:
    """Return what keeps a state dict from being the model's, or ""."""
    if missing := [key for key in own if key not in state]:
        return f"but {missing[0]} is missing"
    if strange := [key for key in state if key not in own]:
        return f"got {strange[0]}, which it does not have"
    if other := [key for key in own if own[key].shape != state[key].shape]:
        return f"got {other[0]} of shape {list(state[other[0]].shape)} for {list(own[other[0]].shape)}"
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"but {bad[0]} has values that are not finite" if bad else ""
