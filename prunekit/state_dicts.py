"""State dicts of files that other programs wrote, and what a model can take from one of another number of classes.

Nothing in a file is executed: torch reads with `weights_only`, and a file that needs more is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file

State = dict[str, Tensor]

_UNDER = ("state_dict", "model", "net", "model_state_dict", "ema")  # keys of checkpoints that hold the state dict
_PREFIX = "module."  # of nn.DataParallel
_COUNTER = "num_batches_tracked"  # absent from old files; nothing here reads it
_NAMED = 4  # layers that a message names


@dataclass(frozen=True)
class Transfer:
    """What a model took from weights of other classes, or of a part of it.

    Attributes:
        taken: Names of the layers that have the file's weights.
        made_anew: Names of those that keep their own, untrained.
        num_classes: Of the model whose weights the file holds, where its reader can tell.
    """

    taken: tuple[str, ...]
    made_anew: tuple[str, ...]
    num_classes: int | None = None

    @property
    def unless_whole(self) -> Transfer | None:
        """What was taken; None where all of it was."""
        return self if self.made_anew else None

    @property
    def summary(self) -> str:
        """What was taken, in one line."""
        return f"took {len(self.taken)} of {len(self.taken) + len(self.made_anew)} layers; made anew: " + (
            _listed(self.made_anew) or "none"
        )


def read_state_dict(path: Path) -> State:
    """Return the state dict of a .pt, .pth or .safetensors file, found at its top or under one of the usual keys.

    Raises:
        InputError: The file cannot be read, holds no state dict, or needs classes to be unpickled.
    """
    content = _read(path)
    if isinstance(content, Mapping):
        for found in (content, *(content.get(key) for key in _UNDER)):
            if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
                return {str(key).removeprefix(_PREFIX): value for key, value in found.items()}
    keys = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise InputError(
        f"--weights: expected a state dict of tensors in {path}, at its top or under {', '.join(_UNDER)}, got {keys}."
    )


def load(model: nn.Module, state: Mapping[str, Tensor], path: Path, what: str, partly: bool) -> Transfer | None:
    """`fill` a model, or with `partly` `transfer`; return what was taken if it was not all."""
    if partly:
        return transfer(model, state, path, what).unless_whole
    fill(model, state, path, what)
    return None


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load a state dict strictly: every tensor of the file has its place, and none is missing.

    Args:
        model: It is left as it was if the state dict does not fit.
        state: By the model's own names.
        path: The file, for the error.
        what: Whose weights are expected, for the error.

    Raises:
        InputError: When it is of another model, or has values that are not finite.
    """
    own = model.state_dict()
    state = {key: value for key, value in own.items() if key.endswith(_COUNTER)} | dict(state)
    if wrong := _difference(own, state):
        raise InputError(f"--weights: expected the weights of {what} in {path}, {wrong}.")
    model.load_state_dict(state)


def transfer(model: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> Transfer:
    """Fill the layers of a model that fit; those that do not, heads of other classes, stay as they are.

    Args:
        model: It is left as it was if the file is of another model.
        state: By the model's own names.
        path: The file, for the error.
        what: Whose weights are expected, for the error.

    Raises:
        InputError: When fewer than half of the model's numbers fit, or some are not finite.
    """
    own = model.state_dict()
    layers: dict[str, list[str]] = {}
    for key in own:
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    taken = [layer for layer, keys in layers.items() if all(_fits(key, own, state) for key in keys)]
    fitting = {key: state[key] for layer in taken for key in layers[layer] if key in state}
    if 2 * sum(value.numel() for value in fitting.values()) < sum(value.numel() for value in own.values()):
        wrong = _difference(own, state)
        raise InputError(f"--weights: expected the weights of {what} of whatever classes in {path}, {wrong}.")
    if wrong := _not_finite(fitting):
        raise InputError(f"--weights: expected the weights of {what} in {path}, {wrong}.")
    model.load_state_dict(fitting, strict=False)
    return Transfer(tuple(taken), tuple(layer for layer in layers if layer not in taken))


def num_classes_in(state: Mapping[str, Tensor], outlined: Callable[..., nn.Module]) -> int | None:
    """Return the number of classes of a state dict's model, told by the sizes that grow with it.

    Args:
        state: By the model's own names.
        outlined: Builds the model without memory for a number of classes, `num_classes`.

    Returns:
        The number with which every tensor fits; None if there is none.
    """
    two, three = (outlined(num_classes=number).state_dict() for number in (2, 3))
    grows = next((key for key in two if two[key].shape != three[key].shape), None)
    if grows is None or grows not in state or not state[grows].ndim:
        return None
    rows, more = len(two[grows]), len(three[grows]) - len(two[grows])
    found, rest = divmod(len(state[grows]) - rows, more) if more > 0 else (0, 1)
    if rest or found + 2 < 1:
        return None
    wanted = outlined(num_classes=found + 2).state_dict()
    return found + 2 if all(_fits(key, wanted, state) for key in wanted) else None


def _fits(key: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return key.endswith(_COUNTER) or (key in state and state[key].shape == own[key].shape)


def _read(path: Path) -> Any:
    try:
        if is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file, warnings.catch_warnings():  # not the path: torch goes by the suffix
            warnings.simplefilter("ignore")  # about pickles of other protocols, which are refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"--weights: expected a state dict in {path}, got a damaged file: {error}.") from None
    except Exception:  # whatever a damaged or foreign file makes torch stumble over
        found = kind_of_file(path) or "of no known kind"
        raise InputError(f"--weights: expected a file with a state dict, but {path} is {found}.") from None


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return what keeps a state dict from being the model's, or ""."""
    if missing := [key for key in own if key not in state]:
        return f"but {missing[0]} is missing"
    if strange := [key for key in state if key not in own]:
        return f"got {strange[0]}, which it does not have"
    if other := [key for key in own if own[key].shape != state[key].shape]:
        return f"got {other[0]} of shape {list(state[other[0]].shape)} for {list(own[other[0]].shape)}"
    if whole := [key for key in own if own[key].is_floating_point() and not state[key].is_floating_point()]:
        return f"got {whole[0]} of {state[whole[0]].dtype} for {own[whole[0]].dtype}"
    return _not_finite(state)


def _not_finite(state: Mapping[str, Tensor]) -> str:
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"but {bad[0]} has values that are not finite" if bad else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
