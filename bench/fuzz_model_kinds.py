"""Kinds of files for `bench.fuzz_files` that hold models: accelerated, compacted, masks and training states.

A file whose name ends in "-signed" is damaged in its document or tensors and then given the digest of what it holds
now, as someone would who wants a reader to trust it. It has no right result: it is refused when it is read, or it runs.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor, nn

import prunekit
from bench.fuzz_data_kinds import narrow_detector
from bench.mutations import edit_json
from prunekit import documents
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError
from prunekit.prune import MaskRule, load_masks, save_masks, score_model
from prunekit.structure import tensors_of

_SIZE = (1, 3, 32, 32)


class _Net(nn.Module):
    """Small, with a concatenation, a residual sum, a pool, operators of torch's and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.body = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        y = self.body(x).relu() + x
        wide = torch.cat([y, nn.functional.max_pool2d(x, 3, 1, 1)], 1)
        return {"map": self.head(wide), "scores": wide.flatten(2).softmax(-1).amax(-1)}


def _net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Net().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[::2] = 0
    return net


def _example() -> Tensor:
    return torch.linspace(-1, 1, 3 * 32 * 32).reshape(_SIZE)


class AcceleratedKind:
    """A model that `accelerate` put on the engine."""

    name = "accelerated"

    def write(self, folder: Path) -> Path:
        """Save a small net; ceilings of torch's operators and native ones are both in it."""
        fast = prunekit.accelerate(_net(), _example(), tuning_seconds=0.0, tuning_cache=None)
        if not isinstance(fast, AcceleratedModel):
            raise RuntimeError("Expected the net on the engine")
        prunekit.save(fast, folder / "fast.safetensors")
        return folder / "fast.safetensors"

    def open(self, path: Path) -> object:
        """Load it and run it."""
        model = prunekit.load(path)
        with torch.no_grad():
            try:
                return tensors_of(model(_example()))
            except InputError as error:  # too late: what a file says is checked when it is loaded
                raise RuntimeError(f"refused when called: {error}") from error

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether the outputs are equal to the bit."""
        return _are_equal(expected, found)


class CompactedKind(AcceleratedKind):
    """A model of a class of one's own that `compact` made smaller: a program."""

    name = "compacted"

    def write(self, folder: Path) -> Path:
        """Compact the net and save it."""
        path = folder / "compacted.safetensors"
        prunekit.save(prunekit.compact(_net(), _example(), latency_runs=0), path)
        return path


class CompactedDetectorKind(AcceleratedKind):
    """A compacted detector of prunekit's own."""

    name = "compacted-detector"

    def write(self, folder: Path) -> Path:
        """Compact a narrow yolov3-tiny and save it."""
        net = narrow_detector()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.Conv2d) and module.out_channels > 4 and module.bias is None:
                    module.weight[1::2] = 0
        path = folder / "detector.safetensors"
        prunekit.save(prunekit.compact(net, _example(), latency_runs=0), path)
        return path


class _Signed:
    """Damage inside a file, which then gets the digest of what it holds."""

    def mutate(self, content: bytes, rng: random.Random) -> bytes:
        """Edit a field of the document, shorten a tensor or leave one out; sign the result."""
        found = documents.read(content, "a model")
        document, tensors = json.loads(json.dumps(found.document)), dict(found.tensors)
        if rng.random() < 0.8:
            edit_json(document, rng)
        else:
            name = rng.choice(sorted(tensors))
            tensor = tensors.pop(name)
            change = rng.randrange(4)
            if change == 0:
                tensors[name] = tensor.reshape(-1)[: max(0, tensor.numel() - 1)]
            elif change == 1:
                tensors[name] = tensor.reshape(-1).double()
            elif change == 2:
                tensors[name] = torch.cat([tensor.reshape(-1)] * 2)
        return documents.to_bytes(tensors, document)

    def is_right(self, expected: object, found: object) -> bool:
        """Return True: the file is another one now, and it ran."""
        return True


class SignedAcceleratedKind(_Signed, AcceleratedKind):
    """An accelerated model's file, damaged and signed."""

    name = "accelerated-signed"


class SignedCompactedKind(_Signed, CompactedKind):
    """A compacted program's file, damaged and signed."""

    name = "compacted-signed"


class SignedDetectorKind(_Signed, CompactedDetectorKind):
    """A compacted detector's file, damaged and signed."""

    name = "compacted-detector-signed"


class MasksKind:
    """A file of masks."""

    name = "masks"

    def __init__(self) -> None:
        self.net = narrow_detector()

    def write(self, folder: Path) -> Path:
        """Write masks of a narrow detector."""
        save_masks(folder / "masks.safetensors", MaskRule(70)(score_model(self.net, "scaled")))
        return folder / "masks.safetensors"

    def open(self, path: Path) -> object:
        """Load them for the detector."""
        return dict(sorted(load_masks(path, self.net).items()))

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether the masks are equal."""
        return _are_equal(expected, found)


def _are_equal(expected: object, found: object) -> bool:
    a, b = tensors_of(expected), tensors_of(found)
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
