"""Run a model in eval mode and leave it as it was: modes, buffers, and the attributes that hooks compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunekit.nn.computed_weights import computing_hooks


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode inside the block; afterwards modes, buffers and computed weights are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    with buffers_restored(model):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, every buffer and every tensor that torch's hooks (pruning, weight_norm) computed."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    computed = [
        (module, name, module.__dict__[name])
        for module in model.modules()
        for name in computing_hooks(module)
        if name in module.__dict__
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer
            # By values: batch normalization writes its statistics without counting a version of them.
            if not buffer.is_meta and not torch.equal(buffer, values):
                # Tensors of inference mode can only be written to in it.
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(values)
        for module, name, value in computed:
            module.__dict__[name] = value
