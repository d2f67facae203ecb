"""What masks save: weights and multiply-accumulates, layer by layer, from a run on an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.nn.computed_weights import effective
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import own_random_state
from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.masks import check_masks


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer.

    Attributes:
        name: Its name in the model.
        weights: Number of weights, biases not counted.
        kept_weights: Those that still do something.
        macs: Multiply-accumulates for the example, dense.
        kept_macs: Those of the kept weights.
    """

    name: str
    weights: int
    kept_weights: int
    macs: int
    kept_macs: int


@dataclass(frozen=True)
class ModelCost:
    """All convolutions and linear layers that ran, in the model's order."""

    layers: tuple[LayerCost, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of weights that no longer does anything."""
        return 1 - self.kept_weights / max(self.weights, 1)

    @property
    def weights(self) -> int:
        """Weights of the dense model."""
        return sum(row.weights for row in self.layers)

    @property
    def kept_weights(self) -> int:
        """Weights that still do something."""
        return sum(row.kept_weights for row in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense model."""
        return sum(row.macs for row in self.layers)

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates of the kept weights."""
        return sum(row.kept_macs for row in self.layers)


def count_costs(
    model: nn.Module,
    example_input: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    groups: ChannelGroups | None = None,
) -> ModelCost:
    """Count weights and multiply-accumulates, dense and masked.

    A weight costs one multiply-accumulate at every output position, those that see padding included.

    Args:
        model: Any module; it runs once, in eval mode, and is not changed.
        example_input: What it runs on: [N, C, H, W]. The counts are for all N images.
        masks: Layer name → bool mask; without them everything is kept.
        groups: With the model's `channel_groups`, kept weights that read dropped channels do not count: a
            compacted model has no place for them.
    """
    return cost_of(model, output_positions(model, example_input), masks, groups)


def cost_of(
    model: nn.Module,
    positions: Mapping[str, int],
    masks: Mapping[str, Tensor] | None = None,
    groups: ChannelGroups | None = None,
) -> ModelCost:
    """Count as `count_costs` does, from the `output_positions` of an earlier run."""
    kept = {} if masks is None else _useful_weights(model, masks, groups)
    return ModelCost(
        tuple(_row(model, name, kept, positions[name]) for name, _ in model.named_modules() if name in positions)
    )


@torch.no_grad()
def output_positions(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Return how many outputs each filter of the convolutions and linear layers that run makes; see `count_costs`."""
    positions: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(_position_counter(name, len(effective(module)), positions))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with held_still(model), own_random_state():
            model(example_input.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return positions


def _useful_weights(model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups | None) -> dict[str, int]:
    check_masks(model, masks)
    useful = dict(masks)
    if groups is not None:
        kept = torch.cat([groups.kept_units(masks), torch.tensor([True])])  # the last one is for unit -1
        for layer, units in groups.input_units.items():
            reader = model.get_submodule(layer)
            if not isinstance(reader, (nn.Conv2d, nn.Linear)):
                continue  # nobody counts those
            mask = masks.get(layer, torch.ones_like(effective(reader), dtype=torch.bool))
            num_groups = reader.groups if isinstance(reader, nn.Conv2d) else 1
            reads = kept[units].view(num_groups, 1, -1).to(mask.device)  # [groups, 1, in_channels / groups]
            mask = mask.reshape(num_groups, len(mask) // num_groups, mask.shape[1], -1)
            useful[layer] = mask & reads[..., None]
    return {layer: int(mask.count_nonzero()) for layer, mask in useful.items()}


def _position_counter(name: str, num_outputs: int, positions: dict[str, int]) -> Callable[..., None]:
    def count(module: nn.Module, args: object, output: Tensor) -> None:
        positions[name] = positions.get(name, 0) + output.numel() // num_outputs

    return count


def _row(model: nn.Module, name: str, kept: Mapping[str, int], positions: int) -> LayerCost:
    weight = effective(model.get_submodule(name))
    # A grouped convolution's weight reads in_channels / groups channels: each weight still meets each position once.
    num_kept = kept.get(name, weight.numel())
    return LayerCost(name, weight.numel(), num_kept, weight.numel() * positions, num_kept * positions)
