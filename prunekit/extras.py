"""The optional packages: which extra brings them, and one sentence where they are missing."""

from __future__ import annotations

import importlib.util

#: By the name of an extra in pyproject.toml: the modules that it brings.
EXTRAS: dict[str, tuple[str, ...]] = {
    "study": ("PIL", "pycocotools", "pydantic", "typer", "rich", "matplotlib", "jinja2", "filelock", "yaml", "scipy"),
    "peers": ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"),
    "triton": ("triton",),
    "captum": ("captum",),
    "tensorboard": ("tensorboard",),
    "torchvision": ("torchvision",),
    "video": ("av",),
    "ray": ("ray",),
    "mlflow": ("mlflow",),
}


class MissingExtraError(ImportError):
    """A package of an extra that is not installed is needed; the message says which, for what, and what to install."""


def check_extra(extra: str, what: str) -> None:
    """Make sure that an extra is installed.

    Args:
        extra: A key of `EXTRAS`.
        what: What needs it, as the sentence's end: "prunekit's command line".

    Raises:
        MissingExtraError: One of its packages is not there.
    """
    absent = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingExtraError(
            f"Expected the packages of the extra {extra!r} for {what} (pip install 'prunekit[{extra}]'), "
            f"got an environment without {', '.join(absent)}."
        )
