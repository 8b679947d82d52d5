"""What scenes are composed of: pictures of faces, recordings, and where the faces in them are.

A free detector (YuNet, Apache-2.0) says where; nobody drew these boxes by hand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import skimage

from train.sets import NO_IDENTITY, fold_of
from vafer.errors import UsageError
from vafer.faces import Detector
from vafer.files import write_whole
from vafer.inputs import find_sources
from vafer.labelled import detect_near
from vafer.options import DetectorOptions, Sampling
from vafer.probe import probe
from vafer.video import VideoReader

# Judged on, never trained on. In no_face.mp4 there is nothing to find.
HELD_OUT = (
    "crowd_1080p.mp4",
    "no_face.mp4",
    "portrait_hevc_1080x1920.mp4",
    "smile_cry_smile.mp4",
    "turning_head.mp4",
)
SURE, DOUBTFUL = 0.6, 0.1  # scores from which there is a face, and below which there is none
EVERY = 3  # frames of a recording
# Pictures without a face that ship inside scikit-image; its others are for judging.
SCENERY = (
    "brick.png", "cell.png", "clock_motion.png", "color.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "page.png", "retina.jpg",
    "rocket.jpg", "text.png",
)  # fmt: skip
MOST_FRAMES = 60  # of a recording, so that none outweighs the others
LONGEST = 800  # longer side that frames are kept at
LFW_FOLDS = 5  # of which the first is held out everywhere


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture, as a JPEG or PNG file holds it, and its faces.

    boxes (N, 4): x1, y1, x2, y2. points (N, 5, 2). sure: bool (N,), the others may be faces.
    """

    file: bytes
    boxes: np.ndarray
    points: np.ndarray
    sure: np.ndarray

    def picture(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        picture = cv2.imdecode(np.frombuffer(self.file, np.uint8), cv2.IMREAD_COLOR_RGB)
        return np.asarray(picture)


@dataclass(frozen=True, slots=True)
class Material:
    """Pictures of single faces, frames with their faces, and pictures without any."""

    portraits: list[Labelled]
    frames: list[Labelled]
    scenery: list[Labelled]


def load_material(
    faces: Path, videos: Path, teacher: Path, cache: Path, on_progress: Callable[[str], None]
) -> Material:
    """Label everything, once; kept in `cache`. Raises UsageError where something is missing.

    faces: folder of fer2013.parquet and lfw_expressions.parquet, whose test parts are left out.
    videos: folder of recordings. teacher: ONNX detector with landmarks.
    """
    detector = Detector(teacher, DetectorOptions(threshold=DOUBTFUL, size=LONGEST))
    sources = [s for s in find_sources([videos]) if s.path.name not in HELD_OUT]
    if not sources:
        raise UsageError(f"{videos} has no recordings to train on: expected those of the card")
    cache.mkdir(parents=True, exist_ok=True)

    def labelled(name: str, make: Callable[[], Iterator[Labelled]]) -> list[Labelled]:
        path = cache / f"{name}-{detector.sha256[:12]}.parquet"
        if not path.is_file():
            on_progress(f"labelling {name}")
            write_whole(path, _table(list(make())).write_parquet)
        return _read(path)

    frames = []
    for source in sources:
        of_source = labelled(source.path.name, partial(_frames, source.path, detector))
        frames += of_source[:: -(-len(of_source) // MOST_FRAMES)]
    portraits = labelled("portraits", partial(_portraits, faces, detector))
    return Material(portraits, frames, [_without_face(name) for name in SCENERY])


def _without_face(name: str) -> Labelled:
    picture = (Path(skimage.__file__).parent / "data" / name).read_bytes()
    nothing = np.empty((0, 4), np.float32)
    return Labelled(picture, nothing, nothing.reshape(0, 5, 2), np.empty(0, bool))


def _read(path: Path) -> list[Labelled]:
    return [
        Labelled(
            jpeg,
            np.reshape(boxes, (-1, 4)).astype(np.float32),
            np.reshape(points, (-1, 5, 2)).astype(np.float32),
            np.array(sure, bool),
        )
        for jpeg, boxes, points, sure in pl.read_parquet(path).iter_rows()
    ]


def _table(found: list[Labelled]) -> pl.DataFrame:
    values, flags = pl.List(pl.Float32), pl.List(pl.Boolean)
    return pl.DataFrame(
        [(p.file, p.boxes.ravel(), p.points.ravel(), p.sure) for p in found],
        schema={"file": pl.Binary, "boxes": values, "points": values, "sure": flags},
        orient="row",
    )


def _portraits(faces: Path, detector: Detector) -> Iterator[Labelled]:
    fer = pl.read_parquet(faces / "fer2013.parquet").filter(pl.col("split") == "train")
    lfw = pl.read_parquet(faces / "lfw_expressions.parquet")
    lfw = lfw.filter(
        (pl.col("identity") != NO_IDENTITY)
        & pl.col("identity").map_elements(lambda i: fold_of(i, LFW_FOLDS) > 0, pl.Boolean)
    )
    for jpeg in (*fer["jpeg"], *lfw["jpeg"]):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        found = detect_near(np.asarray(picture), None, detector)
        if len(found) and found.scores[0] >= SURE and found.landmarks is not None:
            yield Labelled(jpeg, found.boxes[:1], found.landmarks[:1], np.ones(1, bool))


def _frames(path: Path, detector: Detector) -> Iterator[Labelled]:
    for frame in VideoReader(probe(path), sampling=Sampling(every=EVERY)):
        picture = frame.image
        scale = min(1.0, LONGEST / max(picture.shape[:2]))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = detector.detect(picture)
        assert found.landmarks is not None
        _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        yield Labelled(jpeg.tobytes(), found.boxes, found.landmarks, found.scores >= SURE)
