"""What can go wrong: the user's input, or a fast path's output."""

from __future__ import annotations

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = {
    errno.EROFS: "which is read-only",
    errno.EACCES: "without the permission to",
    errno.EPERM: "without the permission to",
    errno.ENOTDIR: "where a file is in a folder's place",
    errno.EISDIR: "which is a folder",
    errno.EEXIST: "where something else is already",
    errno.ENAMETOOLONG: "whose name is too long",
    errno.ELOOP: "whose links lead in a circle",
}


class InputError(ValueError):
    """Bad input: its message is one sentence saying what was expected, what was found and where.

    The command line prints the sentence without a traceback and exits with code 2.
    """


class WrongOutputError(RuntimeError):
    """An accelerated layer or model does not compute what the original computes."""


def first_line(error: BaseException) -> str:
    """Return an error's first line without its full stop, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().removesuffix(".")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error is of a full disk or quota, which safetensors only says in words."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(os.strerror(full) in str(error) for full in _FULL)


def unwritable(error: OSError) -> InputError | None:
    """Return what to say of a place that cannot be read or written as it was asked to be; None of other errors."""
    if error.errno not in _UNWRITABLE:
        return None
    return InputError(
        f"Expected a place that can be read and written, got {error.filename}, {_UNWRITABLE[error.errno]}."
    )
