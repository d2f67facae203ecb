"""Random small modules of the kinds that people bring: how they are called, what they return, how they compute.

A seed gives a module, a call of it and another one; everything is drawn independently, so that kinds meet.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

_CHANNELS = 8


class Pair(NamedTuple):
    """Two outputs with names."""

    boxes: Any
    scores: Any


@dataclass
class Result:
    """Two outputs of a dataclass."""

    boxes: Any
    scores: Any


class Answer:
    """Two outputs in an ordinary object."""

    def __init__(self, boxes: Any, scores: Any) -> None:
        self.boxes, self.scores = boxes, scores


class ModelOutput(collections.OrderedDict[str, Any]):
    """A dict whose items are attributes too, as transformers has it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda a, b: a + b.mean(),
    "tuple": lambda a, b: (a, b),
    "list of dicts": lambda a, b: [{"boxes": a, "labels": ["cat", 3]}, {"boxes": b}],
    "dict": lambda a, b: {"boxes": a, "loss": None, 7: b},
    "named tuple": Pair,
    "nested named tuple": lambda a, b: {"out": [Pair(a, Pair(b, None))]},
    "dataclass": Result,
    "object": Answer,
    "nested object": lambda a, b: (Answer(a, Result(b, "text")), 1.5),
    "model output": lambda a, b: ModelOutput(boxes=a, scores=b),
    "topk": lambda a, b: (a.flatten(1).max(1), b),
    "twice": lambda a, b: (a, a, b),
    "empty": lambda a, b: (a, b.new_zeros(0, 4)),
}


class StandardizedConv(nn.Conv2d):
    """Normalizes its filters at every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3), self.bias, self.stride, self.padding)


class SamePaddingConv(nn.Conv2d):
    """Pads on the right and below inside its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [0, 2, 0, 2]), self.weight, self.bias, self.stride)


class OwnConvForward(nn.Conv2d):
    """Replaces only what nn.Conv2d's forward calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = super()._conv_forward(input, weight * 0.5, bias)
        return y


class FunctionalConv(nn.Module):
    """A convolution called as a function with the module's own parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


def patched(conv: nn.Conv2d) -> nn.Conv2d:
    """Give one convolution a forward of its own, as wrappers do."""
    forward = conv.forward
    conv.forward = lambda input: forward(input) + 1  # type: ignore[method-assign]
    return conv


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "norm": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
    "in-place": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.LeakyReLU(0.1, inplace=True)),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "standardized": lambda c: StandardizedConv(c, c, 3, padding=1),
    "same": lambda c: SamePaddingConv(c, c, 3),
    "own _conv_forward": lambda c: OwnConvForward(c, c, 3, padding=1),
    "functional": FunctionalConv,
    "patched": lambda c: patched(nn.Conv2d(c, c, 1)),
    "masked by torch": lambda c: prune.random_unstructured(nn.Conv2d(c, c, 3, padding=1), "weight", 0.5),  # type: ignore[no-untyped-call]
    "weight_norm": lambda c: weight_norm(nn.Conv2d(c, c, 3, padding=1)),
    "spectral_norm": lambda c: parametrizations.spectral_norm(nn.Conv2d(c, c, 3, padding=1)),
}
STYLES = (
    "one", "keyword", "default", "flag", "optional", "dict", "images", "two", "integers", "bytes", "var",
    "keyword only",
)  # fmt: skip
BEHAVIORS = (
    "plain", "plain", "plain", "writes into its input", "random", "counts", "buffer", "shared", "two names", "branches",
    "autocast", "hook", "baked",
)  # fmt: skip
DTYPES = (torch.float32, torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Case:
    """A module in eval mode and two calls of it."""

    kinds: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    other_args: tuple[Any, ...]
    other_kwargs: dict[str, Any]
    style: str
    behavior: str


class Net(nn.Module):
    """A stem, two or three layers, and two outputs in a container."""

    def __init__(self, layers: list[nn.Module], container: str, behavior: str) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(3, _CHANNELS, 3, padding=1), nn.ModuleList(layers)
        self.head = nn.Conv2d(_CHANNELS, 4, 1)
        self.container, self.behavior, self.calls = container, behavior, 0
        if behavior == "buffer":
            self.register_buffer("seen", torch.zeros(()))
        if behavior == "two names":
            self.encoder = nn.ModuleList([self.stem, *layers])

    def body(self, x: Tensor, scale: float | Tensor = 1.0) -> Any:
        """Compute from one image batch [N, 3, H, W]."""
        if self.behavior == "writes into its input":
            x.sub_(0.25)
        if self.behavior == "baked":
            x = x + torch.tensor(float(x.detach().mean()), dtype=x.dtype)
        y = self.stem(x).relu()
        for layer in self.layers:
            y = layer(y)
        if self.behavior == "shared":
            y = self.layers[0](y)
        if self.behavior == "random":
            y = F.dropout(y)
        if self.behavior == "counts":
            self.calls += 1
        if self.behavior == "buffer":
            self.get_buffer("seen").add_(1)
        if self.behavior == "branches" and bool(y.sum() > 0):
            y = -y
        return CONTAINERS[self.container](self.head(y) * scale, y.mean((2, 3)))


class One(Net):
    """A tensor."""

    def forward(self, x: Tensor) -> Any:
        if self.behavior == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x)
        return self.body(x)


class Optional(Net):
    """A tensor, and arguments that may stay away."""

    def forward(self, images: Tensor, scale: Tensor | None = None, augment: bool = False, mode: str = "sum") -> Any:
        y = self.body(images.flip(3) if augment else images, 1.0 if scale is None else scale)
        return y if mode == "sum" else (y, y)


class Dict(Net):
    """A dict of tensors."""

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return self.body(batch["image"], batch["scale"])


class Images(Net):
    """A list of images."""

    def forward(self, images: list[Tensor]) -> Any:
        return [self.body(image[None]) for image in images]


class Integers(Net):
    """An image and indices."""

    def forward(self, x: Tensor, index: Tensor) -> Any:
        return self.body(x[:, :, :, index])


class Bytes(Net):
    """An image of bytes."""

    def forward(self, x: Tensor) -> Any:
        return self.body(x.to(self.stem.weight.dtype) / 255)


class Var(Net):
    """Whatever it is given."""

    def forward(self, *images: Tensor, **options: float) -> Any:
        return self.body(sum(images[1:], images[0]), options.get("scale", 1.0))


class KeywordOnly(Net):
    """A keyword-only argument."""

    def forward(self, x: Tensor, *, scale: float) -> Any:
        return self.body(x, scale)


def random_case(seed: int) -> Case:
    """Build the module and calls of a seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    container, behavior, style = draw.choice(list(CONTAINERS)), draw.choice(BEHAVIORS), draw.choice(STYLES)
    names = [draw.choice(list(LAYERS)) for _ in range(draw.choice((1, 2)))]
    dtype = torch.float32 if behavior == "autocast" else draw.choice(DTYPES)
    style = "one" if behavior == "autocast" else style
    if container == "topk" and (dtype.itemsize == 2 or behavior == "autocast"):
        container = "tuple"  # which of two near values is the largest is a question of rounding
    kinds = {
        "one": One, "keyword": One, "default": Optional, "flag": Optional, "optional": Optional, "dict": Dict,
        "images": Images, "two": Optional, "integers": Integers, "bytes": Bytes, "var": Var,
        "keyword only": KeywordOnly,
    }  # fmt: skip
    model = kinds[style]([LAYERS[name](_CHANNELS) for name in names], container, behavior)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_()
                module.get_buffer("running_var").uniform_(0.5, 1.5)
            if type(module) is nn.Conv2d and "weight" in module._parameters:
                module.weight.mul_(torch.rand_like(module.weight) < draw.choice((0.1, 0.5, 1.0)))
    if behavior == "hook":
        model.stem.register_forward_hook(lambda module, args, output: output * 2)
    model = model.to(dtype).eval()
    shape = (draw.choice((1, 1, 2)), 3, draw.choice((7, 8, 12)), draw.choice((8, 9)))
    (args, kwargs), (others, more) = (_arguments(style, shape, dtype) for _ in range(2))
    words = f"{seed}: {container}, {behavior}, {style}, {names}, {dtype}, {shape}"
    return Case(words, model, args, kwargs, others, more, style, behavior)


def _arguments(style: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, scale = torch.randn(shape).to(dtype), torch.rand(1).to(dtype)
    if style == "images":
        return ([torch.rand(shape[1:]).to(dtype), torch.rand(shape[1:]).to(dtype)],), {}
    if style == "bytes":
        return (torch.randint(0, 256, shape, dtype=torch.uint8),), {}
    if style == "integers":
        return (x, torch.randint(0, shape[3], (shape[3],))), {}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "one": ((x,), {}),
        "keyword": ((), {"x": x}),
        "default": ((x,), {}),
        "flag": ((x,), {"augment": True, "mode": "both"}),
        "optional": ((x, None), {"augment": False}),
        "dict": (({"image": x, "scale": scale},), {}),
        "two": ((x,), {"scale": scale}),
        "var": ((x, x / 2), {"scale": 0.5}),
        "keyword only": ((x,), {"scale": 2.0}),
    }
    return calls[style]
