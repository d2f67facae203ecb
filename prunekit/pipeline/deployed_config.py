"""What an evaluation is told about deployed models that are evaluated beside their checkpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from prunekit.pipeline.int8 import INT8, DeploymentChoices

#: In an evaluation's folder, and in evaluation.json.
DEPLOYED = "deployed"
#: What the checkpoint is called beside what was made of it.
CHECKPOINT = "checkpoint"


class DeployedChoices(DeploymentChoices):
    """Which deployed models are evaluated beside their checkpoint."""

    deployed: tuple[str, ...] = Field(
        (),
        description="file of prunekit.save or prunekit compact that was made of --weights, to time and to evaluate "
        "beside it: the same images, attacked, corrupted and under its patch (repeatable)",
    )
    calibration_data: Path | None = Field(None, description="images that --precision int8 is calibrated on: a data set")

    @model_validator(mode="after")
    def _can_be_deployed(self) -> DeployedChoices:
        if self.deploys_int8 and self.calibration_data is None:
            raise ValueError("--precision int8 needs images to be calibrated on: add --calibration-data")
        names = [Path(file).stem for file in self.deployed] + ([INT8] if self.deploys_int8 else [])
        if len({*names, CHECKPOINT}) <= len(names):
            raise ValueError(f"--deployed: expected files of different names, none called {CHECKPOINT}, got {names}")
        return self
