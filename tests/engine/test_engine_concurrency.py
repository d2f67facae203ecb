"""Accelerated models from several threads at once, in forked and in fresh processes, and inside torch.compile."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.environment import thread_count
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.native import native_status
from tests.support import ROOT

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


def sparse_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.Tanh(), nn.Conv2d(24, 5, 1)]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    return nn.Sequential(*layers).eval()


def on_engine(model: nn.Module, x: Tensor) -> AcceleratedModel:
    return build_whole_graph(model, [x], 0.0, TuningCache(None), lambda done, total: None).model


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_call_one_model_get_what_one_alone_gets(threads: int) -> None:
    """Twelve sizes, more than are kept, so that plans are made, dropped and used at the same time."""
    sizes = [(16 + i, 40 - 2 * i) for i in range(12)]
    images = [torch.randn(1 + i % 3, 3, *size) for i, size in enumerate(sizes)]
    with thread_count(threads), torch.inference_mode():
        expected = [on_engine(sparse_net(), images[0])(x) for x in images]
        fast, barrier = on_engine(sparse_net(), images[0]), Barrier(4)

        def call(worker: int) -> int:
            barrier.wait(timeout=60)
            with torch.inference_mode():
                order = [(worker * 5 + i) % 12 for i in range(36)]
                return sum(torch.equal(fast(images[i]), expected[i]) for i in order)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(call, range(4))) == [36] * 4


def test_threads_that_call_one_masked_convolution_get_what_one_alone_gets() -> None:
    conv = nn.Conv2d(8, 24, 3, 2, 1).requires_grad_(False)
    conv.weight.mul_(torch.rand_like(conv.weight) < 0.3)
    masked = MaskedConv2d.from_dense(conv).eval()
    images = [torch.randn(2, 8, 9 + 7 * i, 30 - i) for i in range(6)]
    with torch.inference_mode():
        expected = [masked(x) for x in images]

        def call(worker: int) -> int:
            with torch.inference_mode():
                order = [(worker + i) % 6 for i in range(60)]
                return sum(torch.equal(masked(images[i]), expected[i]) for i in order)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(call, range(4))) == [60] * 4


FORK = """
import os, sys, torch
from torch.utils.data import DataLoader, Dataset
from tests.engine.test_engine_concurrency import on_engine, sparse_net

x = torch.randn(6, 3, 33, 21)
torch.set_num_threads(2)
fast = on_engine(sparse_net(), x[:1])
with torch.inference_mode():
    expected = fast(x)  # the parent's threads have run before it forks

class Results(Dataset):
    def __len__(self):
        return len(x)
    def __getitem__(self, i):
        with torch.inference_mode():
            return fast(x[i : i + 1])[0].clone()

from_workers = torch.cat(list(DataLoader(Results(), batch_size=2, num_workers=2, multiprocessing_context="fork")))
assert torch.equal(from_workers, expected)
child = os.fork()
if not child:
    torch.set_num_threads(1)
    with torch.inference_mode():
        narrow = x[..., 1:]  # planned in the child
        is_same = torch.equal(fast(x), expected) and torch.equal(fast(narrow), on_engine(sparse_net(), x)(narrow))
    os._exit(0 if is_same else 3)
assert os.waitpid(child, 0)[1] == 0
with torch.inference_mode():
    assert torch.equal(fast(x), expected)
print("same")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks with threads are Linux's")
def test_forked_processes_with_one_thread_get_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_a_compiled_caller_leaves_the_engine_alone() -> None:
    x = torch.randn(1, 3, 12, 10)
    fast = on_engine(sparse_net(), x)

    def call(x: Tensor) -> Tensor:
        y: Tensor = fast(x * 2)
        return y.relu()

    compiled = torch.compile(call, backend="aot_eager")
    for size in ((12, 10), (12, 10), (20, 8)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(compiled(x), call(x))


def test_a_saved_model_gives_the_same_bits_in_another_process(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 19, 23)
    fast = on_engine(sparse_net(), x)
    prunekit.save(fast, tmp_path / "model.safetensors")
    torch.save((x, fast(x)), tmp_path / "values.pt")
    script = (
        "import sys, torch, prunekit; x, y = torch.load(sys.argv[2]); "
        "assert torch.equal(prunekit.load(sys.argv[1])(x), y)"
    )
    paths = [str(tmp_path / name) for name in ("model.safetensors", "values.pt")]
    done = subprocess.run([sys.executable, "-c", script, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
