"""Darknet's .weights files, in and out.

A file is a header and then float32 values, all little-endian, layer after layer in the order of the cfg:

* header: int32 major, minor and revision, then the number of images seen in training, int64 since
  version 0.2 and int32 before; some programs write all zeros there, and int64 all the same;
* a convolution with batch normalization: bias, scale, running mean, running variance, then the weights;
* a convolution without: bias, weights.

The detectors register their modules in the cfg's order, so walking `modules()` walks the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from prunekit.state_dicts import Transfer

_VERSION = (0, 2, 5)  # what darknet itself has written since 2018
_SHORT_HEADER, _LONG_HEADER = 16, 20  # bytes
_BOX_OUTPUTS = 5  # of an anchor, beside its classes: x, y, width, height, objectness


def load_darknet_weights(net: Detector, path: str | Path) -> None:
    """Fill a detector with the weights of a darknet file.

    Args:
        net: the detector; it is changed only if the whole file fits.
        path: the file.

    Raises:
        InputError: the file cannot be read, is of another kind, or its number of floats is not the detector's.
    """
    content = _read(Path(path))
    values = next((values for _, values in _readings(content) if len(values) == _size(_layers(net))), None)
    if values is None:
        raise InputError(_misfit(net, path, content))
    _fill(_layers(net), _finite(values, path))


def transfer_darknet_weights(net: Detector, path: str | Path) -> Transfer:
    """Fill what fits of a detector: the file may be of other classes, or end after any layer before the first head.

    What the file holds is told by its number of floats, which only one layout fits: all of the detector, the detector
    with another number of classes (its heads are left as they are), or its first layers, as in darknet53.conv.74.

    Args:
        net: the detector; it is changed only if the file fits.
        path: the file.

    Returns:
        The names of convolutions that were taken and of those that were not; no number of classes if the file ends
        before the heads.

    Raises:
        InputError: the file cannot be read, is of another kind, or no such layout has its number of floats.
    """
    content = _read(Path(path))
    layers = _layers(net)
    for fits in (_classes_of, _backbone_of):
        for _, values in _readings(content):
            if (found := fits(layers, len(values))) is not None:
                return _take(layers, found, _finite(values, path))
    raise InputError(_misfit(net, path, content))


def darknet_num_classes(net: Detector, path: str | Path) -> int:
    """Return the number of classes of the detector of `net`'s family whose weights a file holds.

    Args:
        net: any detector of the family, of any number of classes.
        path: the file.

    Raises:
        InputError: no number of classes makes the detector as large as the file.
    """
    content, layers = _read(Path(path)), _layers(net)
    for _, values in _readings(content):
        if (found := _classes_of(layers, len(values))) is not None:
            assert found.num_classes is not None
            return found.num_classes
    raise InputError(
        f"Expected a file of {net.name} with any number of classes, got {path}, which holds "
        f"{_num_floats(content)} floats."
    )


def save_darknet_weights(net: Detector, path: str | Path, images_seen: int = 0) -> None:
    """Write a detector's weights as a darknet file.

    Args:
        net: the detector.
        path: the file; it appears when it is complete.
        images_seen: the header's count of training images.
    """
    header = np.array(_VERSION, dtype="<i4").tobytes() + np.array([images_seen], dtype="<i8").tobytes()
    tensors = (tensor for layer in _layers(net) for tensor in layer.tensors)
    arrays = (tensor.detach().cpu().numpy() for tensor in tensors)
    write_bytes(path, header + b"".join(array.astype("<f4").tobytes() for array in arrays))


@dataclass(frozen=True)
class _Layer:
    """A convolution's tensors in the file's order; `anchors` boxes a cell if it is a head, else 0."""

    name: str
    tensors: tuple[Tensor, ...]
    anchors: int = 0

    @property
    def size(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

    def size_with(self, num_classes: int) -> int:
        """Floats for another number of classes: a head has one bias and one filter an output."""
        if not self.anchors:
            return self.size
        return self.anchors * (_BOX_OUTPUTS + num_classes) * (self.tensors[1][0].numel() + 1)


@dataclass(frozen=True)
class _Layout:
    """What a file holds: layers of these sizes one after another, for so many classes."""

    sizes: tuple[int, ...]
    num_classes: int | None


def _layers(net: Detector) -> list[_Layer]:
    found = []
    for name, module in net.named_modules():
        if isinstance(module, ConvBlock):
            norm = module.norm
            statistics = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
            found.append(_Layer(name, (norm.bias, norm.weight, *statistics, module.conv.weight)))
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            anchors = module.out_channels // (_BOX_OUTPUTS + net.num_classes)
            found.append(_Layer(name, (module.bias, module.weight), anchors))
    return found


def _size(layers: Sequence[_Layer]) -> int:
    return sum(layer.size for layer in layers)


def _classes_of(layers: Sequence[_Layer], num_floats: int) -> _Layout | None:
    """Return the layout of a whole file, whatever its number of classes."""
    none = sum(layer.size_with(0) for layer in layers)
    num_classes, rest = divmod(num_floats - none, sum(layer.size_with(1) for layer in layers) - none)
    if rest or num_classes < 1:
        return None
    return _Layout(tuple(layer.size_with(num_classes) for layer in layers), num_classes)


def _backbone_of(layers: Sequence[_Layer], num_floats: int) -> _Layout | None:
    """Return the layout of a file that ends after a layer before the first head."""
    before = [layer.size for layer in itertools.takewhile(lambda layer: not layer.anchors, layers)]
    ends = list(itertools.accumulate(before))
    return _Layout(tuple(before[: ends.index(num_floats) + 1]), None) if num_floats in ends else None


def _take(layers: Sequence[_Layer], layout: _Layout, values: npt.NDArray[np.float32]) -> Transfer:
    parts = torch.split_with_sizes(torch.from_numpy(values), list(layout.sizes))
    fitting = [(layer, part) for layer, part in zip(layers, parts, strict=False) if layer.size == len(part)]
    for layer, part in fitting:
        _fill([layer], part.numpy())
    taken = tuple(layer.name for layer, _ in fitting)
    return Transfer(taken, tuple(one.name for one in layers if one.name not in taken), layout.num_classes)


def _fill(layers: Sequence[_Layer], values: npt.NDArray[np.float32]) -> None:
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    parts = torch.split_with_sizes(torch.from_numpy(values), [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _misfit(net: Detector, path: str | Path, content: bytes) -> str:
    expected, found = _size(_layers(net)), _num_floats(content)
    difference = "is cut off or of a smaller model" if found < expected else "is of a larger model"
    for _, values in _readings(content):
        if (other := _classes_of(_layers(net), len(values))) is not None:
            difference = f"is of {other.num_classes} classes"
        elif _backbone_of(_layers(net), len(values)) is not None:
            difference = "holds the first layers alone"
    return f"Expected {expected} floats for {net.name} with {net.num_classes} classes, " + (
        f"but {path} holds {found}: it {difference}"
    )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Expected a darknet file, but {path} cannot be read ({error.strerror})") from error
    if content and (kind := kind_of_file(path)):
        raise InputError(f"Expected a darknet .weights file, but {path} is {kind}")
    size = _header_size(content)
    if len(content) < size:
        raise InputError(f"Expected a header of {size} bytes, but {path} has {len(content)} bytes in all")
    if rest := (len(content) - size) % 4:
        raise InputError(
            f"Expected whole floats, but {path} ends {rest} bytes after the last of {_num_floats(content)}"
        )
    return content


def _readings(content: bytes) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the header's bytes and the floats after it: as the version says, then as other programs write.

    Some write the images seen in 64 bits under an old version, and some in 32 bits under a new one. The fifth word
    tells: the upper half of a count below 2^32 is zero, and the first layer's first bias is not. So a file that lacks
    its last float, or has one too many, is not taken for one with another header.
    """
    size = _header_size(content)
    yield size, np.frombuffer(content, dtype="<f4", offset=size)
    other = _SHORT_HEADER + _LONG_HEADER - size
    if len(content) >= _LONG_HEADER and any(content[_SHORT_HEADER:_LONG_HEADER]) == (other == _SHORT_HEADER):
        yield other, np.frombuffer(content, dtype="<f4", offset=other)


def _num_floats(content: bytes) -> int:
    return (len(content) - _header_size(content)) // 4


def _finite(values: npt.NDArray[np.float32], path: str | Path) -> npt.NDArray[np.float32]:
    if count := int((~np.isfinite(values)).sum()):
        raise InputError(f"Expected finite weights, but {count} of the {len(values)} floats of {path} are not")
    return values.astype(np.float32)


def _header_size(content: bytes) -> int:
    """Return the header's bytes by darknet's own rule, with its guard against versions that are flags."""
    if len(content) < _SHORT_HEADER:
        return _SHORT_HEADER
    # Python's numbers, as ten times what is no version leaves 32 bits.
    major, minor = map(int, np.frombuffer(content, dtype="<i4", count=2))
    return _LONG_HEADER if 10 * major + minor >= 2 and major < 1000 and minor < 1000 else _SHORT_HEADER
