"""Small copies of the four datasets, in the layouts that vafer/datasets reads, around a real face.

Each function fills a folder and returns its labels by video and frame, as the dataset means them.
Valence shows as brightness and arousal as a tint towards red, so that a network has what to learn;
each person has a shade of green and a size of its own.
"""

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

Labels = dict[tuple[str, int], tuple[float, float]]

# In skimage.data.astronaut() (512×512): medians of what yunet_n_dynamic.onnx finds in it at 0.5,
# 0.75, 1, 1.5 and 2 times its size, with scores from 0.93 to 0.95.
FIVE = np.array([[203.4, 103.6], [246.4, 104.4], [224.1, 127.7], [203.0, 142.6], [242.0, 143.7]])
BOX = np.array([180.2, 62.3, 270.7, 177.3])
NESTED = "aff_wild_annotations_bboxes_landmarks_new"


class Shot(NamedTuple):
    """A picture uint8 (H, W, 3) RGB with one face: 68 points (68, 2) and its box (4,)."""

    picture: np.ndarray
    points: np.ndarray
    box: np.ndarray


def shoot(
    label: tuple[float, float],
    *,
    size: tuple[int, int] = (160, 120),
    person: int = 0,
    frame: int = 0,
    fills: float = 0.6,
) -> Shot:
    """The face with a label: width × height, its height a part of the picture's; it sways."""
    width, height = size
    scale = fills * height / (BOX[3] - BOX[1]) * (0.92, 1.0, 0.96)[person % 3]
    middle = (BOX[:2] + BOX[2:]) / 2
    shift = np.array([width, height]) / 2 - scale * middle + (2 * np.sin(frame), np.cos(frame))
    turn = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    picture = cv2.warpAffine(_portrait(), turn, size, borderMode=cv2.BORDER_REPLICATE)
    valence, arousal = label
    shown = picture * (1 + 0.3 * valence) + (40 * arousal, 15 * (person % 3 - 1), -40 * arousal)
    return Shot(
        shown.clip(0, 255).astype(np.uint8),
        _sixty_eight() * scale + shift,
        BOX * scale + np.tile(shift, 2),
    )


@cache
def _portrait() -> np.ndarray:
    from skimage.data import astronaut

    portrait: np.ndarray = astronaut()
    return portrait


@cache
def _sixty_eight() -> np.ndarray:
    """68 points on the portrait, in the usual order, whose eyes, nose and mouth are FIVE."""
    left, right, nose, mouth_left, mouth_right = FIVE
    eyes = right - left
    span = np.linalg.norm(eyes)
    turn = np.pi * np.arange(17) / 16
    jaw = (left + right) / 2 + np.stack([-np.cos(turn) * span, np.sin(turn) * 1.65 * span], axis=1)
    arch = np.array([[-0.3, 0.0], [-0.15, -0.08], [0, -0.1], [0.15, -0.08], [0.3, 0.0]]) * span
    brows = [eye + arch - (0, 0.3 * span) for eye in (left, right)]
    bridge = np.linspace((left + right) / 2, nose, 4)
    nostrils = nose + np.array([[x, 0.12] for x in (-0.2, -0.1, 0, 0.1, 0.2)]) * span
    lids = [[-0.2, 0], [-0.1, -0.08], [0.1, -0.08], [0.2, 0], [0.1, 0.08], [-0.1, 0.08]]
    rims = [eye + np.array(lids) * span for eye in (left, right)]
    lips = np.concatenate([_lips(mouth_left, mouth_right, 12), _lips(mouth_left, mouth_right, 8)])
    points = np.concatenate([jaw, *brows, bridge, nostrils, *rims, lips])
    assert points.shape == (68, 2)
    return points


def _lips(left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    """A ring of n points from the left mouth corner over the upper lip to the right, and back."""
    turn = 2 * np.pi * np.arange(n) / n
    middle, half = (left + right) / 2, (right - left) / 2
    down = np.array([-half[1], half[0]]) * 0.35
    return middle - np.cos(turn)[:, None] * half - np.sin(turn)[:, None] * down


def afew_va(
    root: Path,
    *,
    n_actors: int = 3,
    clips_per_actor: int = 2,
    n_frames: int = 4,
    in_parts: bool = True,
    suffix: str = ".png",
    with_pictures: bool = True,
) -> Labels:
    """Clips `001`, `002`, … of `Actor 1`, `Actor 2`, … in turn, in parts `01`, … or flat."""
    labels: Labels = {}
    for clip in range(n_actors * clips_per_actor):
        video, actor = f"{clip + 1:03}", clip % n_actors
        folder = root / f"{clip // 3 + 1:02}" / video if in_parts else root / video
        folder.mkdir(parents=True)
        frames: dict[str, Any] = {}
        for frame, label in enumerate(_whole_tenths(clip, n_frames)):
            shot = shoot(label, person=actor, frame=frame)
            if with_pictures:
                write_picture(folder / f"{frame:05}{suffix}", shot.picture)
            frames[f"{frame:05}"] = {
                "valence": round(label[0] * 10),
                "arousal": round(label[1] * 10),
                "landmarks": shot.points.round(3).tolist(),
            }
            labels[video, frame] = label
        values = {"actor": f"Actor {actor + 1}", "video_id": video, "frames": frames}
        (folder / f"{video}.json").write_text(json.dumps(values))
    return labels


def aff_wild(
    root: Path,
    *,
    n_videos: int = 4,
    n_frames: int = 24,
    with_videos: bool = True,
    faces: Sequence[str] = ("landmarks", "bboxes"),
    first_number: int = 0,
    nested: str = "",
    train: str = "train",
) -> Labels:
    """Videos `105`, `106`, …, by turns MP4 and AVI and of two rates, the n-th n frames longer.

    faces: folders of `.pts` files, numbered from first_number. nested: the folder that holds all
    but videos. train: `train` or `train/train`.
    """
    labels: Labels = {}
    for number in range(n_videos):
        video, suffix = str(105 + number), (".mp4", ".avi")[number % 2]
        values = list(_curve(number, n_frames + number))
        shots = [
            shoot(label, size=(320, 240), person=number, frame=i) for i, label in enumerate(values)
        ]
        for side, name in enumerate(("valence", "arousal")):
            folder = root / nested / "annotations" / train / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{video}.txt").write_text("".join(f"{v[side]}\n" for v in values))
        if with_videos:
            path = root / "videos" / train / f"{video}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, [shot.picture for shot in shots], rate=(25, 30)[number % 2])
        for name in faces:
            folder = root / nested / name / train / video
            folder.mkdir(parents=True)
            for i, shot in enumerate(shots):
                points = shot.points if name == "landmarks" else corners(shot.box)
                write_pts(folder / f"{i + first_number}.pts", points)
        labels |= {(video, frame): label for frame, label in enumerate(values)}
    return labels


def aff_wild2(
    root: Path,
    *,
    n_train: int = 3,
    n_validation: int = 2,
    n_frames: int = 20,
    train: str = "Train_Set",
    sides: bool = False,
    with_pictures: bool = True,
) -> Labels:
    """Videos `video1`, …: line 5 of each is invalid in both columns, line 9 in the second alone,
    and the picture of frame 6 is missing.

    sides: the last video has two label files, `_left` and `_right`, for one folder of pictures.
    """
    labels: Labels = {}
    for number in range(n_train + n_validation):
        name = f"video{number + 1}"
        chosen = train if number < n_train else "Validation_Set"
        folder = root / "VA_Set" / chosen
        folder.mkdir(parents=True, exist_ok=True)
        is_double = sides and number == n_train + n_validation - 1
        for side in ("_left", "_right") if is_double else ("",):
            values = list(_curve(number + 50 * (side == "_right"), n_frames))
            lines = [f"{valence},{arousal}" for valence, arousal in values]
            lines[3] = "-5,-5"
            lines[7] = f"{values[7][0]},-5"
            text = "\n".join(["valence,arousal", *lines, ""])
            (folder / f"{name}{side}.txt").write_text(text)
            valid = {i: v for i, v in enumerate(values) if i not in (3, 7)}
            labels |= {(f"{name}{side}", i): v for i, v in valid.items()}
        if with_pictures:
            crops = root / "cropped_aligned" / name
            crops.mkdir(parents=True)
            for frame, label in enumerate(values):
                if frame != 6:
                    shot = shoot(label, size=(112, 112), person=number, frame=frame, fills=0.9)
                    write_picture(crops / f"{frame + 1:05}.jpg", shot.picture)
    return labels


def affectnet_csv(
    root: Path, *, n_train: int = 8, n_validation: int = 6, with_pictures: bool = True
) -> Labels:
    """The CSV release; the last picture of each list has no label."""
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks"
    labels: Labels = {}
    for name, n in (("training", n_train), ("validation", n_validation)):
        lines = [f"{header},expression,valence,arousal"]
        for number, label in enumerate(_curve(len(name), n + 1)):
            picture = f"{number % 3 + 1}/{name}{number}.jpg"
            shot = shoot(label, size=(128, 128), person=number, frame=number, fills=0.7)
            x1, y1, x2, y2 = shot.box.round().astype(int)
            points = ";".join(f"{value:.2f}" for value in shot.points.ravel())
            valence, arousal = label if number < n else (-2, -2)
            box = f"{x1},{y1},{x2 - x1},{y2 - y1}"
            lines.append(f"{picture},{box},{points},{number % 8},{valence},{arousal}")
            if number < n:
                labels[picture, 0] = label
            if with_pictures:
                write_picture(root / "Manually_Annotated_Images" / picture, shot.picture)
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.csv").write_text("\n".join([*lines, ""]))
    return labels


def affectnet_npy(
    root: Path,
    *,
    n_train: int = 8,
    n_validation: int = 6,
    as_text: bool = True,
    with_pictures: bool = True,
) -> Labels:
    """The npy release; IDs begin at 0 in both sets, and the last picture of each has no label."""
    labels: Labels = {}
    for seed, (name, n) in enumerate((("train_set", n_train), ("val_set", n_validation))):
        notes = root / name / "annotations"
        notes.mkdir(parents=True)
        for number, label in enumerate(_curve(seed, n + 1)):
            picture = f"{name}/images/{number}.jpg"
            shot = shoot(label, size=(128, 128), person=number, frame=number, fills=0.7)
            valence, arousal = label if number < n else (-2.0, -2.0)
            values = {"exp": number % 8, "val": valence, "aro": arousal}
            for end, value in values.items():
                np.save(notes / f"{number}_{end}.npy", np.array(str(value) if as_text else value))
            np.save(notes / f"{number}_lnd.npy", shot.points.ravel().round(2))
            if number < n:
                labels[picture, 0] = label
            if with_pictures:
                write_picture(root / picture, shot.picture)
    return labels


def _curve(seed: int, n: int) -> Iterator[tuple[float, float]]:
    """n labels that go up and down, each seed in its own way, in [-0.9, 0.9]."""
    middle = np.random.default_rng(seed).uniform(-0.5, 0.5, 2)
    for i in range(n):
        valence, arousal = middle + 0.4 * np.sin([0.6 * i + seed, 0.45 * i + 2 * seed])
        yield round(float(valence), 4), round(float(arousal), 4)


def _whole_tenths(seed: int, n: int) -> Iterator[tuple[float, float]]:
    for valence, arousal in _curve(seed, n):
        yield round(valence * 10) / 10, round(arousal * 10) / 10


def corners(box: np.ndarray) -> np.ndarray:
    """The four corners (4, 2) of a box, from the upper left one down and around."""
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x1, y2], [x2, y2], [x2, y1]])


def write_pts(path: Path, points: np.ndarray) -> None:
    lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{lines}\n}}\n")


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.write_bytes(data.tobytes())


def write_video(path: Path, pictures: Sequence[np.ndarray], *, rate: int = 25) -> None:
    """H.264 of pictures uint8 (H, W, 3) RGB, in the container that the ending names."""
    height, width, _ = pictures[0].shape
    options = {"crf": "18", "preset": "ultrafast"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
