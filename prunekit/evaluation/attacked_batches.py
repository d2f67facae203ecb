"""Attacked images on disk, batch by batch: an attack that takes minutes goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from prunekit import documents
from prunekit.errors import InputError

_GENERATOR = "generator"


class AttackedBatches:
    """Batches that an attack has finished, each in a file with the random state after it.

    Args:
        folder: Where the files are; whoever names it makes sure that the attack, the model and the data are the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def attacked(
        self, index: int, generator: torch.Generator, attack: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Return batch `index` after each part of an attack, in the parts' order: from its file, or made and written.

        Args:
            index: Of the batch; those before it have been asked for.
            generator: The attack's, left as the attack leaves it.
            attack: Makes the images [N, ...] by part.
        """
        path = self._folder / f"batch{index:06d}.safetensors"
        try:
            found = documents.read(path, "attacked images") if path.is_file() else None
        except InputError:  # what the disk spoilt is made again
            found = None
        if found is None:
            images = attack()
            tensors = {f"image:{part}": x for part, x in images.items()} | {_GENERATOR: generator.get_state()}
            documents.write(path, tensors, {"parts": [*images]})
            return images
        generator.set_state(found.tensors[_GENERATOR])
        return {part: found.tensors[f"image:{part}"].to(generator.device) for part in found.document["parts"]}

    def forget(self) -> None:
        """Remove the files, and the folder if there is nothing else in it."""
        for path in self._folder.glob("batch*.safetensors"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()
