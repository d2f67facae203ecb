"""Batches of a data set, read and letterboxed beside the computation."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prunekit.detection import Batch, CocoDataset, Sample, Target, collate
from prunekit.errors import InputError


class _Guarded(Dataset["Sample | InputError"]):
    """A data set that returns what is wrong with an image instead of raising it.

    A worker's exception would reach the user wrapped into the worker's traceback. Nothing is kept here: each worker
    would keep images of its own.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.kept = None

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


def load_batches(
    dataset: CocoDataset, batch_size: int, workers: int = 0, order: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Yield the samples of a data set in batches; the same ones in the same order for any number of workers.

    Images that the data set keeps are neither decoded nor sent between processes; of the others, it keeps what fits.

    Args:
        dataset: letterboxed images with their objects.
        batch_size: samples a batch; the last one may be smaller.
        workers: processes that decode and letterbox ahead; 0 does it in this one, between the batches.
        order: indices of the samples to take; all in the data set's order if not given.

    Raises:
        InputError: an image cannot be read.
    """
    indices = range(len(dataset)) if order is None else order
    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    missing = [[index for index in chunk if not _is_kept(dataset, index)] for chunk in chunks]
    decoded = _decode_batches(dataset, [chunk for chunk in missing if chunk], workers)
    for chunk, absent in zip(chunks, missing, strict=True):
        if len(absent) == len(chunk):
            yield next(decoded)
        else:
            yield _with_kept(dataset, chunk, absent, next(decoded) if absent else None)


def _is_kept(dataset: CocoDataset, index: int) -> bool:
    return dataset.kept is not None and dataset.images[index].id in dataset.kept


def _with_kept(dataset: CocoDataset, chunk: Sequence[int], absent: Sequence[int], decoded: Batch | None) -> Batch:
    """Join the images of a batch that were decoded with those that are kept."""
    samples = {index: _sample(decoded, row) for row, index in enumerate(absent) if decoded is not None}
    return collate(samples.get(index) or dataset[index] for index in chunk)


def _sample(batch: Batch, row: int) -> Sample:
    target = batch.targets[row]
    return Sample(batch.images[row], target.boxes, target.labels, batch.image_ids[row], batch.letterboxes[row])


def _decode_batches(dataset: CocoDataset, chunks: list[list[int]], workers: int) -> Iterator[Batch]:
    """Yield batches of these indices, decoded, and let the data set keep what fits."""
    if not chunks:
        return
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=chunks,
        num_workers=workers,
        collate_fn=_collate_or_fail,
        worker_init_fn=_leave_interrupts_to_the_parent,
        # Drawing the workers' seeds must not move the generator that the caller's results come from.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        if dataset.kept is not None:
            for image_id, image in zip(batch.image_ids, batch.images, strict=True):
                dataset.kept.keep(image_id, image)
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
