"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer: run by test_sanitizers.py.

    LD_PRELOAD="libasan.so libstdc++.so.6" python -m tests.support.sanitized_kernels EXTENSION CASES [--short-planes]

EXTENSION is a `_native` module that setup.py built with PRUNEKIT_SANITIZE=1. The best instruction set runs CASES random
convolutions, every cut of the engine's and nets in float32 and in int8; the others a quarter of them. A finding ends
the process.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from prunekit.engine.arena import Buffer

Elements = npt.NDArray[np.bool_]


def load_extension(path: str) -> None:
    """Put the sanitized extension into the place of the package's own."""
    spec = importlib.util.spec_from_file_location("prunekit._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["prunekit._native"] = module


def run_ops(count: int, seed: int) -> None:
    """Run packed and masked convolutions of both dtypes, and their checks of bad filters."""
    from tests.support.conv_cases import random_cases
    from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference

    draw = random.Random(seed)
    for case in random_cases(count, seed, max_size=24):
        dtype, rows = draw.choice((torch.float32, torch.float64)), draw.choice((1, 4))
        typed = case.to(dtype)
        expected = masked_conv2d_oracle(typed.x, typed.weight, typed.mask, typed.bias, *typed.geometry)
        index, values = torch.ops.prunekit.pack_filter(
            typed.weight, typed.mask, typed.groups, rows, draw.choice((0, 1, 3))
        )
        arguments = (typed.bias, typed.weight.shape, *typed.geometry, "none", 0.0)
        y = torch.ops.prunekit.packed_conv2d(typed.x, index, values, *arguments)
        assert relative_difference(expected, y) <= TOLERANCE[dtype]
        y = torch.ops.prunekit.masked_conv2d(typed.x, typed.weight, typed.mask, typed.bias, *typed.geometry)
        assert relative_difference(expected, y) <= TOLERANCE[dtype]
        for damaged in ((index[:-1], values), (index, torch.cat([values, values.new_zeros(1)]))):
            try:
                torch.ops.prunekit.packed_conv2d(typed.x, *damaged, *arguments)
            except RuntimeError:
                continue
            raise AssertionError("a damaged filter was taken")


def run_engine(count: int, threads: int) -> None:
    """Walk through convolutions and nets, all but a step's own planes poisoned; and run nets on several threads."""
    from tests.engine.test_engine_arena import nets, walk_conv, walk_every_cut
    from tests.engine.test_int8_graphs import int8_nets
    from tests.support.arena_walk import walk
    from tests.support.conv_variants import READINGS

    for reading in READINGS:
        walk_every_cut(reading)
        walk_every_cut(reading, torch.bfloat16)
    for seed in range(count):
        walk_conv(seed)
    for fast, inputs in (*nets(8000, count // 4), *int8_nets(9000, count // 4)):
        walk(fast, inputs)
        torch.set_num_threads(threads)
        fast(*inputs)
        torch.set_num_threads(1)


def without_last_vector(planes: Callable[[Buffer], Elements]) -> Callable[[Buffer], Elements]:
    """Take the last vector of each plane from what steps may touch: a finding that must be made."""

    def short(buffer: Buffer) -> Elements:
        is_plane = planes(buffer)
        end = buffer.vectors * buffer.layout.lanes
        is_plane.reshape(buffer.channels, -1)[:, end - buffer.layout.lanes : end] = False
        return is_plane

    return short


def main(extension: str, cases: int, has_short_planes: bool) -> None:
    """Run it all."""
    load_extension(extension)
    from prunekit.ops.native import native_status
    from tests.engine.test_engine_arena import walk_every_cut
    from tests.support import arena_walk
    from tests.support.conv_variants import instruction_set

    torch.set_num_threads(1)
    assert arena_walk._sanitizer() is not None, "not under AddressSanitizer"
    if has_short_planes:
        arena_walk.planes = without_last_vector(arena_walk.planes)  # type: ignore[assignment]
        walk_every_cut("16 bits")
        return
    sets = native_status().supported_sets
    for i, name in enumerate(sets):
        count = cases if i == 0 else cases // 4
        with instruction_set(name):
            run_ops(count, seed=i)
            run_engine(count, threads=2)
        print(f"{name}: {count} cases")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "--short-planes" in sys.argv)
