"""A wheel with the CUDA extension, built from source for this machine's GPU, or for others that are named.

Needs the CUDA toolkit of torch's major version (nvcc), a C++17 compiler and setuptools. A CPU build of torch will do.
"""

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path


def build(source: Path, out: Path, architectures: str | None) -> Path:
    """Return the wheel that pip builds of a clone of the repository, or end with pip's words."""
    environment = {**os.environ, "FORCE_CUDA": "1"}  # a CUDA extension that cannot be built is an error
    if architectures:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    # Without build isolation, it is compiled against the torch that is installed, and loads beside that.
    options = ["--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("The wheel was not built; prunekit doctor says what is missing.")
    return max(out.glob("prunekit-*.whl"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    """Build, and list the extensions in the wheel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[2], help="a clone of the repository")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheel")
    parser.add_argument("--architectures", help="such as '8.6;9.0+PTX' (default: this machine's GPUs)")
    options = parser.parse_args()

    wheel = build(options.source, options.out, options.architectures)
    for entry in zipfile.ZipFile(wheel).infolist():
        if entry.filename.endswith(".so"):
            print(f"{entry.filename}: {entry.file_size / 1e6:.1f} MB")
    print(f"pip install --force-reinstall --no-deps {wheel}")


if __name__ == "__main__":
    main()
