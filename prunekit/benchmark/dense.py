"""Dense engines on one model, for whoever wants to know what the fastest of them takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit.benchmark.engines.calls import Call, as_tuple
from prunekit.benchmark.entrants import built
from prunekit.benchmark.peers import PEERS
from prunekit.comparison import check_within
from prunekit.nn import MAX_RELATIVE_RMS, WrongOutputError
from prunekit.progress import Progress
from prunekit.timing import time_in_turn


@torch.no_grad()
def time_dense_engines(
    model: nn.Module, x: Tensor, keys: Sequence[str], runs: int, progress: Progress
) -> dict[str, float]:
    """Time a model on dense engines in turn, each after its outputs were found right.

    Args:
        model: In eval mode.
        x: An input, [N, C, H, W].
        keys: Of `PEERS`, in float32.
        runs: Timed calls of each.
        progress: Told which engines are left out, and why.

    Returns:
        Median milliseconds by the engine's name, the fastest first; without those that are not installed or wrong.
    """
    calls: dict[str, Call] = {}
    for key in progress.track(keys, "building dense engines", len(keys)):
        name, found = PEERS[key].name, _checked(key, model, x)
        if isinstance(found, str):
            progress.message(f"{name}: not timed, {found}")
        else:
            calls[name] = found
    medians = {name: timing.median_ms for name, timing in time_in_turn(calls, runs).items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def _checked(key: str, model: nn.Module, x: Tensor) -> Call | str:
    """Return an engine's call, or why it cannot be timed."""
    call = built(PEERS[key], model, x)
    if isinstance(call, str):
        return call
    try:
        check_within(as_tuple(model(x)), call(), PEERS[key].name, MAX_RELATIVE_RMS, "torch eager")
    except WrongOutputError as error:
        return str(error)
    return call
