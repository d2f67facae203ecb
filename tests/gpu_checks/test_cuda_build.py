"""Building the CUDA extension: what is chosen and refused without nvcc, and the real thing where nvcc is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toolkit
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prunekit.ops.cuda.condensed.filter import pack_fragments
from prunekit.ops.cuda.record.filter import pack_records
from prunekit.ops.cuda.semi_structured.filter import pack_semi_structured
from tests.support import ROOT
from tests.support.cuda_compiler import nvcc

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="no nvcc on this machine")


def _fake_toolkit(folder: Path, release: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "nvcc"
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.0'\n")
    program.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)


def test_a_cpu_build_of_torch_leaves_it_out_unless_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("CUDA_HOME", str(_fake_toolkit(tmp_path / "cuda", "12.8")))
    with pytest.raises(toolkit.CudaBuildError, match="torch is a CPU build"):
        toolkit.usable_toolkit()
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert toolkit.usable_toolkit().version == (12, 8)


def test_a_toolkit_of_another_major_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(_fake_toolkit(tmp_path / "cuda", "12.8")))
    with pytest.raises(toolkit.CudaBuildError, match=r"torch is built for CUDA 13\.0, but .* is of 12\.8"):
        toolkit.usable_toolkit()
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    assert toolkit.usable_toolkit().home == tmp_path / "cuda"


def test_a_missing_toolkit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(toolkit, "find_toolkit", lambda: None)
    with pytest.raises(toolkit.CudaBuildError, match=r"no nvcc was found; install the CUDA toolkit .* 13\.0"):
        toolkit.usable_toolkit()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("7.5", ["75"]),
        ("7.5;8.6+PTX", ["75", "86+PTX"]),
        ("8.0 9.0", ["80", "90"]),
        ("Turing,Ampere", ["75", "80", "86"]),
        ("12.0+PTX", ["120+PTX"]),
        ("all", list(toolkit.ALL_ARCHITECTURES)),
    ],
)
def test_architectures_are_read_as_torch_writes_them(
    monkeypatch: pytest.MonkeyPatch, asked: str, expected: list[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert toolkit.architectures() == expected
    flags = toolkit.architecture_flags(expected)
    assert sum("code=sm_" in flag for flag in flags) == len(expected)
    assert sum("code=compute_" in flag for flag in flags) == sum("PTX" in name for name in expected)


@pytest.mark.parametrize(("asked", "words"), [("7.0", "7.5 or newer"), ("turbo", "expected numbers"), ("8.0+X", "8.0")])
def test_wrong_architectures_are_refused(monkeypatch: pytest.MonkeyPatch, asked: str, words: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(toolkit.CudaBuildError, match=words):
        toolkit.architectures()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prunekit/_cuda*.so, built for one architecture against the torch that is here."""
    folder = tmp_path_factory.mktemp("cuda")
    environment = {
        **os.environ,
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "7.5",
        "PRUNEKIT_SETS": "baseline",
        "NVCC_APPEND_FLAGS": "-Xcicc -O0 -Xptxas -O0",  # test_cuda_compiles.py looks at optimized code
    }
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(folder),
        "--build-temp",
        str(folder / "temp"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("prunekit/_cuda.abi3.so"))
    assert list(folder.glob("prunekit/_native.abi3.so"))
    return folder


LOAD = """
import importlib.util, sys, torch, prunekit.ops
path = sys.argv[1]
spec = importlib.util.spec_from_file_location("prunekit._cuda", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.architectures() == "75", module.architectures()
assert module.toolkit_version() > 11000
from prunekit.ops.cuda.registry import compiled_signatures
assert sorted(module.signatures().splitlines()) == sorted(compiled_signatures()), module.signatures()
for name in ("record_conv2d", "condensed_conv2d", "bitmap_conv2d", "semi_structured_conv2d"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("prunekit::" + name, "CUDA")
has_native = torch._C._dispatch_has_kernel_for_dispatch_key("prunekit::packed_conv2d", "CPU")
assert has_native == prunekit.nn.native_status().available
x, weight = torch.randn(1, 5, 9, 9), torch.randn(4, 5, 3, 3)
assert torch.allclose(prunekit.masked_conv2d(x, weight, weight > 0), torch.conv2d(x, weight.clamp(min=0)), atol=1e-5)
"""


@needs_nvcc
def test_the_extension_builds_against_this_torch_and_loads(built: Path) -> None:
    program = built / "prunekit" / "_cuda.abi3.so"
    done = subprocess.run([sys.executable, "-c", LOAD, program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LAUNCH = """
#include "bitmap/launch.h"
#include "condensed/launch.h"
#include "record/launch.h"
#include "semi_structured/launch.h"
#include <cstdio>
template <typename Conv> Conv smallest() {
  Conv conv{};
  conv.n = conv.h = conv.w = conv.p = conv.q = conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = 1;
  conv.block_row_groups = conv.buffers = 1;
  return conv;
}
int main() {
  auto records = smallest<prunekit::RecordConv>();
  records.tile_h = 4, records.lanes = records.lanes_w = 1;
  const int64_t record_header[prunekit::RECORD_HEADER_WORDS] = {8, 1, 1, 1, 1, 1, 1, 1, 0, 2, 2};
  const auto plan = prunekit::plan_record_launch(records, record_header);
  std::puts(prunekit::launch_record_conv2d(records, plan, record_header, false, nullptr).c_str());
  auto fragments = smallest<prunekit::CondensedConv>();
  fragments.warp_units = 4, fragments.tile_h = fragments.units_w = fragments.pixel_warps = fragments.slices = 1;
  const int64_t fragment_header[prunekit::FRAGMENT_HEADER_WORDS] = {16, 1, 1, 1, 1, 1, 0, 0, 0};
  for (const bool is_bfloat16 : {false, true}) {
    const auto plan = prunekit::plan_condensed_launch(fragments, fragment_header);
    std::puts(prunekit::launch_condensed_conv2d(fragments, plan, fragment_header, is_bfloat16, nullptr).c_str());
  }
  auto bitmaps = smallest<prunekit::BitmapConv>();
  bitmaps.warp_units = 8, bitmaps.tile_h = bitmaps.units_w = bitmaps.pixel_warps = bitmaps.slices = bitmaps.cuts = 1;
  const int64_t bitmap_header[prunekit::BITMAP_HEADER_WORDS] = {16, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0};
  const auto bitmap_plan = prunekit::plan_bitmap_launch(bitmaps, bitmap_header);
  std::puts(prunekit::launch_bitmap_conv2d(bitmaps, bitmap_plan, bitmap_header, false, nullptr).c_str());
  fragments.warp_units = 8;
  const int64_t sparse_header[prunekit::SEMI_STRUCTURED_HEADER_WORDS] = {16, 1, 1, 1, 1, 1, 0, 0, 0, 1};
  const auto sparse_plan = prunekit::plan_semi_structured_launch(fragments, sparse_header);
  std::puts(
      prunekit::launch_semi_structured_conv2d(fragments, sparse_plan, sparse_header, false, nullptr).c_str());
}
"""


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_a_launch_without_a_driver_says_so(built: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "launch.cpp", tmp_path / "launch"
    source.write_text(LAUNCH)
    kit = toolkit.find_toolkit()
    assert kit is not None
    kernels = [str(built / "temp" / "cuda" / f"{Path(kernel).parent.name}_cuda.o") for kernel in toolkit.KERNELS]
    libraries = [f"-L{toolkit.library_folder(kit)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc' / 'cuda'}", str(source), *kernels, *libraries]
    subprocess.run([*command, "-o", str(program)], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 5
    assert all(line.startswith("CUDA says cudaError") for line in said)


def test_fake_cuda_tensors_give_shapes() -> None:
    packed = pack_records(torch.randn(6, 5, 3, 3), torch.rand(6, 5, 3, 3) < 0.3, 1, 9, 2, 1)
    with FakeTensorMode():
        x = torch.empty(2, 5, 20, 30, device="cuda").to(memory_format=torch.channels_last)
        tensors = [
            torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in (packed.starts, packed.records, packed.rows)
        ]
        y = torch.ops.prunekit.record_conv2d(
            x, packed.header.words(), *tensors, None, None, [2, 2], [1, 1], [1, 1], "none", 0.0, [2, 1, 1, 1, 1]
        )
    assert y.shape == (2, 6, 10, 15)
    assert y.device.type == "cuda"
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_fake_cuda_tensors_give_shapes_of_the_condensed_op() -> None:
    packed = pack_fragments(torch.randn(6, 5, 3, 3).bfloat16(), torch.rand(6, 5, 3, 3) < 0.3, 1, 2)
    with FakeTensorMode():
        x = torch.empty(2, 5, 20, 30, device="cuda", dtype=torch.bfloat16)
        tensors = [
            torch.empty(t.shape, dtype=t.dtype, device="cuda")
            for t in (packed.starts, packed.columns, packed.fragments, packed.rows)
        ]
        geometry = [2, 2], [1, 1], [1, 1]
        y = torch.ops.prunekit.condensed_conv2d(
            x, packed.header.words(), *tensors, None, None, *geometry, "none", 0.0, [4, 1, 1, 1, 1, 1, 1]
        )
    assert y.shape == (2, 6, 10, 15)
    assert y.dtype == torch.bfloat16
    assert y.device.type == "cuda"


def test_fake_cuda_tensors_give_shapes_of_the_semi_structured_op() -> None:
    packed = pack_semi_structured(torch.randn(6, 5, 3, 3).half(), torch.rand(6, 5, 3, 3) < 0.3, 1, 2, 2)
    with FakeTensorMode():
        x = torch.empty(2, 5, 20, 30, device="cuda", dtype=torch.float16)
        tensors = [
            torch.empty(t.shape, dtype=t.dtype, device="cuda")
            for t in (packed.starts, packed.columns, packed.fragments, packed.metadata, packed.rows)
        ]
        geometry = [2, 2], [1, 1], [1, 1]
        y = torch.ops.prunekit.semi_structured_conv2d(
            x, packed.header.words(), *tensors, None, None, *geometry, "none", 0.0, [4, 1, 1, 1, 1, 1, 1]
        )
    assert y.shape == (2, 6, 10, 15)
    assert y.dtype == torch.float16
    assert y.device.type == "cuda"
