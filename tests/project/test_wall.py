"""The wall between the library, which needs torch, numpy and safetensors alone, and the study built on it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunekit
import prunekit.classification
import prunekit.detection
from prunekit.extras import EXTRAS
from prunekit.ops.native import native_status
from tests.support.rooms import LIBRARY

PACKAGE = Path(prunekit.__file__).parent

#: What torch itself needs, or brings the types of.
ALLOWED = {"torch", "numpy", "safetensors", "sympy", "typing_extensions"}
#: Looked for inside functions, and done without where they are missing.
OPTIONAL = {"prunekit_kernels", "triton", "onnx", "onnxscript"}
# Blocks what an environment with torch, numpy and safetensors alone does not have, then does the library's work.
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in %r:
            raise ModuleNotFoundError('No module named ' + repr(name), name=name)
sys.meta_path.insert(0, Blocked())
import torch, prunekit
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
x = torch.randn(1, 3, 16, 16)
fast = prunekit.accelerate(model, x, tuning_seconds=0, tuning_cache=None)
print(fast.report)
with torch.no_grad():
    model[0].weight[2:5] = 0
    model[0].bias[2:5] = 0
    model[1].bias[2:5] = 0
small = prunekit.compact(model, x, multiple_of=1)
prunekit.save(small, sys.argv[1] + '/small.safetensors')
loaded = prunekit.load(sys.argv[1] + '/small.safetensors')
assert torch.allclose(loaded(x), model(x), atol=1e-5)
assert small.certificate.removed == 3, small.certificate
prunekit.masked_conv2d(x, model[0].weight, model[0].weight != 0)
for room in %r:
    getattr(prunekit, room)
assert 'prunekit.pipeline' not in sys.modules
print('all done')
"""
BLOCKED = [module for module in EXTRAS["study"] if module != "filelock"]  # torch needs it; it looks for onnx, too


def test_importing_prunekit_imports_nothing_but_itself() -> None:
    program = "import sys; before = set(sys.modules); import prunekit; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    foreign = {name for name in result.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if not name.startswith("prunekit")} == set()
    assert "prunekit.errors" in foreign


def test_the_library_works_with_torch_numpy_and_safetensors_alone(tmp_path: Path) -> None:
    program = ALONE % (BLOCKED, ["ops", "nn", "prune", "attacks", "compaction"])
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "all done" in result.stdout


@pytest.mark.parametrize("room", LIBRARY)
def test_each_library_room_can_be_imported_first(room: str) -> None:
    program = (
        f"import prunekit.{room}, sys\n"
        "loaded = sys.modules.get('prunekit.ops.native')\n"
        "print(loaded.native_status().available if loaded else 'no kernels')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.strip() in ("no kernels", str(native_status().available))


@pytest.mark.parametrize("room", LIBRARY)
def test_a_library_room_imports_nobody_else_s_packages(room: str) -> None:
    found = {module.split(".")[0] for _, module in _imports(room)}
    assert found, f"nothing was looked at in {room}"
    assert found <= {"prunekit"} | ALLOWED | OPTIONAL | set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", ["prunekit", "prunekit.detection", "prunekit.classification"])
def test_what_is_imported_lazily_is_what_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.name: node.module
        for block in blocks
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen
    for name, origin in seen.items():
        assert name in module.__all__
        assert getattr(module, name) is getattr(importlib.import_module(origin), name)
        assert name in dir(module)
    assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(
    ("program", "who"),
    [
        ("from prunekit.__main__ import main; main()", "prunekit's command line"),
        ("import prunekit; prunekit.detection.CocoDataset", "prunekit.detection.CocoDataset"),
        ("import prunekit.pipeline", "prunekit.pipeline"),
        ("import prunekit.report", "prunekit.report"),
        ("import prunekit.benchmark", "prunekit.benchmark"),
    ],
)
def test_one_sentence_names_the_missing_extra(program: str, who: str) -> None:
    hide = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'pycocotools' else find(name, package)\n"
    )
    result = subprocess.run([sys.executable, "-c", hide + program], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert f"for {who} (pip install 'prunekit[study]'), got an environment without pycocotools" in last
    assert result.returncode == (2 if "main" in program else 1)


def _imports(room: str) -> Iterator[tuple[Path, str]]:
    """Yield each import of a room, whether at the top of a module or inside a function; not those for types alone."""
    paths = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))
    for path in paths:
        tree = ast.parse(path.read_text())
        blocks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ]
        for_types = {node for block in blocks for node in ast.walk(block)}
        for node in (node for node in ast.walk(tree) if node not in for_types):
            yield from ((path, module) for module in _modules(node))


def _modules(node: ast.AST) -> Iterator[str]:
    """Yield what a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module == "prunekit":
        yield from (f"prunekit.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def test_every_module_can_be_imported_where_there_is_no_posix() -> None:
    """No module imports at once what Windows' Python does not have."""
    posix = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios"}
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for statement in ast.parse(path.read_text()).body
        for name in _modules(statement)
        if name.split(".")[0] in posix
    }
    assert found == set()
