"""Memory of one competitor, in a process of its own: what else was ever allocated there would count as well.

    python -m prunekit.benchmark.memory '{"model": "yolov3-tiny", "key": "eager", "ratio": 0, ...}'

prints a line of JSON. The peak is the kernel's high-water mark of resident memory; on Linux it is reset after the
competitor was built, so that what an engine needs to convert a model is told apart from what it needs to serve it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import prunekit
from prunekit.benchmark.engines.calls import Call, as_tuple
from prunekit.benchmark.entrants import PRUNEKIT_INT8, accelerated_in_int8
from prunekit.benchmark.peers import EAGER, PEERS
from prunekit.benchmark.problems import UNSTRUCTURED, pruned_net, random_image

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"
_CALLS = 3


@dataclass(frozen=True)
class Memory:
    """Resident memory in MiB.

    Attributes:
        imports_mib: peak before a model was made: Python, torch and prunekit.
        serving_mib: peak while the built competitor ran; None where the high-water mark cannot be reset.
        peak_mib: peak of the whole process, building included.
    """

    imports_mib: float
    serving_mib: float | None
    peak_mib: float


def measure_memory(
    model: str, key: str, ratio: float, image_size: int, width: float, threads: int, structure: str = UNSTRUCTURED
) -> Memory:
    """Start a process that builds one competitor and runs it.

    Args:
        model: a name in `NETS`.
        key: a name in `PEERS`, "control", "prunekit" or `PRUNEKIT_INT8`.
        ratio: pruning ratio in percent.
        image_size: pixels.
        width: share of the net's channels.
        threads: of torch and of the engine.
        structure: of the zeros.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    task = {
        "model": model, "key": key, "ratio": ratio, "image_size": image_size, "width": width, "threads": threads,
        "structure": structure,
    }  # fmt: skip
    command = [sys.executable, "-m", "prunekit.benchmark.memory", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the memory of {key} could not be measured: {lines[-1]}")
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


@torch.no_grad()
def measure_here(
    model: str, key: str, ratio: float, image_size: int, width: float, threads: int, structure: str
) -> Memory:
    """Build one competitor in this process, which should be a fresh one, run it, and read the high-water mark."""
    torch.set_num_threads(threads)
    imports = _high_water_mark()
    call = _build(key, pruned_net(model, ratio, width, structure=structure), random_image(image_size))
    with torch.inference_mode():
        call()
        building = _high_water_mark()
        _return_freed_memory()
        can_reset = _reset_high_water_mark()
        for _ in range(_CALLS):
            call()
    serving = _high_water_mark()
    return Memory(imports, serving if can_reset else None, max(building, serving))


def _build(key: str, net: nn.Module, x: Tensor) -> Call:
    """Keep nothing but what the competitor itself keeps."""
    if key == "prunekit":
        fast = prunekit.accelerate(net, x)
        return lambda: as_tuple(fast(x))
    if key == PRUNEKIT_INT8:
        int8 = accelerated_in_int8(net, x)
        if isinstance(int8, str):
            raise RuntimeError(int8)
        return lambda: as_tuple(int8(x))
    return PEERS[EAGER if key == "control" else key].build(net, x)


def _return_freed_memory() -> None:
    """Give back what building left behind, which no process that serves for long, or loads a saved model, keeps."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _high_water_mark() -> float:
    """Return the peak of resident memory in MiB."""
    if _STATUS.exists():  # getrusage would also count what the parent had when it started this process
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _reset_high_water_mark() -> bool:
    try:
        _RESET.write_text(_RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(**json.loads(sys.argv[1])))))
