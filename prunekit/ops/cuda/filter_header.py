"""What the headers of packed filters have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from prunekit.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class FilterHeader:
    """The weight's sizes, which a packed filter of any format begins with; formats add their own numbers."""

    FORMAT: ClassVar[str]

    out_channels: int
    group_channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    chunk_channels: int

    def words(self) -> list[int]:
        """Flatten for the op."""
        return list(astuple(self))

    @classmethod
    def read(cls, words: Sequence[int]) -> Self:
        """Undo `words`."""
        if len(words) != len(fields(cls)):
            raise InputError(f"a {cls.FORMAT} filter's header has {len(fields(cls))} numbers; got {len(words)}.")
        return cls(*words)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The weight's shape [K, C / groups, R, S]."""
        return self.out_channels, self.group_channels, self.kernel_h, self.kernel_w
