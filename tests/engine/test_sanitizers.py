"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, built for this test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.ops.native import native_status
from tests.support import ROOT

#: PRUNEKIT_NETS=1000 runs more.
NUM_CASES = int(os.environ.get("PRUNEKIT_NETS", "90")) // 3

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


def preloaded(folder: Path) -> str:
    """Return the libraries to load first; skip where the compiler builds nothing with GCC's sanitizers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no compiler")
    flags = [
        "-shared",
        "-fPIC",
        "-fsanitize=address,undefined",
        "--param",
        "asan-instrumentation-with-call-threshold=0",
    ]
    build = [*compiler.split(), *flags, "-xc", "-", "-o", str(folder / "empty.so")]
    done = subprocess.run(build, input="int f(int x) { return x << 1; }", capture_output=True, text=True, check=False)
    # The sanitizer looks for C++'s exceptions when it is loaded; Python itself does not bring them.
    libraries = [
        subprocess.run([*compiler.split(), f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    paths = [library.stdout.strip() for library in libraries]
    if done.returncode or not all(Path(path).is_absolute() for path in paths):
        pytest.skip(f"{compiler} has no sanitizers of GCC's kind")
    return " ".join(paths)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Build the extension with sanitizers; return its path, and those of the libraries to load first."""
    folder = tmp_path_factory.mktemp("sanitized")
    libraries = preloaded(folder)
    environment = {
        **os.environ,
        "PRUNEKIT_SANITIZE": "1",
        "PRUNEKIT_REQUIRE_NATIVE": "1",
        "PRUNEKIT_SETS": ",".join(native_status().supported_sets),
    }
    build = ["build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    done = subprocess.run(
        [sys.executable, "setup.py", *build], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (extension,) = (folder / "lib").rglob("_native*")
    return str(extension), libraries


def run(sanitized: tuple[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    extension, libraries = sanitized
    options = "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1:quarantine_size_mb=16"
    environment = {
        **os.environ,
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    script = [sys.executable, "-m", "tests.support.sanitized_kernels", extension, str(NUM_CASES), *arguments]
    return subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_kernels_run_clean(sanitized: tuple[str, str]) -> None:
    done = run(sanitized)
    assert done.returncode == 0, done.stderr[-6000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(native_status().supported_sets)


def test_an_overrun_inside_the_arena_is_found(sanitized: tuple[str, str]) -> None:
    done = run(sanitized, "--short-planes")
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
