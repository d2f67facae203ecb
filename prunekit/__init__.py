"""prunekit: prune a vision model robustly, then make it really faster."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from prunekit.errors import InputError
from prunekit.lazy import lazy

if TYPE_CHECKING:
    from prunekit import attacks, classification, compaction, detection, nn, ops, prune
    from prunekit.compaction.compact import compact
    from prunekit.compaction.optimizers import carry_optimizer
    from prunekit.detection.compacted import load, save
    from prunekit.nn.accelerate import accelerate
    from prunekit.ops import masked_conv2d

try:
    __version__ = version("prunekit")  # of pyproject.toml, the one place where it is written
except PackageNotFoundError:  # runs from its source folder
    __version__ = "0+unknown"

__all__ = [
    "InputError",
    "accelerate",
    "attacks",
    "carry_optimizer",
    "classification",
    "compact",
    "compaction",
    "detection",
    "load",
    "masked_conv2d",
    "nn",
    "ops",
    "prune",
    "save",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "prunekit.compaction": ["carry_optimizer", "compact"],
        "prunekit.detection.compacted": ["load", "save"],
        "prunekit.nn": ["accelerate"],
        "prunekit.ops": ["masked_conv2d"],
    },
    rooms=["attacks", "classification", "compaction", "detection", "nn", "ops", "prune"],
)
