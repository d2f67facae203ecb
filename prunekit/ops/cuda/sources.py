"""Whose kernels this process has for NVIDIA GPUs: the compiled extension's, Triton's, both or none."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from prunekit.ops.native import cuda_status


def kernel_sources() -> frozenset[str]:
    """Return what of "cuda", the compiled extension, and "triton" can run here (`Gpu.sources`)."""
    missing = {"cuda": not cuda_status().available, "triton": missing_triton()}
    return frozenset(name for name, reason in missing.items() if not reason)


def missing_kernels() -> str | None:
    """Return why no kernels are here, as the end of a sentence, or None where some are."""
    return None if kernel_sources() else f"{cuda_status().reason}, and {missing_triton()}"


def missing_triton() -> str | None:
    """Return why Triton cannot run kernels here, as the end of a sentence, or None where it can.

    Triton is imported only when one of its kernels runs. It then compiles what launches the kernel, by the C compiler
    that it looks for here and Python's headers.
    """
    if not (has_package("triton") and has_package("prunekit_kernels")):
        return "Triton is not installed"
    if not _c_compiler():
        return "Triton finds no C compiler (install gcc or clang, or set CC)"
    if not _has_python_headers():
        return "Triton finds no Python.h (install Python's development package)"
    return None


def has_package(name: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return find_spec(name) is not None


def _c_compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _has_python_headers() -> bool:
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's; headers are not in it
    return (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file()
