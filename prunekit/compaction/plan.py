"""What exactly is cut where: the choice of units, written down layer by layer and tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunekit.compaction.keep_set import Choice
from prunekit.graph.channels.channel_flow import ChannelFlow, Layer


@dataclass(frozen=True)
class Carried:
    """Input channels whose weights move to a carrier: W[:, carrier] += Σ ratio · W[:, channel]."""

    carrier: int
    channels: Tensor
    ratios: Tensor


@dataclass(frozen=True)
class LayerCut:
    """What a convolution or linear layer loses.

    Attributes:
        name: Its name in the model.
        out_keep: Filters that stay, in their new order; a cut leaves them ascending.
        in_keep: Input channels that stay, likewise.
        old_groups: Groups before.
        groups: Groups that stay.
        carried: Constants that go on inside a carrier.
        folded: Input channels whose constants go into the bias.
        constants: Those constants, float64.
        transposed: Whether the weight's first two dimensions are swapped, as in transposed convolutions.
        norm: The running mean that takes the bias in, by name, where the layer has none of its own.
    """

    name: str
    out_keep: Tensor
    in_keep: Tensor
    old_groups: int
    groups: int
    carried: tuple[Carried, ...]
    folded: Tensor
    constants: Tensor
    norm: str | None
    transposed: bool = False


@dataclass(frozen=True)
class Plan:
    """All cuts.

    Attributes:
        layers: By name.
        tensors: Other parameters and buffers: name → (dimension, entries that stay).
        multiple_of: What channel counts were rounded up to.
    """

    layers: dict[str, LayerCut]
    tensors: dict[str, tuple[int, Tensor]]
    multiple_of: int = 1


def make_plan(flow: ChannelFlow, choice: Choice, multiple_of: int = 1) -> Plan:
    """Write the choice down."""
    layers = {name: _cut_layer(choice, layer) for name, layer in flow.layers.items()}
    tensors = {
        name: (dim, torch.from_numpy(np.flatnonzero(choice.stays(labels))))
        for name, (dim, labels) in flow.tensors.items()
    }
    return Plan(layers, tensors, multiple_of)


def _cut_layer(choice: Choice, layer: Layer) -> LayerCut:
    out_keep = np.flatnonzero(choice.stays(layer.out_labels))
    if not len(layer.in_labels):
        width = layer.used.shape[1] * layer.groups
        everything, nothing = torch.arange(width), torch.zeros(0, dtype=torch.int64)
        groups = layer.groups
        return LayerCut(
            layer.name,
            torch.from_numpy(out_keep),
            everything,
            groups,
            groups,
            (),
            nothing,
            nothing.double(),
            None,
            layer.transposed,
        )
    stays = choice.stays(layer.in_labels)
    width = len(stays) // layer.groups
    groups = len(set((np.flatnonzero(stays) // width).tolist()))
    constants = layer.in_constants.nan_to_num(0.0)
    lost = choice.reads(layer) & ~stays & (constants != 0).numpy()
    carried: list[Carried] = []
    if layer.pads:
        able = torch.from_numpy(stays) & (constants != 0)
        for group in sorted(set((np.flatnonzero(lost) // width).tolist())):
            carried.append(_carry(constants, able, lost, slice(group * width, (group + 1) * width)))
    folded = torch.from_numpy(np.flatnonzero(lost & (not layer.pads)))
    return LayerCut(
        layer.name,
        torch.from_numpy(out_keep),
        torch.from_numpy(np.flatnonzero(stays)),
        layer.groups,
        groups,
        tuple(carried),
        folded,
        constants[folded],
        layer.norm,
        layer.transposed,
    )


def _carry(constants: Tensor, able: Tensor, lost: object, place: slice) -> Carried:
    strength = torch.where(able, constants.abs(), 0.0)[place]
    carrier = int(strength.argmax()) + place.start
    channels = torch.from_numpy(np.flatnonzero(np.asarray(lost)[place])) + place.start
    return Carried(carrier, channels, constants[channels] / constants[carrier])
