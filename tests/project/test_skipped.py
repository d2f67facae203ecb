"""A whole run says at its start what it skips: what is absent is named, what is there is not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from prunekit.extras import EXTRAS
from tests.support import ROOT, skipped
from tests.support.skipped import MODULES


@pytest.mark.parametrize("is_there", [True, False])
def test_modules_are_named_where_they_are_absent(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("any", None) if is_there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    lines = [line for line in skipped.skipped() if "is not installed (" in line]
    assert len(lines) == (0 if is_there else len(MODULES))


def test_files_are_named_with_the_reason_that_their_tests_skip_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRUNEKIT_CIFAR10", str(tmp_path / "none"))
    assert "CIFAR-10: needs folders of CIFAR-10's images in ../shared/data or PRUNEKIT_CIFAR10" in skipped.skipped()
    monkeypatch.setenv("PRUNEKIT_CIFAR10", str(tmp_path))
    assert not any(line.startswith("CIFAR-10") for line in skipped.skipped())


def test_extras_that_are_named_exist() -> None:
    named = {match for _, how in MODULES.values() for match in re.findall(r"prunekit\[(.*)\]", how)}
    declared = (ROOT / "pyproject.toml").read_text()
    assert named - {"corruptions-peer"} <= set(EXTRAS)
    assert all(f"\n{extra} = [" in declared for extra in named)


@pytest.mark.parametrize(("arguments", "is_said"), [([], True), (["toy/test_toy.py"], False)])
def test_whole_runs_say_it_first(arguments: list[str], is_said: bool, tmp_path: Path) -> None:
    """In a project of one test, so that a whole run is short."""
    paths = [str(ROOT / folder) for folder in (".", "kernels", "csrc/cuda")]
    settings = f'[tool.pytest.ini_options]\naddopts = "-q"\ntestpaths = ["toy"]\npythonpath = {paths}\n'
    (tmp_path / "pyproject.toml").write_text(settings)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "test_toy.py").write_text("def test_it(): pass\n")
    (tmp_path / "toy" / "conftest.py").write_text("from tests.conftest import pytest_sessionstart\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("kipped" in done.stdout.splitlines()[0]) == is_said
