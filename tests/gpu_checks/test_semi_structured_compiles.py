"""The kernel on sparse tensor cores as compiled: what a step costs in instructions, counted in the machine code."""

from __future__ import annotations

import math

import pytest

from prunekit.ops.cuda.semi_structured.cost import STEP_INSTRUCTIONS
from tests.support.cuda_compiler import ARCHITECTURES, disassemble, disassembler, nvcc
from tests.support.semi_structured_problems import WARP_UNITS

pytestmark = [
    pytest.mark.skipif(nvcc() is None, reason="no nvcc on this machine"),
    pytest.mark.skipif(disassembler() is None, reason="no nvdisasm on this machine"),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_a_load_a_unit_and_sparse_products(architecture: str) -> None:
    """32 columns: loads of each fragment's weights, of taps, and of two fragments' metadata; four matrices a unit."""
    for name, function in disassemble(architecture, "semi_structured").items():
        kernel, _, numbers = name.rstrip(">").partition("<")
        if kernel != "semi_structured_conv2d":
            continue
        products = [i for i in function.instructions if i.base == "HMMA"]
        if int(architecture) < 80:
            assert not products, name
            continue
        assert products, name
        assert all(".SP." in i.name for i in products), name
        fragments = int(numbers.split(",")[3])
        units = WARP_UNITS[fragments]
        loop = function.innermost_loop("HMMA")
        steps = loop["LDSM"] // units  # the compiler may unroll the loop
        assert loop["HMMA"] == steps * fragments * units, name
        loads = 1 + fragments + math.ceil(fragments / 2)
        assert loop["LDS"] == steps * loads, name
        # The model's: prunekit/ops/cuda/semi_structured/cost.py.
        rest = loop.total() - loop["HMMA"] - loop["LDSM"] - loop["LDS"]
        assert rest <= steps * (STEP_INSTRUCTIONS + units), (name, loop)
