"""What scenes are composed of: pictures of faces, recordings, and where the faces in them are.

A free detector (YuNet, Apache-2.0) says where; nobody drew these boxes by hand.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import skimage

from train.sets import NO_IDENTITY, fold_of
from vafer.download import sha256
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
    "smile_cry_smile.mp4",
    "turning_head.mp4",
    "crowd_1080p.mp4",
    "portrait_hevc_1080x1920.mp4",
    "no_face.mp4",
)
TABLES = ("fer2013.parquet", "lfw_expressions.parquet")  # of faces
SURE, DOUBTFUL = 0.6, 0.1  # scores from which there is a face, and below which there is none
EVERY = 3  # frames of a recording
# Pictures without a face that ship inside scikit-image; its others are for judging.
SCENERY = (
    "brick.png", "cell.png", "clock_motion.png", "color.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "page.png", "retina.jpg",
    "rocket.jpg", "text.png",
)  # fmt: skip
PICTURES = (".jpg", ".jpeg", ".png")
SCENERY_SIDE, LEAST_SCENERY = 640, 48  # longer side that pictures get, shorter one they then need
MOST_FRAMES = 60  # of a recording, so that none outweighs the others
LONGEST = 800  # longer side that frames are kept at
# And photographs of people. Small ones are enlarged to find faces in them, which finds more.
LONGEST_OF_PEOPLE, ENLARGED_TO_FIND = 1280, 2.0
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
    """Pictures of single faces, frames with their faces, pictures without any, and photographs of
    people with their faces, of which at least one is sure. face_free: more pictures without any,
    chosen for being hard, so that they are no sample of anything."""

    portraits: list[Labelled]
    frames: list[Labelled]
    scenery: list[Labelled]
    people: list[Labelled] = field(default_factory=list)
    face_free: list[Labelled] = field(default_factory=list)


def load_material(
    faces: Path,
    videos: Path,
    teacher: Path,
    cache: Path,
    on_progress: Callable[[str], None],
    *,
    scenery: Sequence[Path] = (),
    face_free: Path | None = None,
    people: Path | None = None,
) -> Material:
    """Label everything, once; kept in `cache`. Raises UsageError where something is missing.

    faces: folder of fer2013.parquet and lfw_expressions.parquet, whose test parts are left out.
    videos: folder of recordings. teacher: ONNX detector with landmarks. scenery: folders of
    pictures without a face; those in which the teacher is sure of one are left out. face_free:
    folder of such pictures that a person has looked at, which are kept whatever the teacher says.
    Of both, what is smaller than `LEAST_SCENERY` or has not 8 bits a channel is left out. people:
    folder of photographs of people; those in which it is sure of nobody are left out. In none may
    be what the detector is judged on.
    """
    for folder in (faces, videos, *scenery, face_free, people):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
    for table in TABLES:
        if not (faces / table).is_file():
            raise UsageError(f"{faces} holds no {table}: expected {' and '.join(TABLES)}")
    detector = Detector(teacher, DetectorOptions(threshold=DOUBTFUL, size=LONGEST_OF_PEOPLE))
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
        of_file = source.path.is_file()
        digest = sha256(source.path)[:12] if of_file else _digest(source.path)
        name = f"{source.path.name}-{LONGEST}-{EVERY}-{digest}"
        of_source = labelled(name, partial(_frames, source.path, detector))
        frames += of_source[:: -(-len(of_source) // MOST_FRAMES)]
    of_tables = "-".join(sha256(faces / table)[:12] for table in TABLES)
    portraits = labelled(f"portraits-{of_tables}", partial(_portraits, faces, detector))

    def without_a_face(folder: Path) -> list[Labelled]:
        return labelled(
            f"scenery-{SCENERY_SIDE}-{_digest(folder)}", partial(_scenery, folder, detector)
        )

    files = [*map(_shipped, SCENERY)]
    for folder in scenery:
        files += [one.file for one in without_a_face(folder) if not one.sure.any()]
    hard = [one.file for one in without_a_face(face_free)] if face_free is not None else []
    groups = []
    if people is not None:
        found = labelled(
            f"people-{LONGEST_OF_PEOPLE}-{ENLARGED_TO_FIND:g}-{_digest(people)}",
            partial(_people, people, detector),
        )
        groups = [picture for picture in found if picture.sure.any()]
    empty, hard_ones = list(map(_without_face, files)), list(map(_without_face, hard))
    return Material(portraits, frames, empty, groups, hard_ones)


def _shipped(name: str) -> bytes:
    return (Path(skimage.__file__).parent / "data" / name).read_bytes()


def _without_face(file: bytes) -> Labelled:
    nothing = np.empty((0, 4), np.float32)
    return Labelled(file, nothing, nothing.reshape(0, 5, 2), np.empty(0, bool))


def _pictures_in(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES and f.is_file())
    if not files:
        raise UsageError(
            f"{folder} has no pictures: expected files ending in {', '.join(PICTURES)}"
        )
    return files


def _digest(folder: Path) -> str:
    """Of a folder's pictures, by their names and sizes."""
    told = [(str(f.relative_to(folder)), f.stat().st_size) for f in _pictures_in(folder)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _scenery(folder: Path, detector: Detector) -> Iterator[Labelled]:
    for path in _pictures_in(folder):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is None or picture.dtype != np.uint8:
            continue
        scale = min(1.0, SCENERY_SIDE / max(picture.shape[:2]))
        size = (round(scale * picture.shape[1]), round(scale * picture.shape[0]))
        if min(size) < LEAST_SCENERY:
            continue
        if picture.ndim == 2:
            picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        if picture.shape[2] == 4:  # on a grey of its own
            grey = 255 * np.random.default_rng(len(path.name)).random()
            alpha = picture[..., 3:] / np.float32(255)
            picture = (alpha * picture[..., :3] + (1 - alpha) * grey).astype(np.uint8)
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        found = detector.detect(np.ascontiguousarray(picture[..., ::-1]))
        assert found.landmarks is not None
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        yield Labelled(jpeg.tobytes(), found.boxes, found.landmarks, found.scores >= SURE)


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
    fer2013, lfw_expressions = TABLES
    try:
        fer = pl.read_parquet(faces / fer2013).filter(pl.col("split") == "train")
        lfw = pl.read_parquet(faces / lfw_expressions)
        lfw = lfw.filter(
            (pl.col("identity") != NO_IDENTITY)
            & pl.col("identity").map_elements(lambda i: fold_of(i, LFW_FOLDS) > 0, pl.Boolean)
        )
        jpegs = [*fer["jpeg"], *lfw["jpeg"]]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(
            f"{faces} cannot be used: {error}. Expected {fer2013} with the columns split and jpeg, "
            f"and {lfw_expressions} with identity and jpeg"
        ) from error
    for jpeg in jpegs:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        found = detect_near(np.asarray(picture), None, detector)
        if len(found) and found.scores[0] >= SURE and found.landmarks is not None:
            yield Labelled(jpeg, found.boxes[:1], found.landmarks[:1], np.ones(1, bool))


def _frames(path: Path, detector: Detector) -> Iterator[Labelled]:
    for frame in VideoReader(probe(path), sampling=Sampling(every=EVERY)):
        yield _labelled(_shrunk_to(LONGEST, frame.image), detector)


def _people(folder: Path, detector: Detector) -> Iterator[Labelled]:
    for path in _pictures_in(folder):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if picture is not None and min(picture.shape[:2]) >= LEAST_SCENERY:
            picture = _shrunk_to(LONGEST_OF_PEOPLE, picture)
            scale = min(ENLARGED_TO_FIND, LONGEST_OF_PEOPLE / max(picture.shape[:2]))
            yield _labelled(picture, detector, scale)


def _shrunk_to(longest: int, picture: np.ndarray) -> np.ndarray:
    scale = min(1.0, longest / max(picture.shape[:2]))
    size = [max(1, round(scale * side)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _labelled(picture: np.ndarray, detector: Detector, scale: float = 1.0) -> Labelled:
    """A picture, RGB, with what is found in it when it is enlarged by `scale`."""
    seen = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector.detect(seen)
    assert found.landmarks is not None
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return Labelled(
        jpeg.tobytes(), found.boxes / scale, found.landmarks / scale, found.scores >= SURE
    )
