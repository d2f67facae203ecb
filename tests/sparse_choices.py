"""A fixture's work: a sparse kernel wins everywhere, so that small shapes reach it in the emulation."""

from __future__ import annotations

import random

import pytest
import torch

from prunekit.ops import condensed_launch, record_launch
from prunekit.ops.condensed_launch import CondensedLaunch, CondensedProblem
from prunekit.ops.conv_plan import ConvJob
from prunekit.ops.conv_problem import KernelLaunch
from prunekit.ops.kernel_choice import KernelChoice, rounded
from prunekit.ops.record_launch import Gpu, RecordProblem

_SMALL_CUT = CondensedLaunch(8, 4, 1, 1, 1, 1, 2, 1)  # outputs of a few pixels have none that are worth comparing


def choose_sparse(patch: pytest.MonkeyPatch) -> None:
    """Choose any cut of few warps, as emulated threads take their time."""

    def choose(job: ConvJob, gpu: Gpu, dtype: torch.dtype, **_: object) -> KernelChoice:
        problem, cuts = rounded(job.problem), list[KernelLaunch]()
        if dtype == torch.float32:
            cuts += record_launch.launches(RecordProblem.of(problem), gpu.shared_bytes)
        else:
            cuts += condensed_launch.launches(CondensedProblem.of(problem), gpu.shared_bytes)
            cuts = cuts or [_SMALL_CUT]
        launch = random.Random(str(problem)).choice([cut for cut in cuts if cut.warps <= 3])
        name = "record" if dtype == torch.float32 else "condensed"
        return KernelChoice(name, launch, 1e-6, 2e-6, False, "for this test")

    patch.setattr(ConvJob, "choose", choose)
