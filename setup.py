"""Build of the compiled extensions; everything else is in pyproject.toml.

Both are optional: without a C++17 compiler the package installs and runs on the torch reference, without nvcc it has no
kernels for GPUs, and `prunekit doctor` says so. FORCE_CUDA=1 turns a CUDA extension that cannot be built into an error.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from torch.utils.cpp_extension import include_paths, library_paths

sys.path.insert(0, str(Path(__file__).parent / "csrc" / "cuda"))
import toolkit as cuda

# The kernels are compiled once per set, best first; the loader picks the first that the processor supports.
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
ALL_SETS = {**(X86_SETS if platform.machine() in ("x86_64", "AMD64") else {}), "baseline": []}
# PRUNEKIT_SETS=avx2 compiles fewer of them, for quick builds on one machine; the baseline is always there.
WANTED_SETS = os.environ.get("PRUNEKIT_SETS", ",".join(ALL_SETS)).split(",")
if not set(WANTED_SETS) <= set(ALL_SETS):
    sys.exit(f"PRUNEKIT_SETS: expected some of {', '.join(ALL_SETS)}, got {os.environ['PRUNEKIT_SETS']!r}.")
INSTRUCTION_SETS = {name: flags for name, flags in ALL_SETS.items() if name in WANTED_SETS or name == "baseline"}
# int8 needs one instruction more, which a set adds to one of those: name, the set, flags.
QUAD_KERNELS = "csrc/cpu/quad_kernels.cpp"
X86_QUADS = {
    "avx512vnni": ("avx512", ["-mavx512vnni"]),
    "avxvnni": ("avx2", ["-mavxvnni"]),
}
ARM_QUADS = {"dotprod": ("baseline", ["-march=armv8.2-a+dotprod"])}
QUADS = ARM_QUADS if platform.machine() in ("aarch64", "arm64") else X86_QUADS
QUAD_SETS = {
    **{name: [*INSTRUCTION_SETS[base], *flags] for name, (base, flags) in QUADS.items() if base in INSTRUCTION_SETS},
    **INSTRUCTION_SETS,
}
KERNELS = [f"csrc/cpu/{name}.cpp" for name in ("tile_kernel", "lane_kernels", "lane_channels", "lane_remap")]
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
# PRUNEKIT_SANITIZE=1, for tests: the checks stop the process. Calls instead of inlined checks compile faster, and so
# does leaving out what no kernel does (virtual calls, references that may be null).
if os.environ.get("PRUNEKIT_SANITIZE") == "1":
    undefined = "alignment,bounds,shift,signed-integer-overflow,float-cast-overflow,integer-divide-by-zero,return"
    FLAGS += ["-O1", "-g1", f"-fsanitize=address,{undefined}", "-fno-sanitize-recover=all"]
    FLAGS += ["--param", "asan-instrumentation-with-call-threshold=0", "-DPRUNEKIT_SHORT_TILES"]
LINK_FLAGS = [flag for flag in FLAGS if flag.startswith("-fsanitize")]
TORCH_TARGET = "0x020a000000000000"  # torch 2.10, the oldest whose stable ABI has parallel_for
IS_REQUIRED = os.environ.get("PRUNEKIT_REQUIRE_NATIVE") == "1"


class BuildNative(build_ext):
    """Compile the kernels once per instruction set; go on without the extension when that fails."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext`, or say in one sentence why it was left out."""
        if ext is cuda_native:
            self._build_cuda(ext)
            return
        try:
            # Each compiler runs in a process of its own; two at a time.
            with ThreadPoolExecutor(max_workers=2) as pool:
                jobs = [(name, flags, kernel) for name, flags in INSTRUCTION_SETS.items() for kernel in KERNELS]
                objects = pool.map(lambda job: self._compile(*job), jobs)
                quads = dict(pool.map(self._compile_quads, QUAD_SETS.items()))
                ext.extra_objects = [*objects, *filter(None, quads.values())]
            ext.define_macros.append(("PRUNEKIT_QUAD_SETS", _listed(name for name in quads if quads[name])))
            super().build_extension(ext)
        except Exception as error:
            if IS_REQUIRED:
                raise
            print(
                f"prunekit: the compiled extension was left out, because {error}; the package works on torch's dense "
                "convolution. Install a C++17 compiler and reinstall to get the fast kernels.",
                file=sys.stderr,
            )

    def _build_cuda(self, ext: Extension) -> None:
        try:
            toolkit = cuda.usable_toolkit()
            major, minor = toolkit.version
            ext.define_macros.append(("PRUNEKIT_CUDA_ARCHITECTURES", f'"{" ".join(cuda.architectures())}"'))
            ext.define_macros.append(("PRUNEKIT_CUDA_TOOLKIT", str(1000 * major + 10 * minor)))
            ext.extra_objects = cuda.compile_kernels(toolkit, Path(self.build_temp) / "cuda")
            ext.library_dirs.append(str(cuda.library_folder(toolkit)))
            super().build_extension(ext)
        except Exception as error:
            if cuda.is_forced():
                raise
            print(f"prunekit: the CUDA extension was left out, because {error}.", file=sys.stderr)

    def _compile_quads(self, job: tuple[str, list[str]]) -> tuple[str, str | None]:
        """Compile int8 for a set, without fused multiply-adds; None: the compiler does not know its instruction."""
        name, flags = job
        try:
            return name, self._compile(name, [*flags, "-ffp-contract=off"], QUAD_KERNELS)
        except CompileError:
            if name in INSTRUCTION_SETS:
                raise
            return name, None

    def _compile(self, name: str, flags: list[str], kernel: str) -> str:
        compiler: Any = self.compiler
        objects: list[str] = compiler.compile(
            [kernel],
            output_dir=str(Path(self.build_temp) / name),
            macros=[("PRUNEKIT_ISA", name)],
            extra_postargs=[*FLAGS, *flags],
        )
        return objects[0]


def _listed(names: Iterable[str]) -> str:
    return " ".join(f"X({name})" for name in names)


native = Extension(
    "prunekit._native",
    sources=[
        str(p)
        for p in [Path("csrc/module.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
        if str(p) not in (*KERNELS, QUAD_KERNELS)
    ],
    depends=[str(p) for p in [*Path("csrc").glob("*.h"), *Path("csrc/cpu").glob("*"), Path("setup.py")]],
    include_dirs=include_paths(),
    library_dirs=library_paths(),
    libraries=["torch", "torch_cpu"],
    define_macros=[
        ("TORCH_TARGET_VERSION", TORCH_TARGET),
        ("Py_LIMITED_API", "0x030a0000"),
        ("PRUNEKIT_COMPILED_SETS", _listed(INSTRUCTION_SETS)),
    ],
    extra_compile_args=FLAGS,
    extra_link_args=LINK_FLAGS,
    py_limited_api=True,
    optional=not IS_REQUIRED,
)

cuda_native = Extension(
    "prunekit._cuda",
    sources=["csrc/cuda/module.cpp", *(str(p) for p in sorted(Path("csrc/cuda").glob("*/binding.cpp")))],
    depends=[str(p) for p in [*Path("csrc").glob("*.h"), *Path("csrc/cuda").rglob("*.*"), Path("setup.py")]],
    include_dirs=["csrc/cuda", *include_paths()],
    library_dirs=library_paths(),
    libraries=["torch", "torch_cpu", "cudart_static", "dl", "rt", "pthread"],
    define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=not cuda.is_forced(),
)

setup(
    ext_modules=[native, cuda_native],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
