"""What a sparse kernel does with a finished sum, as csrc/cuda/epilogue.cuh does it."""

from __future__ import annotations

from torch import Tensor

from prunekit.ops.packed_conv2d import activate

#: The ops' activations; the number is csrc/cuda/epilogue.h's ActivationPlace. "leaky_relu" comes before the residual is
#: added, as in darknet, "leaky_relu_last" after it, as in ResNets. A slope of 0 is ReLU.
EPILOGUES = ("none", "leaky_relu", "leaky_relu_last")


def finish(y: Tensor, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Return activation(y) + residual, or with "leaky_relu_last" activation(y + residual).

    Args:
        y: the convolution with its bias.
        residual: of y's shape, or None.
        activation: one of `EPILOGUES`.
        negative_slope: of it.
    """
    is_last = activation == "leaky_relu_last"
    if not is_last:
        y = activate(y, activation, negative_slope)
    y = y if residual is None else y + residual
    return activate(y, "leaky_relu", negative_slope) if is_last else y
