"""Build of the compiled extension; everything else is in pyproject.toml.

The extension is optional: without a C++17 compiler the package installs and runs on the torch reference, and
`prunekit doctor` says so.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from torch.utils.cpp_extension import include_paths, library_paths

# tile_kernel.cpp is compiled once per set, best first; the loader picks the first that the processor supports.
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
INSTRUCTION_SETS = {**(X86_SETS if platform.machine() in ("x86_64", "AMD64") else {}), "baseline": []}
TILE_KERNEL = "csrc/cpu/tile_kernel.cpp"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]
TORCH_TARGET = "0x020a000000000000"  # torch 2.10, the oldest whose stable ABI has parallel_for
IS_REQUIRED = os.environ.get("PRUNEKIT_REQUIRE_NATIVE") == "1"


class BuildNative(build_ext):
    """Compile the tile kernel once per instruction set; go on without the extension when that fails."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext`, or say in one sentence why it was left out."""
        try:
            ext.extra_objects = [self._compile_set(*entry) for entry in INSTRUCTION_SETS.items()]
            super().build_extension(ext)
        except Exception as error:
            if IS_REQUIRED:
                raise
            print(
                f"prunekit: the compiled extension was left out, because {error}; the package works on torch's dense "
                "convolution. Install a C++17 compiler and reinstall to get the fast kernels.",
                file=sys.stderr,
            )

    def _compile_set(self, name: str, flags: list[str]) -> str:
        compiler: Any = self.compiler
        objects: list[str] = compiler.compile(
            [TILE_KERNEL],
            output_dir=str(Path(self.build_temp) / name),
            macros=[("PRUNEKIT_ISA", name)],
            extra_postargs=[*FLAGS, *flags],
        )
        return objects[0]


native = Extension(
    "prunekit._native",
    sources=[
        str(p) for p in [Path("csrc/module.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))] if str(p) != TILE_KERNEL
    ],
    depends=[str(p) for p in [*Path("csrc").glob("*.h"), *Path("csrc/cpu").glob("*"), Path("setup.py")]],
    include_dirs=include_paths(),
    library_dirs=library_paths(),
    libraries=["torch", "torch_cpu"],
    define_macros=[
        ("TORCH_TARGET_VERSION", TORCH_TARGET),
        ("Py_LIMITED_API", "0x030a0000"),
        ("PRUNEKIT_COMPILED_SETS", " ".join(f"X({name})" for name in INSTRUCTION_SETS)),
    ],
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=not IS_REQUIRED,
)

setup(
    ext_modules=[native],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
