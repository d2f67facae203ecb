"""The precisions of dense engines, and whether one really computes in the precision of its name."""

from __future__ import annotations

import platform
from typing import Literal

from prunekit.benchmark.engines.calls import UnavailableError
from prunekit.processor import processor

Precision = Literal["float32", "bfloat16", "int8"]

FLOAT32: Precision = "float32"
INT8: Precision = "int8"
#: Of one weight.
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last one is Arm's
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni")
_ARM = ("aarch64", "arm64")
# Engines leave a layer or two in float32, such as one after an operator that they cannot quantize. Where most layers
# are, the time is not that of the lower precision.
_LEAST_SHARE = 0.5


def check_bfloat16() -> None:
    """Make sure that the processor multiplies bfloat16; torch would otherwise convert each value to float32 and back.

    Raises:
        UnavailableError: It does not, or its instructions are not known.
    """
    found = processor().instruction_sets
    if not found:
        raise UnavailableError("whether this processor has bfloat16 instructions is not known without /proc/cpuinfo")
    if not set(_BFLOAT16_FLAGS) & set(found):
        raise UnavailableError(
            f"this processor has no bfloat16 instructions: expected one of {', '.join(_BFLOAT16_FLAGS)} among its flags"
        )


def is_arm() -> bool:
    """Return whether the processor is an Arm of 64 bits."""
    return platform.machine().lower() in _ARM


def int8_saturates() -> bool:
    """Return whether sums of int8 products saturate unless weights are kept to 7 bits.

    So they do where an x86 processor lacks the instruction that adds four products in 32 bits (VNNI): the older one
    adds two in 16. On AVX2, a lone convolution's error fell from 9 to 1 % by 7 bits. The time is the same.
    """
    return not is_arm() and not set(_DOT_PRODUCTS) & set(processor().instruction_sets)


def check_layers(engine: str, precision: Precision, lower: int, total: int) -> None:
    """Make sure that an engine runs most of its layers in a precision.

    Args:
        engine: For the message.
        precision: That of its name.
        lower: Convolutions and matrix products that run in it.
        total: All of them.

    Raises:
        UnavailableError: Fewer than half do, or there are none.
    """
    if not total or lower < _LEAST_SHARE * total:
        raise UnavailableError(
            f"{engine} runs {lower} of {total} convolutions and matrix products in {precision} on this processor, "
            "expected at least half"
        )
