"""The activations that the engine computes: one row each, and a functor in csrc/cpu/lane_activations.h."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import InputError


@dataclass(frozen=True)
class Activation:
    """An activation and its parameter: leaky_relu's slope below zero, elu's alpha, 0 for the others."""

    kind: str = "none"
    negative_slope: float = 0.0


@dataclass(frozen=True)
class ActivationKind:
    """A row of the table.

    Attributes:
        function: torch's, of a tensor and the parameter; with a third argument True in place.
        operator: ATen's that is read as it, or None.
        parameter: The name of the operator's argument that is the parameter, or None.
        expected: The operator's other arguments, which have to have these values.
    """

    function: Callable[[Tensor, float, bool], Tensor]
    operator: str | None = None
    parameter: str | None = None
    expected: Mapping[str, Any] | None = None

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether the kernels compute an operator with these arguments."""
        return all(arguments.get(name) == value for name, value in (self.expected or {}).items())


def _in_place(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float, bool], Tensor]:
    """Give a function that has no in-place form one."""
    return lambda x, _, in_place: x.copy_(function(x)) if in_place else function(x)


#: By name; the order is PRUNEKIT_ACTIVATIONS' in csrc/cpu/lane_kernels.h.
ACTIVATIONS: dict[str, ActivationKind] = {
    "none": ActivationKind(lambda x, _, in_place: x),
    "leaky_relu": ActivationKind(F.leaky_relu, "aten.leaky_relu.default", "negative_slope"),
    "relu": ActivationKind(lambda x, _, in_place: F.relu(x, in_place), "aten.relu.default"),
    "relu6": ActivationKind(lambda x, _, in_place: F.relu6(x, in_place), "aten.relu6.default"),
    "silu": ActivationKind(lambda x, _, in_place: F.silu(x, in_place), "aten.silu.default"),
    "hardswish": ActivationKind(lambda x, _, in_place: F.hardswish(x, in_place), "aten.hardswish.default"),
    "sigmoid": ActivationKind(lambda x, _, in_place: x.sigmoid_() if in_place else x.sigmoid(), "aten.sigmoid.default"),
    "hardsigmoid": ActivationKind(lambda x, _, in_place: F.hardsigmoid(x, in_place), "aten.hardsigmoid.default"),
    "tanh": ActivationKind(lambda x, _, in_place: x.tanh_() if in_place else x.tanh(), "aten.tanh.default"),
    "gelu": ActivationKind(_in_place(F.gelu), "aten.gelu.default", expected={"approximate": "none"}),
    "gelu_tanh": ActivationKind(
        _in_place(lambda x: F.gelu(x, approximate="tanh")), "aten.gelu.default", expected={"approximate": "tanh"}
    ),
    "mish": ActivationKind(lambda x, _, in_place: F.mish(x, in_place), "aten.mish.default"),
    "elu": ActivationKind(F.elu, "aten.elu.default", "alpha", {"scale": 1, "input_scale": 1}),
}


def activate(x: Tensor, activation: Activation, *, in_place: bool = False) -> Tensor:
    """Return the activation of x by torch.

    Raises:
        InputError: there is no activation of this kind.
    """
    if activation.kind not in ACTIVATIONS:
        raise InputError(f"Expected an activation out of {', '.join(ACTIVATIONS)}, got {activation.kind!r}.")
    return ACTIVATIONS[activation.kind].function(x, activation.negative_slope, in_place)


def activation_of(operator: str, arguments: Mapping[str, Any]) -> Activation | None:
    """Return the activation that an ATen operator with these arguments is, or None."""
    for kind, row in ACTIVATIONS.items():
        if row.operator == operator and row.accepts(arguments):
            return Activation(kind, float(arguments[row.parameter]) if row.parameter else 0.0)
    return None


OPERATORS = tuple(dict.fromkeys(row.operator for row in ACTIVATIONS.values() if row.operator is not None))
