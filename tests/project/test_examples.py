"""The scripts of docs/examples run, and say what the page shows: the same words, with other numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.detection import save_darknet_weights, yolov3_tiny
from prunekit.environment import thread_count
from prunekit.ops.native import native_status
from tests.support import ROOT
from tests.support.external_files import cifar10
from tests.support.imagined_machine import imagine_machine

EXAMPLES = ROOT / "docs" / "examples"
PAGE = (EXAMPLES / "README.md").read_text()
NUMBER = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")
needs_native = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


def run_example(name: str, folder: Path, *arguments: object) -> list[str]:
    """Run a script in a folder, on one thread and with a cache of its own; return the lines that it printed."""
    paths = [ROOT, ROOT / "kernels", ROOT / "csrc" / "cuda", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PRUNEKIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def shown(name: str) -> list[str]:
    """The lines of output that the page shows under a script's heading."""
    section = PAGE.split(f"](./{name})")[1].split("\n## ")[0]
    block: str = re.findall(r"```text\n(.*?)```", section, re.DOTALL)[0]
    return block.splitlines()


def words(line: str) -> str:
    return NUMBER.sub("#", line)


def check(name: str, folder: Path, *arguments: object) -> None:
    printed = run_example(name, folder, *arguments)
    assert [words(line) for line in printed] == [words(line) for line in shown(name)]


def needs(*modules: str) -> None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        pytest.skip(f"needs {' and '.join(absent)}")


def test_masked_layers(tmp_path: Path) -> None:
    check("masked_layers.py", tmp_path, "--steps", 20)


def test_filters_to_onnx(tmp_path: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    check("filters_to_onnx.py", tmp_path)


@needs_native
def test_a_resnet50_of_torchvision(tmp_path: Path) -> None:
    needs("torchvision")
    check("torchvision_resnet50.py", tmp_path, "--image-size", 64)


@needs_native
def test_a_model_of_timm(tmp_path: Path) -> None:
    needs("timm", "torchvision")
    printed = run_example("timm_model.py", tmp_path, "--model", "mobilenetv2_050", "--image-size", 64)
    assert printed[0].startswith("mobilenetv2_050: ")
    assert words(printed[1]) == words(shown("timm_model.py")[1])


def test_an_own_detector_from_weights_of_80_classes(tmp_path: Path) -> None:
    save_darknet_weights(yolov3_tiny(80, 0.125), tmp_path / "coco.weights")
    options = ["--weights", tmp_path / "coco.weights", "--width", 0.125, "--image-size", 96, "--images", 6]
    first, *others = run_example("own_detector.py", tmp_path, *options, "--epochs", 1, "--out", "run")
    assert first.startswith("0 % as given: AP50 ")
    assert [words(line) for line in others] == [words(line) for line in shown("own_detector.py")]
    assert (tmp_path / "run" / "run" / "report.html").is_file()


def test_hydra_on_cifar10(tmp_path: Path) -> None:
    options = ["--data", cifar10(), "--width", 0.25, "--train-limit", 40, "--limit", 10, "--pretrain-epochs", 1]
    check("hydra_cifar10.py", tmp_path, *options, "--out", "run")


@needs_native
def test_a_budget_in_milliseconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here rather than in a process of its own, on times that other work on this machine does not move."""
    imagine_machine(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["latency_budget.py", "--image-size", "64", "--width", "0.125"])
    with thread_count(1):
        runpy.run_path(str(EXAMPLES / "latency_budget.py"), run_name="__main__")
    printed, page = capsys.readouterr().out.splitlines(), shown("latency_budget.py")
    assert [words(printed[0]), words(printed[2])] == [words(page[0]), words(page[2])]


def test_a_wheel_with_the_cuda_extension(tmp_path: Path) -> None:
    """Of a package in the repository's place: that the real one builds is tested with the kernels."""
    package = tmp_path / "source" / "prunekit"
    package.mkdir(parents=True)
    for name in ("_native", "_cuda"):
        (package / f"{name}.abi3.so").write_bytes(bytes(200_000))
    (package / "__init__.py").write_text("")
    (package.parent / "setup.py").write_text(
        "import os, setuptools\n"
        "assert os.environ['FORCE_CUDA'] == '1' and os.environ['TORCH_CUDA_ARCH_LIST'] == '8.6'\n"
        "setuptools.setup(name='prunekit', version='0', packages=['prunekit'], package_data={'': ['*.so']})\n"
    )
    options = ("--source", package.parent, "--out", "dist", "--architectures", "8.6")
    *extensions, install = run_example("cuda_wheel.py", tmp_path, *options)
    *shown_extensions, shown_install = shown("cuda_wheel.py")
    assert [*map(words, extensions)] == [*map(words, shown_extensions)]
    (wheel,) = (tmp_path / "dist").glob("prunekit-0-*.whl")
    assert install == f"pip install --force-reinstall --no-deps dist/{wheel.name}"
    assert shown_install.startswith("pip install --force-reinstall --no-deps dist/prunekit-")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_on_the_page(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60
    assert shown(script.name)


def test_the_notebook_is_the_first_script() -> None:
    """Its cells hold the script's very functions; it has the outputs of a run."""
    notebook = json.loads((EXAMPLES / "torchvision_resnet50.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = (EXAMPLES / "torchvision_resnet50.py").read_text()
    function = script[script.index("def pruned_resnet50") : script.index("def main")].strip()
    assert function in "\n".join(code)
    assert all(cell["outputs"] for cell in notebook["cells"] if "print(" in "".join(cell["source"]))
