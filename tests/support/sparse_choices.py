"""A fixture's work: a sparse kernel wins everywhere, so that small shapes reach it in the emulation."""

from __future__ import annotations

import random

import pytest
import torch

from prunekit.ops.cuda.choice import KernelChoice, rounded
from prunekit.ops.cuda.condensed.cost import CondensedLaunch
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.plan import ConvJob
from prunekit.ops.cuda.problem import KernelLaunch
from prunekit.ops.cuda.registry import kernels_for

#: Those that take float16.
HALF_KERNELS = {"condensed", "bitmap", "semi_structured"}
_SMALL_CUT = CondensedLaunch(8, 4, 1, 1, 1, 1, 2, 1)  # outputs of a few pixels have none that are worth comparing
_ALL_CUTS = 1 << 20


def choose_sparse(patch: pytest.MonkeyPatch, only: str | None = None) -> None:
    """Choose any kernel of the dtype, or `only` one, and any cut of few warps, as emulated threads take their time."""

    def choose(job: ConvJob, gpu: Gpu, dtype: torch.dtype, **_: object) -> KernelChoice:
        problem, cuts = rounded(job.problem), dict[str, list[KernelLaunch]]()
        for kernel in kernels_for(problem, dtype, gpu):
            few = [cut for cut in kernel.best_launches(problem, gpu, _ALL_CUTS) if cut.warps <= 3]
            if few and only in (None, kernel.name):
                cuts[kernel.name] = few
        draw = random.Random(str(problem))
        name = draw.choice(sorted(cuts)) if cuts else "condensed"
        launch = draw.choice(cuts[name]) if cuts else _SMALL_CUT
        return KernelChoice(name, launch, 1e-6, 2e-6, False, "for this test")

    patch.setattr(ConvJob, "choose", choose)
