"""Faces to train on and faces to score on, with labels and persons.

Persons never cross over: a split that has one on both sides is refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from train.cache import CropStore
from vafer.errors import UsageError

GRADED = "graded_labels_sha256"


@dataclass(frozen=True, slots=True)
class FaceSet:
    """Crops with labels and persons, N of them.

    crops: uint8 (M, C, S, S), or a store of M. rows: which of them, int64 (N,). labels: float32
    (N, 2), valence and arousal. subjects: (N,), str or None where the data set names none.
    expressions: (N,), str or None. posteriors: float32 (N, K), how much of each of K expressions is
    in each face; None where nobody says.
    """

    name: str
    crops: np.ndarray | CropStore
    rows: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    expressions: np.ndarray
    posteriors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, Any]:
        """How many faces there are and, of stored crops, how many were found in which way."""
        if not isinstance(self.crops, CropStore):
            return {"faces": len(self)}
        ways, counts = np.unique(self.crops.ways[self.rows].astype(str), return_counts=True)
        crops = dict(zip(ways.tolist(), counts.tolist(), strict=True))
        return {"faces": len(self), "crops": crops}

    def fingerprint(self) -> dict[str, Any]:
        """How many faces, and a SHA-256 of crops, labels, expressions and persons in their order.

        Graded labels have a SHA-256 of their own: they are made of the rest, and where they are
        made anew, as on another device, they are others.
        """
        crops = self.crops
        of_crops = crops.key.encode() if isinstance(crops, CropStore) else crops.tobytes()
        digest = hashlib.sha256(of_crops)
        digest.update(self.rows.astype(np.int64).tobytes())
        for names in (self.subjects, self.expressions):
            digest.update("\n".join(map(str, names)).encode(errors="surrogateescape"))
        labels = self.labels.astype(np.float32).tobytes()
        if self.posteriors is None:
            digest.update(labels)
        found = {"faces": len(self), "sha256": digest.hexdigest()}
        if self.posteriors is not None:
            found[GRADED] = hashlib.sha256(labels).hexdigest()
        return found

    def where(self, chosen: np.ndarray, *, name: str) -> "FaceSet":
        """Those of `chosen`, bool (N,)."""
        return replace(
            self,
            name=name,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            subjects=self.subjects[chosen],
            expressions=self.expressions[chosen],
            posteriors=None if self.posteriors is None else self.posteriors[chosen],
        )


@dataclass(frozen=True, slots=True)
class Split:
    """What to train on, and what to score on; no person is in both.

    train: one or more sets, trained on together. facts: what a model card says of the data.
    assignment: who is on which side, where the data set leaves that open (see
    `vafer.datasets.splits`).
    """

    train: tuple[FaceSet, ...]
    held_out: tuple[FaceSet, ...]
    facts: dict[str, Any]
    assignment: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.held_out:
            raise UsageError("nothing is held out to score on: expected one set or more")
        for faces in (*self.train, *self.held_out):
            if not len(faces):
                raise UsageError(f"{faces.name} has no faces")
            if not np.isfinite(faces.labels).all():
                raise UsageError(f"{faces.name} has labels that are not finite")
        ours = {s for faces in self.train for s in faces.subjects if s is not None}
        for faces in self.held_out:
            both = sorted(ours & {s for s in faces.subjects if s is not None})
            if both:
                raise UsageError(
                    f"{len(both)} subjects of {faces.name} are trained on too: "
                    f"{', '.join(both[:5])}{', …' if len(both) > 5 else ''}. "
                    "Scores on them would not be person-independent: split by subject"
                )
