"""A dataset's labelled frames → the face that each label means, as what its crop needs.

A label belongs to one face. Where the dataset says which, by landmarks or a box, that one is
cropped; how each was found is kept, since a change of crop silently changes results.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import polars as pl

from vafer.crops import CropSpec
from vafer.datasets.labels import BOX, Dataset
from vafer.errors import VideoError
from vafer.faces import Detector, Faces
from vafer.onnx_file import onnx_weights_sha256
from vafer.pictures import read_picture
from vafer.probe import probe
from vafer.video import VideoReader

# By the dataset's landmarks, by the detector, the dataset's box, the whole picture.
Way = Literal["landmarks", "detector", "box", "picture"]
DETECTION_SIDE = 192  # pictures are enlarged to this shorter side, where fewest faces are missed
SURROUNDINGS = 0.25  # of that side, added around the picture for detection
AROUND_BOX = 0.5  # of a box's sides, on each side, in which its face is looked for
SAME_FACE_IOU = 0.2  # least overlap of a detected face with the box it is looked for in
PICTURES_AHEAD = 32


class FaceFinder:
    """Finds the face that a label means.

    crop: of the network that will see it. detector: for what the dataset gives no landmarks of;
    None where it gives them all. is_cropped: pictures show one face and little else. by_detector:
    look only at what the detector finds in the whole picture, as annotation does. border: pixels of
    surroundings that the crop gets on every side.
    """

    def __init__(
        self,
        crop: CropSpec,
        detector: Detector | None = None,
        *,
        is_cropped: bool,
        by_detector: bool = False,
        border: int = 0,
    ) -> None:
        self.crop, self.detector = crop.widened(border) if border else crop, detector
        self.is_cropped, self.by_detector = is_cropped, by_detector
        self._template = np.asarray(crop.template)  # of the crop without a border

    @property
    def key(self) -> str:
        """All that decides how a face is found and cropped, in JSON."""
        detector = self.detector  # its file may hold another card
        spec = {k: v for k, v in self.crop.to_dict().items() if k not in ("mean", "std")}
        return json.dumps(
            [
                spec,
                self._template.tolist(),
                [onnx_weights_sha256(detector.path), detector.looks_twice] if detector else None,
                [self.is_cropped, self.by_detector],
                [DETECTION_SIDE, SURROUNDINGS, AROUND_BOX, SAME_FACE_IOU],
            ]
        )

    def needs_detector(self, rows: pl.DataFrame) -> bool:
        """Whether some row's face can only be told by a detector."""
        given = "landmarks" if self.crop.kind == "aligned" else "x1"
        return self.by_detector or rows[given].null_count() > 0

    def find(
        self, picture: np.ndarray, box: np.ndarray | None, landmarks: np.ndarray | None
    ) -> tuple[np.ndarray, Way] | None:
        """The map from picture to crop (2, 3), and how the face was found; None without one.

        picture uint8 (H, W, 3) RGB; box (4,) and landmarks (5, 2) as the dataset gives them. Raises
        ModelError where the detector gives no landmarks and the crop needs them.
        """
        is_aligned = self.crop.kind == "aligned"
        if not self.by_detector:
            if is_aligned and landmarks is not None:
                return self._matrix(_surrounding(landmarks), landmarks), "landmarks"
            if not is_aligned and box is not None:
                return self._matrix(box, None), "box"
        if self.detector is not None and (found := self._detected(picture, box)) is not None:
            return found, "detector"
        if self.by_detector or (box is None and not self.is_cropped):
            return None
        whole = np.array([0, 0, *picture.shape[1::-1]], np.float64) if box is None else box
        on_template = whole[:2] + self._template * (whole[2:] - whole[:2])
        return self._matrix(whole, on_template), "picture" if box is None else "box"

    def _detected(self, picture: np.ndarray, box: np.ndarray | None) -> np.ndarray | None:
        assert self.detector is not None
        in_place = not self.by_detector and (box is not None or self.is_cropped)
        faces = (detect_near(picture, box, self.detector) if in_place
                 else self.detector.detect(picture))  # fmt: skip
        if not len(faces):
            return None
        chosen = 0
        if box is not None and (in_place or len(faces) > 1):
            overlaps = overlap(faces.boxes, box)
            chosen = int(overlaps.argmax())  # the best-scored one where none overlaps
            if in_place and overlaps[chosen] < SAME_FACE_IOU:
                return None
        points = None if faces.landmarks is None else faces.landmarks[chosen]
        return self._matrix(faces.boxes[chosen], points)

    def _matrix(self, box: np.ndarray, landmarks: np.ndarray | None) -> np.ndarray:
        return self.crop.matrices(box[None], None if landmarks is None else landmarks[None])[0]


def detect_near(picture: np.ndarray, box: np.ndarray | None, detector: Detector) -> Faces:
    """The faces in and around a box, or in a picture that shows little but one, in its pixels.

    Small ones are enlarged first: faces that fill a picture of 48 pixels are out of the reach of
    detectors otherwise.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = 0, 0, width, height
    if box is not None:
        margin = AROUND_BOX * (box[2:] - box[:2])
        x0, y0 = np.floor(np.clip(box[:2] - margin, 0, (width - 1, height - 1))).astype(int)
        x1, y1 = np.ceil(np.clip(box[2:] + margin, (x0 + 1, y0 + 1), (width, height))).astype(int)
    piece = picture[y0:y1, x0:x1]
    scale = max(1.0, DETECTION_SIDE / min(piece.shape[:2]))
    enlarged = cv2.resize(piece, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    pad = round(min(enlarged.shape[:2]) * SURROUNDINGS) if box is None else 0
    padded = cv2.copyMakeBorder(enlarged, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    faces = detector.detect(padded)
    corner = np.array([x0, y0], np.float32)

    def placed(points: np.ndarray) -> np.ndarray:
        # Pixel centres: the middle of the first pixel is 0 before and after enlarging.
        return ((points - pad + 0.5) / scale - 0.5 + corner).astype(np.float32)

    boxes = placed(faces.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    landmarks = None if faces.landmarks is None else placed(faces.landmarks)
    return Faces(boxes, faces.scores, landmarks)


def overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with one (4,): (N,)."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-9)


def _surrounding(landmarks: np.ndarray) -> np.ndarray:
    return np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)])


def hints(rows: pl.DataFrame) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
    """Box (4,) and landmarks (5, 2) of each row, None where the dataset gives none."""
    boxes = rows.select(BOX).to_numpy().astype(np.float64)
    has_box = np.isfinite(boxes).all(axis=1)
    has_points = rows["landmarks"].is_not_null().to_numpy()
    points = np.zeros((len(rows), 5, 2))
    if has_points.any():
        points[has_points] = rows["landmarks"].drop_nulls().to_numpy().reshape(-1, 5, 2)
    for i in range(len(rows)):
        yield boxes[i] if has_box[i] else None, points[i] if has_points[i] else None


def pictures(
    dataset: Dataset, rows: pl.DataFrame
) -> Iterator[tuple[np.ndarray | None, float | None]]:
    """The picture of each located row, in order, uint8 (H, W, 3) RGB, and its time in seconds.

    None where there is none or it cannot be read. Rows of one video must be together and in its
    order.
    """
    if dataset.frames_in == "videos":
        runs = rows.group_by(pl.col("path").rle_id(), maintain_order=True)
        for _, group in runs:
            path, indices = group["path"][0], group["frame_index"].to_list()
            nothing = repeat((None, None), len(indices))
            yield from nothing if path is None else _frames(dataset.root / path, indices)
        return
    with ThreadPoolExecutor(thread_name_prefix="read") as threads:
        ahead: deque[Future[np.ndarray | None]] = deque()
        try:
            for path in rows["path"]:
                ahead.append(threads.submit(_read, dataset.root, path))
                if len(ahead) > PICTURES_AHEAD:
                    yield ahead.popleft().result(), None
            while ahead:
                yield ahead.popleft().result(), None
        finally:
            threads.shutdown(cancel_futures=True)


def _read(root: Path, path: str | None) -> np.ndarray | None:
    return None if path is None else read_picture(root / path)


def _frames(path: Path, indices: Sequence[int]) -> Iterator[tuple[np.ndarray | None, float | None]]:
    """Frames of a video by index, ascending; None for those that cannot be decoded."""
    wanted = iter(indices)
    index = next(wanted, None)
    try:
        for frame in VideoReader(probe(path)):
            while index is not None and index < frame.index:
                yield None, None
                index = next(wanted, None)
            if index is None:
                return
            if index == frame.index:
                yield frame.image, frame.time_s
                index = next(wanted, None)
    except VideoError:
        pass  # what it could not give is None
    while index is not None:
        yield None, None
        index = next(wanted, None)


def digest_of(dataset: Dataset, rows: pl.DataFrame) -> str:
    """A hash of located rows: their frames, files by name and size, and what is given of faces."""
    sizes = {p: _size(dataset.root / p) for p in rows["path"].unique().drop_nulls()}
    digest = hashlib.sha256()
    for video, path in rows.select("video", "path").iter_rows():
        digest.update(f"{video}:{path}:{sizes.get(path)}\n".encode())
    digest.update(rows["frame_index"].to_numpy().tobytes())
    digest.update(rows.select(BOX).to_numpy().astype(np.float32).tobytes())
    points = rows["landmarks"].drop_nulls()
    digest.update(rows["landmarks"].is_null().to_numpy().tobytes())
    digest.update(points.to_numpy().astype(np.float32).tobytes())
    return digest.hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None  # such as of a link to nothing; reading it will say so
