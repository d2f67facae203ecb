"""The bitmap kernels' model: above its floors, and its shared memory is what the launch computes."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
import torch

from prunekit.ops.cuda.bitmap.cost import MODEL, BitmapLaunch
from prunekit.ops.cuda.bitmap.filter import pack_bitmaps
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.devices import GPUS
from tests.support import ROOT
from tests.support.emulated_kernels import COMPILER


def _small_map(density: float) -> CondensedProblem:
    return CondensedProblem(256, 128, (3, 3), 1, density, 1, (13, 13), padding=(1, 1))


def test_the_model_is_above_its_floors_and_falls_with_the_weights() -> None:
    for device in GPUS.values():
        before = math.inf
        for density in (0.5, 0.1, 0.01):
            problem = _small_map(density)
            chosen = MODEL.choose_launch(problem, device)
            assert chosen is not None
            launch, seconds = chosen
            products = 2 * 256 * 128 * 9 * problem.kept_columns * 13 * 13 / (device.tensor_peak_gflops * 1e9)
            floors = MODEL.memory_seconds(problem, launch, device), MODEL.cache_seconds(problem, launch, device)
            assert max(products, *floors) + MODEL.adding_seconds(problem, launch, device) < seconds <= before
            assert MODEL.shared_bytes(problem, launch) <= device.shared_bytes
            assert 1 <= launch.cuts <= math.ceil(128 / launch.chunk_channels)
            before = seconds


def test_the_best_launches_are_sorted_and_all_different() -> None:
    problem, device = _small_map(0.1), GPUS["a100"]
    best = MODEL.best_launches(problem, device, 6)
    seconds = [MODEL.modeled_seconds(problem, launch, device) for launch in best]
    assert len(set(best)) == 6
    assert seconds == sorted(seconds)
    assert MODEL.choose_launch(problem, device) == (best[0], seconds[0])


def test_memory_is_what_a_packed_filter_takes() -> None:
    generator = torch.Generator().manual_seed(5)
    device = GPUS["a100"]
    for density, chunk in ((0.5, 16), (0.1, 32), (0.01, 64)):
        problem = _small_map(density)
        weight = torch.randn(256, 128, 3, 3).half()
        packed = pack_bitmaps(weight, torch.rand(weight.shape, generator=generator) < density, 1, chunk)
        launch = BitmapLaunch(chunk, 8, 4, 2, 1, 4, 1, 1, 1)
        taken = 4 * packed.records.numel() + 2 * packed.values.numel() + 2 * (128 + 256) * 13 * 13
        modeled = MODEL.memory_seconds(problem, launch, device) * device.memory_gb_per_s * 1e9
        assert modeled == pytest.approx(taken, rel=0.02)


PLAN = """
#include "bitmap/launch.h"
#include <cstdio>
int main(int, char** words) {
  prunekit::BitmapConv conv{};
  int64_t header[prunekit::BITMAP_HEADER_WORDS];
  for (int64_t& word : header) word = std::atoll(*++words);
  for (const auto& word : launch_words(conv)) *word.value = std::atoi(*++words);
  conv.n = conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = conv.padding_h = conv.padding_w = 1;
  conv.h = conv.w = conv.p = conv.q = 13;
  const auto launch = prunekit::plan_bitmap_launch(conv, header);
  std::printf("%s%lld %lld\\n", launch.refusal.c_str(), (long long)launch.shared_bytes,
              (long long)prunekit::workspace_size(conv));
}
"""


@pytest.mark.skipif(not COMPILER, reason="no g++")
def test_shared_memory_is_what_the_launch_computes(tmp_path: Path) -> None:
    source, program = tmp_path / "plan.cpp", tmp_path / "plan"
    source.write_text(PLAN.replace("<cstdio>", "<cstdio>\n#include <cstdlib>"))
    subprocess.run([COMPILER, "-std=c++17", f"-I{ROOT / 'csrc/cuda'}", str(source), "-o", str(program)], check=True)
    weight = torch.randn(256, 128, 3, 3).half()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(6)) < 0.1
    for launch in (BitmapLaunch(16, 8, 4, 2, 1, 4, 2, 2, 3), BitmapLaunch(8, 14, 7, 2, 1, 2, 4, 1, 1)):
        header = pack_bitmaps(weight, mask, 1, launch.chunk_channels).header
        words = [str(word) for word in (*header.words(), *launch.words())]
        said = subprocess.run([program, *words], capture_output=True, text=True, check=True).stdout.split()
        assert int(said[0]) == MODEL.shared_bytes(_small_map(0.1), launch, header.longest, header.longest_aligned)
        units = -(-13 // launch.tile_h) * 16 * launch.warp_units  # tiles of two units a line, 16 row groups
        assert int(said[1]) == (launch.cuts * units * 16 * 8 if launch.cuts > 1 else 0)  # sums
