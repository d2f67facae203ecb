"""Measurements of earlier runs on GPUs, on disk: keyed by device, dtype, direction, sizes and density."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit.files import cache_folder, write_text
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.registry import SPARSE_KERNELS

_VERSION = 3


@dataclass(frozen=True)
class KernelKey:
    """What a measurement holds for.

    Attributes:
        gpu: the device's name.
        capability: its compute capability, for example 75.
        multiprocessors: how many it has.
        dtype: of input, weight and output.
        allow_tf32: whether the dense convolution could use tf32.
        direction: "forward", "input_grad" or "inference".
        kernels: those that were compared with the dense convolution.
        problem: sizes, and the density to two digits.
    """

    gpu: str
    capability: int
    multiprocessors: int
    dtype: str
    allow_tf32: bool
    direction: str
    kernels: tuple[str, ...]
    problem: ConvProblem

    def __str__(self) -> str:
        return json.dumps({**asdict(self), "torch": torch.__version__}, sort_keys=True)


@dataclass(frozen=True)
class KernelTimes:
    """What was measured.

    Attributes:
        kernel: the fastest sparse one, or None where no cut of any fits.
        launch: its cut, likewise.
        seconds: of that.
        dense_seconds: of the dense convolution.
    """

    kernel: str | None
    launch: KernelLaunch | None
    seconds: float
    dense_seconds: float


class KernelCache:
    """The file of measurements.

    Attributes:
        note: why the file was ignored or not written, or None.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file; None keeps measurements in memory only."""
        self._path, self._times = path, dict[str, KernelTimes]()
        self.note: str | None = None
        self._is_changed = False
        try:
            if path is None or not path.is_file():
                return
            document = json.loads(path.read_text())
            if document["version"] != _VERSION:
                raise ValueError(f"it is of version {document['version']}, not {_VERSION}")
            self._times = {str(key): _checked(value) for key, value in document["kernels"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.note = f"the kernel cache {path} was ignored ({type(error).__name__}: {error}); it is written anew"

    @classmethod
    def default(cls) -> KernelCache:
        """Return the user's, in the folder that `prunekit.files.cache_folder` names; without one, in memory only."""
        try:
            return cls(cache_folder() / "gpu_kernels.json")
        except RuntimeError as error:
            cache = cls(None)
            cache.note = f"measurements of this run are not kept for later ones ({error})"
            return cache

    def get(self, key: KernelKey) -> KernelTimes | None:
        """Return what was measured for a key, or None."""
        return self._times.get(str(key))

    def put(self, key: KernelKey, times: KernelTimes) -> None:
        """Remember a measurement."""
        self._times[str(key)] = times
        self._is_changed = True

    def save(self) -> None:
        """Write the file if anything is new; a folder that cannot be written leaves a note."""
        if self._path is None or not self._is_changed:
            return
        kernels = {
            key: [t.kernel, t.launch.numbers() if t.launch else None, t.seconds, t.dense_seconds]
            for key, t in self._times.items()
        }
        try:
            write_text(self._path, json.dumps({"version": _VERSION, "kernels": kernels}, indent=1) + "\n")
            self._is_changed = False
        except (OSError, ValueError) as error:  # a path may be none
            unread = f"{self.note}; " if self.note else ""
            self.note = f"{unread}the kernel cache {self._path} could not be written ({error})"


def _checked(value: Any) -> KernelTimes:
    kernel, launch, seconds, dense_seconds = value
    are_times = all(isinstance(t, float) and t > 0 for t in (seconds, dense_seconds))
    if not are_times or (kernel is None) != (launch is None) or kernel not in (None, *SPARSE_KERNELS):
        raise ValueError(f"{value!r} is no measurement")
    cut = None if kernel is None else SPARSE_KERNELS[kernel].launch_of(launch)
    return KernelTimes(kernel, cut, seconds, dense_seconds)
