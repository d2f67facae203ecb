"""Torch's global random states, left as they are by code that runs other people's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

State = tuple[Tensor, list[Tensor]]


@contextmanager
def own_random_state() -> Iterator[None]:
    """Give torch's global generators back, after the block, the states that they had before."""
    before = _state()
    try:
        yield
    finally:
        _restore(before)


class RandomStream:
    """Random numbers that continue from one block to the next, while outside torch's generators do not move.

    So a dropout that is always on differs between batches, and yet the caller's own draws are what they would be.
    """

    def __init__(self) -> None:
        self._current = _state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from the stream inside the block."""
        outside = _state()
        _restore(self._current)
        try:
            yield
        finally:
            self._current = _state()
            _restore(outside)


def _state() -> State:
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if is_used else []


def _restore(state: State) -> None:
    torch.set_rng_state(state[0])
    for index, gpu in enumerate(state[1]):
        torch.cuda.set_rng_state(gpu, index)
