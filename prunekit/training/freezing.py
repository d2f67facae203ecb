"""The part of a model that does not train at first, while new heads find their way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.errors import InputError
from prunekit.task import ModelSpec, takes_argument


def backbone(model: nn.Module, spec: ModelSpec) -> frozenset[str]:
    """Return the names of the parameters of a model's backbone.

    It is the submodule of that name, such as YOLOv3's darknet-53; where there is none, all whose shapes do not depend
    on the number of classes.

    Raises:
        InputError: When a model has neither.
    """
    if isinstance(getattr(model, "backbone", None), nn.Module):
        return frozenset(name for name, _ in model.named_parameters() if name.startswith("backbone."))
    found: frozenset[str] = frozenset()
    if takes_argument(spec.name, "num_classes"):
        two, three = (dict(spec.outlined(num_classes=n).named_parameters()) for n in (2, 3))
        found = frozenset(name for name in two if two[name].shape == three[name].shape)
    if not 0 < len(found) < len(dict(model.named_parameters())):
        raise InputError(f"--freeze: expected a model with a backbone and heads, got {spec.name}.")
    return found


@contextmanager
def held(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Keep parameters, and the statistics of normalizations among them, as they are inside the block."""
    owners = {name.rpartition(".")[0] for name in names}
    norms = [module for name, module in model.named_modules() if name in owners and isinstance(module, _BatchNorm)]
    fixed = [p for name, p in model.named_parameters() if name in names and p.requires_grad]
    modes = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.eval()
        for parameter in fixed:
            parameter.requires_grad_(False)
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)
        for parameter in fixed:
            parameter.requires_grad_(True)
