"""What training says about every step: a CSV that resuming continues, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prunekit.files import csv_text, write_text

COLUMNS = ("step", "epoch", "learning_rate", "loss", "grad_norm")


class StepLog(Protocol):
    """Is told about every step."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Note the numbers of the step that made the update number `step`, counted from 1."""


class SilentLog:
    """Notes nothing."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Drop the numbers."""


class TrainingLog:
    """Writes losses.csv in a folder, and a TensorBoard event file beside it if there is TensorBoard.

    The CSV holds no times and keeps every digit: training that was interrupted leaves the same file as training that
    was not. Use it as a context manager.
    """

    def __init__(self, folder: Path, resumed_step: int = 0, extra_columns: Sequence[str] = ()) -> None:
        """Open the log.

        Args:
            folder: Where the files go; made if missing.
            resumed_step: Updates that the resumed state had made: rows beyond it are cut, they will be made again.
            extra_columns: What hooks report beside `COLUMNS`.
        """
        self.path = folder / "losses.csv"
        self._columns = (*COLUMNS, *extra_columns)
        _cut(self.path, self._columns, resumed_step)
        # A row a write: a killed process leaves whole rows, but for the last.
        self._file = self.path.open("a", newline="", buffering=1)
        self._rows = csv.DictWriter(self._file, self._columns, lineterminator="\n", extrasaction="ignore")
        self._board = _open_board(folder, resumed_step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row; numbers that have no column go to TensorBoard only."""
        self._rows.writerow({"step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _cut(path: Path, columns: Sequence[str], last_step: int) -> None:
    """Leave the heading and the rows of steps up to the last in the file; what is half-written goes."""
    rows: list[Mapping[str, str]] = []
    if path.is_file() and last_step > 0:
        with path.open(newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= last_step]
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in rows)))


def _open_board(folder: Path, resumed_step: int) -> Any:
    """Return TensorBoard's writer, or None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # takes two seconds

    return SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)
