"""The bitmap kernels' machine code: tensor cores, asynchronous copies, and the instructions that the model counts."""

from __future__ import annotations

import pytest

from prunekit.ops.cuda.bitmap.cost import STEP_INSTRUCTIONS, STEP_LOADS
from tests.support.cuda_compiler import ARCHITECTURES, disassemble, disassembler, nvcc

pytestmark = [
    pytest.mark.skipif(nvcc() is None, reason="no nvcc on this machine"),
    pytest.mark.skipif(disassembler() is None, reason="no nvdisasm on this machine"),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_decoded_and_multiplied_in_as_many_instructions_as_the_model_says(architecture: str) -> None:
    """For two units four matrices and two products; one count of bits, and eight loads of values."""
    for name, function in disassemble(architecture, "bitmap").items():
        kernel, _, numbers = name.rstrip(">").partition("<")
        if kernel != "bitmap_conv2d":
            continue
        is_bfloat16, _, _, units = (int(word) for word in numbers.split(","))
        has_tensor_cores = int(architecture) >= 80 or not is_bfloat16
        assert (function.count()["HMMA"] > 0) == has_tensor_cores, name
        assert (function.count()["LDGSTS"] > 0) == (int(architecture) >= 80), name
        if not has_tensor_cores:
            continue
        loop = function.innermost_loop("HMMA")
        assert loop["LDSM"] == units // 2, name
        assert loop["HMMA"] == (units if int(architecture) >= 80 else 2 * units), name
        assert loop["POPC"] == 1, name
        assert loop["LDS"] == STEP_LOADS, name
        others = loop.total() - loop["HMMA"] - loop["LDSM"] - units // 2
        assert STEP_INSTRUCTIONS - 10 <= others <= STEP_INSTRUCTIONS, (name, others)
