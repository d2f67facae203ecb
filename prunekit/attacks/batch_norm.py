"""Hold a model still while it is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Run every batch normalisation in eval mode inside the block, and check that no buffer changed.

    In training mode each attack step would shift the running statistics towards attacked images.

    Raises:
        RuntimeError: something inside the block changed a buffer of the model.
    """
    training_norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for norm in training_norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in training_norms:
            norm.train()
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise RuntimeError(f"the attack changed the model's buffer {name}, which must stay as it was")
