"""A label's face: how it is found, in which picture, and what makes it another one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import clips
from vafer.crops import CropSpec, cut, warp
from vafer.datasets.labels import BOX, Dataset, no_faces, to_labels
from vafer.errors import ModelError
from vafer.faces import Detector, Faces
from vafer.labelled import FaceFinder, detect_near, digest_of, hints, overlap, pictures
from vafer.options import DetectorOptions

ALIGNED, SQUARE = CropSpec(size=64), CropSpec("box", size=64)
BLANK = np.zeros((100, 200, 3), np.uint8)
POINTS = np.array([[42.0, 30], [58, 31], [50, 42], [44, 52], [57, 53]])


class Invented:
    """Finds given faces, best first, whatever it is shown."""

    def __init__(self, *boxes: Sequence[float], landmarks: bool = True) -> None:
        self.shown: list[tuple[int, ...]] = []
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        scores = np.linspace(0.9, 0.6, len(corners), dtype=np.float32)
        centres = (corners[:, None, :2] + corners[:, None, 2:]) / 2
        points = (centres + POINTS - POINTS.mean(axis=0)).astype(np.float32)
        self.faces = Faces(corners, scores, points if landmarks else None)

    def detect(self, image: np.ndarray) -> Faces:
        self.shown.append(image.shape)
        return self.faces


def finder(crop: CropSpec, detector: Any = None, **options: Any) -> FaceFinder:
    return FaceFinder(crop, cast("Detector", detector), **{"is_cropped": False, **options})


def sees(matrix: np.ndarray) -> np.ndarray:
    """The point of the picture that is in the middle of the crop."""
    to_picture: np.ndarray = cv2.invertAffineTransform(matrix)
    return to_picture @ [31.5, 31.5, 1]


def box_of(*corners: float) -> np.ndarray:
    return np.array(corners, np.float64)


class TestFind:
    def test_landmarks_of_the_dataset(self) -> None:
        """They suffice: no detector is asked, and it is no matter what the picture shows."""
        detector = Invented((0, 0, 9, 9))
        for box in (None, box_of(0, 0, 9, 9)):
            found = finder(ALIGNED, detector).find(BLANK, box, POINTS)
            assert found is not None
            matrix, way = found
            assert way == "landmarks"
            np.testing.assert_array_equal(
                matrix, ALIGNED.matrices(np.zeros((1, 4)), POINTS[None])[0]
            )
            reached = np.column_stack([POINTS, np.ones(5)]) @ matrix.T
            assert np.abs(reached - np.array(ALIGNED.template) * 64).max() < 5
        assert not detector.shown

    def test_a_box_suffices_for_a_crop_by_box(self) -> None:
        detector = Invented((0, 0, 9, 9))
        box = box_of(20, 30, 60, 50)
        for landmarks in (None, POINTS):
            found = finder(SQUARE, detector).find(BLANK, box, landmarks)
            assert found is not None
            np.testing.assert_allclose(sees(found[0]), [39.5, 39.5])
            assert found[1] == "box"
        assert not detector.shown

    def test_the_face_in_a_box_is_that_which_overlaps_it(self) -> None:
        # A piece of 60 × 60 is shown, from (20, 20) on, enlarged to 192 × 192.
        scale = 192 / 60
        best, other = (
            (np.array(corners) - 19.5) * scale - 0.5
            for corners in ([20, 20, 34, 34], [36, 34, 64, 66])
        )
        detector = Invented(best.tolist(), other.tolist())
        found = finder(ALIGNED, detector).find(BLANK, box_of(35, 35, 65, 65), None)
        assert found is not None
        matrix, way = found
        assert way == "detector"
        assert detector.shown == [(192, 192, 3)]
        middle = np.array(ALIGNED.template).mean(axis=0) * 64
        np.testing.assert_allclose(np.array([50, 50, 1]) @ matrix.T, middle, atol=1e-4)

    @pytest.mark.parametrize("detector", [None, Invented(), Invented((0, 0, 20, 20))])
    def test_a_box_in_which_nothing_is_found(self, detector: Any) -> None:
        """A face elsewhere is not its face. The crop's middle is then the box's."""
        box = box_of(35, 30, 65, 60)
        for is_cropped in (False, True):
            found = finder(ALIGNED, detector, is_cropped=is_cropped).find(BLANK, box, None)
            assert found is not None
            matrix, way = found
            assert way == "box"
            corners = np.array([[35, 30, 1], [65, 60, 1]]) @ matrix.T
            np.testing.assert_allclose(corners, [[0, 0], [64, 64]], atol=1e-9)

    @pytest.mark.parametrize("crop", [ALIGNED, SQUARE])
    def test_a_picture_of_one_face(self, crop: CropSpec) -> None:
        picture = BLANK[:, :100]
        detector = Invented((40, 40, 120, 120))
        found = finder(crop, detector, is_cropped=True).find(picture, None, None)
        assert found is not None
        assert found[1] == "detector"
        # Enlarged to 192, and a quarter more on every side.
        assert detector.shown == [(288, 288, 3)]
        for nothing in (None, Invented()):
            found = finder(crop, nothing, is_cropped=True).find(picture, None, None)
            assert found is not None
            matrix, way = found
            assert way == "picture"
            np.testing.assert_allclose(np.array([50, 50, 1]) @ matrix.T, [32, 32], atol=0.5)
            assert np.linalg.det(matrix[:, :2]) == pytest.approx(0.64**2)

    def test_a_large_picture_is_not_shrunk(self) -> None:
        detector = Invented()
        finder(ALIGNED, detector, is_cropped=True).find(
            np.zeros((400, 600, 3), np.uint8), None, None
        )
        assert detector.shown == [(600, 800, 3)]

    @pytest.mark.parametrize("crop", [ALIGNED, SQUARE])
    def test_a_whole_frame_is_never_a_crop(self, crop: CropSpec) -> None:
        for nothing in (None, Invented()):
            assert finder(crop, nothing).find(BLANK, None, None) is None
        detector = Invented((100, 20, 140, 60), (0, 0, 9, 9))
        found = finder(crop, detector).find(BLANK, None, None)
        assert found is not None
        assert found[1] == "detector"
        assert detector.shown == [BLANK.shape]
        assert sees(found[0])[0] > 100

    def test_by_detector_alone(self) -> None:
        """As annotation does it: the dataset only says which of several faces is meant."""
        for is_cropped in (False, True):
            options: dict[str, Any] = {"by_detector": True, "is_cropped": is_cropped}
            two = Invented((100, 20, 140, 60), (10, 20, 50, 60))
            cases = [
                (two, None, 119.5),
                (two, box_of(12, 20, 50, 60), 29.5),
                (two, box_of(60, 70, 70, 80), 119.5),  # near neither: the best
                (Invented((100, 20, 140, 60)), box_of(0, 0, 9, 9), 119.5),  # a lone face
            ]
            for detector, box, x in cases:
                found = finder(SQUARE, detector, **options).find(BLANK, box, POINTS)
                assert found is not None
                assert found[1] == "detector"
                assert sees(found[0])[0] == pytest.approx(x)
            assert two.shown == [BLANK.shape] * 3
            for box in (None, box_of(0, 0, 9, 9)):
                assert finder(ALIGNED, Invented(), **options).find(BLANK, box, POINTS) is None

    def test_a_detector_without_landmarks(self) -> None:
        detector = Invented((100, 20, 140, 60), landmarks=False)
        with pytest.raises(ModelError, match="use a detector with landmarks"):
            finder(ALIGNED, detector).find(BLANK, None, None)
        assert finder(SQUARE, detector).find(BLANK, None, None) is not None

    @pytest.mark.parametrize("crop", [ALIGNED, SQUARE])
    @pytest.mark.parametrize("box", [None, box_of(35, 30, 65, 60)])
    def test_a_border_shows_more_of_the_same(self, crop: CropSpec, box: Any) -> None:
        plain, wide = (
            finder(crop, is_cropped=True, border=border).find(BLANK, box, None) for border in (0, 8)
        )
        assert plain is not None
        assert wide is not None
        expected = plain[0] + np.array([[0, 0, 8], [0, 0, 8]])
        np.testing.assert_allclose(wide[0], expected, atol=1e-9)

    @pytest.mark.parametrize(
        "box", [(30, 30, 30, 30), (-50, -50, -10, -10), (500, 400, 600, 500), (0, 0, 200, 1)]
    )
    def test_boxes_that_make_no_sense(self, box: Any) -> None:
        found = finder(ALIGNED, Invented()).find(BLANK, box_of(*box), None)
        assert found is not None
        assert found[1] == "box"
        assert np.isfinite(found[0]).all()

    @pytest.mark.parametrize(
        ("crop", "options", "gone", "expected"),
        [
            (ALIGNED, {}, (), False),
            (ALIGNED, {}, ("landmarks",), True),
            (ALIGNED, {}, BOX, False),
            (SQUARE, {}, ("landmarks",), False),
            (SQUARE, {}, BOX, True),
            (SQUARE, {"by_detector": True}, (), True),
        ],
    )
    def test_when_a_detector_is_needed(
        self, crop: CropSpec, options: Any, gone: Sequence[str], expected: bool
    ) -> None:
        rows = labelled([("a", 0), ("a", 1)]).with_columns(
            pl.when(pl.col("frame_index") == 0).then(name) for name in gone
        )
        assert finder(crop, **options).needs_detector(rows) is expected


@pytest.fixture(scope="module")
def detector(yunet: Path) -> Detector:
    return Detector(yunet)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A face of 91 × 111 pixels around (224, 120)."""
    from skimage.data import astronaut

    return np.asarray(astronaut())  # type: ignore[no-untyped-call]


class TestARealFace:
    def test_in_its_box(self, portrait: np.ndarray, detector: Detector) -> None:
        """The same place is found as in the whole picture, at another scale."""
        whole = detector.detect(portrait)
        assert len(whole) == 1
        near = detect_near(portrait, whole.boxes[0].astype(np.float64), detector)
        assert whole.landmarks is not None
        assert near.landmarks is not None
        np.testing.assert_allclose(near.landmarks[0], whole.landmarks[0], atol=3)
        assert overlap(near.boxes, whole.boxes[0])[0] > 0.8

    def test_in_a_picture_of_it(self, portrait: np.ndarray, detector: Detector) -> None:
        whole = detector.detect(portrait)
        near = detect_near(portrait[:300, 40:400], None, detector)
        assert whole.landmarks is not None
        assert near.landmarks is not None
        np.testing.assert_allclose(near.landmarks[0] + [40, 0], whole.landmarks[0], atol=3)

    def test_of_two_that_of_the_box(self, portrait: np.ndarray, detector: Detector) -> None:
        small = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
        both = np.zeros((512, 768, 3), np.uint8)
        both[:, :512], both[128:384, 512:] = portrait, small
        faces = {512: portrait, 256: small}
        for x, y, side in ((0, 0, 512), (512, 128, 256)):
            truth = detector.detect(faces[side])
            offset = np.array([x, y, x, y])
            box = truth.boxes[0] + offset
            for by_detector in (False, True):
                found = finder(ALIGNED, detector, by_detector=by_detector).find(both, box, None)
                assert found is not None
                assert found[1] == "detector"
                assert truth.landmarks is not None
                points = np.column_stack([truth.landmarks[0] + [x, y], np.ones(5)])
                error = points @ found[0].T - np.array(ALIGNED.template) * 64
                assert np.abs(error).max() < 6

    def test_one_too_small_for_the_detector_as_it_is(
        self, portrait: np.ndarray, detector: Detector
    ) -> None:
        face = portrait[55:185, 165:285]
        tiny = cv2.resize(face, (16, 17), interpolation=cv2.INTER_AREA)
        assert not len(detector.detect(tiny))
        near = detect_near(tiny, None, detector)
        assert len(near) == 1
        assert near.landmarks is not None
        large = detect_near(face, None, detector).landmarks
        assert large is not None
        middles = near.landmarks[0].mean(axis=0) * 7.5, large[0].mean(axis=0)
        np.testing.assert_allclose(*middles, atol=8)
        found = finder(ALIGNED, detector, is_cropped=True).find(tiny, None, None)
        assert found is not None
        assert found[1] == "detector"

    def test_the_ways_show_the_same_face(self, portrait: np.ndarray, yunet: Path) -> None:
        strict = Detector(yunet, DetectorOptions(threshold=0.5))
        truth = strict.detect(portrait)
        assert truth.landmarks is not None
        box, points = truth.boxes[0].astype(float), truth.landmarks[0].astype(float)
        crops = []
        for find in (
            finder(ALIGNED).find(portrait, None, points),
            finder(ALIGNED, strict).find(portrait, box, None),
            finder(ALIGNED, strict).find(portrait, None, None),
        ):
            assert find is not None
            crops.append(warp([cut(portrait, find[0], 64)], 64)[0].numpy())
        for crop in crops[1:]:
            assert np.corrcoef(crop.ravel(), crops[0].ravel())[0, 1] > 0.9


@given(
    arrays(np.float64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(0, 7)),
    arrays(np.float64, 4, elements=st.integers(0, 7)),
)
def test_overlap_counts_pixels(boxes: np.ndarray, box: np.ndarray) -> None:
    def pixels(corners: np.ndarray) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = corners.astype(int)
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    def upright(corners: np.ndarray) -> np.ndarray:
        low, high = (
            np.minimum(corners[..., :2], corners[..., 2:]),
            np.maximum(corners[..., :2], corners[..., 2:]),
        )
        return np.concatenate([low, high], axis=-1)

    boxes, box = upright(boxes), upright(box)
    expected = [len(pixels(b) & pixels(box)) / max(1, len(pixels(b) | pixels(box))) for b in boxes]
    np.testing.assert_allclose(overlap(boxes, box), expected, atol=1e-12)


def labelled(frames: Sequence[tuple[str | None, int]], video: str = "v") -> pl.DataFrame:
    """Located rows of frames of files, each with a box and landmarks of its own."""
    n = len(frames)
    labels = to_labels({"video": [video] * n, "frame_index": 0, "valence": 0.0, "arousal": 0.0})
    numbers = np.arange(n * 10, dtype=np.float32).reshape(n, 10)
    return no_faces(
        labels.with_columns(
            pl.Series("frame_index", [index for _, index in frames], pl.Int32),
            pl.Series("path", [path for path, _ in frames], pl.String),
            *(pl.Series(name, numbers[:, i]) for i, name in enumerate(BOX)),
            pl.Series("landmarks", numbers, pl.Array(pl.Float32, 10)),
        )
    )


def dataset(root: Path, frames_in: Any) -> Dataset:
    return Dataset(
        "d", root, to_labels({"video": [], "frame_index": [], "valence": [], "arousal": []}),
        frames_in, None, lambda rows, must_exist: no_faces(rows),
    )  # fmt: skip


def test_hints() -> None:
    rows = labelled([("a", i) for i in range(4)]).with_columns(
        pl.when(pl.col("frame_index") != 1).then("landmarks").alias("landmarks"),
        pl.when(pl.col("frame_index") < 2).then("x2").alias("x2"),
    )
    found = list(hints(rows))
    assert [box is None for box, _ in found] == [False, False, True, True]
    assert [points is None for _, points in found] == [False, True, False, False]
    assert found[1][0].tolist() == [10, 11, 12, 13]  # type: ignore[union-attr]
    assert found[3][1].tolist() == np.arange(30, 40).reshape(5, 2).tolist()  # type: ignore[union-attr]
    assert list(hints(no_faces(rows.drop(*BOX, "landmarks")))) == [(None, None)] * 4
    assert list(hints(rows.head(0))) == []


class TestPictures:
    def read(self, root: Path, frames_in: Any, rows: pl.DataFrame) -> list[int | None]:
        found = pictures(dataset(root, frames_in), rows)
        return [None if picture is None else clips.read(picture) for picture, _ in found]

    def test_single_ones_in_order(self, tmp_path: Path) -> None:
        """More than are read ahead; large and small ones are done at different times."""
        paths: list[tuple[str | None, int]] = []
        expected: list[int | None] = []
        for i in range(90):
            side = 900 if i % 7 == 0 else 16
            picture = cv2.cvtColor(clips.draw(i, side, side), cv2.COLOR_RGB2BGR)
            path = tmp_path / f"{i}.png"
            if i % 10 != 3:
                cv2.imwrite(str(path), picture)
            if i % 10 == 4:
                path.write_bytes(path.read_bytes()[:60])
            paths.append((None if i % 10 == 5 else path.name, i))
            expected.append(None if i % 10 in (3, 4, 5) else i)
        paths, expected = paths[::-1], expected[::-1]
        for frames_in in ("pictures", "images"):
            assert self.read(tmp_path, frames_in, labelled(paths)) == expected
        assert {time for _, time in pictures(dataset(tmp_path, "images"), labelled(paths))} == {
            None
        }

    def test_only_a_few_are_read_ahead(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        class Counting(ThreadPoolExecutor):
            def submit(self, *args: Any, **kwargs: Any) -> Any:
                asked.append(args)
                return super().submit(*args, **kwargs)

        monkeypatch.setattr("vafer.labelled.ThreadPoolExecutor", Counting)
        reading = pictures(dataset(tmp_path, "images"), labelled([("a", i) for i in range(500)]))
        next(reading)
        assert len(asked) < 50
        reading.close()  # type: ignore[attr-defined]
        assert len(asked) < 50

    @pytest.mark.parametrize("name", ["b.mp4", "b.avi", "vfr.mp4", "vp9.webm"])
    def test_frames_of_a_video_by_index(self, name: str) -> None:
        path = clips.clip(name)
        wanted = [0, 1, 5, 6, 30, 47]
        rows = labelled([(path.name, i) for i in wanted])
        assert self.read(path.parent, "videos", rows) == wanted
        if name == "b.mp4":
            times = [time for _, time in pictures(dataset(path.parent, "videos"), rows)]
            np.testing.assert_allclose(np.array(times, float), np.array(wanted) / 24, atol=1e-6)

    def test_several_videos(self) -> None:
        """Also where rows of one come after those of another."""
        names = [clips.clip(name).name for name in ("plain.mp4", "b.mkv", "plain.mp4")]
        frames: list[tuple[str | None, int]] = [
            (name, i) for k, name in enumerate(names) for i in (k, 10 + k)
        ]
        frames[2:2] = [(None, 3), (None, 4)]
        rows = labelled(frames)
        assert self.read(clips.clip("b.mkv").parent, "videos", rows) == [
            0, 10, None, None, 1, 11, 2, 12,
        ]  # fmt: skip

    def test_frames_beyond_the_end(self) -> None:
        path = clips.clip("plain.mp4")
        rows = labelled([(path.name, i) for i in (46, 47, 48, 90)])
        assert self.read(path.parent, "videos", rows) == [46, 47, None, None]

    def test_frames_that_cannot_be_decoded_shift_nothing(self, tmp_path: Path) -> None:
        content = bytearray(clips.clip("b.mp4").read_bytes())
        n = len(content)
        content[n * 9 // 20 : n // 2] = bytes(n // 2 - n * 9 // 20)
        (tmp_path / "hole.mp4").write_bytes(content)
        rows = labelled([("hole.mp4", i) for i in range(48)])
        found = [picture for picture, _ in pictures(dataset(tmp_path, "videos"), rows)]
        lost = [i for i, picture in enumerate(found) if picture is None]
        assert lost
        assert 12 < min(lost) < max(lost) < 36
        for i in (*range(12), *range(36, 48)):  # a keyframe comes every 12
            assert clips.read(found[i]) == i

    def test_videos_that_cannot_be_read(self, tmp_path: Path) -> None:
        whole = clips.clip("b.ts").read_bytes()
        (tmp_path / "text.mp4").write_text("no video")
        (tmp_path / "cut.ts").write_bytes(whole[: len(whole) // 2])
        frames: list[tuple[str | None, int]] = [
            (name, i) for name in ("text.mp4", "gone.mp4") for i in (0, 7)
        ]
        assert self.read(tmp_path, "videos", labelled(frames)) == [None] * 4
        found = self.read(tmp_path, "videos", labelled([("cut.ts", i) for i in range(48)]))
        there = [i for i, number in enumerate(found) if number is not None]
        assert 5 < len(there) < 40
        assert found[47] is None


class TestDigest:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in "abc":
            (tmp_path / name).write_bytes(name.encode() * 9)
        return tmp_path

    ROWS = labelled([("a", 0), ("b", 1), (None, 2), ("c", 3)])

    def test_it_is_of_what_is_there(self, root: Path) -> None:
        digest = digest_of(dataset(root, "images"), self.ROWS)
        assert digest == digest_of(dataset(root, "pictures"), self.ROWS.clone())
        pieces = pl.concat([self.ROWS[:1], self.ROWS[1:]], rechunk=False)
        assert digest == digest_of(dataset(root, "images"), pieces)
        labels = self.ROWS.with_columns(valence=0.5, subject=pl.lit("x"))
        assert digest == digest_of(dataset(root, "images"), labels)

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows.with_columns(pl.col("frame_index") + 1),
            lambda rows: rows.with_columns(pl.col("video") + "_left"),
            lambda rows: rows.with_columns(path=pl.col("path").replace("a", "c")),
            lambda rows: rows.with_columns(path=pl.lit(None, pl.String)),
            *(lambda rows, name=name: rows.with_columns(pl.col(name) + 0.5) for name in BOX),
            lambda rows: rows.with_columns(x1=pl.col("y1"), y1=pl.col("x1")),
            lambda rows: rows.with_columns(y2=pl.lit(None, pl.Float32)),
            lambda rows: rows.with_columns(
                pl.when(pl.col("frame_index") != 1).then("landmarks").alias("landmarks")
            ),
            lambda rows: rows.with_columns(
                pl.Series("landmarks", rows["landmarks"].to_numpy() + 0.5, pl.Array(pl.Float32, 10))
            ),
            lambda rows: rows.with_columns(rows["landmarks"].reverse()),
            lambda rows: rows.reverse(),
            lambda rows: rows.head(3),
        ],
    )
    def test_rows_that_differ(
        self, root: Path, change: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> None:
        before = digest_of(dataset(root, "images"), self.ROWS)
        assert digest_of(dataset(root, "images"), change(self.ROWS)) != before

    def test_landmarks_of_another_row(self, root: Path) -> None:
        at = pl.col("frame_index")
        one, other = (
            self.ROWS.with_columns(
                pl.when(at == row)
                .then(pl.lit(self.ROWS["landmarks"][:1]).first())
                .alias("landmarks")
            )
            for row in (1, 3)
        )
        assert one["landmarks"].null_count() == other["landmarks"].null_count() == 3
        assert digest_of(dataset(root, "images"), one) != digest_of(dataset(root, "images"), other)

    def test_a_file_of_another_size(self, root: Path) -> None:
        before = digest_of(dataset(root, "images"), self.ROWS)
        (root / "b").write_bytes(b"b" * 10)
        assert digest_of(dataset(root, "images"), self.ROWS) != before
