"""The stages' commands: their results, what they refuse, and that a run is nothing but them in order."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from commands import Options, invoke, succeed, tree
from safetensors.torch import load_file

from prunekit import cli
from prunekit.pipeline import RunConfig, read_rows
from prunekit.pipeline.detector_file import open_detector
from prunekit.prune import sparsity

SIZE = {"image-size": 64, "threads": 1}
COMMANDS = ["train", "score", "prune", "finetune", "evaluate"]


@pytest.fixture(scope="module")
def trained(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector trained from scratch for a moment: the folder of the command."""
    out = tmp_path_factory.mktemp("trained") / "net"
    untrained = {"model": "yolov3-tiny", "width": 0.03, "data": shapes_data}
    succeed("train", SIZE | untrained | {"objective": "clean", "max-steps": 2, "out": out})
    return out


@pytest.fixture(scope="module")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector without 60 % of its filters."""
    out = tmp_path_factory.mktemp("pruned") / "net"
    succeed("prune", {"weights": trained / "model.safetensors", "ratio": 60, "structure": "filter", "out": out})
    return out


@pytest.fixture
def options(trained: Path, pruned: Path, shapes_data: Path, tmp_path: Path) -> dict[str, Options]:
    """For each command choices that work; data and weights are copies that a test may damage."""
    shutil.copytree(shapes_data, tmp_path / "data")
    shutil.copy(trained / "model.safetensors", tmp_path / "net.safetensors")
    shutil.copy(trained / "model.weights", tmp_path / "net.weights")
    shutil.copy(pruned / "model.safetensors", tmp_path / "pruned.safetensors")
    net, data = tmp_path / "net.safetensors", tmp_path / "data"
    shared = SIZE | {"out": tmp_path / "out"}
    training = shared | {"data": data, "max-steps": 1, "objective": "clean"}
    return {
        "train": training | {"weights": net},
        "score": shared | {"weights": net},
        "prune": shared | {"weights": net, "ratio": 90},
        "finetune": training | {"weights": tmp_path / "pruned.safetensors"},
        "evaluate": shared | {"weights": net, "data": data, "attack": "fgsm"},
    }


def _change(**changes: Any) -> Callable[[Options], None]:
    return lambda options: options.update({name.replace("_", "-"): value for name, value in changes.items()})


def _half_the_weights(options: Options) -> None:
    path = Path(options["weights"])
    path.write_bytes(path.read_bytes()[:-400])


def _darknet(options: Options) -> None:
    options["weights"] = Path(options["weights"]).with_name("net.weights")


def _darknet_of_some_model(options: Options) -> None:
    _darknet(options)
    options["model"] = "yolov3-tiny"


def _scores_as_weights(options: Options) -> None:
    scores = Path(options["weights"]).with_name("scores")
    succeed("score", {"weights": options["weights"], "out": scores})
    options["weights"] = scores / "scores.safetensors"


def _weights_as_scores(options: Options) -> None:
    options["scores-file"] = options["weights"]


def _no_images(options: Options) -> None:
    file = Path(options["data"]) / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"images": [], "annotations": []}))


def _two_classes_only(options: Options) -> None:
    file = Path(options["data"]) / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    ids = [category["id"] for category in content["categories"][:2]]
    kept = [a for a in content["annotations"] if a["category_id"] in ids]
    file.write_text(json.dumps(content | {"categories": content["categories"][:2], "annotations": kept}))


def _other_files(options: Options) -> None:
    Path(options["out"]).mkdir()
    (Path(options["out"]) / "thesis.tex").write_text("precious")


def _a_file(options: Options) -> None:
    Path(options["out"]).write_text("")


def _another_stage(options: Options) -> None:
    Path(options["out"]).mkdir()
    (Path(options["out"]) / "stage.json").write_text('{"stage": "cooking"}')


@pytest.mark.parametrize(
    ("command", "spoil", "words"),
    [
        *[(command, _change(weights="nowhere.weights"), "nowhere.weights is none") for command in COMMANDS],
        *[(command, _half_the_weights, ".safetensors") for command in COMMANDS],
        *[(command, _scores_as_weights, "a detector that prunekit saved") for command in COMMANDS],
        *[(command, _change(device="cuda:77"), "expected a GPU for the device 'cuda:77'") for command in COMMANDS],
        *[(command, _change(device="abacus"), "got 'abacus'") for command in COMMANDS],
        *[(command, _change(model="yolov3"), "of model yolov3, got yolov3-tiny") for command in COMMANDS],
        *[(command, _change(width=1), "of width 1.0, got 0.03") for command in COMMANDS],
        *[(command, _change(image_size=100), "--image-size") for command in COMMANDS],
        *[(command, _change(seed=-1), "--seed") for command in COMMANDS],
        *[(command, _a_file, "is a file") for command in COMMANDS],
        *[(command, _other_files, "holds other files; choose another") for command in COMMANDS],
        *[(command, _another_stage, "results of the stage cooking") for command in COMMANDS],
        *[(command, _change(data="nowhere"), "nowhere does not exist") for command in COMMANDS],
        *[(command, _no_images, "instances_train.json") for command in ("train", "finetune", "evaluate")],
        *[(command, _two_classes_only, "of num_classes 2, got 6") for command in ("train", "finetune", "evaluate")],
        *[(command, _change(objective="madry"), "--objective") for command in ("train", "finetune", "prune")],
        *[(command, _change(train_attack="cw"), "--train-attack") for command in ("train", "finetune", "score")],
        *[(command, _change(learning_rate=0), "--learning-rate") for command in ("train", "finetune", "prune")],
        *[(command, _change(batch_size=0), "batch-size") for command in COMMANDS],
        *[(command, _change(batch_norm="hot"), "--batch-norm") for command in ("train", "finetune")],
        *[(command, _darknet, "add --model") for command in COMMANDS],
        *[(command, _darknet_of_some_model, "add --data") for command in ("score", "prune")],
        ("train", _change(weights=None), "add --model, or --weights"),
        ("score", _change(scores="l1"), "--scores"),
        ("score", _change(scores="taylor"), "scores 'taylor' look at images: add --data"),
        ("score", _change(rule="chain"), "--rule"),
        ("prune", _change(scores="deeplift"), "scores 'deeplift' look at images: add --data"),
        ("prune", _change(ratio=100), "--ratio: must be at least 0 and below 100 percent, got 100"),
        ("prune", _change(ratio="nan"), "--ratio"),
        ("prune", _change(structure="filters"), "--structure"),
        ("prune", _change(optimise_scores=True), "add --data"),
        ("prune", _change(scores="scaled", scores_file="scores.safetensors"), "give one of the two"),
        ("prune", _change(scores_file="nowhere.safetensors"), "nowhere.safetensors"),
        ("prune", _weights_as_scores, "net.safetensors"),
        ("evaluate", _change(attack="paper,brute"), "--attack"),
        ("evaluate", _change(transfer_from="nowhere.weights"), "nowhere.weights"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(
    options: dict[str, Options], command: str, spoil: Callable[[Options], None], words: str
) -> None:
    chosen = options[command]
    spoil(chosen)
    out = Path(chosen["out"])
    before = tree(out)
    result = invoke(command, chosen)
    assert result.exit_code == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    assert words in lines[0]
    assert result.stdout.strip() == ""
    assert tree(out) == before
    assert before or not out.is_dir()


def test_training_undoes_no_pruning_and_finetuning_needs_some(options: dict[str, Options], pruned: Path) -> None:
    result = invoke("train", options["train"] | {"weights": pruned / "model.safetensors"})
    assert (result.exit_code, "use finetune" in result.stderr) == (2, True)
    result = invoke("finetune", options["finetune"] | {"weights": options["train"]["weights"]})
    assert (result.exit_code, "has no masks" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_finished_work_is_recognised_and_not_done_again(options: dict[str, Options], command: str) -> None:
    out = Path(options[command]["out"])
    first = succeed(command, options[command])
    assert "Written: " in first.stdout
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in (".lock", "evaluation.json")}
    moved = options[command] | {"weights": Path(options[command]["weights"]).rename(out.parent / "moved.safetensors")}
    second = succeed(command, moved)
    assert "Finished earlier: " in second.stdout
    assert "Written: " not in second.stdout
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize(
    ("command", "change", "words"),
    [
        ("train", {"max-steps": 2}, "config.training.max_steps: 1 there, 2 now"),
        ("train", {"seed": 3}, "config.training.seed: 0 there, 3 now"),
        ("score", {"scores": "random"}, "config.name: 'scaled' there, 'random' now"),
        ("prune", {"ratio": 50}, "config.ratio_percent: 90.0 there, 50.0 now"),
        ("finetune", {"objective": "free"}, "config.objective: 'clean' there, 'free' now"),
        ("evaluate", {"iou-threshold": 0.6}, "config.iou_threshold: 0.45 there, 0.6 now"),
        ("evaluate", {"limit": 3}, "inputs.data: "),
    ],
)
def test_a_folder_with_other_results_is_refused(
    options: dict[str, Options], command: str, change: Options, words: str
) -> None:
    succeed(command, options[command])
    before = tree(Path(options[command]["out"]))
    result = invoke(command, options[command] | change)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "choose another folder" in result.stderr
    assert tree(Path(options[command]["out"])) == before


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
    ours = open_detector(trained / "model.safetensors", "yolov3-tiny", 6, 0.03).model
    darknet = open_detector(trained / "model.weights", "yolov3-tiny", 6, 0.03).model
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
@pytest.mark.parametrize("optimise", [False, True])
def test_ratios_0_and_99_prune_and_finetune(
    options: dict[str, Options], ratio: int, optimise: bool, tmp_path: Path
) -> None:
    data = {"data": options["train"]["data"], "max-steps": 2, "objective": "clean"} if optimise else {}
    succeed("prune", options["prune"] | data | {"ratio": ratio, "optimise-scores": optimise})
    tuned = tmp_path / "tuned"
    chosen = options["finetune"] | {"weights": options["prune"]["out"] / "model.safetensors", "out": tuned}
    assert f"{ratio}" in succeed("finetune", chosen).stdout
    detector = open_detector(tuned / "model.safetensors", "yolov3-tiny", 6, 0.03)
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


def test_a_failed_check_is_exit_code_1_now_and_when_it_is_found_again(options: dict[str, Options]) -> None:
    for _ in range(2):  # a detector that has learnt nothing cannot be attacked
        result = invoke("evaluate", options["evaluate"] | {"check": True, "limit": 2})
        assert result.exit_code == 1
        assert "clean AP" in result.stderr
        assert "checks of the evaluation under attack failed" in result.stderr
        assert "Traceback" not in result.stderr
        assert "failed" in result.stdout
    content = json.loads((Path(options["evaluate"]["out"]) / "evaluation.json").read_text())
    assert [row["name"] for row in content["checks"] if not row["passed"]] == ["clean AP"]


def test_a_sound_evaluation_passes_its_checks(shapes_config: RunConfig, tmp_path: Path) -> None:
    chosen = {"model": "yolov3-tiny", "width": shapes_config.width, "image-size": shapes_config.image_size}
    chosen |= {"weights": shapes_config.weights, "data": shapes_config.data, "threads": 1, "limit": 4}
    succeed("evaluate", chosen | {"attack": "none", "check": True, "out": tmp_path})


def test_a_loss_that_is_not_finite_is_said_and_nothing_is_finished(options: dict[str, Options]) -> None:
    result = invoke("train", options["train"] | {"learning-rate": 1e30, "max-steps": 9})
    assert result.exit_code == 1
    assert "Error: training diverged at step" in result.stderr
    assert "try a lower learning rate" in result.stderr
    assert "Traceback" not in result.stderr
    out = Path(options["train"]["out"])
    assert not (out / "done.json").exists()
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_gives_examples_and_describes_every_option(command: str) -> None:
    result = invoke(command, {"help": True})
    assert result.exit_code == 0
    assert f"prunekit {command} --" in result.stdout
    described = {p.name for p in _click_command(command).params if getattr(p, "help", None)}
    assert described == {p.name for p in _click_command(command).params}


def _click_command(name: str) -> Any:
    return typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]


def test_a_run_does_all_structures_one_shot_and_optimised(options: dict[str, Options], tmp_path: Path) -> None:
    structures, prunings = ("unstructured", "filter", "kernel2d", "hybrid"), ("one-shot", "optimised")
    data = options["train"]["data"]
    chosen = SIZE | {"model": "yolov3-tiny", "width": 0.03, "weights": tmp_path / "net.weights", "data": data}
    chosen |= {"train-data": data, "structure": ",".join(structures), "pruning": ",".join(prunings), "ratios": "60"}
    chosen |= {"objective": "n-fgsm", "max-steps": 1, "pretrain-epochs": 1, "latency-runs": 3, "out": tmp_path / "run"}
    succeed("run", chosen)
    rows = read_rows(tmp_path / "run" / "results.csv")
    assert [(row["structure"], row["pruning"]) for row in rows[1:]] == [(s, p) for s in structures for p in prunings]
    stages = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "stages").iterdir())
    assert stages.count("pretrain") == 1
    assert (stages.count("prune"), stages.count("finetune")) == (8 + 1, 8)  # one to ratio 0: the weights as given
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}
    succeed("run", chosen)
    assert finished == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}


@pytest.mark.parametrize(
    ("structure", "scores", "optimised"), [("filter", "deeplift", True), ("unstructured", "taylor", False)]
)
def test_a_run_is_its_stages_in_order(
    shapes_config: RunConfig, tmp_path: Path, structure: str, scores: str, optimised: bool
) -> None:
    shared = {"threads": 1, "image-size": shapes_config.image_size}
    detector = {"model": "yolov3-tiny", "width": shapes_config.width, "weights": shapes_config.weights}
    training = {"max-steps": 2, "objective": "n-fgsm", "train-batch-size": 4}
    rates = {"pretrain-learning-rate": 1e-4, "optimise-learning-rate": 0.05, "finetune-learning-rate": 1e-4}
    data, steps = {"data": shapes_config.data}, {name: tmp_path / name for name in ("train", "score", "prune", "tune")}
    succeed("run", {
        **shared, **detector, **training, **data, **rates, "train-data": data["data"], "pretrain-epochs": 1,
        "scores": scores, "structure": structure, "pruning": "optimised" if optimised else "one-shot",
        "ratios": 20, "latency-runs": 3, "out": tmp_path / "run",
    })  # fmt: skip

    succeed("train", {**shared, **detector, **training, **data, "epochs": 1, "learning-rate": 1e-4,
                      "out": steps["train"]})  # fmt: skip
    weights = {"weights": steps["train"] / "model.safetensors"}
    succeed("score", {**shared, **weights, **data, "scores": scores, "out": steps["score"]})
    scored = {"scores-file": steps["score"] / "scores.safetensors", "structure": structure, "ratio": 20}
    hydra = {**training, **data, "optimise-scores": True, "learning-rate": 0.05} if optimised else {}
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
