"""The datasets that vafer can be scored against and trained on, one reader a file.

None of them may be passed on; a user brings a copy. Layouts and what is checked: docs/datasets.md.
"""

import os
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from vafer.datasets.labels import Dataset, reading
from vafer.errors import UsageError, display_path

Name = Literal["afew-va", "aff-wild", "aff-wild2", "affectnet"]
NAMES: tuple[Name, ...] = get_args(Name)


def open_dataset(
    name: str,
    root: Path | None = None,
    *,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Read the labels of a dataset under `root`, or `$VAFER_DATA/<name>` without it.

    Raises UsageError where something is missing, does not fit, or holds values out of range, with
    file, line, found and expected.
    """
    if name not in NAMES:
        near = get_close_matches(name.lower().replace("_", "-"), NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(NAMES)}"
        raise UsageError(f"dataset {name!r}: {hint}")
    folder = default_root(name) if root is None else root
    with reading():
        if not folder.is_dir():
            found = "a file, no folder" if folder.exists() else "no such folder"
            raise UsageError(
                f"{display_path(folder)}: {found}; expected the folder that holds {name}. Name it "
                f"with --root (in a config: data.root), or put it at $VAFER_DATA/{name}; "
                "docs/datasets.md says how"
            )
        module = import_module(f"vafer.datasets.{name.replace('-', '_')}")
        dataset: Dataset = module.read(folder, on_notice)
    if dataset.labels.is_empty():
        raise UsageError(
            f"{display_path(folder)}: found no frame of {name} with a label; expected valence and "
            "arousal of some. Get the labels anew"
        )
    return dataset


def default_root(name: str) -> Path:
    """$VAFER_DATA/<name>; VAFER_DATA is `data` where it is not set."""
    return Path(os.environ.get("VAFER_DATA", "data")) / name
