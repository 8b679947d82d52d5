"""What a run needs to go on exactly where it was: one file, which appears whole or not at all.

Randomness needs no place in it: every draw is a function of the seed and the iteration.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from train.steps import Players
from vafer.errors import UsageError
from vafer.files import write_whole


@dataclass(slots=True)
class Progress:
    """How far a run is: iterations done with a seed, and in how many the critic played or did not.

    best: the highest mean CCC of the first held-out set so far, and where.
    """

    seed: int = 0
    iteration: int = 0
    critic_steps: int = 0
    skipped_steps: int = 0
    best: float = float("-inf")
    best_iteration: int = 0


def save_checkpoint(path: Path, players: Players, progress: Progress) -> None:
    """Write players and progress."""
    state = {
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        "net": players.net.state_dict(),
        "critic": players.critic.state_dict() if players.critic else None,
        "reader": players.reader.state_dict() if players.reader else None,
        "objective": players.objective.state() if players.objective else {},
        "optimisers": {name: o.state_dict() for name, o in players.optimisers.items()},
    }
    write_state(path, state)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all. Raises OSError, as of a full disk.

    In memory first: PyTorch's own writer makes a RuntimeError of what the file system says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, lambda file: file.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path, players: Players, *, seed: int) -> Progress:
    """Put players, in place, where a checkpoint has them. Raises UsageError where none fits."""
    device = next(players.net.parameters()).device
    try:
        with ZipFile(path) as archive:  # PyTorch does not look at its checksums
            if archive.testzip() is not None:
                raise BadZipFile
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        players.net.load_state_dict(state["net"])
        if players.critic is not None and players.objective is not None:
            players.critic.load_state_dict(state["critic"])
            players.objective.load_state(state["objective"])
        if players.reader is not None:
            players.reader.load_state_dict(state["reader"])
        for name, optimiser in players.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        found = Progress(**state["progress"])
        if found.seed != seed:
            raise ValueError(f"it is of seed {found.seed}, not of {seed}")
        return found
    except (BadZipFile, UnpicklingError) as error:
        raise UsageError(f"{path} is damaged: start anew with another --out") from error
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be resumed from ({error}): expected a checkpoint of this run"
        ) from error
