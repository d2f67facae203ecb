"""Which layers pruning touches."""

from __future__ import annotations

from torch import nn


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the layers that pruning touches: every `nn.Conv2d`, stem and heads included, as in HYDRA."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
