"""A machine whose times follow from multiply-accumulates alone: budgets in milliseconds that no other load moves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from prunekit.prune import ChannelGroups, prunable_layers
from prunekit.prune.latency import conv_calls
from prunekit.prune.layer_times import ConvShape, LayerTimes


def macs_of(shape: ConvShape) -> float:
    weights = shape.out_channels * shape.in_channels // shape.groups * shape.kernel_size[0] * shape.kernel_size[1]
    return weights * shape.size[0] * shape.size[1] * shape.density


class Machine:
    """Takes a nanosecond a multiply-add, and a factor more for a whole model than planned."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.built = factor, 0

    def layers_ms(self, shapes: list[ConvShape]) -> list[float]:
        return [macs_of(shape) / 1e6 for shape in shapes]

    def model_ms(self, model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, groups: ChannelGroups | None) -> float:
        self.built += 1
        sizes, found = conv_calls(model, x), 0.0
        read = {name: torch.ones(conv.in_channels, dtype=torch.bool) for name, conv in prunable_layers(model).items()}
        if groups is not None:
            kept = torch.cat([groups.kept_units(masks), torch.tensor([True])])
            read = {name: kept[units] for name, units in groups.input_units.items()}
        for name, mask in masks.items():
            useful = mask if prunable_layers(model)[name].groups > 1 else mask & read[name].view(1, -1, 1, 1)
            found += float(useful.sum()) * sizes[name][0][0] * sizes[name][0][1]
        return 0.002 + self.factor * found / 1e6


def imagine_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let layers and models be timed on such a machine; return it."""
    machine = Machine()
    monkeypatch.setattr("prunekit.prune.layer_times.measured_ms", machine.layers_ms)
    monkeypatch.setattr("prunekit.prune.sharing.deployed_ms", machine.model_ms)
    monkeypatch.setattr(LayerTimes, "default", classmethod(lambda cls: cls(None)))
    return machine
