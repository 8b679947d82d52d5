"""Faces of one detector matched to those of another, by how far their boxes overlap."""

import numpy as np

from vafer.faces import Faces

MIN_IOU = 0.5


def sides(faces: Faces) -> np.ndarray:
    return (faces.boxes[:, 2:] - faces.boxes[:, :2]).min(axis=1)


def ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) and (M, 4) → (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def match(reference: Faces, candidate: Faces) -> tuple[np.ndarray, np.ndarray]:
    """For each face of the reference the candidate's row or -1, and their IoU or 0."""
    rows, found = np.full(len(reference), -1), np.zeros(len(reference))
    overlap = ious(reference.boxes, candidate.boxes)
    while overlap.size and overlap.max() >= MIN_IOU:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        rows[i], found[i] = j, overlap[i, j]
        overlap[i], overlap[:, j] = 0, 0
    return rows, found


def landmark_errors(reference: Faces, candidate: Faces, rows: np.ndarray) -> np.ndarray:
    """(N, 5) distances over the distance between the reference's eyes; NaN where not matched."""
    errors = np.full((len(rows), 5), np.nan)
    if reference.landmarks is None or candidate.landmarks is None:
        return errors
    matched = rows >= 0
    true, given = reference.landmarks[matched], candidate.landmarks[rows[matched]]
    eyes = np.linalg.norm(true[:, 0] - true[:, 1], axis=1)
    errors[matched] = np.linalg.norm(given - true, axis=2) / np.maximum(eyes, 1)[:, None]
    return errors
