"""What was dropped stays exactly zero, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from prunekit.prune import FrozenMasks, MaskRule, prunable_layers, score_model
from prunekit.prune.masks import tensor_masks
from tests.support.pruning_nets import groups_of, make_model

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


def train_step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()


def dropped_values(model: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    tensors = model.state_dict()
    return torch.cat([tensors[name][~mask] for name, mask in masks.items()])


@pytest.mark.parametrize("structure", ["unstructured", "filter", "kernel2d", "hybrid"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dropped_stays_zero_and_the_rest_trains(name: str, structure: str) -> None:
    model = make_model().train()
    groups = groups_of(model)
    masks = MaskRule(60, structure, groups=groups)(score_model(model, "scaled"))
    held = tensor_masks(model, masks, groups)
    with FrozenMasks(model, masks, groups) as frozen:
        optimizer = OPTIMIZERS[name](model.parameters())
        frozen.guard(optimizer)
        before = {layer: conv.weight.detach().clone() for layer, conv in prunable_layers(model).items()}
        for _ in range(3):
            train_step(model, optimizer)
            assert len(dropped_values(model, held)) > 0
            assert not dropped_values(model, held).any()
    for layer, conv in prunable_layers(model).items():
        assert (conv.weight != before[layer])[masks[layer]].any()


def test_momentum_from_before_pruning_cannot_bring_weights_back() -> None:
    model = make_model().train()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, optimizer)
    masks = MaskRule(60)(score_model(model, "scaled"))
    with FrozenMasks(model, masks) as frozen:
        train_step(model, optimizer)
        assert dropped_values(model, tensor_masks(model, masks)).any()  # nobody guards this optimizer yet
        frozen.guard(optimizer)
        train_step(model, optimizer)
        assert not dropped_values(model, tensor_masks(model, masks)).any()


def test_dropped_weights_do_not_count_in_the_norm_that_gradients_are_clipped_by() -> None:
    model = make_model().train()
    masks = MaskRule(60)(score_model(model, "scaled"))
    with FrozenMasks(model, masks):
        for _ in range(2):  # gradients add up
            model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        for layer, conv in prunable_layers(model).items():
            assert conv.weight.grad is not None
            assert not conv.weight.grad[~masks[layer]].any()
            assert conv.weight.grad[masks[layer]].any()


def test_letting_go_removes_every_hook() -> None:
    model = make_model().train()
    masks = MaskRule(60)(score_model(model, "scaled"))
    optimizer = SGD(model.parameters(), lr=0.1)
    with FrozenMasks(model, masks) as frozen:
        frozen.guard(optimizer)
    train_step(model, optimizer)
    assert dropped_values(model, tensor_masks(model, masks)).any()


def test_a_frozen_layer_needs_no_gradient() -> None:
    model = make_model().train()
    model.stem.weight.requires_grad_(False)
    masks = MaskRule(60)(score_model(model, "scaled"))
    with FrozenMasks(model, masks) as frozen:
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        frozen.guard(optimizer)
        train_step(model, optimizer)
    assert not model.stem.weight[~masks["stem"]].any()
