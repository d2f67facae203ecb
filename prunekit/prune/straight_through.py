"""Optimize scores instead of weights, with the straight-through estimator of HYDRA.

    with StraightThrough(model, scores, MaskRule(90)) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.1, momentum=0.9)
        ...                                        # any training loop around model(x)
        print(pruning.churn().total)
        masks = pruning.finish()                   # plain convolutions again, dropped weights zero

Forward runs with W · mask(s). The mask is a step function of the scores s, whose gradient is zero almost everywhere;
backward takes the step for the identity in |s|:

    dL/ds = dL/d(W · mask) · W · sign(s)           for dropped weights too, so that they can come back

The weights of a block B (a kernel, say) share one mask m, made of the score u = mean |s|; with the step for the
identity in u,

    dL/dm = Σ_B dL/d(W · m) · W,    dL/ds = dL/dm · du/d|s| · sign(s) = mean_B(dL/d(W · m) · W) · sign(s)

so that the scores of a block move together, by what the whole block is worth: weights that pull apart cancel out.

A filter's mask acts where its channel z is read, behind normalization and activation. There every reader multiplies it
by the mask m(s) of its unit, whose score is u = mean |s|:

    dL/dm = Σ z · dL/d(z·m),    dL/ds = dL/dm · du/d|s| · sign(s)

Elsewhere nothing would move. On the weights: a BatchNorm makes its output independent of the scale of a filter, so
that the sum of W · dL/dW over the filter is zero. Between BatchNorm and ReLU: the gradient of a ReLU at zero is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from prunekit.errors import InputError
from prunekit.nn.computed_weights import effective, refresh, storage_name
from prunekit.prune.blocks import Block
from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.layers import conv_groups, prunable_layers
from prunekit.prune.mask_rule import MaskRule
from prunekit.prune.masks import apply_masks, check_groups
from prunekit.prune.scores import check_scores, load_scores, save_scores


class _MaskedWeight(torch.autograd.Function):
    """Weight where the mask is True, else zero; the gradient goes to the scores as if it were a block's mean |s|."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor, block: Block, groups: int) -> Tensor:
        ctx.save_for_backward(weight, scores)
        ctx.block, ctx.groups = block, groups
        return torch.where(mask, weight, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores = ctx.saved_tensors
        means = ctx.block.means(gradient * weight, ctx.groups)
        return None, ctx.block.spread(means, weight.shape, ctx.groups).mul_(scores.sign()), None, None, None


class _KeptUnits(torch.autograd.Function):
    """1 where a unit is kept, else 0, [units]; the gradient goes to the scores as if it were the mean |s|."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, units: list[Tensor], *scores: Tensor) -> Tensor:
        ctx.save_for_backward(*scores)
        ctx.units = units
        ctx.filters_per_unit = torch.bincount(torch.cat(units), minlength=len(kept)).clamp(min=1)
        return kept.to(scores[0].device, scores[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        per_unit = gradient / ctx.filters_per_unit.to(gradient.device)
        slopes = [
            scores.sign().mul_((per_unit[units.to(gradient.device)] / scores[0].numel()).view(-1, 1, 1, 1))
            for scores, units in zip(ctx.saved_tensors, ctx.units, strict=True)
        ]
        return None, None, *slopes


class _ScoredWeight(nn.Module):
    """The parametrization of one convolution's weight."""

    def __init__(self, scores: Tensor, block: Block, groups: int) -> None:
        super().__init__()
        self.block, self.groups = block, groups
        self.scores = nn.Parameter(scores.detach().clone())
        # Plain attribute, no buffer: it follows from the scores, and buffers are to hold still under attack.
        self.mask: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.mask is None:
            return weight
        masked: Tensor = _MaskedWeight.apply(  # type: ignore[no-untyped-call]
            weight, self.scores, self.mask, self.block, self.groups
        )
        return masked


@dataclass(frozen=True)
class Churn:
    """The fraction of kept weights that the start's masks had dropped.

    Attributes:
        total: Over all scored weights. Near zero means that optimizing the scores changed nothing.
        layers: Layer by layer.
    """

    total: float
    layers: dict[str, float]


def churn_between(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Churn:
    """Compare the layers' masks `now` with those `before`; layers that `now` does not name do not count."""
    kept = {layer: int(mask.count_nonzero()) for layer, mask in now.items()}
    new = {layer: int((mask & ~before[layer]).count_nonzero()) for layer, mask in now.items()}
    layers = {layer: new[layer] / max(kept[layer], 1) for layer in now}
    return Churn(sum(new.values()) / max(sum(kept.values()), 1), layers)


class StraightThrough:
    """Make the scores of a model's convolutions the parameters that train.

    From construction to `detach` or `finish` the model runs masked, by masks that follow the scores: they are made
    anew in the first forward after the scores have changed. Weights are frozen; what normalizations learn is not.
    The model must be called itself, not one of its parts.

    Args:
        model: Any module with `nn.Conv2d` layers.
        scores: Layer name → the scores to start from.
        rule: How scores become masks.

    Raises:
        InputError: When the scores do not fit the model, or one of its convolutions is parametrized already or has a
            weight that weight_norm or spectral_norm computes; the model is then as it was.
    """

    def __init__(self, model: nn.Module, scores: Mapping[str, Tensor], rule: MaskRule) -> None:
        check_scores(model, scores)
        self.model, self.rule = model, replace(rule, conv_groups=conv_groups(model))
        self._start = self.rule(scores)
        self._layers = {k: conv for k, conv in prunable_layers(model).items() if k not in rule.excluded}
        self._everything = {layer: score.detach().clone() for layer, score in scores.items() if layer in rule.excluded}
        for layer, conv in self._layers.items():
            if parametrize.is_parametrized(conv):
                raise InputError(f"Expected plain convolutions, but layer {layer!r} is parametrized already.")
        if self._groups is not None:
            check_groups(model, self._start, self._groups)
        # Of a layer that torch.nn.utils.prune pruned, what its mask is multiplied with: both masks then hold.
        self._names = {layer: storage_name(layer, conv) for layer, conv in self._layers.items()}
        self._scored = {
            k: _ScoredWeight(scores[k].to(effective(conv).detach()), rule.block, conv.groups)
            for k, conv in self._layers.items()
        }
        self._trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._order = {layer: list(conv._parameters) for layer, conv in self._layers.items()}
        self._state: object = None
        self._masks: dict[str, Tensor] = {}
        self._kept_units = torch.ones(0)
        self._hooks: list[RemovableHandle] = []
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        self._freeze()
        for layer, conv in self._layers.items():
            parametrize.register_parametrization(conv, self._names[layer], self._scored[layer], unsafe=True)
        self._hooks.append(self.model.register_forward_pre_hook(self._before_forward))
        self._add_gates()
        self._refresh()

    def _freeze(self) -> None:
        norms = {id(p) for module in self.model.modules() if isinstance(module, _NormBase) for p in module.parameters()}
        for parameter, _ in self._trained:
            if id(parameter) not in norms:
                parameter.requires_grad_(False)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains: the scores, and the weights and biases of the normalizations that did before."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def scores(self) -> dict[str, Tensor]:
        """Return a copy of each layer's scores, those of excluded layers as they were given."""
        current = {layer: scored.scores.detach().clone() for layer, scored in self._scored.items()}
        return {k: current[k] if k in current else self._everything[k] for k in prunable_layers(self.model)}

    def masks(self) -> dict[str, Tensor]:
        """Return the masks that the scores make now."""
        self._refresh()
        return {layer: mask.clone() for layer, mask in self._masks.items()}

    def churn(self) -> Churn:
        """Compare the masks with those of the scores that it all started from."""
        self._refresh()
        return churn_between(self._start, {layer: self._masks[layer] for layer in self._layers})

    def save(self, path: str | Path) -> None:
        """Write the scores as a safetensors file."""
        save_scores(path, self.scores())

    @torch.no_grad()
    def load(self, path: str | Path) -> None:
        """Go on from the scores that `save` wrote; the start, which churn is counted from, stays."""
        loaded = load_scores(path, self.model)
        for layer, scored in self._scored.items():
            scored.scores.copy_(loaded[layer])

    @contextmanager
    def perturbed(self, radius: float) -> Iterator[None]:
        """Move the scores up the loss inside the block, where S2AP takes its gradient (Piras et al. 2025).

        Each layer's scores s move by radius · ‖s‖ · g / ‖g‖ along their gradient g, which the last backward pass left;
        afterwards they are what they were, bit for bit.
        """
        before = [(scored.scores, scored.scores.detach().clone()) for scored in self._scored.values()]
        try:
            with torch.no_grad():
                for scores, start in before:
                    if scores.grad is not None and (length := scores.grad.norm()) > 0:
                        scores.add_(scores.grad * (radius * start.norm() / length))
            yield
        finally:
            with torch.no_grad():
                for scores, start in before:
                    scores.copy_(start)

    def detach(self) -> None:
        """Make the convolutions plain again, with the weights that they had; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for layer, conv in self._layers.items():
            if parametrize.is_parametrized(conv, self._names[layer]):
                parametrize.remove_parametrizations(conv, self._names[layer], leave_parametrized=False)
                # Torch puts the weight last; optimizers and state dicts go by the order that it had.
                for name in self._order[layer]:
                    conv._parameters[name] = conv._parameters.pop(name)
                refresh(conv)
        for parameter, trained in self._trained:
            parameter.requires_grad_(trained)

    def finish(self) -> dict[str, Tensor]:
        """Detach, set what the masks drop to zero, and return the masks."""
        masks = self.masks()
        self.detach()
        apply_masks(self.model, masks, self._groups)
        return masks

    def __enter__(self) -> StraightThrough:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def _groups(self) -> ChannelGroups | None:
        return self.rule.groups if self.rule.cuts_filters else None

    def _before_forward(self, model: nn.Module, args: object) -> None:
        self._refresh()
        if self._groups is not None:
            scores = [scored.scores for scored in self._scored.values()]
            units = [self._groups.units[layer] for layer in self._scored]
            kept = _KeptUnits.apply(self._kept, units, *scores)  # type: ignore[no-untyped-call]
            # The last one is for unit -1, channels that no filter made.
            self._kept_units = torch.cat([kept, kept.new_ones(1)])

    @torch.no_grad()
    def _refresh(self) -> None:
        """Make the masks anew if a score has changed; several forwards with the same scores share them."""
        state = [(scored.scores._version, scored.scores.data_ptr()) for scored in self._scored.values()]
        if state == self._state:
            return
        self._state = state
        current = {layer: scored.scores.detach() for layer, scored in self._scored.items()}
        names = prunable_layers(self.model)
        self._masks = self.rule({k: current[k] if k in current else self._everything[k] for k in names})
        if self._groups is not None:
            self._kept = self._groups.kept_units(self._masks)
        if self.rule.masks_weights:
            for layer, scored in self._scored.items():
                scored.mask = self._weight_mask(layer)

    def _weight_mask(self, layer: str) -> Tensor:
        """A dropped filter keeps its weights: its channel is silenced where it is read."""
        mask = self._masks[layer]
        if self._groups is None:
            return mask
        is_dropped = ~self._kept[self._groups.units[layer]].to(mask.device)
        return mask | is_dropped[:, None, None, None]

    def _add_gates(self) -> None:
        """Silence dropped channels at the input of every layer that reads channels which may be dropped."""
        if self._groups is None:
            return
        for name, units in self._groups.input_units.items():
            reader = self.model.get_submodule(name)
            # What a group of a grouped convolution reads may go together with what it makes, which is silenced where
            # that is read. Both would be m · m, whose gradient is zero where m is.
            goes_as_a_whole = name in self._groups.units and _goes_by_group(reader, units, self._groups.units[name])
            may_be_dropped = not self._groups.pinned[units[units >= 0]].all()
            if may_be_dropped and not goes_as_a_whole:
                self._hooks.append(reader.register_forward_pre_hook(self._gate(units)))

    def _gate(self, units: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def silence_dropped(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = args
            kept = self._kept_units[units.to(x.device)]
            behind = 0 if isinstance(module, nn.Linear) else x.dim() - 2  # dimensions behind the channels'
            return (x * kept.view(-1, *[1] * behind).to(x.dtype),)

        return silence_dropped


def _goes_by_group(reader: nn.Module, read: Tensor, made: Tensor) -> bool:
    """Tell whether a convolution is grouped, and all channels of each of its groups, in and out, are one unit."""
    groups = reader.groups if isinstance(reader, nn.Conv2d) else 1
    units = torch.cat([made.view(groups, -1), read.view(groups, -1)], dim=1)
    return groups > 1 and bool((units == units[:, :1]).all())
