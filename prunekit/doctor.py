"""What `prunekit doctor` looks at: versions, processor, what was built, what is missing and how to get it."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
from dataclasses import dataclass

import torch
from rich.table import Table

from prunekit.environment import installed_version
from prunekit.nn import native_status
from prunekit.ops.cuda.sources import kernel_sources, missing_kernels
from prunekit.ops.native import cuda_status
from prunekit.processor import processor

REQUIRED = ("torch", "numpy", "pillow", "pycocotools", "safetensors", "pydantic", "pyyaml", "matplotlib", "jinja2")
# Distribution → what it adds, and the extra that brings it.
OPTIONAL = {
    "triton": "GPU kernels: pip install 'prunekit[triton]'",
    "captum": "the test oracle for DeepLIFT: pip install 'prunekit[captum]'",
    "onnxruntime": "a peer in benchmarks: pip install 'prunekit[peers]'",
    "openvino": "a peer in benchmarks: pip install 'prunekit[peers]'",
    "nncf": "int8 of OpenVINO, a peer in benchmarks: pip install 'prunekit[peers]'",
}
_MODULE_OF = {"pillow": "PIL", "pyyaml": "yaml"}  # where the distribution's name is not the module's


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked at.
        found: What was found.
        advice: How to get what is missing; empty when nothing is.
        is_broken: Whether prunekit cannot work like this.
    """

    name: str
    found: str
    advice: str = ""
    is_broken: bool = False


def examine() -> list[Check]:
    """Look at everything."""
    checks = [
        Check("prunekit", installed_version("prunekit") or "not installed, runs from its source folder"),
        Check("Python", platform.python_version()),
    ]
    checks += [_required(package) for package in REQUIRED]
    checks += [look() for look in (_processor, _native_kernels, _cuda, _cuda_kernels, _gpu_convolutions, _nvcc)]
    return checks + [_optional(package, advice) for package, advice in OPTIONAL.items()]


def table(checks: list[Check]) -> Table:
    """Lay the checks out for the terminal."""
    lines = Table(title="prunekit doctor", title_justify="left", show_header=False)
    lines.add_column(no_wrap=True)
    lines.add_column()
    lines.add_column()
    for check in checks:
        mark = "[red]✗[/]" if check.is_broken else "[yellow]–[/]" if check.advice else "[green]✓[/]"
        advice = check.advice.replace("[", "\\[")
        lines.add_row(f"{mark} {check.name}", check.found, advice)
    return lines


def _required(package: str) -> Check:
    try:
        importlib.import_module(_MODULE_OF.get(package, package))
    except Exception as error:  # whatever a broken package raises is what the user must see
        return Check(package, f"does not import: {error}", f"pip install --force-reinstall {package}", True)
    return Check(package, installed_version(package) or "unknown version")


def _optional(package: str, advice: str) -> Check:
    version = installed_version(package)
    return Check(package, version) if version else Check(package, "not installed", advice)


def _processor() -> Check:
    cpu = processor()
    sets = ", ".join(cpu.instruction_sets) or "no vector instructions known"
    return Check("processor", f"{cpu.name}; {torch.get_num_threads()} threads; {sets}")


def _native_kernels() -> Check:
    status = native_status()
    if not status.available:
        return Check("native CPU kernels", "not built: the slower reference runs", status.reason or "")
    compiled = ", ".join(status.compiled_sets)
    return Check("native CPU kernels", f"{status.instruction_set} in use, compiled: {compiled}")


def _cuda() -> Check:
    if torch.version.cuda is None:
        return Check("CUDA", "torch is a CPU build", "for a GPU: install torch's CUDA build, then prunekit")
    if not torch.cuda.is_available():
        return Check("CUDA", f"torch is built for {torch.version.cuda}, but finds no GPU", "check `nvidia-smi`")
    return Check("CUDA", f"{torch.version.cuda}, {torch.cuda.get_device_name()}")


def _cuda_kernels() -> Check:
    status = cuda_status()
    if not status.available:
        return Check("CUDA kernels", "not built", status.reason or "")
    return Check("CUDA kernels", f"CUDA {status.toolkit}, compiled for {', '.join(status.architectures)}")


def _gpu_convolutions() -> Check:
    sources = kernel_sources()
    kernels = {"cuda": "the CUDA kernels", "triton": "the Triton kernels"}
    found = " and ".join(kernels[source] for source in sorted(sources))
    if not found:
        return Check("sparse convolutions on a GPU", "none: they run dense", missing_kernels() or "")
    return Check("sparse convolutions on a GPU", f"{found}, wherever they are faster than cuDNN")


def _nvcc() -> Check:
    advice = "the CUDA toolkit compiles GPU kernels"
    if (path := shutil.which("nvcc")) is None:
        return Check("nvcc", "not found", advice)
    lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip().splitlines()
    if not lines:
        return Check("nvcc", "gives no version", advice)
    return Check("nvcc", next((line for line in lines if "release" in line), lines[-1]))
