"""How well a network does on the held-out sets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.augment import middle
from train.config import TrainConfig
from train.data import FaceSet
from train.feed import Feed
from train.loop import predict
from train.steps import Players
from vafer.metrics import DIMENSIONS, scores
from vafer.model import Model

BATCH = 256  # crops
Change = Callable[[torch.Tensor, int], torch.Tensor]  # crops, 0..255, size → those of that size


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a network makes of a held-out set: predicted (N, 2), clipped to [-1, 1]."""

    faces: FaceSet
    predicted: np.ndarray

    def scores(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(scores(self.faces.labels, self.predicted))
        found["n_faces"] = len(self.faces)
        names = {e for e in self.faces.expressions if e is not None}
        if names:
            found["mean_by_expression"] = {
                name: [round(float(v), 3) for v in
                       self.predicted[self.faces.expressions == name].mean(axis=0)]
                for name in sorted(names)
            }  # fmt: skip
        return found


def predict_faces(model: Model, faces: FaceSet, change: Change = middle) -> np.ndarray:
    """Valence and arousal in [-1, 1], (N, 2), of a set's crops; change: as in `crops_seen`."""
    return torch.cat([model.predict(crops) for crops in crops_seen(model, faces, change)]).numpy()


def crops_seen(model: Model, faces: FaceSet, change: Change = middle) -> Iterator[torch.Tensor]:
    """Batches of a set's crops, which may have a border, as the model is to see them.

    float32 (n, 3, S, S), whole numbers of 0..255; S is the model's size. change: makes of crops
    (n, C, B, B), 0..255, and that size those that the model sees.
    """
    feed = Feed([faces], torch.device("cpu"))
    size = model.card.crop.size
    for crops in feed.batches(np.array_split(np.arange(len(feed)), len(feed) // BATCH + 1)):
        yield change(crops.float(), size).round().clamp(0, 255).expand(-1, 3, -1, -1)


def evaluate(
    players: Players, held_out: list[tuple[FaceSet, Feed]], config: TrainConfig
) -> list[Evaluation]:
    """Predict every held-out set; all processes of a team have all of the result."""
    return [Evaluation(faces, predict(players, feed, config)) for faces, feed in held_out]


def results_of(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Scores by the name of the set."""
    return {e.faces.name: e.scores() for e in evaluations}


def one_line(result: dict[str, Any]) -> str:
    """PCC and CCC of all sets, for a progress line."""
    return "; ".join(
        f"{name} "
        + ", ".join(
            f"{dimension} PCC {_short(scored[dimension]['pcc'])} "
            f"CCC {_short(scored[dimension]['ccc'])}"
            for dimension in DIMENSIONS
        )
        for name, scored in result.items()
    )


def _short(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"
