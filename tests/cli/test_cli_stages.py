"""The stages' commands: their results, and that a run is nothing but them in order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from prunekit.pipeline import RunConfig, read_rows
from prunekit.pipeline.checkpoint import open_checkpoint
from prunekit.prune import sparsity
from tests.support.commands import Options, invoke, results, succeed, tree
from tests.support.stage_commands import COMMANDS, SIZE
from tests.support.training_problems import tiny_task


@pytest.mark.parametrize("command", COMMANDS)
def test_finished_work_is_recognized_and_not_done_again(options: dict[str, Options], command: str) -> None:
    out = Path(options[command]["out"])
    first = succeed(command, options[command])
    assert "Written: " in first.stdout
    written_anew = (".lock", "evaluation.json", "evaluation.html")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in written_anew}
    moved = options[command] | {"weights": Path(options[command]["weights"]).rename(out.parent / "moved.safetensors")}
    second = succeed(command, moved)
    assert "Finished earlier: " in second.stdout
    assert "Written: " not in second.stdout
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("spoil", ["change", "remove"])
@pytest.mark.parametrize(("command", "name"), [("train", "model.weights"), ("finetune", "model.safetensors"),
                                               ("score", "scores.safetensors"), ("prune", "model.safetensors"),
                                               ("prune", "score/scores.safetensors"), ("train", "losses.csv"),
                                               ("evaluate", "fgsm/detections.csv")])  # fmt: skip
def test_a_result_that_was_spoilt_is_made_again(
    options: dict[str, Options], command: str, name: str, spoil: str
) -> None:
    out = Path(options[command]["out"])
    succeed(command, options[command])
    before = tree(out)
    if spoil == "remove":
        (out / name).unlink()
    else:
        (out / name).write_bytes(before[name][:-1] + b"?")
    result = succeed(command, options[command])
    assert ("Finished earlier: " in result.stdout) == name.startswith("score/")  # what was made of it is still good
    assert tree(out) == before


def test_training_leaves_the_same_detector_in_both_formats(trained: Path) -> None:
    ours = open_checkpoint(trained / "model.safetensors", tiny_task(6, 0.03)).model
    darknet = open_checkpoint(trained / "model.weights", tiny_task(6, 0.03)).model
    for name, value in ours.state_dict().items():
        assert torch.equal(value, darknet.state_dict()[name]) or name.endswith("num_batches_tracked")
    assert (trained / "losses.csv").read_text().count("\n") == 3


def test_training_from_scratch_depends_on_the_seed_alone(shapes_data: Path, tmp_path: Path) -> None:
    untrained = {"model": "yolov3-tiny", "width": 0.03, "data": shapes_data, "max-steps": 1, "objective": "clean"}
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(out))
        succeed("train", SIZE | untrained | {"seed": seed, "out": tmp_path / out})
    models = [(tmp_path / out / "model.safetensors").read_bytes() for out in "abc"]
    assert models[0] == models[1] != models[2]


@pytest.mark.parametrize("ratio", [0, 99])
@pytest.mark.parametrize("optimize", [False, True])
def test_ratios_0_and_99_prune_and_finetune(
    options: dict[str, Options], ratio: int, optimize: bool, tmp_path: Path
) -> None:
    data = {"data": options["train"]["data"], "max-steps": 2, "objective": "clean"} if optimize else {}
    succeed("prune", options["prune"] | data | {"ratio": ratio, "optimize-scores": optimize})
    tuned = tmp_path / "tuned"
    chosen = options["finetune"] | {"weights": options["prune"]["out"] / "model.safetensors", "out": tuned}
    assert f"{ratio}" in succeed("finetune", chosen).stdout
    detector = open_checkpoint(tuned / "model.safetensors", tiny_task(6, 0.03))
    assert detector.masks is not None
    assert sparsity(detector.masks) == pytest.approx(ratio / 100, abs=0.01)
    for name, mask in detector.masks.items():
        assert not detector.model.get_submodule(name).get_parameter("weight")[~mask].any()


def test_finetuning_keeps_dropped_filters_silent(options: dict[str, Options], pruned: Path) -> None:
    succeed("finetune", options["finetune"] | {"max-steps": 3})
    tensors = load_file(Path(options["finetune"]["out"]) / "model.safetensors")
    before = load_file(pruned / "model.safetensors")
    silent = 0
    for name, value in before.items():
        if name.endswith("norm.weight"):
            dropped = ~before["mask:" + name.replace("norm.weight", "conv")].flatten(1).any(dim=1)
            assert not tensors[name][dropped].any()
            assert not tensors[name.replace("weight", "bias")][dropped].any()
            assert not value[dropped].any()
            silent += int(dropped.sum())
    assert silent > 0


def test_scores_from_a_file_prune_as_scores_by_name_do(options: dict[str, Options], tmp_path: Path) -> None:
    images = {"data": options["train"]["data"], "scores": "deeplift"}
    succeed("score", options["score"] | images | {"out": tmp_path / "scores"})
    by_file = {"scores-file": tmp_path / "scores" / "scores.safetensors", "out": tmp_path / "by-file"}
    succeed("prune", options["prune"] | by_file)
    succeed("prune", options["prune"] | images | {"out": tmp_path / "by-name"})
    models = [load_file(tmp_path / out / "model.safetensors") for out in ("by-file", "by-name")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_pruning_interrupted_while_scores_are_made_goes_on(
    options: dict[str, Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options["prune"] | {"data": options["train"]["data"], "scores": "deeplift"}
    succeed("prune", chosen | {"out": tmp_path / "undisturbed"})
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.pipeline.scoring.deeplift_scores", Mock(side_effect=KeyboardInterrupt))
        assert invoke("prune", chosen).exit_code == 130
    other = invoke("prune", chosen | {"score-images": 2})
    assert (other.exit_code, "config.score_images: 256 there, 2 now" in other.stderr) == (2, True)
    succeed("prune", chosen)
    assert results(Path(chosen["out"])) == results(tmp_path / "undisturbed")


def test_deeplifts_choices_change_the_scores(options: dict[str, Options], tmp_path: Path) -> None:
    images = {"data": options["train"]["data"], "scores": "deeplift", "score-images": 2}
    changes = [{}, {"reference": "mean"}, {"rule": "reveal_cancel"}, {"reference": "clean"}]
    changes.append({"reference": "clean", "train-attack": "fgsm"})
    contents = set()
    for number, change in enumerate(changes):
        succeed("score", options["score"] | images | change | {"out": tmp_path / str(number)})
        contents.add((tmp_path / str(number) / "scores.safetensors").read_bytes())
    assert len(contents) == len(changes)


def test_evaluation_writes_its_figures_and_every_detection(options: dict[str, Options], trained: Path) -> None:
    chosen = options["evaluate"] | {"transfer-from": trained / "model.weights", "latency": True, "latency-runs": 3}
    result = succeed("evaluate", chosen)
    out = Path(chosen["out"])
    content = json.loads((out / "evaluation.json").read_text())
    assert list(content["cases"]) == ["none", "fgsm", "fgsm_transfer"]
    assert content["cases"]["fgsm"]["ap"] == content["cases"]["fgsm_transfer"]["ap"]  # made on the same detector
    assert content["cases"]["fgsm"]["mean_linf"] == pytest.approx(0.05, abs=1e-4)
    assert (content["model"], content["num_classes"], content["images"]) == ("yolov3-tiny", 6, 8)
    assert content["latency"]["latency_ms"] > 0
    for case in content["cases"]:
        assert case in result.stdout
        with (out / case / "detections.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(json.loads((out / case / "detections.json").read_text()))

    more = succeed("evaluate", chosen | {"attack": "fgsm,paper"})
    assert "fgsm: finished earlier" in more.stderr
    assert "paper: finished earlier" not in more.stderr
    assert list(json.loads((out / "evaluation.json").read_text())["cases"]) == [
        "none", "fgsm", "fgsm_transfer", "paper", "paper_transfer",
    ]  # fmt: skip


def test_a_sound_evaluation_passes_its_checks(shapes_config: RunConfig, tmp_path: Path) -> None:
    chosen = {"model": "yolov3-tiny", "width": shapes_config.width, "image-size": shapes_config.image_size}
    chosen |= {"weights": shapes_config.weights, "data": shapes_config.data, "threads": 1, "limit": 4}
    succeed("evaluate", chosen | {"attack": "none", "check": True, "out": tmp_path})


def test_a_run_does_all_structures_one_shot_and_optimized(options: dict[str, Options], tmp_path: Path) -> None:
    structures, prunings = ("unstructured", "filter", "kernel2d", "hybrid", "block1x4"), ("one-shot", "optimized")
    data = options["train"]["data"]
    chosen = SIZE | {"model": "yolov3-tiny", "width": 0.03, "weights": tmp_path / "net.weights", "data": data}
    chosen |= {"train-data": data, "structure": ",".join(structures), "pruning": ",".join(prunings), "ratios": "60"}
    chosen |= {"objective": "n-fgsm", "max-steps": 1, "pretrain-epochs": 1, "latency-runs": 3, "out": tmp_path / "run"}
    succeed("run", chosen)
    rows = read_rows(tmp_path / "run" / "results.csv")
    assert [(row["structure"], row["pruning"]) for row in rows[1:]] == [(s, p) for s in structures for p in prunings]
    stages = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "stages").iterdir())
    assert stages.count("pretrain") == 1
    assert stages.count("prune") == stages.count("finetune") == 10  # the weights as given are written nowhere
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}
    succeed("run", chosen)
    assert finished == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}


@pytest.mark.parametrize(
    ("structure", "scores", "optimized"), [("filter", "deeplift", True), ("unstructured", "taylor", False)]
)
def test_a_run_is_its_stages_in_order(
    shapes_config: RunConfig, tmp_path: Path, structure: str, scores: str, optimized: bool
) -> None:
    shared = {"threads": 1, "image-size": shapes_config.image_size}
    detector = {"model": "yolov3-tiny", "width": shapes_config.width, "weights": shapes_config.weights}
    training = {"max-steps": 2, "objective": "n-fgsm", "train-batch-size": 4}
    rates = {"pretrain-learning-rate": 1e-4, "optimize-learning-rate": 0.05, "finetune-learning-rate": 1e-4}
    data, steps = {"data": shapes_config.data}, {name: tmp_path / name for name in ("train", "score", "prune", "tune")}
    succeed("run", {
        **shared, **detector, **training, **data, **rates, "train-data": data["data"], "pretrain-epochs": 1,
        "scores": scores, "structure": structure, "pruning": "optimized" if optimized else "one-shot",
        "ratios": 20, "latency-runs": 3, "out": tmp_path / "run",
    })  # fmt: skip

    succeed("train", {**shared, **detector, **training, **data, "epochs": 1, "learning-rate": 1e-4,
                      "out": steps["train"]})  # fmt: skip
    weights = {"weights": steps["train"] / "model.safetensors"}
    succeed("score", {**shared, **weights, **data, "scores": scores, "out": steps["score"]})
    scored = {"scores-file": steps["score"] / "scores.safetensors", "structure": structure, "ratio": 20}
    hydra = {**training, **data, "optimize-scores": True, "learning-rate": 0.05} if optimized else {}
    succeed("prune", {**shared, **weights, **scored, **hydra, "out": steps["prune"]})
    weights = {"weights": steps["prune"] / "model.safetensors"}
    succeed("finetune", {**shared, **weights, **training, **data, "learning-rate": 1e-4, "out": steps["tune"]})
    weights = {"weights": steps["tune"] / "model.safetensors"}
    succeed("evaluate", {**shared, **weights, **data, "out": tmp_path / "figures"})

    (pretrained,), (tuned,) = ([*(tmp_path / "run" / "stages").glob(f"{name}-*")] for name in ("pretrain", "finetune"))
    assert (pretrained / "model.safetensors").read_bytes() == (steps["train"] / "model.safetensors").read_bytes()
    assert (tuned / "model.safetensors").read_bytes() == (steps["tune"] / "model.safetensors").read_bytes()
    assert (tuned / "losses.csv").read_text() == (steps["tune"] / "losses.csv").read_text()
    row = read_rows(tmp_path / "run" / "results.csv")[-1]
    cases = json.loads((tmp_path / "figures" / "evaluation.json").read_text())["cases"]
    assert cases["none"]["ap"] > 0.1
    for name in ("ap", "ap50", "ap75"):
        assert float(row[name]) == cases["none"][name]
        assert float(row[f"attacked_{name}"]) == cases["paper"][name]
