from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunekit.detection import CocoDataset
from prunekit.errors import InputError
from prunekit.training.data import load_batches
from tests.support.coco_files import small_content, write_coco
from tests.support.loaded_batches import assert_same


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Three images, the last one without objects."""
    return CocoDataset.open(write_coco(tmp_path, small_content()), image_size=32)


@pytest.mark.parametrize("order", [None, [2, 0, 1], [1]])
def test_workers_change_nothing(dataset: CocoDataset, order: list[int] | None) -> None:
    alone = list(load_batches(dataset, 2, workers=0, order=order))
    beside = list(load_batches(dataset, 2, workers=2, order=order))
    expected = [dataset.images[index].id for index in order or range(3)]
    assert [image_id for batch in alone for image_id in batch.image_ids] == expected
    assert all(len(batch.images) == 2 for batch in alone[:-1])
    for a, b in zip(alone, beside, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_sentence_from_any_process(dataset: CocoDataset, workers: int) -> None:
    (dataset.image_folder / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        list(load_batches(dataset, 2, workers))
    assert str(caught.value).startswith("Expected a readable image, but")
    assert "b.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_stay_their_own(dataset: CocoDataset, workers: int) -> None:
    state = torch.get_rng_state()
    list(load_batches(dataset, 2, workers))
    assert torch.equal(torch.get_rng_state(), state)
