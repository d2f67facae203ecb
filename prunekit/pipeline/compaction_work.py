"""Compaction inside the pipeline: of a unit that lost filters, and of what a run folder or a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.compaction import CompactionResult, compact
from prunekit.errors import InputError
from prunekit.pipeline.config import AS_GIVEN, Unit, Variant
from prunekit.pipeline.detector_file import PrunedDetector, architecture_of, open_detector, require_weights
from prunekit.pipeline.examples import DESCRIPTION
from prunekit.pipeline.latency import ACCELERATED, EAGER, Latency
from prunekit.pipeline.progress import Progress
from prunekit.pipeline.run_folder import RunFolder
from prunekit.pipeline.stage_inputs import Artefact
from prunekit.pipeline.stage_store import DONE, sha256
from prunekit.pipeline.stages import MODEL
from prunekit.prune.tensor_files import load_tensors

# Whatever the variant: these two units are of every one of them.
_UNPRUNED = (Unit(AS_GIVEN, 0).stem, Unit(Variant("", "", ""), 0).stem)


def compacted(artefact: Artefact, x: Tensor, progress: Progress) -> CompactionResult | None:
    """Compact a detector whose masks drop filters; None for another one, and for one that cannot be compacted.

    Args:
        artefact: The pruned detector; its masks are in its weights.
        x: An image, [1, 3, H, W].
        progress: Told why a detector cannot be compacted: one that lost all filters of a layer, say.
    """
    if not artefact.drops_filters:
        return None
    try:
        return compact(artefact.model.cpu(), x)
    except InputError as error:
        progress.message(f"not compacted: {error}")
        return None


def compaction_columns(latency: Latency, compaction: CompactionResult | None) -> dict[str, Any]:
    """Return the columns of results.csv on the compacted model; empty where there is none."""
    columns: dict[str, Any] = {}
    for kind, name in ((EAGER, "latency_ms_compacted"), (ACCELERATED, "latency_ms_compacted_accelerated")):
        timing = latency.compacted.get(kind)
        columns |= {name: timing.median_ms if timing else None}
        columns |= {f"{name}_p90": timing.p90_ms if timing else None, f"{name}_p99": timing.p99_ms if timing else None}
    fastest = min((timing.median_ms for timing in latency.compacted.values()), default=None)
    certificate = compaction.certificate if compaction is not None else None
    return columns | {
        "compacted_speedup": latency.control.median_ms / fastest if fastest else None,
        "compacted_parameters": certificate.parameters_after if certificate else None,
        "compacted_macs": certificate.macs_after if certificate else None,
        "compacted_difference": certificate.max_difference_float64 if certificate else None,
    }


def find_detector(
    source: Path, unit: str | None = None, model: str | None = None, num_classes: int = 80, width: float | None = None
) -> PrunedDetector:
    """Open the pruned detector of a run's unit, of a stage's folder, or of a file.

    Args:
        source: A run folder, a folder that a stage's command wrote, a .safetensors file or a darknet .weights file.
        unit: The stem of the unit's files, where a run has several that lost filters.
        model: The architecture, for a darknet file.
        num_classes: Likewise.
        width: Channels relative to darknet's, likewise.

    Raises:
        InputError: There is no such detector, or several.
    """
    if (source / "units").is_dir():
        run = RunFolder(source)
        source = _unit_model(run, unit)
        if architecture_of(source) is None:  # the weights as given, which only the run says more about
            model, num_classes, width = _architecture_of_run(run)
    elif unit is not None:
        raise InputError(f"--unit: expected with a run folder, but {source} is none.")
    elif source.is_dir():
        if not (source / MODEL).is_file():
            raise InputError(
                f"Expected {source} to be a run folder or a stage's, but it has neither units/ nor {MODEL}."
            )
        source = source / MODEL
    require_weights(source)
    found = architecture_of(source)
    if found is None:
        if model is None:
            raise InputError(f"--model: {source} does not say which detector it holds: add --model.")
        return open_detector(source, model, num_classes, width or 1.0)
    if model is not None and model != found.model:
        raise InputError(f"--model: {source} holds a {found.model}, not a {model}.")
    return open_detector(source, found.model, found.num_classes, found.width)


def example_image(image_size: int) -> Tensor:
    """Return a random image to trace, compare and time on, [1, 3, image_size, image_size] in [0, 1]."""
    return torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


def _unit_model(run: RunFolder, unit: str | None) -> Path:
    """Return the last stage's model of a unit: the one with the unit's masks, fine-tuned where that was done."""
    stems = sorted(path.stem for path in (run.root / "units").glob("*.json"))
    able = [stem for stem in stems if stem.partition("-")[0] in ("filter", "hybrid")]
    if unit is None and len(able) != 1:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run.root}, got none.")
    stem = unit or able[0]
    if stem not in stems:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run.root}, got {stem!r}.")
    if stem in _UNPRUNED and (weights := _unpruned_model(run, stem)) is not None:
        return weights
    masks = load_tensors(run.root / "masks" / f"{stem}.safetensors", "masks")
    folders = [*(run.root / "stages").glob("finetune-*"), *(run.root / "stages").glob("prune-*")]
    for folder in folders:
        if (folder / MODEL).is_file() and _has_masks(folder / MODEL, masks):
            return folder / MODEL
    raise InputError(f"Expected {run.root} to hold the model of {stem}, but none of its {len(folders)} stages has it.")


def _unpruned_model(run: RunFolder, stem: str) -> Path | None:
    """Return the file that ratio 0 was evaluated from; None where it is not there any more."""
    config, inputs = run.read_json("config.json"), run.read_json("inputs.json")
    weights = Path(config["weights"])
    if stem == Unit(AS_GIVEN, 0).stem or not config["pretrain_epochs"]:
        return weights if weights.is_file() and sha256(weights) == inputs["weights_sha256"] else None
    pretrained = (run.root / "stages").glob(f"pretrain-*/{DONE}")
    latest = max(pretrained, key=lambda done: done.stat().st_mtime_ns, default=None)
    return latest and latest.parent / MODEL


def _architecture_of_run(run: RunFolder) -> tuple[str, int, float]:
    """Return model, number of classes and width of the detector that a run was given."""
    config, categories = run.read_json("config.json"), run.read_json(DESCRIPTION)["categories"]
    return str(config["model"]), len(categories), float(config["width"])


def _has_masks(path: Path, masks: dict[str, Tensor]) -> bool:
    architecture = architecture_of(path)
    assert architecture is not None
    found = open_detector(path, architecture.model, architecture.num_classes, architecture.width).masks
    return found is not None and all(torch.equal(found[name], mask) for name, mask in masks.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "the units that lost filters (there is none)"
