"""Batches of a data set, read and letterboxed beside the computation."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prunekit.detection import Batch, CocoDataset, Sample, Target, collate
from prunekit.errors import InputError


class _Guarded(Dataset["Sample | InputError"]):
    """A data set that returns what is wrong with an image instead of raising it.

    A worker's exception would reach the user wrapped into the worker's traceback.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


def load_batches(
    dataset: CocoDataset, batch_size: int, workers: int = 0, order: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Yield the samples of a data set in batches; the same ones in the same order for any number of workers.

    Args:
        dataset: letterboxed images with their objects.
        batch_size: samples a batch; the last one may be smaller.
        workers: processes that decode and letterbox ahead; 0 does it in this one, between the batches.
        order: indices of the samples to take; all in the data set's order if not given.

    Raises:
        InputError: an image cannot be read.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_size,
        sampler=range(len(dataset)) if order is None else order,
        num_workers=workers,
        collate_fn=_collate_or_fail,
        worker_init_fn=_leave_interrupts_to_the_parent,
        # Drawing the workers' seeds must not move the generator that the caller's results come from.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's images and objects."""
    targets = [Target(target.boxes.to(device), target.labels.to(device)) for target in batch.targets]
    return Batch(batch.images.to(device), targets, batch.image_ids, batch.letterboxes)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are."""
    return next(model.parameters()).device


def _collate_or_fail(samples: list[Sample | InputError]) -> Batch | InputError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    return collate(good)


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the parent should speak about it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
