"""The rooms of the package from the ground up: each imports those before it, and none behind it."""

from __future__ import annotations

FOUNDATION = [
    "errors", "extras", "lazy", "registry", "text_table", "files", "measurements", "file_kinds", "documents",
    "state_dicts", "timing",
    "structure", "comparison", "discontinuous", "processor", "dry_run", "kept_images", "task_data",
]  # fmt: skip
#: With the foundation, all that torch, numpy and safetensors are enough for.
LIBRARY = [*FOUNDATION, "ops", "graph", "engine", "nn", "prune", "attacks", "verification", "compaction", "task"]
#: Beyond the wall.
STUDY = [
    "environment", "progress", "config", "detection", "classification", "training", "evaluation", "pipeline",
    "video", "experiments", "report", "console", "benchmark", "doctor", "demo", "cli",
]  # fmt: skip
ROOMS = [*LIBRARY, *STUDY]
