"""Nets wired by hand, and whether their compaction answers as the masked net does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.compaction import CompactionResult, compact
from tests.support.compaction_nets import masked, randomize
from tests.support.pruning_nets import Net

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net_of(wiring: Callable[[Any, Tensor], Any], **layers: nn.Module) -> Any:
    torch.manual_seed(0)
    for layer in layers.values():
        for part in layer.modules():
            reset: Any = getattr(part, "reset_parameters", lambda: None)
            reset()
    net = Net(wiring, **layers).double().eval()
    randomize(net)
    return net


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=how.pop("padding", kernel_size // 2), **how)


def drop(channels: int, *dropped: int) -> Tensor:
    mask = torch.ones(channels, dtype=torch.bool)
    mask[list(dropped)] = False
    return mask


def exactly(net: nn.Module, masks: dict[str, Tensor], sizes: tuple[tuple[int, int], ...] = ((12, 12), (9, 14))) -> Any:
    """Compact, compare at several sizes with the masked net, and return the result."""
    result = compact(net, X, masks, multiple_of=1, latency_runs=0)
    expected = masked(copy.deepcopy(net), masks)
    for height, width in sizes:
        x = torch.randn(1, 3, height, width, dtype=torch.float64)
        with torch.no_grad():
            pairs = zip(leaves(expected(x)), leaves(result.model(x)), strict=True)
        for a, b in pairs:
            assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max())
    return result


def leaves(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [leaf for part in outputs for leaf in leaves(part)]


def widths(result: CompactionResult) -> dict[str, int]:
    return {
        name: len(module.weight)
        for name, module in result.model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
