"""Training goes on: the optimizer's state, cut as the parameters were."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.compaction.compact import CompactionResult
from prunekit.compaction.surgery import select
from prunekit.errors import InputError


def carry_optimizer(optimizer: Optimizer, model: nn.Module, result: CompactionResult) -> Optimizer:
    """Return an optimizer of the same kind for `result.model`, with what `optimizer` knows of the channels that stayed.

    SGD's momentum, Adam's moments and whatever else has a parameter's shape is cut as the parameter was; step counts
    and settings are copied. A bias that took constants in and did not exist before joins its weight's group.

    Args:
        optimizer: It holds parameters of `model`, and is not changed.
        model: The model that was compacted.
        result: What `compact` returned.

    Raises:
        InputError: The optimizer holds parameters that `model` or the compacted model lacks, or keeps a state that is
            neither a number nor of a parameter's shape.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(result.model.named_parameters())
    groups = []
    for group in optimizer.param_groups:
        members = [_name(names, parameters, parameter) for parameter in group["params"]]
        members += _new_biases(members, names, parameters)
        groups.append({**group, "params": [parameters[name] for name in members]})
    known = inspect.signature(type(optimizer).__init__).parameters
    carried = type(optimizer)(groups, **{key: v for key, v in optimizer.defaults.items() if key in known})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = optimizer.state.get(parameter)
            if state:
                carried.state[parameters[name]] = {
                    key: _carry(result, name, parameter, key, value) for key, value in state.items()
                }
    return carried


def _name(names: dict[int, str], parameters: dict[str, nn.Parameter], parameter: Tensor) -> str:
    name = names.get(id(parameter))
    if name is None or name not in parameters:
        raise InputError(
            f"Expected an optimizer of the model's parameters, but it holds {name or 'a tensor'} of shape "
            f"{tuple(parameter.shape)}, which the {'compacted ' if name else ''}model does not have."
        )
    return name


def _new_biases(members: list[str], names: dict[int, str], parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return the biases that folding made, of layers whose weights are in the group."""
    before = set(names.values())
    weights = [name for name in members if name.rpartition(".")[2] == "weight"]
    biases = [name.removesuffix("weight") + "bias" for name in weights]
    return [name for name in biases if name in parameters and name not in before]


def _carry(result: CompactionResult, name: str, parameter: Tensor, key: str, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, Tensor) else value
    if value.shape == parameter.shape:
        with torch.no_grad():
            return select(result.plan, name, value).clone()
    raise InputError(
        f"Expected a state of {name} to be a number or to have its shape {tuple(parameter.shape)}, but {key!r} has "
        f"shape {tuple(value.shape)}: this optimizer cannot be carried through a cut."
    )
