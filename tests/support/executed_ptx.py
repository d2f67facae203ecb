"""Executes the PTX that nvcc makes of the CUDA kernels (tests/gpu_checks/ptx) on problems, without a GPU."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import toolkit
from record.programs import write_programs
from torch import Tensor

from tests.support import ROOT
from tests.support.cuda_compiler import nvcc
from tests.support.emulated_kernels import COMPILER, Case, FilterCase, run_cases
from tests.support.shared_folder import made_once

#: (text of the PTX, its replacement): every place where it stands is changed.
Edit = tuple[str, str]


def _compile_ptx(architecture: str, kernel: str, folder: Path) -> None:
    write_programs(folder)
    command = [str(nvcc()), *toolkit.FLAGS, f"-I{folder}", f"-arch=sm_{architecture}", "-ptx"]
    command += [f"csrc/cuda/{kernel}/conv2d.cu", "-o", str(folder / "kernel.ptx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@cache
def ptx_of(architecture: str, kernel: str) -> Path:
    """What nvcc makes of a kernel's instantiations."""
    return made_once(f"{kernel}_ptx_{architecture}", partial(_compile_ptx, architecture, kernel)) / "kernel.ptx"


def _compile_interpreter(folder: Path) -> None:
    checks = ROOT / "tests" / "gpu_checks"
    includes = [f"-I{checks / 'ptx'}", f"-I{checks / 'emulation'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command = [COMPILER, "-std=c++17", "-O2", "-Wall", "-Werror", "-DPRUNEKIT_EMULATED=800", *includes]
    command += [str(checks / "ptx" / "run.cpp"), "-o", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@cache
def interpreter() -> Path:
    """The program that executes PTX."""
    return made_once("ptx_interpreter", _compile_interpreter) / "run"


def execute(cases: Sequence[FilterCase], architecture: str, seed: int = 0, edits: Sequence[Edit] = ()) -> list[Tensor]:
    """Execute the kernel's PTX on each case, all of one kernel; a seed other than 0 shuffles the order of threads.

    Raises:
        EmulationError: the PTX did what a GPU would not do, or is not what the interpreter knows.
    """
    return _run(cases, _edited(architecture, cases[0].kernel, tuple(edits)), seed)[0]


def account_of(case: FilterCase, architecture: str) -> dict[str, Any]:
    """What the kernel's blocks took together: `body` and `end`, each with instructions, cycles, sectors and others."""
    printed = _run([case], ptx_of(architecture, case.kernel), 0, "account")[1]
    account: dict[str, Any] = json.loads(printed)
    return account


def _run(cases: Sequence[Case], ptx: Path, seed: int, *more: str) -> tuple[list[Tensor], str]:
    kernel = cases[0].source.removesuffix("_conv2d")
    return run_cases([str(interpreter())], cases, seed, [str(ptx), kernel, *more])


def _edited(architecture: str, kernel: str, edits: tuple[Edit, ...]) -> Path:
    ptx = ptx_of(architecture, kernel)
    if not edits:
        return ptx
    name = hashlib.sha256(repr((architecture, kernel, edits)).encode()).hexdigest()[:16]
    return made_once(name, partial(_edit, ptx.read_text(), edits)) / "kernel.ptx"


def _edit(text: str, edits: Sequence[Edit], folder: Path) -> None:
    for before, after in edits:
        assert before in text, f"the PTX has no {before!r}"
        text = text.replace(before, after)
    (folder / "kernel.ptx").write_text(text)
