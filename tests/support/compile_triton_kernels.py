"""Compiles the Triton kernels ahead of time, without a driver, and prints what became of them as JSON.

test_triton_compiles.py starts it in a process of its own: `python tests/support/compile_triton_kernels.py 80 90 …`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from prunekit_kernels import condensed_conv2d as public  # noqa: F401
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MODULE = sys.modules["prunekit_kernels.condensed_conv2d"]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {"float16": ("fp16", 0x7C00), "bfloat16": ("bf16", 0x7F80), "float32": ("fp32", 0x7F800000)}
TYPES["tf32"] = TYPES["float32"]
POINTERS = ("x_ptr", "rows_ptr", "starts_ptr", "columns_ptr", "values_ptr", "bias_ptr", "residual_ptr", "y_ptr")
INDICES = ("rows_ptr", "starts_ptr", "columns_ptr")


def compile_kernel(architecture: int, mode: str, cut: dict[str, int], warps: int, stages: int) -> dict[str, Any]:
    """Compile a 3×3 convolution with everything fused."""
    kernel = MODULE._condensed_conv2d_kernel
    element, exponent = TYPES[mode]
    constants: dict[str, Any] = {
        "STRIDE_H": 1,
        "STRIDE_W": 1,
        "PADDING_H": 1,
        "PADDING_W": 1,
        "DILATION_H": 1,
        "DILATION_W": 1,
    }
    constants |= {"HAS_BIAS": True, "HAS_RESIDUAL": True, "ACTIVATION": 1, "EXPONENT": exponent, "BLOCK_M": 16}
    constants |= {"PRECISION": "tf32" if mode == "tf32" else "ieee", **cut}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = "*i32" if name in INDICES else f"*{element}"
        else:
            signature[name] = "fp32" if name == "negative_slope" else "i32"
    # Tensors that torch allocates are aligned to 16 bytes.
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in POINTERS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, "num_stages": stages}
    )
    return {
        "mode": mode,
        "architecture": architecture,
        **cut,
        "shared": done.metadata.shared,
        **examine(done.asm["cubin"]),
    }


def examine(cubin: bytes) -> dict[str, Any]:
    """Read registers, stack and instructions from the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", path], capture_output=True, text=True, check=True
        )
        code = subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.MULTILINE)
    wanted = ("HMMA", "HGMMA", "UTCHMMA", "FFMA", "FFMA2", "LDGSTS", "LDL", "STL")
    return {"registers": used["REG"], "stack": used["STACK"], **{name: names.count(name) for name in wanted}}


def main() -> None:
    """Print one JSON line for each architecture and mode."""
    for word in sys.argv[1:]:
        architecture = int(word)
        for mode in TYPES if architecture >= 80 else ("float32",):
            cut = {"BLOCK_N": 64, "BLOCK_K": 32 if mode in ("float16", "bfloat16") else 16}
            row = compile_kernel(architecture, mode, cut, 4, 3)
            sys.stdout.write(json.dumps(row) + "\n")


main()
