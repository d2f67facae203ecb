"""Executes the PTX that nvcc makes of the CUDA kernels (tests/gpu_checks/ptx) on problems, without a GPU."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.support import ROOT
from tests.support.cuda_compiler import ptx_of
from tests.support.emulated_kernels import COMPILER, Case, FilterCase, run_cases
from tests.support.shared_folder import made_once


@dataclass(frozen=True)
class PtxBug:
    """One edit of a kernel's PTX, as a planted bug.

    Attributes:
        kernel: its folder in csrc/cuda.
        pattern: a regular expression.
        replacement: of what it finds, with groups as \\1.
        which: of the places in each instantiation; None is all of them.
        architecture: that the PTX is for.
    """

    kernel: str
    pattern: str
    replacement: str
    which: int | None = None
    architecture: str = "80"

    def plant(self, ptx: str) -> str:
        """The PTX with the bug in every instantiation that has the place."""
        head, *kernels = re.split(r"(?=\.visible \.entry)", ptx)
        return head + "".join(self._plant_once(kernel) for kernel in kernels)

    def _plant_once(self, ptx: str) -> str:
        found = list(re.finditer(self.pattern, ptx))
        places = found if self.which is None else found[self.which :][:1]
        for place in reversed(places):
            ptx = ptx[: place.start()] + place.expand(self.replacement) + ptx[place.end() :]
        return ptx


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


def execute(cases: Sequence[FilterCase], architecture: str, seed: int = 0, bug: PtxBug | None = None) -> list[Tensor]:
    """Execute the kernel's PTX on each case, all of one kernel; a seed other than 0 shuffles the order of threads.

    Raises:
        EmulationError: the PTX did what a GPU would not do, or is not what the interpreter knows.
    """
    ptx = ptx_of(architecture, cases[0].kernel)
    return _run(cases, _with_bug(ptx, bug) if bug else ptx, seed)[0]


def account_of(case: FilterCase, architecture: str) -> dict[str, Any]:
    """What the kernel's blocks took together, by a block's `start`, `copies`, `sums` and `end`.

    Each has barriers, instructions, cycles, chain (the cycles of the slowest thread alone), shared_accesses, sectors
    stored, stored_bytes, loaded_sectors and code (instructions that some thread of any block comes to).
    """
    printed = _run([case], ptx_of(architecture, case.kernel), 0, "account")[1]
    account: dict[str, Any] = json.loads(printed)
    return account


def _run(cases: Sequence[Case], ptx: Path, seed: int, *more: str) -> tuple[list[Tensor], str]:
    kernel = cases[0].source.removesuffix("_conv2d")
    return run_cases([str(interpreter())], cases, seed, [str(ptx), kernel, *more])


def _with_bug(ptx: Path, bug: PtxBug) -> Path:
    name = hashlib.sha256(repr(bug).encode()).hexdigest()[:16]
    return made_once(name, partial(_plant, ptx.read_text(), bug)) / "ptx"


def _plant(ptx: str, bug: PtxBug, folder: Path) -> None:
    changed = bug.plant(ptx)
    assert changed != ptx, f"the PTX has no {bug.pattern!r}"
    (folder / "ptx").write_text(changed)
