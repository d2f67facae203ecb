"""A fixture's work: the record kernel wins everywhere, so that small shapes reach it in the emulation."""

from __future__ import annotations

import random

import pytest

from prunekit.ops.kernel_choice import KernelChoice, rounded
from prunekit.ops.record_launch import Gpu, launches
from prunekit.ops.record_plan import RecordJob


def choose_sparse(patch: pytest.MonkeyPatch) -> None:
    """Choose any cut of few warps, as emulated threads take their time."""

    def choose(job: RecordJob, gpu: Gpu, **_: object) -> KernelChoice:
        cuts = [cut for cut in launches(rounded(job.problem), gpu.shared_bytes) if cut.warps <= 3]
        launch = random.Random(str(job.problem)).choice(cuts)
        return KernelChoice("record", launch, 1e-6, 2e-6, False, "for this test")

    patch.setattr(RecordJob, "choose", choose)
