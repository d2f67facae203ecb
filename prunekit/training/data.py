"""Where batches come from: memory or disk, read beside the computation, and always the same ones for the same seed."""

from __future__ import annotations

import copy
import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.task import Data
from prunekit.task_data import ChangesPixels, KeepsImages
from prunekit.training.augment import augment, resize
from prunekit.training.config import TrainConfig


class TrainingData(Protocol):
    """Images with what is to be learnt about them."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield images [N, ...], uint8 or float in [0, 1], with their targets, in the given order.

        Args:
            order: Indices of the images, each at most once.
            batch_size: Images a batch; the last one may be smaller.
            workers: Processes that may read ahead; the batches do not depend on it.
        """


@dataclass(frozen=True)
class ImagesInMemory:
    """Data that is small enough to be kept.

    Attributes:
        images: [n, C, H, W], uint8 or float in [0, 1].
        targets: One an image, or labels [n].
    """

    images: Tensor
    targets: Sequence[Any] | Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield batches; there is nothing to read ahead."""
        targets = self.targets
        for start in range(0, len(order), batch_size):
            chosen = list(order[start : start + batch_size])
            yield self.images[chosen], targets[chosen] if isinstance(targets, Tensor) else [targets[i] for i in chosen]


@dataclass(frozen=True)
class ImagesOnDisk:
    """A data set of any size, read in every epoch, beside the training step if there are workers."""

    dataset: Data

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield images, float [N, 3, S, S], and their targets."""
        for batch in load_batches(self.dataset, batch_size, workers, order):
            yield batch.images, batch.targets


def read_into_memory(dataset: Data, progress: Progress) -> ImagesInMemory:
    """Read a data set once; it takes 3 · S · S bytes an image."""
    size = dataset.image_size
    images = torch.empty((len(dataset), 3, size, size), dtype=torch.uint8)
    targets = []
    for index in progress.track(range(len(dataset)), "reading training images", len(dataset)):
        sample = dataset[index]
        images[index] = (sample.image * 255).round()
        targets.append(sample.target)
    is_labeled = bool(targets) and isinstance(targets[0], int)
    return ImagesInMemory(images, torch.tensor(targets) if is_labeled else targets)


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """Return a seed for one purpose at one step or epoch, 32 bits: all that torch's CPU generator looks at."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()[:4], "little")


def seeded(seed: int, purpose: str, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator for one purpose at one step or epoch."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, index))


def batches_per_epoch(data: TrainingData, config: TrainConfig) -> int:
    """Return how often a pass over the data asks for a batch.

    Raises:
        InputError: When there is no image.
    """
    if len(data) == 0:
        raise InputError("Expected at least one training image, but the data set is empty")
    return -(-len(data) // config.batch_size)


def training_batches(data: TrainingData, config: TrainConfig, first: int) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches without end from number `first` on: shuffled anew each epoch, augmented, resized, on the device.

    What batch number b holds follows from (seed, b) alone, whichever batch the iteration began with.
    """
    per_epoch = batches_per_epoch(data, config)
    number = first
    while True:
        epoch, position = divmod(number, per_epoch)
        order = torch.randperm(len(data), generator=seeded(config.seed, "order", epoch)).tolist()
        rest = order[position * config.batch_size :]
        for x, targets in data.batches(rest, config.batch_size, config.workers):
            yield _prepare(x, targets, config, seeded(config.seed, "augmentation", number))
            number += 1


def as_floats(x: Tensor) -> Tensor:
    """Return images in [0, 1], bytes or floating-point, as floating-point ones."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def placed(x: Tensor, targets: Any, device: str | torch.device) -> tuple[Tensor, Any]:
    """Return a batch on a device, its images floating-point; targets that are no tensor stay where they are."""
    return as_floats(x.to(device)), targets.to(device) if isinstance(targets, Tensor) else targets


def _prepare(x: Tensor, targets: Any, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Any]:
    x = as_floats(x.to(config.device))
    assert config.augmentation is not None  # what leaves it to the task has been completed
    x, targets = augment(x, targets, config.augmentation, generator)
    if config.sizes:
        size = config.sizes[int(torch.randint(len(config.sizes), (1,), generator=generator))]
        x, targets = resize(x, targets, size)
    if isinstance(targets, Tensor):
        targets = targets.to(config.device)
    return x, targets


class _Guarded(Dataset[Any]):
    """A data set that returns what is wrong with an image instead of raising it.

    A worker's exception would reach the user wrapped into the worker's traceback. Nothing is kept here: each worker
    would keep images of its own. What is kept as decoded is read where processes share it.
    """

    def __init__(self, dataset: Data, shares_memory: bool) -> None:
        self.dataset: Any = dataset
        if isinstance(dataset, KeepsImages):
            self.dataset = copy.copy(dataset)
            self.dataset.kept = None
        if isinstance(dataset, ChangesPixels) and not shares_memory:
            self.dataset = copy.copy(self.dataset)
            self.dataset.decoded = None

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


def load_batches(dataset: Data, batch_size: int, workers: int = 0, order: Sequence[int] | None = None) -> Iterator[Any]:
    """Yield the samples of a data set in batches; the same ones in the same order for any number of workers.

    Images that the data set keeps are neither decoded nor sent between processes; of the others, it keeps what fits.

    Args:
        dataset: images of one size with their targets.
        batch_size: samples a batch; the last one may be smaller.
        workers: processes that decode and resize ahead; 0 does it in this one, between the batches.
        order: indices of the samples to take; all in the data set's order if not given.

    Raises:
        InputError: an image cannot be read.
    """
    indices = range(len(dataset)) if order is None else order
    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    missing = [[index for index in chunk if not _is_kept(dataset, index)] for chunk in chunks]
    decoded = _decode(dataset, [chunk for chunk in missing if chunk], workers)
    for chunk, absent in zip(chunks, missing, strict=True):
        samples = dict(zip(absent, next(decoded), strict=True)) if absent else {}
        yield dataset.collate([samples[index] if index in samples else dataset[index] for index in chunk])


def _is_kept(dataset: Data, index: int) -> bool:
    return isinstance(dataset, KeepsImages) and dataset.is_kept(index)


def _decode(dataset: Data, chunks: list[list[int]], workers: int) -> Iterator[list[Any]]:
    """Yield the samples of these indices, decoded, and let the data set keep what fits."""
    if not chunks:
        return
    shares_memory = not workers or torch.multiprocessing.get_start_method() == "fork"
    loader = DataLoader(
        _Guarded(dataset, shares_memory),
        batch_sampler=chunks,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_leave_interrupts_to_the_parent,
        # Drawing the workers' seeds must not move the generator that the caller's results come from.
        generator=torch.Generator(),
    )
    for samples in loader:
        for sample in samples:
            if isinstance(sample, InputError):
                raise sample
            if isinstance(dataset, KeepsImages) and dataset.kept is not None:
                dataset.kept.keep(sample.image_id, sample.image)
        yield samples


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are; the CPU for one that has none, as an accelerated model."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the parent should speak about it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
