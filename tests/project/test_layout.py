"""The house rules that a machine can check: arrows point one way, and `kernels` stays unimportable."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.rooms import ROOMS

MODULES = sorted((ROOT / "prunekit").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "prunekit" else {node.module}
            )
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "prunekit").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS, f"{room} has no place in the order of rooms: {ROOMS}"
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    own = {name for name in imported_modules(path) if name.startswith("prunekit.")}
    assert {name.split(".")[1] for name in own} <= allowed


def test_kernels_cannot_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_compiled_code_knows_nothing_of_the_python_package() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*.*") if path.parent.name != "__pycache__"]
    assert len(sources) > 50
    for path in sources:
        assert "import prunekit" not in path.read_text()


PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_pages_name_are_there(page: Path) -> None:
    named = re.findall(
        r"`((?:prunekit|csrc|kernels|bench|tests|docs)/[\w/]+\.(?:py|cpp|h|cu|cuh|md))\b", page.read_text()
    )
    absent = [name for name in named if not (ROOT / name).exists() and name != "kernels/__init__.py"]
    assert not absent
