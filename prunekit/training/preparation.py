"""A module made ready to train: on its device, in its modes, with only the chosen parameters differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.errors import InputError
from prunekit.training.config import Precision, TrainConfig, require_device
from prunekit.training.quantization_aware import QuantizationAware

_FLOATS_OF_A_VECTOR = 16  # of AVX-512; 8 of AVX2


@contextmanager
def prepared(module: nn.Module, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> Iterator[nn.Module]:
    """Yield the network to train: the module, in the config's precision, batch normalization and device.

    Afterwards modes, `requires_grad` and torch's global random state are as before; the module stays on the device, in
    the memory format that it was trained in.
    """
    device = require_device(config.device)
    trained = {id(parameter) for parameter in parameters_that_train(module, parameters, config).values()}
    needed_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    was_training = [(child, child.training) for child in module.modules()]
    module.to(device).to(memory_format=memory_format(module))  # type: ignore[call-overload]
    try:
        module.train()
        if config.batch_norm != "live":
            for norm in _batch_norms(module):
                norm.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield _in_precision(module, config.precision, device.type)
    finally:
        for child, mode in was_training:
            child.training = mode
        for parameter, needed in needed_grad:
            parameter.requires_grad_(needed)
            parameter.grad = None


def _in_precision(module: nn.Module, precision: Precision, device_type: str) -> nn.Module:
    if precision == "bfloat16":
        return _Autocast(module, device_type, torch.bfloat16)
    return QuantizationAware(module) if precision == "int8" else module


def memory_format(module: nn.Module) -> torch.memory_format:
    """Return how images and filters of a module lie in memory while it trains.

    Channels last, which is 1.4 times faster than NCHW on narrow layers; NCHW for modules with a strided 1x1 convolution
    of fewer input channels than a vector holds, for which oneDNN's gradient of the weights writes past its buffer in
    channels-last memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    is_unsafe = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < _FLOATS_OF_A_VECTOR
        for layer in module.modules()
    )
    return torch.contiguous_format if is_unsafe else torch.channels_last


def parameters_that_train(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], config: TrainConfig
) -> dict[str, nn.Parameter]:
    """Return the given parameters, less batch normalization's when the config freezes it.

    Raises:
        InputError: When one is not the module's, or none is left.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    strange = [name for name, parameter in parameters.items() if own.get(name) is not parameter]
    if strange:
        raise InputError(f"Expected parameters of the module, but {strange[0]!r} is none of them")
    is_frozen = config.batch_norm == "frozen"
    frozen = {id(parameter) for norm in _batch_norms(module) for parameter in norm.parameters()} if is_frozen else set()
    chosen = {name: parameter for name, parameter in parameters.items() if id(parameter) not in frozen}
    if not chosen:
        raise InputError("Expected at least one parameter to train, but there is none")
    return chosen


class _Autocast(nn.Module):
    """Computes a module's outputs in a lower precision and returns them as float32.

    Losses are then computed in float32: bfloat16 cannot tell two boxes apart that differ by a pixel.
    """

    def __init__(self, module: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self._device_type, self._dtype = device_type, dtype

    def forward(self, x: Tensor) -> Any:
        with torch.autocast(self._device_type, self._dtype):
            outputs = self.module(x)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]
