"""Finds NVIDIA's compiler, decides whether the CUDA extension can be built, and compiles its kernels.

The binding goes through torch's stable ABI, so a CPU build of torch is enough to compile against; the result serves
CUDA builds of the same torch releases.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from record.programs import write_programs

#: What wheels carry: every architecture from Turing to Hopper, and PTX for those that come after.
ALL_ARCHITECTURES = ("75", "80", "86", "89", "90+PTX")
NAMES = {"turing": "75", "ampere": "80;86", "ada": "89", "hopper": "90"}
FOLDER = Path(__file__).parent
KERNELS = tuple(f"csrc/cuda/{path.parent.name}/conv2d.cu" for path in sorted(FOLDER.glob("*/conv2d.cu")))
FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{FOLDER}")


class CudaBuildError(Exception):
    """Why the CUDA extension cannot be built, as the rest of a sentence."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Attributes:
        home: Its folder.
        nvcc: Its compiler.
        version: (major, minor).
    """

    home: Path
    nvcc: Path
    version: tuple[int, int]


def find_toolkit() -> Toolkit | None:
    """Return the toolkit of CUDA_HOME or CUDA_PATH, else of nvcc on PATH, else of /usr/local/cuda."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    nvcc = [home / "bin" / "nvcc" for home in homes] or ([Path(on_path)] if on_path else [])
    for candidate in [*nvcc, Path("/usr/local/cuda/bin/nvcc")]:
        if candidate.is_file():
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            release = re.search(r"release (\d+)\.(\d+)", said)
            if release:
                home = homes[0] if homes else _home_of(candidate)
                return Toolkit(home, candidate, (int(release[1]), int(release[2])))
    return None


def _home_of(nvcc: Path) -> Path:
    """Nvcc on PATH may be a link or a script in another folder; its dry run tells where it lives."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.*)$", dry, re.MULTILINE)
    return Path(top[1]).resolve() if top else nvcc.resolve().parent.parent


def is_forced() -> bool | None:
    """Return what FORCE_CUDA says: True, False, or None where it is not set."""
    value = os.environ.get("FORCE_CUDA", "")
    return None if value == "" else value.lower() not in ("0", "false", "off", "no")


def usable_toolkit() -> Toolkit:
    """Return the toolkit to build with.

    Raises:
        CudaBuildError: there is none, or it does not match torch, or torch is a CPU build and nothing forces it.
    """
    forced = is_forced()
    if forced is False:
        raise CudaBuildError("FORCE_CUDA=0 asks for none")
    if torch.version.cuda is None and not forced:
        raise CudaBuildError("torch is a CPU build (FORCE_CUDA=1 builds it all the same)")
    toolkit = find_toolkit()
    if toolkit is None:
        raise CudaBuildError(
            "no nvcc was found; install the CUDA toolkit of torch's version"
            + (f" {torch.version.cuda}" if torch.version.cuda else "")
            + " and name its folder in CUDA_HOME"
        )
    if torch.version.cuda is not None and int(torch.version.cuda.split(".")[0]) != toolkit.version[0]:
        raise CudaBuildError(
            f"torch is built for CUDA {torch.version.cuda}, but {toolkit.nvcc} is of "
            f"{toolkit.version[0]}.{toolkit.version[1]}; install a toolkit of torch's major version and name its "
            "folder in CUDA_HOME"
        )
    return toolkit


def architectures() -> list[str]:
    """Return what to compile for, as "75" or "90+PTX": TORCH_CUDA_ARCH_LIST, else the local GPUs, else all.

    Raises:
        CudaBuildError: TORCH_CUDA_ARCH_LIST holds what is no architecture, or one before 7.5.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked and asked.lower() != "all":
        return [name for word in re.split(r"[;,\s]+", asked) if word for name in _architecture(word)]
    if not asked and torch.version.cuda is not None and torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return [f"{major}{minor}" for major, minor in sorted(found)]
    return list(ALL_ARCHITECTURES)


def _architecture(word: str) -> list[str]:
    name, ptx, rest = word.partition("+")
    if name.lower() in NAMES and not ptx:
        return NAMES[name.lower()].split(";")
    number = re.fullmatch(r"(\d+)\.(\d)[a-z]?", name)
    if number is None or (ptx and rest != "PTX"):
        raise CudaBuildError(f'TORCH_CUDA_ARCH_LIST: expected numbers as in "7.5;8.6+PTX", got {word!r}')
    if int(number[1] + number[2]) < 75:
        raise CudaBuildError(f"TORCH_CUDA_ARCH_LIST: the kernels need architecture 7.5 or newer, found {word}")
    return [number[1] + number[2] + ("+PTX" if ptx else "")]


def architecture_flags(names: list[str]) -> list[str]:
    """Return nvcc's flags: machine code for each architecture, and PTX where "+PTX" asks for it."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def compile_kernels(toolkit: Toolkit, folder: Path) -> list[str]:
    """Compile every kernel file into an object in `folder`; MAX_JOBS compilers side by side.

    Raises:
        CudaBuildError: a compiler failed; its messages are in the error.
    """
    write_programs(folder)
    objects = []
    jobs = os.environ.get("MAX_JOBS", "2")
    if not jobs.isdigit() or int(jobs) < 1:
        raise CudaBuildError(f"MAX_JOBS: expected a number from 1, got {jobs!r}")
    for kernel in KERNELS:
        target = folder / f"{Path(kernel).parent.name}_cuda.o"
        flags = [*FLAGS, f"-I{folder}", *architecture_flags(architectures()), "--threads", jobs]
        command = [str(toolkit.nvcc), *flags, "-c", kernel]
        done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise CudaBuildError(f"{toolkit.nvcc} failed on {kernel}: {last[0]}")
        objects.append(str(target))
    return objects


def library_folder(toolkit: Toolkit) -> Path:
    """Return the folder of the toolkit's static runtime library.

    Raises:
        CudaBuildError: it is not there.
    """
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit.home / folder / "libcudart_static.a").is_file():
            return toolkit.home / folder
    raise CudaBuildError(f"{toolkit.home} holds no libcudart_static.a; install the toolkit's runtime development files")
