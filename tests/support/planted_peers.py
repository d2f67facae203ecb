"""Dense peers for tests of the benchmark that compute something else than they should, on a small net."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from prunekit.benchmark import Settings
from prunekit.benchmark.engines.calls import Call
from prunekit.benchmark.engines.precisions import FLOAT32, Precision
from prunekit.benchmark.engines.pytorch import torch_eager
from prunekit.benchmark.peers import PEERS, Peer
from prunekit.progress import SilentProgress


class Messages(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


class Planted:
    """A dense peer whose outputs go through `change` from the call number `since` on."""

    def __init__(self, change: Callable[[Tensor], Tensor], since: int = 0) -> None:
        self.change, self.since, self.calls = change, since, 0

    def __call__(self, model: nn.Module, x: Tensor) -> Call:
        eager = torch_eager(model, x)

        def run() -> tuple[Tensor, ...]:
            self.calls += 1
            outputs = eager()
            return tuple(self.change(y) for y in outputs) if self.calls > self.since else outputs

        return run


def small_settings() -> Settings:
    return Settings(
        "end-to-end",
        models=("yolov3-tiny",),
        threads=(1,),
        ratios=(0.0, 90.0),
        peers=("folded",),
        runs=2,
        width=0.05,
        image_size=32,
    )


def plant(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    peer: Callable[[nn.Module, Tensor], Call],
    precision: Precision = FLOAT32,
) -> Settings:
    monkeypatch.setitem(PEERS, "planted", Peer("planted engine", (), peer, precision))
    return Settings(**{**vars(settings), "peers": ("folded", "planted")})


def flipped_last(y: Tensor) -> Tensor:
    y = y.clone()
    y.view(-1)[-1] = float("nan")
    return y
