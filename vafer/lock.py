"""A folder that one run at a time may write to, on one machine: NFS locks no folder for others."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vafer.errors import UsageError, display_path


@contextmanager
def own_folder(folder: Path, *, name: Path | None = None) -> Iterator[None]:
    """Within it, the folder is this run's alone; if nothing came into it, it goes away again.

    name: of the output that people know, where it is not the folder itself. Raises UsageError where
    it cannot be made, or another run has it.
    """
    shown = display_path(name or folder)
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
        where = f" ({display_path(there)})" if there != (name or folder) else ""
        raise UsageError(f"{shown} cannot be written: {why}{where}. Give another --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{shown} is being written by another run: wait, or stop it"
            ) from error
        yield
    finally:
        os.close(descriptor)
        for path in missing:
            if not path.is_dir() or any(path.iterdir()):
                break
            path.rmdir()
