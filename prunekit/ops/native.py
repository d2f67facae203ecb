"""Loading of the compiled extension, and what it offers on this processor."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Set
from dataclasses import dataclass
from types import ModuleType

import torch  # noqa: F401  # brings the libraries that the extension is linked with

_LOG = logging.getLogger("prunekit")
_HOW_TO = "install a C++17 compiler and reinstall prunekit from source (pip install -e .)"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module("prunekit._native")
        if not hasattr(module, "quad_layout"):
            raise ImportError("it is of an older version of prunekit")
        return module, None
    except ImportError as error:
        reason = f"the compiled extension does not load ({error})"
        _LOG.warning("prunekit: %s; running on torch's dense convolution: %s.", reason, _HOW_TO)
        return None, f"{reason}: {_HOW_TO}"


_NATIVE, _REASON = _load()


def _load_cuda() -> tuple[ModuleType | None, str | None]:
    """Load the CUDA kernels; most machines have none, so their absence is told where it is asked for, not here."""
    try:
        return importlib.import_module("prunekit._cuda"), None
    except ModuleNotFoundError:
        return None, "they were not built: reinstall prunekit from source with nvcc and a CUDA build of torch"
    except ImportError as error:
        return None, f"they do not load ({error}): reinstall prunekit from source"


_CUDA, _CUDA_REASON = _load_cuda()


def compare_cuda_signatures(expected: Set[str]) -> None:
    """Leave the CUDA kernels out where the words of an op are others than the package's, or stand in another order.

    Args:
        expected: of `prunekit.ops.cuda.registry.signature`, each op's.
    """
    global _CUDA, _CUDA_REASON
    if _CUDA is None:
        return
    differing = expected ^ set(_CUDA.signatures().splitlines() if hasattr(_CUDA, "signatures") else ())
    if differing:
        names = ", ".join(sorted({signature.split()[0] for signature in differing}))
        _CUDA, _CUDA_REASON = None, f"they were compiled for other arguments of {names}: reinstall prunekit from source"


@dataclass(frozen=True)
class CudaStatus:
    """What the CUDA kernels are on this machine.

    Attributes:
        available: they were built and load.
        architectures: what they were compiled for, for example "75" or "90+PTX".
        toolkit: version of the toolkit that compiled them, for example "13.0", or None.
        reason: why they are not available, and how to get them, or None.
    """

    available: bool
    architectures: tuple[str, ...]
    toolkit: str | None
    reason: str | None


def cuda_status() -> CudaStatus:
    """Tell whether the CUDA kernels were built and load, for which architectures, or why not."""
    if _CUDA is None:
        return CudaStatus(False, (), None, _CUDA_REASON)
    version = _CUDA.toolkit_version()
    return CudaStatus(True, tuple(_CUDA.architectures().split()), f"{version // 1000}.{version % 1000 // 10}", None)


def is_available() -> bool:
    """Tell whether the compiled extension was built and loads."""
    return _NATIVE is not None


@dataclass(frozen=True)
class NativeStatus:
    """What the compiled extension is on this machine.

    Attributes:
        available: it was built and loads.
        instruction_set: the set in use, for example "avx512", or None.
        compiled_sets: the sets compiled in, best first.
        supported_sets: those of them that this processor runs.
        reason: why it is not available, and how to get it, or None.
    """

    available: bool
    instruction_set: str | None
    compiled_sets: tuple[str, ...]
    supported_sets: tuple[str, ...]
    reason: str | None


def native_status() -> NativeStatus:
    """Tell whether the compiled extension is in use, with which instruction set, or why not."""
    if _NATIVE is None:
        return NativeStatus(False, None, (), (), _REASON)
    sets = _NATIVE.compiled_instruction_sets()
    return NativeStatus(
        available=True,
        instruction_set=_NATIVE.instruction_set(),
        compiled_sets=tuple(name for name, _ in sets),
        supported_sets=tuple(name for name, supported in sets if supported),
        reason=None,
    )


def use_instruction_set(name: str) -> None:
    """Run the CPU kernels of one instruction set from now on, for tests and comparisons.

    Raises:
        ValueError: the set is not compiled in, or this processor does not support it.
    """
    if _NATIVE is None:
        raise ValueError(f"no instruction set can be chosen: {_REASON}.")
    _NATIVE.use_instruction_set(name)


def lane_layout() -> tuple[int, tuple[int, int, int]]:
    """Return the elements of a vector, and the longest tiles in vectors for 1, 2 and 4 rows, of the set in use."""
    lanes, longest = _require().lane_layout()
    return lanes, longest


@dataclass(frozen=True)
class QuadLayout:
    """What the int8 kernels of the set in use are.

    Attributes:
        max_vectors: Of their longest tiles.
        x_shift: What is subtracted from each level before it is multiplied.
        instruction: That multiplies levels, or "none".
        rate: Its multiply-adds in the time of one in float32; 0 where there is no instruction.
        max_pair: What the weights of one sign in either half of a quad may add up to.
    """

    max_vectors: int
    x_shift: int
    instruction: str
    rate: int
    max_pair: int


def quad_layout() -> QuadLayout:
    """Return what the int8 kernels of the set in use are."""
    return QuadLayout(*_require().quad_layout())


def fma_peak_gflops() -> float:
    """Measure 10^9 float32 operations a second that torch's threads do in registers; takes a tenth of a second."""
    return float(_require().fma_peak_gflops())


def shared_write_ns() -> float:
    """Measure the nanoseconds a cache line takes to be written after another thread has read it."""
    return float(_require().shared_write_ns())


def vector_times(num_bytes: int) -> tuple[float, float]:
    """Measure how many nanoseconds a vector takes in memory of `num_bytes` that one thread passes over repeatedly.

    Returns:
        To be multiplied and added, and to be read, changed and written back.
    """
    multiply_add_ns, rewrite_ns = _require().vector_times(num_bytes)
    return multiply_add_ns, rewrite_ns


def step_declarations() -> list[tuple[int, str, str, int]]:
    """Return what csrc/cpu/plan.h declares of steps: (kind or -1, name, text of the fields or names, words)."""
    declared: list[tuple[int, str, str, int]] = _require().step_declarations()
    return declared


def make_plan(words: bytes, arena_elements: int, num_inputs: int, num_outputs: int) -> object:
    """Check a plan's steps (csrc/cpu/plan.h) and return the plan; whatever they point to must outlive it.

    Raises:
        RuntimeError: a step leaves the arena or does not fit its filter.
    """
    return _require().make_plan(words, arena_elements, num_inputs, num_outputs)


def run_plan(plan: object, tensors: bytes, batch: int, step_ends: int = 0, arena: int = 0) -> None:
    """Run a plan on `batch` images; `tensors` holds int64 (address, batch stride) of its inputs, then outputs.

    Args:
        plan: of `make_plan`.
        tensors: as bytes.
        batch: how many images.
        step_ends: address of int64 [steps] for each step's end in nanoseconds since the last image began, or 0.
        arena: address of float32 [arena elements], aligned to cache lines, to run in; 0 for memory of the plan's own.

    Raises:
        MemoryError: there is no memory for the arena.
    """
    _require().run_plan(plan, tensors, batch, step_ends, arena)


def _require() -> ModuleType:
    if _NATIVE is None:
        raise RuntimeError(f"the engine needs the compiled extension: {_REASON}.")
    return _NATIVE
