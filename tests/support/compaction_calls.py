"""A net whose first convolution has half of its filters masked, compacted and proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.compaction import CompactionResult, compact
from tests.support.pruning_nets import Net
from tests.support.untouched import untouched

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net_of(wiring: Callable[[Any, Any], Any]) -> Any:
    """Two convolutions, of which the first has half of its filters masked; their constants are not zero."""
    torch.manual_seed(0)
    net: Any = Net(wiring, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 4, 1)).eval()
    net.a.weight.data[::2] = 0.0
    return net


def plain(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.b(torch.sigmoid(n.a(x)))
    return y


def exactly(net: nn.Module, *args: Any, **how: Any) -> CompactionResult:
    """Compact; the proof compared something, and the arguments are what they were."""
    with untouched(net, args, how.get("example_kwargs", {})):
        result = compact(net, args, multiple_of=1, latency_runs=0, **how)
    assert result.certificate.compared.elements > 0
    assert result.certificate.compared.relative <= 1e-10
    return result
