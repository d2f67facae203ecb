"""Compiles the CUDA kernels for this processor (tests/gpu_checks/emulation) and runs problems through them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.cuda.filter_op import EPILOGUES
from tests.support import ROOT
from tests.support.shared_folder import made_once, shared_folder

COMPILER = shutil.which("g++") or ""
SANITIZERS = {
    "": [],
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


@dataclass(frozen=True)
class Build:
    """One way to compile the kernels: an architecture, sanitizers, and edits of the source for planted mutants."""

    architecture: int = 800
    sanitizer: str = ""
    edits: tuple[tuple[str, str, str], ...] = field(default=())  # (file in csrc/cuda, text, its replacement)

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.sanitizer or 'plain'}"


#: Compilers and emulators side by side: one a core, which pytest's processes have to share.
NUM_JOBS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@cache
def compiled(build: Build, source: str) -> Path:
    """Compile tests/gpu_checks/emulation/<source>.cpp against csrc/, or an edited copy of it."""
    name = hashlib.sha256(repr((build, source)).encode()).hexdigest()[:16]
    return made_once(name, partial(_compile, build, source)) / "emulate"


def _compile(build: Build, source: str, folder: Path) -> None:
    csrc = ROOT / "csrc"
    if build.edits:
        csrc = folder / "csrc"
        shutil.copytree(ROOT / "csrc", csrc, dirs_exist_ok=True)
        for file, text, replacement in build.edits:
            path = csrc / "cuda" / file
            before = path.read_text()
            assert before.count(text) == 1, f"{file} holds {text!r} {before.count(text)} times"
            path.write_text(before.replace(text, replacement))
    emulation = ROOT / "tests" / "gpu_checks" / "emulation"
    command = [
        COMPILER,
        "-std=c++17",
        "-O0" if build.edits or build.sanitizer == "address,undefined" else "-O1",
        "-g1",
        "-Wall",
        "-Wno-unknown-pragmas",
        *SANITIZERS[build.sanitizer],
    ]
    command += [f"-DPRUNEKIT_EMULATED={build.architecture}", f"-I{csrc / 'cuda'}", f"-I{emulation}"]
    command += [str(emulation / f"{source}.cpp"), "-o", str(folder / "emulate")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert build.edits or "warning" not in done.stderr, done.stderr  # a planted bug may leave a variable unused


def compile_all(source: str) -> None:
    """Compile a kernel for both ways of copying, plainly and with each sanitizer, a compiler a core."""
    builds = [Build(architecture, sanitizer) for sanitizer in SANITIZERS for architecture in (750, 800)]
    if COMPILER:
        with ThreadPoolExecutor(NUM_JOBS) as pool:
            list(pool.map(lambda build: compiled(build, source), builds))


class Case(Protocol):
    """One problem, as tests/gpu_checks/emulation/<source>.cpp reads it."""

    @property
    def source(self) -> str: ...

    def output(self) -> Tensor: ...

    def parts(self, y: Tensor) -> list[np.ndarray[Any, Any]]: ...


@dataclass(frozen=True)
class Convolution:
    """What every kernel reads beside its filter and the cut of its work."""

    x: Tensor  # any strides
    bias: Tensor | None
    residual: Tensor | None  # of the output's shape and strides
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    activation: str
    negative_slope: float
    is_channels_last: bool = False

    def output(self, weight_shape: Sequence[int]) -> Tensor:
        size = conv_output_size(self.x.shape, weight_shape, self.stride, self.padding, self.dilation)
        y = torch.full((self.x.shape[0], weight_shape[0], *size), torch.nan, dtype=self.x.dtype)
        return y.to(memory_format=torch.channels_last) if self.is_channels_last else y

    def arguments(self) -> tuple[object, ...]:
        """The op's arguments after the filter's."""
        geometry = list(self.stride), list(self.padding), list(self.dilation)
        return self.bias, self.residual, *geometry, self.activation, self.negative_slope

    def sizes(self, y: Tensor) -> list[int]:
        n, _, h, w = self.x.shape
        geometry = *self.stride, *self.padding, *self.dilation
        return [n, h, w, *y.shape[2:], *geometry, EPILOGUES.index(self.activation)]

    def slope(self) -> np.ndarray[Any, Any]:
        return np.array([self.negative_slope], np.float32)

    def tensors(self, y: Tensor) -> list[np.ndarray[Any, Any]]:
        nothing = self.x.new_zeros(0)
        x = torch.as_strided(
            self.x, (1 + sum((s - 1) * d for s, d in zip(self.x.shape, self.x.stride(), strict=True)),), (1,)
        )
        bias = nothing if self.bias is None else self.bias
        return [_numbers(t) for t in (x, bias, nothing if self.residual is None else _flat(self.residual), _flat(y))]


@dataclass(frozen=True)
class FilterCase:
    """Everything that one run of a kernel reads.

    Attributes:
        kernel: its name.
        conv: the convolution.
        packed: the kernel's filter.
        launch: the words of its cut.
    """

    kernel: str
    conv: Convolution
    packed: Any
    launch: Sequence[int]

    @property
    def source(self) -> str:
        return f"{self.kernel}_conv2d"

    def output(self) -> Tensor:
        return self.conv.output(self.packed.header.shape)

    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, for the reference."""
        return self.conv.x, *self.packed.arguments(), *self.conv.arguments(), list(self.launch)

    def parts(self, y: Tensor) -> list[np.ndarray[Any, Any]]:
        is_bfloat16 = [] if y.dtype == torch.float32 else [int(y.dtype == torch.bfloat16)]
        words = [*is_bfloat16, *self.conv.sizes(y), *self.launch, *self.conv.x.stride(), *y.stride()]
        header = [np.array(numbers, np.int64) for numbers in (words, self.packed.header.words())]
        filter = [_numbers(tensor.ravel()) for tensor in self.packed.tensors()]
        return [header[0], self.conv.slope(), header[1], *filter, *self.conv.tensors(y)]


class EmulationError(Exception):
    """The emulated program did not end well; the message is what it printed."""


_MOST_SECONDS = 600


def emulate(cases: Sequence[Case], build: Build, seed: int = 0) -> list[Tensor]:
    """Run the kernel on each case, all of one kernel; a seed other than 0 shuffles the order of threads.

    Raises:
        EmulationError: a sanitizer or the emulator found something, or the kernel does not end.
    """
    outputs, _ = run_cases([str(compiled(build, cases[0].source))], cases, seed)
    return outputs


def run_cases(
    program: Sequence[str], cases: Sequence[Case], seed: int, arguments: Sequence[str] = ()
) -> tuple[list[Tensor], str]:
    """Run `program INPUT OUTPUT SEED arguments` on each case; return the outputs, and what it printed.

    Raises:
        EmulationError: it did not end well.
    """
    outputs = [case.output() for case in cases]
    with tempfile.TemporaryDirectory(dir=shared_folder()) as folder:
        problem, result = Path(folder) / "problem", Path(folder) / "result"
        problem.write_bytes(b"".join(_problem(case, y) for case, y in zip(cases, outputs, strict=True)))
        # A race's report may be long; the first one is enough.
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        command = [*program, str(problem), str(result), str(seed), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False, timeout=_MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise EmulationError("it does not end") from None
        if done.returncode:
            raise EmulationError(f"exit code {done.returncode}: {done.stderr[:2000]}")
        values = np.fromfile(result, np.uint8)
    sizes = [y.numel() * y.element_size() for y in outputs]
    assert values.size == sum(sizes)
    for y, part in zip(outputs, torch.split(torch.from_numpy(values), sizes), strict=True):
        _flat(y).copy_(part.clone().view(y.dtype))
    return outputs, done.stdout


def _problem(case: Case, y: Tensor) -> bytes:
    return b"".join(np.int64(part.size).tobytes() + part.tobytes() for part in case.parts(y))


def _flat(dense: Tensor) -> Tensor:
    """A tensor without gaps, in the order of its memory."""
    return torch.as_strided(dense, (dense.numel(),), (1,))


def _numbers(flat: Tensor) -> np.ndarray[Any, Any]:
    """As numpy, which has no bfloat16."""
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).contiguous().numpy()
