"""Nets with torchvision's FrozenBatchNorm2d, whose scale and shift are computed in the forward, out of buffers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.compaction import compact
from prunekit.nn import AccelerationReport, accelerate
from prunekit.prune import MaskRule, apply_masks, channel_groups, prunable_layers

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def backbone(norm: str) -> Any:
    """Return a few of ResNet's blocks with the normalization of torchvision.ops or of torch.nn, of the same numbers."""
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    layer: Any = torchvision.ops.FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    block = partial(torchvision.models.resnet.BasicBlock, norm_layer=layer)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        shortcut = nn.Sequential(nn.Conv2d(16, 24, 1, 2, bias=False), layer(24))
        stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), layer(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        net = nn.Sequential(stem, block(16, 16), block(16, 24, 2, shortcut), nn.Conv2d(24, 5, 1))
        for module in net.modules():
            if isinstance(module, layer):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(module, name).data.uniform_(0.5, 1.5).sub_(float(name == "bias"))
    return net.eval().requires_grad_(False)


def pruned(norm: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the net without half of its filters, with the masks that say which."""
    net = backbone(norm)
    groups = channel_groups(net, X)
    scores = {name: conv.weight.abs() for name, conv in prunable_layers(net).items()}
    masks = MaskRule(50, "filter", groups=groups)(scores)
    apply_masks(net, masks, groups)
    return net, masks


def test_groups_are_those_of_the_net_with_batch_normalization() -> None:
    frozen, live = (channel_groups(backbone(norm), X) for norm in ("frozen", "live"))
    assert frozen.units.keys() == live.units.keys()
    assert all(torch.equal(frozen.units[name], live.units[name]) for name in live.units)
    assert torch.equal(frozen.pinned, live.pinned)
    assert frozen.unknown == live.unknown == ()


def test_what_a_dropped_filter_s_normalization_answers_is_zero() -> None:
    frozen, live = (pruned(norm)[0] for norm in ("frozen", "live"))
    torch.testing.assert_close(frozen(X), live(X))
    conv, norm = frozen[0][:2]
    assert torch.equal(norm(conv(X)).abs().amax(dim=(0, 2, 3)) == 0, (conv.weight == 0).flatten(1).all(dim=1))


def test_compaction_removes_what_it_removes_behind_batch_normalization() -> None:
    (frozen, masks), (live, _) = pruned("frozen"), pruned("live")
    results = [compact(net, X, masks, multiple_of=1, latency_runs=0) for net in (frozen, live)]
    widths = [{name: conv.weight.shape for name, conv in prunable_layers(result.model).items()} for result in results]
    assert widths[0] == widths[1]
    assert results[0].certificate.parameters_after < 0.4 * results[0].certificate.parameters_before
    torch.testing.assert_close(results[0].model(X), frozen(X))


def test_the_engine_folds_it_into_convolutions(tmp_path: Path) -> None:
    net, _ = pruned("frozen")
    fast = accelerate(net, X, tuning_seconds=0.1, tuning_cache=None)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    assert report.engine == "whole graph"
    assert report.relative_rms <= 1e-5
    assert "affine" not in report.other_ms
    assert not any("aten.mul" in note or "aten.rsqrt" in note for note in report.notes)
    prunekit.save(fast, tmp_path / "fast.safetensors")
    assert torch.equal(prunekit.load(tmp_path / "fast.safetensors")(X), fast(X))
