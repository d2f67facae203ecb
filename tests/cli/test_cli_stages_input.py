"""What the stages' commands refuse and how they say it; their help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from prunekit import cli, documents
from tests.support.commands import Options, invoke, succeed, tree
from tests.support.stage_commands import COMMANDS


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


def _annotations(**changes: Any) -> Callable[[Options], None]:
    def change(options: Options) -> None:
        options.setdefault("data", Path(options["weights"]).with_name("data"))
        file = Path(options["data"]) / "annotations" / "instances_train.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _weights_that_are_not_finite(options: Options) -> None:
    path = Path(options["weights"])
    content = documents.read(path, "a detector")
    next(value for name, value in content.tensors.items() if name.endswith("conv.weight")).view(-1)[-1] = math.nan
    documents.write(path, content.tensors, content.document)


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


def _below_a_file(options: Options) -> None:
    file = Path(options["out"]).with_name("file")
    file.write_text("")
    options["out"] = file / "out"


def _another_stage(options: Options) -> None:
    Path(options["out"]).mkdir()
    (Path(options["out"]) / "stage.json").write_text('{"stage": "cooking"}')


@pytest.mark.parametrize(
    ("command", "spoil", "words"),
    [
        *[(command, _change(weights="nowhere.weights"), "there is no file nowhere.weights") for command in COMMANDS],
        *[(command, _half_the_weights, ".safetensors") for command in COMMANDS],
        *[(command, _scores_as_weights, "a model that prunekit saved") for command in COMMANDS],
        *[(command, _change(device="cuda:77"), "Expected a GPU for the device 'cuda:77'") for command in COMMANDS],
        *[(command, _change(device="abacus"), "got 'abacus'") for command in COMMANDS],
        *[(command, _change(model="yolov3"), "of model yolov3, got yolov3-tiny") for command in COMMANDS],
        *[(command, _change(width=1), "of width 1.0, got 0.03") for command in COMMANDS],
        *[(command, _change(image_size=100), "--image-size") for command in COMMANDS],
        *[(command, _change(seed=-1), "--seed") for command in COMMANDS],
        *[(command, _a_file, "is a file") for command in COMMANDS],
        *[(command, _below_a_file, "/file is a file") for command in COMMANDS],
        *[(command, _other_files, "holds other files; choose another") for command in COMMANDS],
        *[(command, _another_stage, "results of the stage cooking") for command in COMMANDS],
        *[(command, _change(data="nowhere"), "nowhere does not exist") for command in COMMANDS],
        *[(command, _annotations(images=[], annotations=[]), "at least one usable image") for command in COMMANDS],
        *[(command, _annotations(annotations=[]), "Expected annotated objects") for command in COMMANDS],
        *[(command, _weights_that_are_not_finite, "Expected finite weights in") for command in COMMANDS],
        *[(command, _two_classes_only, "of num_classes 2, got 6") for command in ("finetune", "evaluate")],
        *[(command, _change(objective="madry"), "--objective") for command in ("train", "finetune", "prune")],
        *[(command, _change(train_attack="cw"), "--train-attack") for command in ("train", "finetune", "score")],
        *[(command, _change(learning_rate=0), "--learning-rate") for command in ("train", "finetune", "prune")],
        *[(command, _change(batch_size=0), "batch-size") for command in COMMANDS],
        *[(command, _change(batch_norm="hot"), "--batch-norm") for command in ("train", "finetune")],
        *[(command, _darknet, "add --model") for command in COMMANDS],
        *[(command, _darknet_of_some_model, "any number of classes") for command in ("score", "prune")],
        ("train", _change(weights=None), "add --model, or --weights"),
        ("score", _change(scores="l1"), "--scores"),
        ("score", _change(scores="taylor"), "scores 'taylor' look at images: add --data"),
        ("score", _change(rule="chain"), "--rule"),
        ("prune", _change(scores="deeplift"), "scores 'deeplift' look at images: add --data"),
        ("prune", _change(ratio=100), "--ratio: must be at least 0 and below 100 percent, got 100"),
        ("prune", _change(ratio="nan"), "--ratio"),
        ("prune", _change(structure="filters"), "--structure"),
        ("prune", _change(optimize_scores=True), "add --data"),
        ("prune", _change(scores="scaled", scores_file="scores.safetensors"), "give one of the two"),
        ("prune", _change(scores_file="nowhere.safetensors"), "nowhere.safetensors"),
        ("prune", _weights_as_scores, "net.safetensors"),
        ("evaluate", _change(attack="paper,brute"), "--attack"),
        ("evaluate", _change(attack="autoattack"), "--attack: expected a classifier for autoattack, got"),
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
