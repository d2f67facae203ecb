"""The house rules that a machine can check: arrows point one way, and `kernels` stays unimportable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import rooms to its left and itself.
ROOMS = [
    "errors",
    "registry",
    "task_data",
    "files",
    "file_kinds",
    "documents",
    "timing",
    "structure",
    "comparison",
    "discontinuous",
    "processor",
    "dry_run",
    "ops",
    "engine",
    "nn",
    "environment",
    "progress",
    "prune",
    "attacks",
    "task",
    "detection",
    "compaction",
    "training",
    "evaluation",
    "pipeline",
    "report",
    "console",
    "benchmark",
    "doctor",
    "demo",
    "cli",
]
MODULES = sorted((ROOT / "prunekit").rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "prunekit" else {node.module}
            )
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("prunekit.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "prunekit").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS, f"{room} has no place in the order of rooms: {ROOMS}"
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    assert imported_rooms(path) <= allowed


def test_kernels_cannot_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_compiled_code_knows_nothing_of_the_python_package() -> None:
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        assert "import prunekit" not in path.read_text()
