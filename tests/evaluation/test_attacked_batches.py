"""An attack that is stopped goes on with the batch that it was in, and ends in the same images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunekit.evaluation.attacked_batches import AttackedBatches


class Stopped(Exception):
    """What ends the process."""


def _attack(generator: torch.Generator) -> Mapping[str, Tensor]:
    first = torch.rand(2, 3, 4, 4, generator=generator)
    return {"late": first, "early": first + torch.rand(2, 3, 4, 4, generator=generator)}


def _all(kept: AttackedBatches | None, made: list[int], stop_at: int = 9) -> list[Mapping[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    results = []
    for index in range(4):

        def make(index: int = index) -> Mapping[str, Tensor]:
            if index == stop_at:
                raise Stopped
            made.append(index)
            return _attack(generator)

        results.append(make() if kept is None else kept.attacked(index, generator, make))
    return results


def _same(a: list[Mapping[str, Tensor]], b: list[Mapping[str, Tensor]]) -> bool:
    return all([*x] == [*y] and all(torch.equal(x[part], y[part]) for part in x) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("damage", [False, True])
def test_what_is_finished_is_not_made_again(damage: bool, tmp_path: Path) -> None:
    expected = _all(None, [])
    made: list[int] = []
    with pytest.raises(Stopped):
        _all(AttackedBatches(tmp_path), made, stop_at=2)
    if damage:
        path = tmp_path / "batch000001.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    again: list[int] = []
    assert _same(_all(AttackedBatches(tmp_path), again), expected)
    assert (made, again) == ([0, 1], [1, 2, 3] if damage else [2, 3])


def test_the_files_go_when_all_is_done(tmp_path: Path) -> None:
    kept = AttackedBatches(tmp_path)
    _all(kept, [])
    (tmp_path / "other.json").write_text("{}")
    kept.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
