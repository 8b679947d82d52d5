"""Files that appear whole, or not at all."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any


def on_disk(file: IO[bytes]) -> None:
    """Wait until what was written to a file is on the disk, before it takes another's place."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: Path, write: Callable[[Path], object], *, is_shared: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, and give it its name when it is done.

    is_shared: others, on other machines too, may write the same file at the same time.
    """
    own = f".{secrets.token_hex(4)}" if is_shared else ""
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            on_disk(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file; NaN is refused."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")
