"""docs/environment.md lists every environment variable that the sources read, and no other one of prunekit's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support import ROOT

PAGE = (ROOT / "docs" / "environment.md").read_text()
FOLDERS = ("prunekit", "kernels", "bench", "csrc", "tests")


def sources() -> Iterator[Path]:
    yield ROOT / "setup.py"
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def is_environ(node: ast.expr) -> bool:
    return isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in ("os.environ", "environ")


def key_of_a_read(node: ast.AST) -> ast.expr | None:
    """The variable's name in os.environ[name], os.environ.get(name, …), os.getenv(name) or `name in os.environ`."""
    if isinstance(node, ast.Subscript) and is_environ(node.value):
        return node.slice
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        if is_environ(node.func.value) and node.func.attr in ("get", "pop", "setdefault"):
            return node.args[0]
        if ast.unparse(node.func) == "os.getenv":
            return node.args[0]
    if isinstance(node, ast.Compare) and any(is_environ(other) for other in node.comparators):
        return node.left
    return None


def names_read(tree: ast.Module) -> Iterator[str]:
    """The names of all variables that a module reads; a name may be a constant or the target of a loop over some."""
    values: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).extend(texts_in(node.value))
        if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            values.setdefault(node.target.id, []).extend(texts_in(node.iter))
    for node in ast.walk(tree):
        if (key := key_of_a_read(node)) is not None:
            found = values.get(key.id, []) if isinstance(key, ast.Name) else texts_in(key)
            assert found, f"expected a name that this test can follow, but found {ast.unparse(node)}"
            yield from found


def texts_in(node: ast.expr) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@cache
def read_by_the_sources() -> set[str]:
    return {name for path in sources() for name in names_read(ast.parse(path.read_text()))}


def listed() -> set[str]:
    """The names in the first column of the tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", cell)}


def test_every_variable_that_is_read_is_listed() -> None:
    found = read_by_the_sources()
    assert {"PRUNEKIT_CACHE", "PRUNEKIT_SETS", "PRUNEKIT_TESTS_SHARED", "FORCE_CUDA", "CUDA_PATH", "CC"} <= found
    assert found - listed() == set()


def test_no_variable_of_prunekit_is_listed_that_nothing_reads() -> None:
    own = {name for name in listed() if name.startswith("PRUNEKIT_")}
    assert own == {name for name in read_by_the_sources() if name.startswith("PRUNEKIT_")}


def test_a_read_that_is_new_would_be_seen() -> None:
    code = """
import os
A = "PRUNEKIT_A"
a, b, c = os.environ[A], os.environ.get("PRUNEKIT_B"), os.getenv("PRUNEKIT_C", "1")
d = "PRUNEKIT_D" in os.environ
e = [os.environ[name] for name in ("PRUNEKIT_E", "PRUNEKIT_F")]
"""
    assert set(names_read(ast.parse(code))) == {f"PRUNEKIT_{letter}" for letter in "ABCDEF"}
