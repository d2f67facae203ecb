"""Compiles the CUDA kernels with nvcc and tells what became of them; no GPU needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import toolkit
from record.programs import write_programs

from tests.support import ROOT
from tests.support.sass import Function, read_functions
from tests.support.shared_folder import made_once

ARCHITECTURES = ("75", "80", "86", "89", "90")


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one architecture."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    static_shared_bytes: int


@cache
def nvcc() -> Path | None:
    found = toolkit.find_toolkit()
    return found.nvcc if found else None


@cache
def disassembler() -> str | None:
    """nvdisasm of PATH, of the toolkit, or of triton's wheel."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    kit, triton = toolkit.find_toolkit(), importlib.util.find_spec("triton")
    folders = [kit.home / "bin"] if kit else []
    folders += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"] if triton and triton.origin else []
    return next((str(f / "nvdisasm") for f in folders if (f / "nvdisasm").is_file()), None)


def _compile(architecture: str, kernel: str, folder: Path) -> None:
    write_programs(folder)
    ptx, cubin = str(folder / "kernel.ptx"), str(folder / "cubin")
    _run_nvcc(architecture, [*toolkit.FLAGS, f"-I{folder}", "-ptx", kernel, "-o", ptx])
    (folder / "said").write_text(_run_nvcc(architecture, ["-cubin", "-Xptxas", "-v", ptx, "-o", cubin]))


def _run_nvcc(architecture: str, arguments: list[str]) -> str:
    """What the compiler says."""
    command = [str(nvcc()), f"-arch=sm_{architecture}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@cache
def _compiled(architecture: str, kernel: str) -> Path:
    """The folder of a kernel file's `kernel.ptx`, its machine code `cubin`, and what the compiler `said`."""
    return made_once(f"{Path(kernel).parent.name}_sm_{architecture}", partial(_compile, architecture, kernel))


def ptx_of(architecture: str, folder: str) -> Path:
    """The PTX of the kernels in csrc/cuda/<folder>."""
    return _compiled(architecture, f"csrc/cuda/{folder}/conv2d.cu") / "kernel.ptx"


def short_name(mangled: str) -> str:
    """record_conv2d<8,3,3,3,1,1> for its mangled name."""
    name = re.search(r"\d((?:record|condensed|bitmap|semi_structured)_conv2d|add_cuts)I((?:L[ib]\d+E)+)E", mangled)
    assert name is not None, mangled
    numbers = ",".join(re.findall(r"L[ib](\d+)E", name[2]))
    return f"{name[1]}<{numbers}>"


def compile_for(architecture: str) -> dict[str, Compiled]:
    """What ptxas says of each kernel."""
    kernels = {}
    said = [(_compiled(architecture, kernel) / "said").read_text() for kernel in toolkit.KERNELS]
    parts = [part for text in said for part in text.split("Compiling entry function '")[1:]]
    for part in parts:
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert spills is not None
        assert registers is not None
        kernels[short_name(part.split("'")[0])] = Compiled(
            int(registers[1]), int(spills[2]) + int(spills[3]), int(spills[1]), int(shared[1]) if shared else 0
        )
    return kernels


@cache
def _disassemble(architecture: str, kernel: str) -> dict[str, Function]:
    tool = disassembler()
    assert tool is not None
    cubin = _compiled(architecture, kernel) / "cubin"
    done = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {short_name(name): function for name, function in read_functions(done.stdout).items()}


def disassemble(architecture: str, folder: str = "") -> dict[str, Function]:
    """The machine code of each kernel, or of those in csrc/cuda/<folder>."""
    kernels = [kernel for kernel in toolkit.KERNELS if folder in ("", Path(kernel).parent.name)]
    assert kernels, folder
    return {name: function for kernel in kernels for name, function in _disassemble(architecture, kernel).items()}
