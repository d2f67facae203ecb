"""Weights of other programs: state dicts in .pt, .pth and .safetensors files, by the names of the usual CIFAR networks.

ResNets are known by the names of pytorch-cifar and torchvision (conv1, layer1.0.bn2, shortcut.0 or downsample.0, linear
or fc), VGG-16 by features.N and classifier.N; AdversarialPruningBenchmark's checkpoints have these. Pixels are
normalized by the file's own tensors "mean" and "std" (or "mu" and "sigma"); without them the network gets pixels in
[0, 1] as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from prunekit.classification.blocks import Normalize
from prunekit.classification.resnet import ResNet
from prunekit.state_dicts import State, Transfer, load, read_state_dict

_STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}


def load_state_dict(model: nn.Module, path: Path, partly: bool = False) -> Transfer | None:
    """Read a classifier's weights, strictly: every tensor of the file has its place, and none is missing.

    Args:
        model: The classifier; it is left as it was if the file does not fit.
        path: The file.
        partly: Take what fits of a file of other classes.

    Returns:
        What was taken, if it was not all.

    Raises:
        InputError: The file holds no state dict, or one of another model.
    """
    return load(
        model, own_names(model, read_state_dict(path)), path, f"a {type(model).__name__} like the data's", partly
    )


def own_names(model: nn.Module, state: State) -> State:
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
