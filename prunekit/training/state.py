"""All that training needs to go on where it stopped and to end in the same bits, in memory and in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit import documents
from prunekit.documents import read_described
from prunekit.errors import InputError
from prunekit.training.config import TrainConfig


@dataclass(frozen=True)
class TrainState:
    """Where training stands between two steps.

    A state that `optimize` hands out refers to the live tensors: write or `clone` it before training goes on.

    Attributes:
        step: Updates made so far.
        module: The module's parameters and buffers, by name.
        optimizer: The optimizer's tensors of each trained parameter, by the parameter's name and theirs.
        averages: Averaged parameters and buffers, by name; empty when no average is kept.
        delta: The perturbation that the objective carries from step to step, if it does.
        pool: The losses that the attacks of a pool cause, if the objective draws from one.
        best: The module's averaged tensors after the epoch that did best on the holdout, if one is asked.
        best_loss: Its loss there, a scalar.
    """

    step: int
    module: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    delta: Tensor | None = None
    best: Mapping[str, Tensor] = field(default_factory=dict)
    best_loss: Tensor | None = None
    pool: Tensor | None = None

    def clone(self) -> TrainState:
        """Return a state that training does not change any more."""
        return TrainState.from_tensors(self.step, {name: value.clone() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under one name each."""
        named = {f"module/{name}": value for name, value in self.module.items()}
        for parameter, values in self.optimizer.items():
            named |= {f"optimizer/{parameter}/{name}": value for name, value in values.items()}
        for group, values in (("averages", self.averages), ("best", self.best)):
            named |= {f"{group}/{name}": value for name, value in values.items()}
        single = {"delta": self.delta, "best_loss": self.best_loss, "pool": self.pool}
        return named | {name: value for name, value in single.items() if value is not None}

    @classmethod
    def from_tensors(cls, step: int, tensors: Mapping[str, Tensor]) -> TrainState:
        """Build the state whose `tensors()` these are."""
        groups: dict[str, dict[str, Tensor]] = {"module": {}, "averages": {}, "best": {}}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for full_name, value in tensors.items():
            group, _, name = full_name.partition("/")
            if group == "optimizer":
                parameter, _, key = name.rpartition("/")
                optimizer.setdefault(parameter, {})[key] = value
            elif group in groups:
                groups[group][name] = value
        single = {name: tensors.get(name) for name in ("delta", "best_loss", "pool")}
        return cls(step, groups["module"], optimizer, groups["averages"], best=groups["best"], **single)


def capture(
    step: int,
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Tensor],
    delta: Tensor | None,
    best: Mapping[str, Tensor],
    best_loss: Tensor | None,
    pool: Tensor | None,
) -> TrainState:
    """Return the state between two steps; its tensors are the live ones."""
    slots = {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in parameters.items()
        if optimizer.state[parameter]
    }
    return TrainState(step, tensors_of(module), slots, averages, delta, best, best_loss, pool)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers, by name."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def restore(state: TrainState, module: nn.Module) -> None:
    """Set a module's parameters and buffers to those of a state.

    Raises:
        InputError: When the state is another model's.
    """
    _copy_into(tensors_of(module), state.module)


def load_averages(state: TrainState, module: nn.Module) -> None:
    """Set what was averaged to its average; without averages, the module to the state's."""
    restore(state, module)
    current = tensors_of(module)
    _copy_into({name: current[name] for name in state.averages if name in current}, state.averages)


def load_best(state: TrainState, module: nn.Module) -> None:
    """Set a module to what did best on the holdout.

    Raises:
        InputError: When the state is another model's, or nothing was selected.
    """
    _copy_into(tensors_of(module), state.best)


@contextmanager
def averaged(state: TrainState, module: nn.Module) -> Iterator[None]:
    """Set a module to its averages and to eval mode inside the block, and back to where it was behind it."""
    before = {name: value.clone() for name, value in tensors_of(module).items()}
    modes = [(part, part.training) for part in module.modules()]
    load_averages(state, module)
    module.eval()
    try:
        yield
    finally:
        _copy_into(tensors_of(module), before)
        for part, mode in modes:
            part.training = mode


def restore_optimizer(
    state: TrainState, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Set the optimizer's tensors to those of a state.

    Raises:
        InputError: When the state trained other parameters.
    """
    unknown = sorted(set(state.optimizer) - set(parameters))
    if unknown:
        raise InputError(f"Expected a state that trains the same parameters, but it also trains {unknown[0]!r}")
    for name, slots in state.optimizer.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {key: _placed_like(parameter, value) for key, value in slots.items()}


def starting_averages(
    state: TrainState | None, module: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return what is averaged, trained parameters and all buffers: the state's averages, or else the current values."""
    averaged = set(parameters) | {name for name, _ in module.named_buffers()}
    averages = {name: value.clone() for name, value in tensors_of(module).items() if name in averaged}
    if state is not None:
        _copy_into(averages, state.averages)
    return averages


@torch.no_grad()
def update_averages(averages: Mapping[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move each average towards the current value; what is no floating-point number is copied."""
    current = tensors_of(module)
    for name, value in averages.items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy a tensor to where and how the parameter lies in memory: the order of operations depends on it."""
    if value.shape != parameter.shape:
        return value.clone()  # AdamW's count of steps, which stays on the CPU
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


@torch.no_grad()
def _copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    if set(targets) != set(values):
        other = sorted(set(targets) ^ set(values))
        whose = "lacks" if other[0] in targets else "has"
        raise InputError(f"Expected the state of this model, but it {whose} {other[0]!r}")
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise InputError(
                f"Expected {name!r} of shape {list(target.shape)} in the state, got {list(values[name].shape)}"
            )
    for name, target in targets.items():
        target.copy_(values[name])


FORMAT = "prunekit training state 1"


def save_checkpoint(path: str | Path, state: TrainState, config: TrainConfig) -> None:
    """Write a state atomically: the file is complete, or still the one before.

    Args:
        path: The safetensors file.
        state: What to write.
        config: The settings that led to it; loading asks for the same ones.
    """
    documents.write(path, state.tensors(), {"format": FORMAT, "step": state.step, "config": config.identity()})


def load_checkpoint(path: str | Path, config: TrainConfig) -> TrainState:
    """Read a state that `save_checkpoint` wrote; `optimize` checks that it is the model's.

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
