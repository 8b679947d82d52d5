"""What a run writes while it goes: two JSONL files, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from vafer.files import write_text


class RunLog:
    """`log.jsonl`, `evaluations.jsonl` and `tensorboard/` of a run folder.

    done: iterations finished before; what an interrupted run logged after them goes away. writes:
    false in processes that only train.
    """

    def __init__(self, folder: Path, done: int, *, writes: bool) -> None:
        self.folder, self.writes = folder, writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for name in ("log.jsonl", "evaluations.jsonl"):
            kept = [e for e in _read(folder / name) if e["step"] <= done]
            write_text(folder / name, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def step(self, entry: dict[str, Any]) -> None:
        """One logged step, with its number under `step`."""
        self._append("log.jsonl", entry)
        self._show("train", entry, entry["step"])

    def evaluation(self, step: int, result: dict[str, Any]) -> None:
        """Scores of the held-out sets after a step."""
        for name, scored in result.items():
            of_set = {dimension: scored[dimension] for dimension in ("valence", "arousal")}
            self._append("evaluations.jsonl", {"step": step, "set": name, "scores": of_set})
            for dimension, found in of_set.items():
                self._show(f"{name}/{dimension}", found, step)

    def steps(self) -> list[dict[str, Any]]:
        return _read(self.folder / "log.jsonl")

    def evaluations(self) -> list[dict[str, Any]]:
        return _read(self.folder / "evaluations.jsonl")

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        if self.writes:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(entry, allow_nan=False) + "\n")

    def _show(self, prefix: str, values: dict[str, Any], step: int) -> None:
        if self.writes:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        if self.writes:
            self.board.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """Its lines; a last one that was cut off as it was written is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
