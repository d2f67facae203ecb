"""What an attack on latency does to a deployed model: candidates before suppression, and each step's milliseconds.

The network's own time does not depend on the image; decoding's and suppression's do. Clean and attacked images are
timed in turns, so that whatever slows the machine down meets both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import AttackLosses, soft_count
from prunekit.errors import InputError
from prunekit.evaluation.latency import check_same_outputs
from prunekit.task import Options, SuppressesBoxes, Task
from prunekit.timing import Timing, seconds_in_turn

NETWORK = "network"
#: What names say of images and of limits: attacked ones, and suppression without --max-candidates.
OVERLOAD, UNCAPPED = "overload_", "uncapped_"


def suppressing(task: Task) -> SuppressesBoxes:
    """Return a task that suppresses boxes; InputError for another one."""
    if not isinstance(task, SuppressesBoxes):
        raise InputError(f"--attack: expected a detector for an attack on latency, got the model {task.spec.name}.")
    return task


def with_overload(losses: AttackLosses, task: Task, options: Options) -> AttackLosses:
    """Return losses with a smooth count of the candidates above the options' threshold, where the task has any."""
    if not isinstance(task, SuppressesBoxes):
        return losses
    scores_of = task.candidate_scores
    return replace(losses, overload=lambda outputs: soft_count(scores_of(outputs), options.score_threshold))


def candidate_counts(task: Task, outputs: Any, options: Options) -> list[int]:
    """Return how many pairs of box and class score above the threshold in each image, whatever caps them later."""
    return [int((scores > options.score_threshold).sum()) for scores in suppressing(task).candidate_scores(outputs)]


class CandidateCounter:
    """Counts the candidates of images as an evaluation sees them, and keeps the first images.

    Attributes:
        counts: By image, in their order.
        images: The first ones, [3, S, S] each, on the CPU.
    """

    def __init__(self, model: nn.Module, task: Task, options: Options, keep: int) -> None:
        self._model, self._task, self._options, self._keep = model, task, options, keep
        self.counts: list[int] = []
        self.images: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, image_id: int, image: Tensor) -> None:
        """Look at one image [3, S, S]; the id is what `evaluate` says."""
        self.counts += candidate_counts(self._task, self._model(image[None]), self._options)
        if len(self.images) < self._keep:
            self.images.append(image.cpu())

    @property
    def mean(self) -> float:
        """Candidates an image."""
        return sum(self.counts) / len(self.counts)


@torch.inference_mode()
def time_overload(
    model: nn.Module,
    fast: nn.Module,
    task: Task,
    pairs: Sequence[tuple[Tensor, Tensor]],
    runs: int,
    limits: Mapping[str, Options],
) -> dict[str, Timing]:
    """Time the network and each step after it on clean and on attacked images.

    Args:
        model: The dense model, on the CPU.
        fast: What is deployed in its place.
        task: What both are made for.
        pairs: Clean and attacked images, [1, 3, S, S] each.
        runs: Timed runs of each step on each image.
        limits: What predicting is told, by a prefix of names: "" as deployed, and others to compare with, under which
            only the last step is timed, which suppresses.

    Returns:
        Milliseconds over all images and runs: network, decode, overload_decode, uncapped_nms, overload_uncapped_nms…

    Raises:
        WrongOutputError: When both models' outputs differ.
    """
    seconds: dict[str, list[float]] = {}
    for clean, attacked in pairs:
        calls: dict[str, Callable[[], object]] = {}
        for prefix, x in {"": clean, OVERLOAD: attacked}.items():
            outputs = fast(x)
            check_same_outputs(model(x), outputs)
            calls[f"{prefix}{NETWORK}"] = partial(fast, x)
            for limit, options in limits.items():
                steps = [*task.postprocessing(outputs, options).items()]
                calls |= {f"{prefix}{limit}{name}": do for name, do in (steps[-1:] if limit else steps)}
        for name, values in seconds_in_turn(calls, runs).items():
            seconds.setdefault(name, []).extend(values)
    return {name: Timing.of(values) for name, values in seconds.items()}
