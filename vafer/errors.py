"""Everything vafer raises on purpose. Programming errors are not here: they propagate.

VaferError
├── UsageError      the request cannot be carried out as given; nothing was done (exit code 2)
├── VideoError      one recording cannot be read; the others go on (exit code 1)
├── ModelError      a model or detector file is missing, damaged, foreign or newer than this vafer
└── OutputError     the output cannot be written; what was finished is kept
"""

import os
from contextlib import suppress
from pathlib import Path


class VaferError(Exception):
    """Base of all errors meant for a user: the message says what was found and what to do."""


class UsageError(VaferError):
    """The request cannot be carried out as given; nothing was done."""


class VideoError(VaferError):
    """One recording cannot be read."""


class ModelError(VaferError):
    """A model or detector file is missing, damaged, foreign or newer than this vafer."""


class OutputError(VaferError):
    """The output cannot be written."""


def display_path(path: Path) -> str:
    """`path` as text that every stream can print: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def why_unreadable(path: Path, error: OSError) -> str:
    """Why `path` cannot be read: `no such file or directory`, and what it links to, if it does."""
    why = (error.strerror or str(error)).lower()
    with suppress(OSError):  # it is no link
        why = f"links to {display_path(path.readlink())}: {why}"
    return why


def counted(n: int, thing: str) -> str:
    """How many of what: `1 frame`, `1,200 frames`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
