"""About how long an experiment takes, before it is begun: passes through the network by the time of one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.environment import thread_count
from prunekit.experiments.plan import Job, Plan
from prunekit.pipeline.checkpoint import requested_spec
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.results import open_data
from prunekit.progress import SilentProgress
from prunekit.task import ModelSpec, takes_argument, task_of
from prunekit.training.config import TrainConfig
from prunekit.training.pool import is_pool, pool_names

# Of a forward and a backward pass together, in forward passes.
_BOTH = 3
# Passes of both kinds that a training makes on an image, where they do not depend on its attack's steps.
_FIXED = {"clean": 1, "free": 1, "n-fgsm": 2, "smoothing": 1, "crown-ibp": 2, "mixtrain": 2}
_PASSES = 6
_CLASSES = 80  # of a detector whose data say how many; heads take little of the time


def estimate_seconds(plan: Plan, jobs: Sequence[Job], count: int) -> float:
    """Return about how many seconds all jobs of a plan take, `count` at a time, on machines like this one.

    A batch's pass through the network is timed; how many there are is counted. Reading of images and timing of models
    are not in it.
    """
    num_train, num_val, image_size = count_images(plan, jobs[0].config)
    passes, trained = _clean_passes(plan, jobs), set[str]()
    for job in jobs:
        pretrains = job.training is not None and job.training not in trained
        trained |= {job.training} if job.training else set()
        passes += _passes(job.config, num_train, num_val, pretrains)
    return passes * _seconds_of_a_pass(jobs[0].config, image_size) / count


def _clean_passes(plan: Plan, jobs: Sequence[Job]) -> float:
    """Return the forward passes of the clean training on rendered images, which each seed has one of."""
    if plan.rendered is None:
        return 0.0
    seeds = {job.config.seed for job in jobs}
    return len(seeds) * plan.rendered.epochs * plan.rendered.num_train * _BOTH


def count_images(plan: Plan, config: RunConfig) -> tuple[int, int, int]:
    """Return the number of images that are learned from, of those that evaluate, and the side of one in pixels."""
    if plan.rendered is not None:
        return plan.rendered.num_train, plan.rendered.num_val, plan.rendered.image_size
    task, silent = task_of(_spec(config)), SilentProgress()
    data = open_data(config, task, config.data, silent)
    training = open_data(config, task, config.train_data, silent, learn=True) if config.train_data else ()
    return len(training), len(data), data.image_size


def _passes(config: RunConfig, num_train: int, num_val: int, pretrains: bool) -> float:
    """Return the forward passes of single images that a run takes."""
    pruned = [unit for unit in config.units if unit.is_pruned] if config.train_data else []
    optimized = sum(unit.variant.pruning == "optimized" for unit in pruned)
    images = pretrains * _images(config.pretrain, num_train)
    images += optimized * _images(config.optimize, num_train) + len(pruned) * _images(config.finetune, num_train)
    models = len({unit.stem for unit in config.units})
    samples = config.certify_n0 + config.certify_n if config.certifies(task_of(_spec(config))) else 0
    return images * _of_objective(config) + models * num_val * (2 + _BOTH * _steps(config.attack) + samples)


def _images(training: TrainConfig, num_train: int) -> int:
    """Return how many images a training looks at."""
    return min(training.epochs * num_train, (training.max_steps or 10**12) * training.batch_size)


def _of_objective(config: RunConfig) -> int:
    """Return the forward passes that a training makes on an image: of the attack's steps, and of what they lead to."""
    return _BOTH * _FIXED.get(config.objective, 2 + _steps(config.train_attack))


def _steps(attack: str) -> int:
    """Return the steps of a preset, of several parts about those of twenty PGD attacks."""
    if is_pool(attack):
        steps = [_steps(name) for name in pool_names(attack)]
        return sum(steps) // len(steps)
    found = PRESETS.get(attack)
    return 0 if found is None else found.steps if isinstance(found, PgdConfig) else 400


def _spec(config: RunConfig) -> ModelSpec:
    spec = requested_spec(config.model, config.width, None, config.arguments)
    is_open = takes_argument(spec.name, "num_classes") and "num_classes" not in spec.arguments
    return spec.updated(num_classes=_CLASSES) if is_open else spec


@torch.inference_mode()
def _seconds_of_a_pass(config: RunConfig, image_size: int) -> float:
    """Time a batch as it is trained with through the network on this machine; return an image's share.

    One thread is timed, and several are taken to share its work: on a busy machine they wait for each other, and the
    same pass took thirty times as long.
    """
    model, batch_size = _spec(config).build().eval(), config.finetune.batch_size
    x = torch.zeros(batch_size, 3, image_size, image_size)
    with thread_count(1):
        seconds = min(_timed(model, x) for _ in range(_PASSES))
    with thread_count(config.threads):
        return seconds / batch_size / torch.get_num_threads()


def _timed(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start
