"""What needs a GPU says so in one sentence where there is none, before it runs or writes anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_check, gpu_nets
from bench.gpu_check import Part, run_parts
from bench.scripts import check_device
from bench.time_limit import TimeLimit
from prunekit.errors import InputError
from tests.support.make_runs import run_make


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("main", [gpu_check.main, gpu.main, gpu_nets.main])
@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_scripts_for_gpus_end_before_they_begin(
    main: Callable[[list[str]], object],
    cuda: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert ("a CUDA build of torch" if cuda is None else "an NVIDIA GPU that torch") in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_gpu")
def test_a_processor_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="for the device cuda:1, got"):
        check_device("cuda:1")


def test_a_gpu_that_torch_finds_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device("cuda")


def test_nothing_is_judged_where_nothing_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def judge(rows: object) -> None:
        raise AssertionError(f"judged {rows}")

    part = Part("layers", lambda minutes: [sys.executable, "-c", "exit(1)"], 0.5, tmp_path / "rows.jsonl", judge)
    run_parts([part], TimeLimit(60.0), margin=0.5)
    assert "layers: no row was measured" in capsys.readouterr().out


def test_make_gpu_ends_before_it_sets_anything_up(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
        pytest.skip("needs a machine without an NVIDIA driver")
    for tool in ("make", "sh", "test"):
        (tmp_path / tool).symlink_to(_found(tool))
    done = run_make("gpu", f"VENV={tmp_path / 'venv'}", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "got a machine without nvidia-smi. Nothing was run." in done.stderr
    assert not (tmp_path / "venv").exists()


def _found(tool: str) -> str:
    path = subprocess.run(
        ["sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return path if path.startswith("/") else f"/usr/bin/{tool}"
