"""Models of the kinds that people bring: computed weights, casts inside, containers, calling conventions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Result:
    features: Tensor
    logits: Tensor
    threshold: float = 0.5


@dataclass(frozen=True)
class Kind:
    """What a model is like; each attribute is one of the keys of the table of that name."""

    weights: str = "plain"
    cast: str = "none"
    output: str = "tensor"
    call: str = "positional"
    dtype: torch.dtype = torch.float32
    writes_input: bool = False
    shares_module: bool = False
    gate: bool = False
    noise: str = "none"
    wrapper: str = "none"


WEIGHTS: dict[str, Callable[[nn.Module], object]] = {
    "plain": lambda layer: layer,
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "parametrized twice": lambda layer: parametrizations.spectral_norm(
        nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    ),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),  # type: ignore[no-untyped-call]
}
OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda features, logits: logits,
    "tuple": lambda features, logits: (features, [logits, None]),
    "dict": lambda features, logits: {"features": features, "logits": logits, "stride": 8},
    "named tuple": Pair,
    "dataclass": Result,
    "topk": lambda features, logits: logits.flatten(1).topk(3),
    "argmax": lambda features, logits: (logits, logits.argmax(1)),
    "nothing found": lambda features, logits: (logits, logits[:, :0], features.flatten()[features.flatten() > 1e9]),
}
CASTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "none": lambda net, x: net(x),
    "float": lambda net, x: net(x.float()).float(),
    "half and back": lambda net, x: net(x.half().to(x.dtype)),
    "softmax in float": lambda net, x: torch.sigmoid(net(x).float()).type_as(x),
    "uint8": lambda net, x: net(x.float() / 255),
    "autocast": lambda net, x: _autocast(net, x),
}
NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "dropout": lambda x: functional.dropout(x, 0.2),
    "gaussian": lambda x: x + torch.randn(1, 1, 1, 1).to(x),
}
CALLS = ("positional", "keywords", "none", "list", "dict")
WRAPPERS = ("none", "compiled", "parallel", "exported")


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Model(nn.Module):
    """Four convolutions, all of them with masks; `kind` says what is around them."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=kind.gate)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 1)
        self.third = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Any, scale: Tensor | None = None, *, offset: float = 0.0) -> Any:
        if isinstance(x, list):
            x = torch.stack(x)
        if isinstance(x, dict):
            x = x["image"]
        if self.kind.writes_input and x.is_floating_point():
            x.sub_(0.25)
        x = NOISE[self.kind.noise](x) if x.is_floating_point() else x
        features = CASTS[self.kind.cast](self._features, x)
        logits = self.head(features.to(self.norm.weight.dtype)) + offset
        logits = logits if scale is None else logits * scale
        return OUTPUTS[self.kind.output](features, logits)

    def _features(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.first(x)), inplace=True)
        x = torch.relu_(self.second(x))
        if self.kind.shares_module:
            x = self.second(x) + x
        if self.kind.gate:
            mean = x.mean((0, 2, 3))  # one value a channel, without a batch
            x = x * (mean * mean.sigmoid()).view(1, -1, 1, 1)
        return torch.tanh(self.third(x))


@dataclass(frozen=True)
class Example:
    """A model in eval mode, masks, how it is called, and the same model with plain masked weights."""

    model: nn.Module
    masks: dict[str, Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: nn.Module


def random_kind(draw: random.Random) -> Kind:
    """Draw a kind: most attributes are left as they are, so that what fails has few causes."""
    options: dict[str, Any] = {
        "weights": list(WEIGHTS),
        "cast": list(CASTS),
        "output": list(OUTPUTS),
        "call": CALLS,
        "dtype": (torch.float64, torch.bfloat16, torch.float16),
        "writes_input": (True,),
        "shares_module": (True,),
        "gate": (True,),
        "noise": list(NOISE),
        "wrapper": WRAPPERS,
    }
    chosen = draw.sample(sorted(options), draw.randint(1, 4))
    kind = Kind(**{name: draw.choice(options[name]) for name in chosen})
    if kind.cast in ("uint8", "float", "autocast"):
        kind = replace(kind, dtype=torch.float32)
    if kind.wrapper == "exported":
        kind = replace(kind, weights="plain", call="positional", noise="none", writes_input=False, cast="none")
    if kind.output == "dataclass" and kind.wrapper == "exported":
        kind = replace(kind, output="dict")
    return kind


def build(kind: Kind, draw: random.Random) -> Example:
    """Build a model of a kind, its masks and its example."""
    with torch.random.fork_rng([]):
        torch.manual_seed(draw.randrange(2**32))
        model, expected = Model(kind), Model(kind)
        for name in ("weight", "bias", "running_mean"):
            nn.init.normal_(getattr(model.norm, name))
        expected.load_state_dict(model.state_dict())
        convolutions = ("first", "second", "third", "head")
        computed = draw.sample(convolutions, 2) if kind.weights != "plain" else []
        for name in computed:
            WEIGHTS[kind.weights](model.get_submodule(name))
        x = _image(kind)
        model, expected = model.to(kind.dtype), expected.to(kind.dtype)
        with torch.no_grad():
            model.train()(x.clone())  # what normalizes by power iteration starts
        model.eval()
        masks = {name: _mask(len(model.get_submodule(name).weight), draw) for name in convolutions}  # type: ignore[arg-type]
        with torch.no_grad():
            expected.load_state_dict(
                {n: t for n, t in model.state_dict().items() if n.startswith("norm")}, strict=False
            )
            model(x.clone())
            for name, mask in masks.items():
                mine: Any = expected.get_submodule(name)
                theirs: Any = model.get_submodule(name)
                mine.weight.copy_(theirs.weight * mask.view(-1, 1, 1, 1))
        if kind.wrapper == "exported":
            for name, mask in masks.items():
                theirs = model.get_submodule(name)
                theirs.weight.data[~mask] = 0
            masks = {}
    args, kwargs = _call(kind, x)
    return Example(_wrapped(kind, model, args), masks, args, kwargs, expected.eval())


def _image(kind: Kind) -> Tensor:
    if kind.cast == "uint8":
        return torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    return torch.randn(2, 3, 8, 8).to(kind.dtype)


def _mask(filters: int, draw: random.Random) -> Tensor:
    mask = torch.rand(filters) < 0.5
    mask[draw.randrange(filters)] = True
    return mask


def _call(kind: Kind, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "positional": ((x,), {}),
        "keywords": ((x,), {"offset": 0.5}),
        "none": ((x, None), {}),
        "list": ((list(x.unbind()),), {}),
        "dict": (({"image": x, "id": 7},), {}),
    }
    return calls[kind.call]


def _wrapped(kind: Kind, model: nn.Module, args: tuple[Any, ...]) -> nn.Module:
    if kind.wrapper == "compiled":
        compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
        return compiled
    if kind.wrapper == "parallel":
        return nn.DataParallel(model).eval()
    if kind.wrapper == "exported":
        return torch.export.export(model, args).module()
    return model


def _autocast(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)
