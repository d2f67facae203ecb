"""One model and one tool of `bench.zoo`, in a process of its own: build, prune, run the tool, compare, time.

python -m bench.zoo_trial '{"model": "resnet18", "tool": "accelerate", ...}' row.json
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from bench.zoo_checks import MOST, allowed_error, check_input, input_effect, own_rounding
from bench.zoo_models import ZooModel, load_registry
from bench.zoo_rows import Row, Tool
from bench.zoo_times import Call, measure
from bench.zoo_weights import drop_filters, enliven, make_sparse, random_images
from prunekit.benchmark.engines.pytorch import torch_compiled
from prunekit.compaction import compact
from prunekit.environment import installed_version
from prunekit.errors import first_line
from prunekit.files import write_text
from prunekit.nn import native_status

_PACKAGES = ("prunekit", "torch", "torchvision", "timm")
_SPARSITY = 0.9  # of every convolution but the first, for accelerate
_FILTERS = 0.5  # that are zeroed in every convolution, for compact
_LIVE_IMAGES = 8  # that the BatchNorms' statistics are of
# Added to the example's height and width. Odd sizes find more than even ones; a model that takes none is asked for
# multiples of 32, and one that needs larger images for those.
_OTHER_SIZES = ((-27, 13), (32, -32), (37, 21))
_LATENCY_RUNS = 3  # by which compact chooses its rounding


@dataclass(frozen=True)
class Trial:
    """What one process does.

    Attributes:
        model: A name of the registry.
        tool: What runs on it.
        registry: "module:attribute".
        threads: Of torch.
        tuning_seconds: For accelerate.
        compile: Time torch.compile with freezing as well.
    """

    model: str
    tool: Tool
    registry: str
    threads: int = 1
    tuning_seconds: float = 5.0
    compile: bool = False


def main() -> None:
    """Write the row of the trial that the first argument describes to the file that the second one names."""
    trial = Trial(**json.loads(sys.argv[1]))
    write_text(Path(sys.argv[2]), run_trial(trial).model_dump_json())


def run_trial(trial: Trial) -> Row:
    """Return the row; what a tool or the model raises is in it."""
    torch.set_num_threads(trial.threads)
    zoo_model = load_registry(trial.registry)[trial.model]
    row = Row(
        model=trial.model,
        source=zoo_model.source,
        tool=trial.tool,
        size=zoo_model.size,
        threads=trial.threads,
        versions={name: version for name in _PACKAGES if (version := installed_version(name))},
        kernels=native_status().instruction_set,
    )
    try:
        model, x = prepare(trial, zoo_model)
    except Exception as error:  # someone else's constructor and forward
        return row.model_copy(update={"exception_type": "SetupError", "exception": first_line(error)})
    with torch.no_grad():
        row = row.model_copy(update={"input_effect": input_effect(model, x)})
        before = [tensor.clone() for tensor in _tensors(model)]
        begin = time.perf_counter()
        try:
            fast, facts = _TOOLS[trial.tool](model, x, trial)
        except Exception as error:  # any exception is a finding
            fast, facts = None, {"exception_type": type(error).__name__, "exception": first_line(error)}
        facts["seconds"] = time.perf_counter() - begin
        facts["is_original_unchanged"] = all(map(_same_bits, before, _tensors(model)))
        if fast is not None:
            facts |= _judge(model, fast, x, zoo_model, trial)
    return Row.model_validate({**row.model_dump(), **facts})


def prepare(trial: Trial, zoo_model: ZooModel) -> tuple[nn.Module, Tensor]:
    """Return the pruned model in eval mode and an example [1, 3, size, size]; the same ones for the same name."""
    torch.manual_seed(zlib.crc32(trial.model.encode()))
    model = zoo_model.build().eval().requires_grad_(False)
    images = random_images(_LIVE_IMAGES, zoo_model.size, zoo_model.size)
    if trial.tool == "accelerate":
        make_sparse(model, _SPARSITY)
    else:
        drop_filters(model, _FILTERS)
    enliven(model, images)
    return model, random_images(1, zoo_model.size, zoo_model.size)


def _accelerate(model: nn.Module, x: Tensor, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
    fast = prunekit.accelerate(model, x, tuning_seconds=trial.tuning_seconds, tuning_cache=None)
    report: Any = fast.report
    return fast, {"engine": report.engine, "notes": report.notes}


def _compact(model: nn.Module, x: Tensor, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
    result = compact(model, x, latency_runs=_LATENCY_RUNS)
    certificate = result.certificate
    return result.model, {
        "notes": [*certificate.notes, *certificate.kept_whole],
        "parameters_before": certificate.parameters_before,
        "parameters_after": certificate.parameters_after,
    }


_TOOLS: dict[Tool, Callable[[nn.Module, Tensor, Trial], tuple[nn.Module, dict[str, Any]]]] = {
    "accelerate": _accelerate,
    "compact": _compact,
}


def _judge(model: nn.Module, fast: nn.Module, x: Tensor, zoo_model: ZooModel, trial: Trial) -> dict[str, Any]:
    """Compare on three inputs, then time: what is wrong on the example is not timed."""
    size, parts = zoo_model.size, zoo_model.parts
    others = [random_images(1, size + height, size + width) for height, width in _OTHER_SIZES]
    example = check_input(model, fast, [x], parts)
    facts: dict[str, Any] = {
        "example": example,
        "batch": check_input(model, fast, [random_images(2, size, size)], parts),
        "other_size": check_input(model, fast, others, parts),
    }
    checks = [facts[name] for name in ("example", "batch", "other_size")]
    if any(check.error is not None and check.error > MOST for check in checks):
        facts["own_rounding"] = own_rounding(model, x)
    if example.error is None or example.error > allowed_error(facts.get("own_rounding")):
        return facts
    calls: dict[str, Call] = {"eager": lambda: model(x), "prunekit": lambda: fast(x)}
    if trial.compile:
        try:
            compiled = torch_compiled(model, x)
            compiled()
            calls["compile"] = compiled
        except Exception as error:  # a foreign compiler raises what it likes
            facts["compile_problem"] = f"{type(error).__name__}: {first_line(error)}"
    rounds, latencies = measure(calls, against="eager")
    return facts | {"rounds": rounds, "latencies": latencies}


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _same_bits(before: Tensor, after: Tensor) -> bool:
    """Compare bits, so that nan equals nan and 0 differs from -0."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    a, b = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (before, after))
    return torch.equal(a, b)


if __name__ == "__main__":
    main()
