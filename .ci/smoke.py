"""What an installed wheel must do, without a compiler, the repository or an extra; `python .ci/smoke.py`."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys

import torch
from torch import nn

import prunekit


def check_speed_path() -> str:
    """Accelerate a pruned net on the compiled engine, and return the instruction set in use."""
    status = prunekit.nn.native_status()
    assert status.available, status.reason
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2)).eval()
    with torch.no_grad():
        for conv in (model[0], model[2]):
            conv.weight.mul_(torch.rand_like(conv.weight) < 0.1)
        x = torch.rand(2, 3, 33, 31)
        fast = prunekit.accelerate(model, x)
        assert torch.allclose(fast(x), model(x), atol=1e-5)
    return str(status.instruction_set)


def check_contents() -> None:
    """Look for what is no Python: types, pages and plans of experiments."""
    package = importlib.resources.files("prunekit")
    for name in ("py.typed", "report/report.html", "experiments/report.yaml"):
        assert package.joinpath(name).is_file(), name
    assert importlib.resources.files("prunekit_kernels").joinpath("py.typed").is_file()


def check_command() -> None:
    """Run the command: it works, or names the extra that it needs."""
    command = [sys.executable, "-m", "prunekit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    version = importlib.metadata.version("prunekit")
    assert version == prunekit.__version__
    is_there = done.returncode == 0 and version in done.stdout
    assert is_there or (done.returncode == 2 and "prunekit[study]" in done.stderr), done.stderr


if __name__ == "__main__":
    check_contents()
    check_command()
    print(f"prunekit {prunekit.__version__} with torch {torch.__version__}: {check_speed_path()} kernels")
