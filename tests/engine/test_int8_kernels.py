"""The int8 kernels of every instruction set against plain loops, emulated where this processor lacks an instruction."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.shared_folder import made_once

PROBLEMS = 120
_CPU, _SUPPORT = ROOT / "csrc" / "cpu", ROOT / "tests" / "support"
_EMULATED = ["-I", str(_SUPPORT / "emulated_instructions")]
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
#: Set → what it is compiled with, and what the driver says multiplies.
SETS: dict[str, tuple[list[str], str]] = {
    "baseline": ([], "sdot" if "arm" in platform.machine() else "none"),
    "lanes16": (["-DPRUNEKIT_VECTOR_BYTES=64"], "none"),
    "avx512vnni": (["-DPRUNEKIT_VECTOR_BYTES=64", "-D__AVX512VNNI__=1", *_EMULATED], "vpdpbusd of AVX-512"),
    "avxvnni": (["-DPRUNEKIT_VECTOR_BYTES=32", "-D__AVXVNNI__=1", *_EMULATED], "vpdpbusd of AVX-VNNI"),
}


def driver(name: str, flags: list[str], compiler: str) -> Path:
    """Compile the kernels and the driver for a set, and return the program."""

    def make(folder: Path) -> None:
        sources = [str(_CPU / "quad_kernels.cpp"), str(_SUPPORT / "quad_kernels_driver.cpp")]
        plain = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", f"-DPRUNEKIT_ISA={name}", "-I", str(_CPU)]
        built = subprocess.run(
            [compiler, *plain, *flags, *sources, "-static", "-o", str(folder / "driver")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert built.returncode == 0, built.stderr[-4000:]

    return made_once(f"quad_kernels_{name}", make) / "driver"


def run(command: list[str]) -> str:
    done = subprocess.run([*command, str(PROBLEMS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-400:]
    return done.stdout


def check(said: str, instruction: str) -> None:
    assert said.startswith(instruction)
    assert int(said.split(", ")[-1].split()[0]) > 100 * PROBLEMS


@pytest.mark.parametrize("name", SETS)
def test_a_set_computes_what_plain_loops_do(name: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    flags, instruction = SETS[name]
    check(run([str(driver(name, flags, compiler))]), instruction)


@pytest.mark.skipif(not _IS_X86, reason="AVX2 is x86's")
def test_avx2_computes_what_plain_loops_do() -> None:
    compiler = shutil.which("g++")
    if compiler is None or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no g++, or no AVX2")
    check(run([str(driver("avx2", ["-mavx2", "-mfma"], compiler))]), "vpmaddubsw")


def test_arm_computes_what_plain_loops_do_under_emulation() -> None:
    compiler = next(filter(None, map(shutil.which, ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12"))), None)
    emulator = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
    if compiler is None or emulator is None:
        pytest.skip("no compiler for aarch64, or no qemu-user (Debian: g++-aarch64-linux-gnu, qemu-user-static)")
    program = driver("dotprod", ["-march=armv8.2-a+dotprod"], compiler)
    check(run([emulator, "-cpu", "max", str(program)]), "sdot")


def test_the_kernels_hold_the_instructions_that_they_are_compiled_for() -> None:
    compiler, disassembler = shutil.which("g++"), shutil.which("objdump")
    if compiler is None or disassembler is None or not _IS_X86:
        pytest.skip("no g++ or objdump for x86")

    def make(folder: Path) -> None:
        flags = ["-std=c++17", "-O1", "-mavx2", "-mfma", "-mavxvnni", "-DPRUNEKIT_ISA=avxvnni", "-c"]
        built = subprocess.run(
            [compiler, *flags, str(_CPU / "quad_kernels.cpp"), "-o", str(folder / "kernels.o")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        (folder / "said").write_text(built.stderr)

    folder = made_once("quad_kernels_compiled", make)
    if not (folder / "kernels.o").exists():
        pytest.skip(f"the compiler does not know AVX-VNNI: {(folder / 'said').read_text()[-200:]}")
    text = subprocess.run([disassembler, "-d", str(folder / "kernels.o")], capture_output=True, text=True, check=True)
    assert text.stdout.count("vpdpbusd") > 100
    assert "vpmaddubsw" not in text.stdout
