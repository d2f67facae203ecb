"""Keep what pruning dropped at exactly zero while the rest trains, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.masks import masked_tensors


class FrozenMasks:
    """Fine-tune a pruned model with its masks held.

        with FrozenMasks(model, masks) as frozen:
            optimizer = torch.optim.AdamW(model.parameters())
            frozen.guard(optimizer)
            ...                                    # any training loop

    Dropped entries are set to zero; then their gradients are zero, so that they neither enter a norm that
    gradients are clipped by nor fill the optimizer's moments; and every step of a guarded optimizer ends
    with setting them to zero again, so that neither weight decay, nor a momentum from before, nor noise moves them.

    Args:
        model: The model; its modules and the names in its state dict stay what they are.
        masks: Layer name → bool mask of the layer's weight's shape, True = kept.
        groups: The model's `channel_groups`, for masks that drop whole filters: their biases and their
            normalization's weights and biases are held at zero as well.

    Raises:
        InputError: When a mask is missing, unknown, or of another shape or dtype, or a layer's weight is computed by
            weight_norm, spectral_norm or a parametrization; the model is then as it was. Layers that
            torch.nn.utils.prune pruned keep its masks, too.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], groups: ChannelGroups | None = None) -> None:
        found = masked_tensors(model, masks, groups)
        self._held = [masked for masked in found if isinstance(masked.stored, nn.Parameter) and masked.dropped.any()]
        for masked in found:
            masked.zero_dropped()
        self._hooks = [_zero_gradient_of(m.stored, m.dropped) for m in self._held if m.stored.requires_grad]

    def guard(self, optimizer: Optimizer) -> None:
        """Set dropped entries to zero after each of the optimizer's steps."""
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.zero_dropped()))

    def zero_dropped(self) -> None:
        """Set dropped entries to zero now."""
        for masked in self._held:
            masked.zero_dropped()

    def detach(self) -> None:
        """Let go of model and optimizers; what is zero stays zero until someone trains it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> FrozenMasks:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def _zero_gradient_of(parameter: Tensor, dropped: Tensor) -> RemovableHandle:
    def zero_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(dropped, 0.0)

    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(zero_gradient)  # type: ignore[no-untyped-call]
    return handle
