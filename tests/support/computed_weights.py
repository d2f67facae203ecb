"""Small nets whose convolutions' weights are stored, or computed in each of the ways that torch has."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm


class Halved(nn.Module):
    """A parametrization of one's own, which counts nothing and keeps zeros."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _prune(conv: nn.Conv2d) -> None:
    prune.l1_unstructured(conv, "weight", 0.4)  # type: ignore[no-untyped-call]


def _prune_twice(conv: nn.Conv2d) -> None:
    _prune(conv)
    prune.random_unstructured(conv, "weight", 0.3)  # type: ignore[no-untyped-call]
    if conv.bias is not None:
        prune.l1_unstructured(conv, "bias", 0.4)  # type: ignore[no-untyped-call]


#: What makes a convolution's weight a computed one.
KINDS: dict[str, Callable[[nn.Conv2d], object]] = {
    "plain": lambda conv: None,
    "pruned by torch": _prune,
    "pruned twice by torch": _prune_twice,
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "own parametrization": lambda conv: parametrize.register_parametrization(conv, "weight", Halved()),
}
#: Those in which masks can be held: a zero in what is stored is a zero of the weight, and changes no other.
MASKABLE = ("plain", "pruned by torch", "pruned twice by torch")


def make_net(kind: str, seed: int, training: bool) -> nn.Sequential:
    """Return a net with two convolutions of that kind among plain ones, and no stale attribute."""
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old hooks are deprecated, and everywhere
        torch.manual_seed(seed)
        convs = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)]
        for conv in convs[:2]:
            KINDS[kind](conv)
        net = nn.Sequential(convs[0], nn.BatchNorm2d(6), nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        with torch.no_grad():
            net.train()(torch.randn(4, 3, 6, 6))  # statistics, and a few steps of power iteration
    return net.train(training)


def plain_copy(kind: str, seed: int) -> nn.Sequential:
    """Return the same net in eval mode with the effective weights stored: what the others are compared with."""
    net, plain = make_net(kind, seed, training=False), make_net("plain", seed, training=False)
    with torch.no_grad():
        net(torch.zeros(1, 3, 6, 6))  # hooks compute
        for module, copy in zip(net, plain, strict=True):
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(copy, name, None) is not None:
                    getattr(copy, name).copy_(getattr(module, name))
    return plain
