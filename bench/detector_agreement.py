"""How far a face detector agrees with a stronger one, on recordings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.boxes import landmark_errors, match, sides
from bench.tables import number, percent, quantile, table
from train.detector.material import HELD_OUT as NEVER_TRAINED_ON
from vafer.faces import Detector, Faces
from vafer.options import DetectorOptions, Sampling
from vafer.probe import probe
from vafer.video import VideoReader

NO_FACE = "no_face.mp4"
HELD_OUT = [name for name in NEVER_TRAINED_ON if name != NO_FACE]
TRAINED_ON = [
    "single_face.mp4",
    "face_then_none_vfr.mov",
    "none_then_face_vfr.mov",
    "stage_cuts.mp4",
    "expressive_33s.mp4",
    "expressive_talk.mp4",
]
MIN_SIDE = 40  # pixels of the frame
LOW = 0.2  # threshold at which the reference is asked once more
BINS = [(20, 40), (40, 80), (80, 160), (160, None)]
LANDMARKS = ["left eye", "right eye", "nose", "left mouth", "right mouth"]
BLOCK = 25  # frames
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Agreement:
    """The candidate against the reference on one recording; N faces of the reference."""

    name: str
    n_frames: int
    block: np.ndarray  # (N,) which block of frames the face is in
    side: np.ndarray  # (N,) shorter side in pixels of the frame
    iou: np.ndarray  # (N,) with the candidate's face, 0 where it found none
    error: np.ndarray  # (N, 5) of the landmarks, in distances between the eyes; NaN where unknown
    n_extra: int  # faces of the candidate, at least 40 pixels, that the reference does not have
    n_extra_low: int  # nor has at the low threshold

    @property
    def is_large(self) -> np.ndarray:
        return self.side >= MIN_SIDE


def above(faces: Faces, threshold: float) -> Faces:
    """What the detector would have found at a higher threshold: lower boxes suppress no others."""
    kept = faces.scores >= threshold
    landmarks = None if faces.landmarks is None else faces.landmarks[kept]
    return Faces(faces.boxes[kept], faces.scores[kept], landmarks)


def agree(path: Path, candidate: Detector, reference_low: Detector, every: int) -> Agreement:
    block, side, iou, error = [], [], [], []
    n_frames = n_extra = n_extra_low = 0
    for frame in VideoReader(probe(path), sampling=Sampling(every=every)):
        low, ours = reference_low.detect(frame.image), candidate.detect(frame.image)
        true = above(low, DetectorOptions().threshold)
        rows, found = match(true, ours)
        block.append(np.full(len(true), frame.index // BLOCK))
        side.append(sides(true))
        iou.append(found)
        error.append(landmark_errors(true, ours, rows))
        large = np.flatnonzero(sides(ours) >= MIN_SIDE)
        n_frames += 1
        n_extra += len(np.setdiff1d(large, rows))
        n_extra_low += len(np.setdiff1d(large, match(low, ours)[0]))
    return Agreement(
        name=path.name,
        n_frames=n_frames,
        block=np.concatenate(block),
        side=np.concatenate(side),
        iou=np.concatenate(iou),
        error=np.concatenate(error),
        n_extra=n_extra,
        n_extra_low=n_extra_low,
    )


def interval(clips: list[Agreement]) -> tuple[float, float] | None:
    """95 % interval of the share found, in %, over blocks of frames within each recording."""
    rng = np.random.default_rng(0)
    sums = np.zeros((N_BOOTSTRAP, 2))
    for clip in clips:
        names, block = np.unique(clip.block[clip.is_large], return_inverse=True)
        if len(names):
            found = np.bincount(block, clip.iou[clip.is_large] > 0, len(names))
            counts = np.stack([found, np.bincount(block, minlength=len(names))], axis=1)
            chosen = rng.integers(0, len(names), (N_BOOTSTRAP, len(names)))
            sums += counts[chosen].sum(axis=1)
    if not sums[:, 1].all():
        return None
    low, high = np.quantile(100 * sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)


def agreement_row(name: str, clips: list[Agreement]) -> list[str]:
    iou = np.concatenate([clip.iou[clip.is_large] for clip in clips])
    error = np.concatenate([clip.error[clip.is_large] for clip in clips]).mean(axis=1)
    n_frames = sum(clip.n_frames for clip in clips)
    between = interval(clips)
    extra = [sum(clip.n_extra for clip in clips), sum(clip.n_extra_low for clip in clips)]
    return [
        name,
        str(n_frames),
        str(len(iou)),
        percent((iou > 0).sum(), len(iou)),
        "–" if between is None else f"{between[0]:.1f} to {between[1]:.1f}",
        number(iou[iou > 0].mean() if iou.any() else np.nan),
        percent(extra[0], n_frames),
        percent(extra[1], n_frames),
        number(quantile(error, 0.5)),
        number(quantile(error, 0.95)),
    ]


def by_size(clips: list[Agreement]) -> list[dict[str, Any]]:
    side = np.concatenate([clip.side for clip in clips])
    found = np.concatenate([clip.iou for clip in clips]) > 0
    rows = []
    for low, high in BINS:
        inside = (side >= low) & (side < (high or np.inf))
        name = f"{low} to {high} px" if high else f"{low} px and more"
        rows.append({"size": name, "found": int(found[inside].sum()), "faces": int(inside.sum())})
    return rows


def show_sizes(kind: str, clips: list[Agreement]) -> None:
    groups = [by_size(group) for group in [*([clip] for clip in clips), clips]]
    rows = [
        [cells[0]["size"], *(f"{percent(c['found'], c['faces'])} of {c['faces']}" for c in cells)]
        for cells in zip(*groups, strict=True)
    ]
    header = ["face", *(clip.name for clip in clips), "all"]
    table(f"{kind}: found by size of the face, % of the reference's", header, rows)


def show_landmarks(kind: str, clips: list[Agreement]) -> None:
    error = np.concatenate([clip.error[clip.is_large] for clip in clips])
    rows = [
        [name, number(quantile(error[:, i], 0.5)), number(quantile(error[:, i], 0.95))]
        for i, name in enumerate(LANDMARKS)
    ]
    header = ["landmark, as seen in the image", "median", "95th percentile"]
    table(f"{kind}: error by landmark, in distances between the eyes", header, rows)


def summary(clips: list[Agreement]) -> dict[str, Any]:
    """What a card holds of some recordings together."""
    iou = np.concatenate([clip.iou[clip.is_large] for clip in clips])
    error = np.concatenate([clip.error[clip.is_large] for clip in clips]).mean(axis=1)
    between = interval(clips)
    return {
        "recall": round(float((iou > 0).mean()), 4) if len(iou) else None,
        "recall_ci": [round(value / 100, 4) for value in between] if between else None,
        "found": int((iou > 0).sum()),
        "faces": len(iou),
        "frames": sum(clip.n_frames for clip in clips),
        "more_than_reference": sum(clip.n_extra for clip in clips),
        "mean_iou": round(float(iou[iou > 0].mean()), 4) if iou.any() else None,
        "landmark_error_median": round(quantile(error, 0.5), 4) if iou.any() else None,
    }


def show_agreement(
    candidate: Detector, reference: Path, videos: Path, *, every: int
) -> dict[str, Any]:
    """Prints the tables of the recordings in `videos`, of which one frame in `every` is taken."""
    found = {}
    reference_low = Detector(reference, DetectorOptions(threshold=LOW))
    for kind, names in (("Held out", HELD_OUT), ("Trained on", TRAINED_ON)):
        paths = [videos / name for name in names]
        for path in paths:
            if not path.is_file():
                print(f"\n{kind}: {path.name} is not in the folder of videos and is left out.")
        clips = [agree(path, candidate, reference_low, every) for path in paths if path.is_file()]
        if not clips:
            continue
        header = ["recording", "frames", f"faces ≥ {MIN_SIDE} px", "found, %", "95 % interval"]
        header += ["mean IoU", "more than the reference, per 100 frames"]
        header += [f"more than it has at {LOW}", "landmark error, median", "95th percentile"]
        rows = [agreement_row(clip.name, [clip]) for clip in clips]
        title = f"{kind}, one frame in {every}" if every > 1 else kind
        title += f": {candidate.path.stem} against {reference.stem}"
        table(title, header, [*rows, agreement_row("all", clips)])
        show_sizes(kind, clips)
        show_landmarks(kind, clips)
        found[kind.lower()] = {
            **summary(clips),
            "recordings": [{"recording": clip.name, **summary([clip])} for clip in clips],
            "sizes": by_size(clips),
        }
    return found
