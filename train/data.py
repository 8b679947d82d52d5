"""Pictures of faces with expression labels → crops with valence and arousal.

A picture goes through what annotation does to a frame: the same detector code, the same alignment.
Small pictures are enlarged and surrounded by their repeated edge for detection alone; the crop is
taken from the picture as it is.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from vafer.crops import FACE_TEMPLATE, GREY_WEIGHTS, CropSpec, Patch, cut, warp
from vafer.errors import UsageError
from vafer.faces import Detector

# Pleasure and arousal of the emotion words, Russell & Mehrabian 1977; neutral is 0 by definition.
EXPRESSION_NORMS = {
    "happy": (0.81, 0.51),
    "surprise": (0.40, 0.67),
    "angry": (-0.51, 0.59),
    "fear": (-0.64, 0.60),
    "disgust": (-0.60, 0.35),
    "sad": (-0.63, -0.27),
    "neutral": (0.0, 0.0),
}
DETECTION_SIDE = 192  # pictures are enlarged to this shorter side, where fewest faces are missed
SURROUNDINGS = 0.25  # of that side, added around the picture for detection
HELD_OUT_SHARE = 0.2  # of the identities of LFW
CROPS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class FaceSet:
    """Crops with labels.

    crops: uint8 (N, S, S, 1) grey or (N, S, S, 3) RGB. labels: float32 (N, 2), valence and arousal.
    expressions: (N,) names. n_detected: how many were aligned by landmarks; the others, in which no
    face was found, were taken whole.
    """

    name: str
    crops: np.ndarray
    labels: np.ndarray
    expressions: np.ndarray
    n_detected: int

    def __len__(self) -> int:
        return len(self.crops)


def load_faces(
    folder: Path,
    detector: Detector,
    spec: CropSpec,
    cache: Path,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    *,
    held_out_only: bool = False,
) -> dict[str, FaceSet]:
    """Crops of FER2013 and LFW: `fer_train`, `fer_test`, `lfw_train` and `lfw_test`.

    The two parts of LFW share no identity. Crops are made once and kept under `cache`.
    Raises UsageError when a file is missing.
    """
    fer = _read(folder / "fer2013.parquet")
    lfw = _read(folder / "lfw_expressions.parquet")
    held_out = np.array([_is_held_out(identity) for identity in lfw["identity"]])
    every = {
        "fer_train": fer.filter(pl.col("split") == "train"),
        "fer_test": fer.filter(pl.col("split") == "test"),
        "lfw_train": lfw.filter(~held_out),
        "lfw_test": lfw.filter(held_out),
    }
    return {
        name: _cached_crops(name, rows, detector, spec, cache, partial(on_progress, name))
        for name, rows in every.items()
        if name.endswith("_test") or not held_out_only
    }


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path} is missing: --faces is the folder that holds it")
    return pl.read_parquet(path).filter(pl.col("expression").is_in(list(EXPRESSION_NORMS)))


def _is_held_out(identity: str) -> bool:
    """Assign an identity to training or test by its name alone, whatever else is in the file."""
    return int(hashlib.sha256(identity.encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT_SHARE


def _cached_crops(
    name: str,
    rows: pl.DataFrame,
    detector: Detector,
    spec: CropSpec,
    cache: Path,
    on_progress: Callable[[int, int], None],
) -> FaceSet:
    pictures = hashlib.sha256(b"".join(rows["jpeg"])).hexdigest()
    key = json.dumps([spec.to_dict(), detector.sha256, pictures, DETECTION_SIDE, SURROUNDINGS])
    path = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if path.is_file():
        with np.load(path) as stored:
            crops, n_detected = stored["crops"], int(stored["n_detected"])
    else:
        crops, n_detected = _make_crops(rows["jpeg"].to_list(), detector, spec, on_progress)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, crops=crops, n_detected=n_detected)
        temporary.replace(path)
    labels = np.array([EXPRESSION_NORMS[e] for e in rows["expression"]], np.float32)
    return FaceSet(name, crops, labels, rows["expression"].to_numpy(), n_detected)


def _make_crops(
    jpegs: list[bytes],
    detector: Detector,
    spec: CropSpec,
    on_progress: Callable[[int, int], None],
) -> tuple[np.ndarray, int]:
    crops = np.empty((len(jpegs), spec.size, spec.size, 1 if spec.grey else 3), np.uint8)
    n_detected = 0
    for start in range(0, len(jpegs), CROPS_AT_ONCE):
        patches: list[Patch] = []
        for jpeg in jpegs[start : start + CROPS_AT_ONCE]:
            picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise UsageError(f"picture {start + len(patches)} of a face set is no JPEG")
            landmarks = find_landmarks(picture, detector)
            n_detected += landmarks is not None
            if landmarks is None:
                landmarks = np.array(FACE_TEMPLATE) * picture.shape[1::-1]
            whole = np.array([[0, 0, *picture.shape[1::-1]]])
            matrix = spec.matrices(whole, landmarks[None])[0]
            patches.append(cut(picture, matrix, spec.size))
        found = warp(patches, spec.size)
        if spec.grey:
            found = (found * found.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)
        crops[start : start + len(patches)] = found.round().byte().permute(0, 2, 3, 1).numpy()
        on_progress(start + len(patches), len(jpegs))
    return crops, n_detected


def find_landmarks(picture: np.ndarray, detector: Detector) -> np.ndarray | None:
    """Landmarks (5, 2) of the best face of a picture that shows little else; None without one."""
    scale = max(1.0, DETECTION_SIDE / min(picture.shape[:2]))
    enlarged = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    pad = round(min(enlarged.shape[:2]) * SURROUNDINGS)
    padded = cv2.copyMakeBorder(enlarged, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    faces = detector.detect(padded)
    if not len(faces) or faces.landmarks is None:
        return None
    # Pixel centres: the middle of the first pixel is 0 before and after enlarging.
    return (faces.landmarks[0] - pad + 0.5) / scale - 0.5
