"""Plans: factors by fixed settings, and the runs that come of them, all checked before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from prunekit.config import Config, read_settings
from prunekit.errors import InputError
from prunekit.evaluation.smoothing import CertificationConfig
from prunekit.experiments.rendered import Rendered
from prunekit.pipeline.condition_config import ConditionChoices
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.int8 import DeploymentChoices
from prunekit.pipeline.store import digest, flat
from prunekit.pipeline.training_options import training_options
from prunekit.pipeline.variants import Variant
from prunekit.training.objective import NoiseConfig, VerifiedConfig

PRESETS = ("report", "report-small", "demo")
#: What one run goes through by itself, like its ratios or budgets; any other factor makes runs of its own.
WITHIN_A_RUN = tuple(field.name for field in fields(Variant))
RATIOS, BUDGET = "ratios", "budget"
_TARGETS = (RATIOS, BUDGET)  # how much is pruned, at which configurations are compared: no factors that they differ in
_OF_THE_PLAN = ("ratios", "seeds", "seed", "out", "rendered")
# What pre-training depends on beside its own settings.
_OF_PRETRAINING = {
    "model", "model_args", "weights", "train_data", "width", "image_size", "grayscale", "limit", "train_limit", "seed",
    "objective", "train_attack", *VerifiedConfig.model_fields, *NoiseConfig.model_fields,
}  # fmt: skip
_OF_EVALUATION = {
    "attack", "transfer", "verify", "latency_runs", "data", "out", "workers", "device", "threads",
    *DeploymentChoices.model_fields, *ConditionChoices.model_fields,
    *({*CertificationConfig.model_fields} - {*NoiseConfig.model_fields, "seed"}),
}  # fmt: skip
_OF_VARIANTS = {*_TARGETS, *WITHIN_A_RUN}
_FILES = ("weights", "data", "train_data")


class Plan(Config):
    """An experiment: every product of factors, at every ratio, with every seed."""

    settings: dict[str, Any] = Field({}, description="settings of all runs, named as in a run's config.yaml")
    factors: tuple[dict[str, tuple[Any, ...]], ...] = Field(
        min_length=1,
        description="levels by factor, of which all combinations are run; a list of such products joins them, each at "
        "the plan's ratios or its own",
    )
    ratios: tuple[float, ...] = Field((), description="pruning ratios in percent")
    seeds: tuple[int, ...] = Field(min_length=1, description="one run of each configuration a seed")
    rendered: Rendered | None = Field(
        None, description="render the data of each seed and train a detector on them first"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        """Read one product where a list of them may stand, and one level where several may."""
        products = given.get("factors", ())
        products = [products] if isinstance(products, Mapping) else products
        if isinstance(products, (list, tuple)) and all(isinstance(each, Mapping) for each in products):
            products = [{name: _levels(level) for name, level in each.items()} for each in products]
        return {**given, "factors": products}

    @field_validator("factors")
    @classmethod
    def _have_levels(cls, products: tuple[dict[str, tuple[Any, ...]], ...]) -> tuple[dict[str, tuple[Any, ...]], ...]:
        known = {*RunConfig.model_fields, *training_options(RunConfig)} - {*_OF_THE_PLAN} | {RATIOS}
        for name, levels in (item for each in products for item in each.items()):
            if name not in known:
                raise ValueError(f"expected names of a run's settings, such as structure or objective, got {name!r}")
            if not levels or len({repr(level) for level in levels}) < len(levels):
                raise ValueError(f"expected different levels of {name}, one or more, got {list(levels)}")
        return products

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"expected different seeds, 0 or more, got {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _said_once(self) -> Plan:
        factors = {name for each in self.factors for name in each}
        given = {*(self.rendered.settings(Path()) if self.rendered else ())}
        if twice := sorted((factors & {*self.settings}) | (given & {*self.settings, *factors})):
            raise ValueError(f"{twice[0]}: expected its value at one place of the plan, got it at several")
        if wrong := sorted({*self.settings} & {*_OF_THE_PLAN}):
            raise ValueError(f"settings: expected those of a run alone, got {wrong[0]}")
        return self

    @model_validator(mode="after")
    def _ratios_or_budgets(self) -> Plan:
        for each in self.factors:
            targets = self.targets(each)
            if len(targets) != 1:
                found = "both" if targets else "neither"
                raise ValueError(f"ratios: expected pruning ratios in percent or a budget, one of them, got {found}")
        return self

    def targets(self, factors: Mapping[str, Any]) -> dict[str, Any]:
        """Return how much is pruned in a product of factors: its own ratios or budgets, or else the plan's."""
        own = {name: factors[name] for name in _TARGETS if name in factors}
        of_settings = {BUDGET: self.settings[BUDGET]} if self.settings.get(BUDGET) else {}
        return {**of_settings, **(own or ({RATIOS: self.ratios} if self.ratios else {}))}

    @property
    def factor_names(self) -> tuple[str, ...]:
        """The factors of all products, those of `WITHIN_A_RUN` first."""
        named = [name for each in self.factors for name in each if name not in _TARGETS]
        return tuple(dict.fromkeys((*WITHIN_A_RUN, *named)))


@dataclass(frozen=True)
class Job:
    """One run of an experiment: a seed, and the variants that share all other settings.

    Attributes:
        name: Of its folder.
        config: The run.
        levels: Of the factors that are not within a run.
        training: What identifies its pre-training; None where there is none.
        after: The job that pre-trains for it, if another one does.
    """

    name: str
    config: RunConfig
    levels: Mapping[str, Any]
    training: str | None
    after: str | None

    @property
    def models(self) -> int:
        """Number of models that it prunes and evaluates."""
        return len({unit.stem for unit in self.config.units})


def read_plan(path: Path, overrides: Mapping[str, Any]) -> Plan:
    """Read a plan from YAML; InputError in one sentence where it makes no sense.

    Args:
        path: The file.
        overrides: Settings of the runs that take the place of the plan's.
    """
    given = read_settings(path)
    settings = given.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise InputError(f"settings: expected names with values in {path}, got {settings!r}.")
    return Plan(**{**given, "settings": {**settings, **overrides}})


def preset(name: str) -> Path:
    """Return the file of one of prunekit's own plans; InputError, which lists them, for another name."""
    if name not in PRESETS:
        raise InputError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}.")
    return Path(__file__).with_name(f"{name}.yaml")


def plan_jobs(plan: Plan, out: Path) -> list[Job]:
    """Return the runs of a plan in a folder, those first that others wait for.

    Raises:
        InputError: When a run would be refused, or a file that it reads is not there.
    """
    jobs: list[Job] = []
    trainers: dict[str, str] = {}
    taken: dict[str, int] = {}
    for settings, levels in _combinations(plan):
        name = _name(plan, levels)
        taken[name] = taken.get(name, 0) + 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        given = plan.rendered.settings(inputs_folder(out, levels["seed"])) if plan.rendered else {}
        config = RunConfig(**{**plan.settings, **given, **settings, "out": out / "runs" / name})
        if plan.rendered is None:
            _require_files(config)
        training = _training(config)
        trainer = trainers.setdefault(training, name) if training else name
        jobs.append(Job(name, config, levels, training, trainer if trainer != name else None))
    return sorted(jobs, key=lambda job: job.after is not None)


def inputs_folder(out: Path, seed: int) -> Path:
    """Return where an experiment keeps the rendered data of a seed."""
    return out / "inputs" / f"seed_{seed}"


def with_threads(plan: Plan, count: int) -> Plan:
    """Return the plan with each job's share of this machine's processors, unless it says how many threads to use.

    Results depend on the number of threads, so that it belongs to the plan.
    """
    if "threads" in plan.settings:
        return plan
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // count)
    return plan.updated(settings={**plan.settings, "threads": share})


def _levels(level: Any) -> Any:
    return tuple(level) if isinstance(level, (list, tuple)) else (level,)


def _combinations(plan: Plan) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each run's settings and levels."""
    for factors in plan.factors:
        within = plan.targets(factors) | {name: levels for name, levels in factors.items() if name in WITHIN_A_RUN}
        others = {name: levels for name, levels in factors.items() if name not in (*WITHIN_A_RUN, *_TARGETS)}
        for seed in plan.seeds:
            for combination in product(*others.values()):
                levels = {**dict(zip(others, combination, strict=True)), "seed": seed}
                yield {**within, **levels}, levels


def _name(plan: Plan, levels: Mapping[str, Any]) -> str:
    parts = [f"{name}_{level}" for name, level in levels.items()]
    return "-".join(part.replace("/", "_").replace(" ", "") for part in parts)


def _require_files(config: RunConfig) -> None:
    for name in _FILES:
        path = getattr(config, name)
        if path is not None and not path.exists():
            raise InputError(f"Expected {name} that the plan's runs can read, but there is no {path}.")


def _training(config: RunConfig) -> str | None:
    if not config.pretrain.epochs:
        return None
    settings = flat(config.model_dump(mode="json"))
    return digest([{name: v for name, v in settings.items() if name.split(".")[0] in {*_OF_PRETRAINING, "pretrain"}}])


def count_trainings(jobs: Sequence[Job]) -> dict[str, int]:
    """Return how many trainings of each kind the jobs need, by name; what they share counts once."""
    trained = [(job, unit) for job in jobs for unit in job.config.units if unit.is_pruned and job.config.train_data]
    optimized = [(job, unit) for job, unit in trained if unit.variant.pruning == "optimized"]
    tuned = [(job, unit) for job, unit in trained if job.config.finetune.epochs]
    return {
        "pre-trainings": len({job.training for job in jobs if job.training}),
        "optimizations of scores": len({(_digest(job, "finetune"), unit.stem) for job, unit in optimized}),
        "fine-tunings": len({(_digest(job), unit.stem) for job, unit in tuned}),
    }


def _digest(job: Job, *left_out: str) -> str:
    """Return what identifies a job's trainings: its settings without those of its evaluation and `left_out`."""
    settings = flat(job.config.model_dump(mode="json"))
    names = {*_OF_EVALUATION, *_OF_VARIANTS, *left_out}
    return digest([{name: value for name, value in settings.items() if name.split(".")[0] not in names}])
