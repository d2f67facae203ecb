"""Every command, killed at random moments, ends in the bits of one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from prunekit.pipeline import read_rows
from tests.support.commands import Options, results, start, succeed, wait_for_lines
from tests.support.run_columns import AP_COLUMNS

# How often each command is killed; the more, the more moments are met.
KILLS = int(os.environ.get("PRUNEKIT_KILLS", "2"))
SIZE = {"image-size": 64, "threads": 1}
TRAINING = {"checkpoint-every": 3, "train-batch-size": 4}


@pytest.fixture(scope="module")
def inputs(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A detector that has learnt nothing, and a pruned one."""
    out = tmp_path_factory.mktemp("inputs")
    untrained = {"model": "yolov3-tiny", "width": 0.03, "data": shapes_data, "max-steps": 1, "objective": "clean"}
    succeed("train", SIZE | untrained | {"out": out / "net"})
    net, pruned = out / "net" / "model.safetensors", out / "pruned" / "model.safetensors"
    succeed("prune", SIZE | {"weights": net, "ratio": 60, "structure": "filter", "out": pruned.parent})
    return {"data": shapes_data, "net": net, "pruned": pruned, "darknet": out / "net" / "model.weights"}


def _options(command: str, inputs: dict[str, Path]) -> Options:
    net, data = inputs["net"], inputs["data"]
    choices: dict[str, Options] = {
        "train": TRAINING | {"weights": net, "data": data, "objective": "free", "max-steps": 30},
        "score": {"weights": net, "data": data, "scores": "deeplift", "batch-size": 1},
        "prune": TRAINING
        | {"weights": net, "data": data, "ratio": 80, "optimize-scores": True, "scores": "taylor", "max-steps": 12},
        "finetune": TRAINING | {"weights": inputs["pruned"], "data": data, "objective": "n-fgsm", "max-steps": 20},
        "evaluate": {"weights": net, "data": data, "attack": "paper,fgsm", "batch-size": 2, "transfer-from": net},
        "run": {
            **TRAINING,
            **{"model": "yolov3-tiny", "width": 0.03, "weights": inputs["darknet"], "data": data, "train-data": data},
            **{"pretrain-epochs": 1, "max-steps": 6, "ratios": "0,70", "pruning": "optimized", "latency-runs": 3},
        },
    }
    return SIZE | choices[command]


def _results(command: str, out: Path) -> object:
    files = results(out)
    if command != "run":
        return files
    # Timings are measurements; masks, models, logs and figures are results.
    lasting = {name: content for name, content in files.items() if name.split("/")[0] in ("stages", "masks")}
    return set(files), lasting, [{name: row[name] for name in AP_COLUMNS} for row in read_rows(out / "results.csv")]


@pytest.mark.parametrize("command", ["train", "score", "prune", "finetune", "evaluate", "run"])
def test_a_command_killed_at_random_moments_ends_in_the_same_bits(
    command: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    options, moments = _options(command, inputs), random.Random(command)
    log = tmp_path / "log.txt"

    def finish(out: Path) -> float:
        began = time.monotonic()
        process = start(command, options | {"out": out}, log)
        process.join()
        assert process.exitcode == 0, log.read_text()
        return time.monotonic() - began

    duration = min(finish(tmp_path / "warm-up"), finish(tmp_path / "undisturbed"))
    expected = _results(command, tmp_path / "undisturbed")
    assert expected == _results(command, tmp_path / "warm-up")

    killed, attempt = 0, 0
    while killed < KILLS:
        out = tmp_path / f"killed-{attempt}"
        process = start(command, options | {"out": out}, log)
        process.join(moments.uniform(0, duration))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0 or killed == KILLS:  # else the next one goes on, and may be killed as well
            finish(out)
            assert _results(command, out) == expected
            attempt += 1


@pytest.mark.parametrize("command", ["train", "prune", "finetune"])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(command: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    options = _options(command, inputs) | {"max-steps": 60, "objective": "clean", "checkpoint-every": 1000}
    log, out = tmp_path / "log.txt", tmp_path / "interrupted"
    process = start(command, options | {"out": out}, log)
    wait_for_lines(out / "losses.csv", 4, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, log.read_text()
    assert "Give the same command again to go on where it stopped." in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (out / "state.safetensors").is_file()
    assert not (out / "done.json").exists()
    steps_done = (out / "losses.csv").read_text().count("\n") - 1
    assert 0 < steps_done < 60

    first_rows = (out / "losses.csv").read_text()
    succeed(command, options | {"out": out})
    succeed(command, options | {"out": tmp_path / "undisturbed"})
    assert (out / "losses.csv").read_text().startswith(first_rows)
    assert results(out) == results(tmp_path / "undisturbed")
    assert not (out / "state.safetensors").exists()
