"""Hold a model still while it is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from prunekit.nn.computed_weights import computing_hooks
from prunekit.nn.held_still import buffers_restored


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Run every batch normalization in eval mode inside the block, and check that no buffer changed.

    In training mode each attack step would shift the running statistics towards attacked images; spectral
    normalization, which would advance its power iteration, is held as well. Buffers are put back in any case.

    Raises:
        RuntimeError: something inside the block changed a buffer of the model.
    """
    training = [module for root in model.modules() if _is_held(root) for module in root.modules() if module.training]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with buffers_restored(model):
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise RuntimeError(f"the attack changed the model's buffer {name}, which must stay as it was")


def _is_held(module: nn.Module) -> bool:
    has_spectral_norm = any(isinstance(hook, SpectralNorm) for hook in computing_hooks(module).values())
    return isinstance(module, (_BatchNorm, ParametrizationList)) or has_spectral_norm
