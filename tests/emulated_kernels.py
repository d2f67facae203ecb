"""Compiles the CUDA kernels for this processor (tests/emulation) and runs problems through them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.record_filter import RecordFilter

ROOT = Path(__file__).parent.parent
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


@cache
def work_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="prunekit-emulation-"))


@cache
def compiled(build: Build, source: str = "record_conv2d") -> Path:
    """Compile tests/emulation/<source>.cpp against csrc/, or an edited copy of it."""
    name = hashlib.sha256(repr((build, source)).encode()).hexdigest()[:16]
    csrc = ROOT / "csrc"
    if build.edits:
        csrc = work_folder() / name / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        for file, text, replacement in build.edits:
            path = csrc / "cuda" / file
            before = path.read_text()
            assert before.count(text) == 1, f"{file} holds {text!r} {before.count(text)} times"
            path.write_text(before.replace(text, replacement))
    program = work_folder() / name / "emulate"
    program.parent.mkdir(exist_ok=True)
    emulation = ROOT / "tests" / "emulation"
    command = [
        COMPILER,
        "-std=c++17",
        "-O0" if build.edits else "-O1",
        "-g1",
        "-Wall",
        "-Wno-unknown-pragmas",
        *SANITIZERS[build.sanitizer],
    ]
    command += [f"-DPRUNEKIT_EMULATED={build.architecture}", f"-I{csrc / 'cuda'}", f"-I{emulation}"]
    done = subprocess.run(
        [*command, str(emulation / f"{source}.cpp"), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return program


@dataclass(frozen=True)
class RecordProblemCase:
    """Everything that one run of the kernel reads."""

    x: Tensor  # any strides
    packed: RecordFilter
    bias: Tensor | None
    residual: Tensor | None  # of the output's shape and strides
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    activation: str
    negative_slope: float
    launch: Sequence[int]
    is_channels_last: bool = False

    def output(self) -> Tensor:
        size = conv_output_size(self.x.shape, self.packed.header.shape, self.stride, self.padding, self.dilation)
        y = torch.full((self.x.shape[0], self.packed.header.out_channels, *size), torch.nan)
        return y.to(memory_format=torch.channels_last) if self.is_channels_last else y

    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, for the reference."""
        return (
            self.x,
            self.packed.header.words(),
            self.packed.starts,
            self.packed.records,
            self.packed.rows,
            self.bias,
            self.residual,
            list(self.stride),
            list(self.padding),
            list(self.dilation),
            self.activation,
            self.negative_slope,
            list(self.launch),
        )


class EmulationError(Exception):
    """The emulated program did not end well; the message is what it printed."""


def emulate(cases: Sequence[RecordProblemCase], build: Build, seed: int = 0) -> list[Tensor]:
    """Run the kernel on each case; a seed other than 0 shuffles the order of threads.

    Raises:
        EmulationError: a sanitizer or the emulator found something.
    """
    program = compiled(build)
    outputs = [case.output() for case in cases]
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        problem, result = Path(folder) / "problem", Path(folder) / "result"
        problem.write_bytes(b"".join(_problem(case, y) for case, y in zip(cases, outputs, strict=True)))
        # A race's report may be long; the first one is enough.
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(
            [program, problem, result, str(seed)], capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode:
            raise EmulationError(f"exit code {done.returncode}: {done.stderr[:2000]}")
        values = torch.from_numpy(np.fromfile(result, np.float32))
    assert values.numel() == sum(y.numel() for y in outputs)
    for y, flat in zip(outputs, torch.split(values, [y.numel() for y in outputs]), strict=True):
        torch.as_strided(y, (y.numel(),), (1,)).copy_(flat)
    return outputs


def _problem(case: RecordProblemCase, y: Tensor) -> bytes:
    n, _, h, w = case.x.shape
    sizes = [n, h, w, *y.shape[2:], *case.stride, *case.padding, *case.dilation, int(case.activation != "none")]
    words = [*sizes, *case.launch, *case.x.stride(), *y.stride()]
    x = torch.as_strided(
        case.x, (1 + sum((s - 1) * d for s, d in zip(case.x.shape, case.x.stride(), strict=True)),), (1,)
    )
    parts: list[np.ndarray[Any, Any]] = [
        np.array(words, np.int64),
        np.array([case.negative_slope], np.float32),
        np.array(case.packed.header.words(), np.int64),
        case.packed.starts.numpy(),
        case.packed.records.numpy().ravel(),
        case.packed.rows.numpy(),
        x.numpy(),
        np.zeros(0, np.float32) if case.bias is None else case.bias.numpy(),
        np.zeros(0, np.float32) if case.residual is None else _flat(case.residual),
        _flat(y),
    ]
    return b"".join(np.int64(part.size).tobytes() + part.tobytes() for part in parts)


def _flat(dense: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tensor without gaps, in the order of its memory."""
    return torch.as_strided(dense, (dense.numel(),), (1,)).numpy()
