"""Acceleration in int8 wherever it is possible, whatever is faster on this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.nn.accelerate import accelerate_copy
from prunekit.nn.calls import Call
from prunekit.nn.candidates import Options
from prunekit.nn.int8 import calibration_inputs
from prunekit.nn.model_copies import copied


def accelerate_in_int8(
    model: nn.Module, x: Tensor, *, precision: str = "float32", calibration: Any = None
) -> nn.Module:
    """Do what `prunekit.accelerate` does, but tune nothing and compare no times."""
    call = Call.of_example(model, x, None)
    inputs = calibration_inputs(calibration, call) if precision == "int8" else None
    options = Options(tuning_seconds=0.0, tuning_cache=None, calibration=inputs, only_faster_int8=False)
    with torch.no_grad():
        return accelerate_copy(copied(model), call, options)
