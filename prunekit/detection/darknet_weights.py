"""Darknet's .weights files, in and out.

A file is a header and then float32 values, all little-endian, layer after layer in the order of the cfg:

* header: int32 major, minor and revision, then the number of images seen in training, int64 since
  version 0.2 and int32 before; some programs write all zeros there, and int64 all the same;
* a convolution with batch normalization: bias, scale, running mean, running variance, then the weights;
* a convolution without: bias, weights.

The detectors register their modules in the cfg's order, so walking `modules()` walks the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunekit.detection.blocks import ConvBlock
from prunekit.detection.yolov3 import Detector
from prunekit.errors import InputError
from prunekit.file_kinds import kind_of_file
from prunekit.files import write_bytes

_VERSION = (0, 2, 5)  # what darknet itself has written since 2018
_SHORT_HEADER, _LONG_HEADER = 16, 20  # bytes


def load_darknet_weights(net: Detector, path: str | Path) -> None:
    """Fill a detector with the weights of a darknet file.

    Args:
        net: the detector; it is changed only if the whole file fits.
        path: the file.

    Raises:
        InputError: the file cannot be read, is of another kind, or its number of floats is not the detector's.
    """
    tensors = list(_tensors_in_file_order(net))
    expected = sum(tensor.numel() for tensor in tensors)
    values = _read_values(Path(path), expected)
    if len(values) != expected:
        difference = "is cut off or of a smaller model" if len(values) < expected else "is of a larger model"
        raise InputError(
            f"expected {expected} floats for {net.name} with {net.num_classes} classes, "
            f"but {path} holds {len(values)}: it {difference}"
        )
    parts = torch.split_with_sizes(torch.from_numpy(values), [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def save_darknet_weights(net: Detector, path: str | Path, images_seen: int = 0) -> None:
    """Write a detector's weights as a darknet file.

    Args:
        net: the detector.
        path: the file; it appears when it is complete.
        images_seen: the header's count of training images.
    """
    header = np.array(_VERSION, dtype="<i4").tobytes() + np.array([images_seen], dtype="<i8").tobytes()
    arrays = (tensor.detach().cpu().numpy() for tensor in _tensors_in_file_order(net))
    write_bytes(path, header + b"".join(array.astype("<f4").tobytes() for array in arrays))


def _tensors_in_file_order(net: nn.Module) -> Iterator[Tensor]:
    for module in net.modules():
        if isinstance(module, ConvBlock):
            norm = module.norm
            statistics = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
            yield from (norm.bias, norm.weight, *statistics, module.conv.weight)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            yield from (module.bias, module.weight)


def _read_values(path: Path, expected: int) -> npt.NDArray[np.float32]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected a darknet file, but {path} cannot be read ({error.strerror})") from error
    if content and (kind := kind_of_file(path)):
        raise InputError(f"expected a darknet .weights file, but {path} is {kind}")
    size = _header_size(content, expected)
    if len(content) < size:
        raise InputError(f"expected a header of {size} bytes, but {path} has {len(content)} bytes in all")
    num_floats, rest = divmod(len(content) - size, 4)
    if rest:
        raise InputError(f"expected whole floats, but {path} ends {rest} bytes after the last of {num_floats}")
    values = np.frombuffer(content, dtype="<f4", offset=size).astype(np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise InputError(f"expected finite weights, but {count} of the {num_floats} floats of {path} are not")
    return values


def _header_size(content: bytes, expected: int) -> int:
    """Return the header's bytes: by its version; five words of old versions too where that leaves the expected floats.

    The fifth must be zero, as a count of images is below 2^32: a file of four words with a float too many would
    fit as well. Four words of new versions are not accepted, as a file that lacks its last float would fit.
    """
    if len(content) < _SHORT_HEADER:
        return _SHORT_HEADER
    # Python's numbers, as ten times what is no version leaves 32 bits.
    major, minor = map(int, np.frombuffer(content, dtype="<i4", count=2))
    # Darknet's own rule, with its guard against versions that are flags.
    if 10 * major + minor >= 2 and major < 1000 and minor < 1000:
        return _LONG_HEADER
    has_five_words = len(content) == _LONG_HEADER + 4 * expected and not any(content[_SHORT_HEADER:_LONG_HEADER])
    return _LONG_HEADER if has_five_words else _SHORT_HEADER
