"""Labels and predictions: which recordings are one, which face is meant, what is missing."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_output import add, run
from tests.test_table import RUN, frame
from vafer.datasets.aff_wild2 import SIDE
from vafer.datasets.labels import BOX, Dataset, no_faces, to_labels
from vafer.errors import UsageError
from vafer.matching import (
    KEY,
    join,
    match_videos,
    predictions_for,
    scored_values,
)
from vafer.output import Output
from vafer.predictions import read_predictions
from vafer.table import TableWriter, read_batches, to_batch

Key = tuple[str, int]
Box = tuple[float, float, float, float]


def dataset(
    frames: Mapping[str, Sequence[int]],
    recordings: Mapping[str, str] | None = None,
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> Dataset:
    """frames: the labelled ones of each video. numbers: of the pictures in its folder."""
    keys = [(video, index) for video, indices in frames.items() for index in indices]
    labels = to_labels(
        {
            "video": pl.Series([video for video, _ in keys], dtype=pl.String),
            "frame_index": [index for _, index in keys],
            "valence": [0.5] * len(keys),
            "arousal": [-0.5] * len(keys),
        }
    )

    def picture_numbers(video: str) -> np.ndarray | None:
        return np.array(numbers[video]) if numbers and video in numbers else None

    return Dataset(
        "aff-wild2", Path("/data"), labels, "pictures", None,
        lambda rows, must_exist: no_faces(rows),
        recordings=recordings or {}, picture_numbers=picture_numbers,
    )  # fmt: skip


def located(wanted: Dataset, boxes: Mapping[Key, Box] | None = None) -> pl.DataFrame:
    rows = no_faces(wanted.labels)
    given = [(boxes or {}).get(key, (None,) * 4) for key in rows.select(KEY).iter_rows()]
    return rows.with_columns(
        pl.Series(name, [box[i] for box in given], pl.Float32) for i, name in enumerate(BOX)
    )


def table(tmp_path: Path, rows: Sequence[Mapping[str, Any]], name: str = "p.parquet") -> Path:
    path = tmp_path / name
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


def row(video: str, index: int, valence: float | None, **more: Any) -> dict[str, Any]:
    arousal = None if valence is None else -valence
    return {"video": video, "frame_index": index, "valence": valence, "arousal": arousal, **more}


def predicted(wanted: Dataset, path: Path, **located_by: Any) -> dict[Key, float | None]:
    """The valence of every frame that was predicted; arousal is its negative."""
    notices: list[str] = []
    found = predictions_for(
        wanted, located(wanted, **located_by), read_predictions(path), notices.append
    )
    assert found.columns == [*KEY, "time_s", "valence", "arousal"]
    assert not found.select(KEY).is_duplicated().any()
    values = found["valence"].to_list()
    assert [None if v is None else -v for v in values] == found["arousal"].to_list()
    rounded = [None if v is None else round(v, 4) for v in values]
    return dict(zip(found.select(KEY).iter_rows(), rounded, strict=True))


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UsageError) as error:
        read_predictions(path)
    text = str(error.value)
    assert path.name in text
    assert re.search(r"[Ee]xpected", text)
    assert "\n" not in text
    for part in parts:
        assert part in text


class TestReading:
    def test_what_annotate_wrote(self, tmp_path: Path) -> None:
        path = tmp_path / "results.parquet"
        frames = [frame(i, i % 3) for i in range(6)]
        with TableWriter(path, RUN) as writer:
            writer.write(to_batch("a/b.mp4", frames))
        written = pl.DataFrame(pl.concat(map(pl.DataFrame, read_batches(path))))
        found = read_predictions(path)
        assert found.equals(written.select(found.columns).cast(found.schema))
        faces = {"face_index", "track_id", *BOX}
        assert {*found.columns} == {*KEY, "pts", "time_s", "valence", "arousal", *faces}

    def test_a_folder_that_annotate_wrote(self, tmp_path: Path) -> None:
        """Names that look like patterns are names, and files of others are left alone."""
        output = Output(tmp_path / "results", run())
        for video, n in (("a/x[1].mp4", 2), ("b*/y?.mp4", 3), ("z.mp4", 1)):
            add(output, video, n)
        table(tmp_path / "results", [row("other", 0, 0.5)], "other.parquet")
        found = read_predictions(tmp_path / "results")
        counts = dict(found.group_by("video").agg(pl.col("frame_index").n_unique()).iter_rows())
        assert counts == {"a/x[1].mp4": 2, "b*/y?.mp4": 3, "z.mp4": 1}

    @pytest.mark.parametrize("name", ["p.parquet", "p[1].parquet", "p.pq"])
    def test_four_columns_are_enough(self, tmp_path: Path, name: str) -> None:
        found = read_predictions(table(tmp_path, [row("x", 3, 0.25)], name))
        assert found.row(0, named=True) == {
            **row("x", 3, 0.25),
            **dict.fromkeys(("time_s", "face_index", "track_id", *BOX)),
        }

    def test_a_csv_file(self, tmp_path: Path) -> None:
        path = tmp_path / "P[1].CSV"
        path.write_text(
            "name,frame_index,video,arousal,valence\n"
            "a,0,001,0.5,-0.25\nb,1.0,001,,\nc,2,010,nan,0.5\nd,3,010,0.5,inf\n"
        )
        assert read_predictions(path).select(*KEY, "valence", "arousal").rows() == [
            ("001", 0, -0.25, 0.5),
            ("001", 1, None, None),
            ("010", 2, None, None),
            ("010", 3, None, None),
        ]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
    @pytest.mark.parametrize("where", ["valence", "arousal"])
    def test_values_that_are_none(self, tmp_path: Path, bad: float | None, where: str) -> None:
        path = table(tmp_path, [row("x", 0, 0.5), {**row("x", 1, 0.5), where: bad}])
        found = read_predictions(path)
        assert found.select("valence", "arousal").rows() == [(0.5, -0.5), (None, None)]

    def test_other_types_of_the_same_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "p.parquet"
        pl.DataFrame(
            {
                "video": pl.Series(["x", "y"], dtype=pl.Categorical),
                "frame_index": pl.Series([3.0, 2.0**31 - 1]),
                "valence": pl.Series([1, 0], dtype=pl.Int8),
                "arousal": ["0.5", "-1"],
            }
        ).write_parquet(path)
        assert read_predictions(path).select(*KEY, "valence", "arousal").rows() == [
            ("x", 3, 1.0, 0.5),
            ("y", 2**31 - 1, 0.0, -1.0),
        ]

    @pytest.mark.parametrize("gone", ["video", "frame_index", "valence", "arousal"])
    def test_columns_that_are_missing(self, tmp_path: Path, gone: str) -> None:
        rows = [{k: v for k, v in row("x", 0, 0.5).items() if k != gone} | {"v": 1}]
        refused(table(tmp_path, rows), f"lacks the columns {gone};", "v. Expected at least video")

    def test_what_is_no_table(self, tmp_path: Path) -> None:
        refused(tmp_path / "gone.parquet", "no such file", "vafer annotate")
        refused(tmp_path / "gone.csv", "no such file")
        for name in ("empty.parquet", "empty.csv", "text.txt", "odd.parquet"):
            (tmp_path / name).write_text("" if "empty" in name else "hello")
            refused(tmp_path / name, "cannot be read", "Parquet or CSV")
        (tmp_path / "ragged.csv").write_text("video,frame_index,valence,arousal\na,0,1,1,2\n")
        refused(tmp_path / "ragged.csv", "found more fields")
        (tmp_path / "hello.csv").write_text("hello\nworld\n")
        refused(tmp_path / "hello.csv", "lacks the columns video", "found hello")

    def test_a_folder_without_a_table(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        table(tmp_path / "results", [row("x", 0, 0.5)])
        refused(tmp_path / "results", "found a folder without a table of vafer in it", "--out")

    @pytest.mark.parametrize(
        ("column", "value", "found"),
        [
            ("valence", "much", "much"),
            ("arousal", [0.5], "List"),
            ("frame_index", "first", "first"),
            ("frame_index", 3.5, "frame_index 3.5"),
            ("frame_index", -1, "frame_index -1"),
            ("frame_index", 2**31, "frame_index 2147483648"),
            ("frame_index", None, "frame_index None"),
            ("frame_index", math.nan, "frame_index nan"),
            ("video", None, "video None"),
            ("track_id", "he", "he"),
        ],
    )
    def test_wrong_types(self, tmp_path: Path, column: str, value: Any, found: str) -> None:
        refused(table(tmp_path, [{**row("x", 0, 0.5), column: value}]), found, "orrect")

    def test_a_name_that_polars_cannot_take(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no UTF-8"):
            read_predictions(tmp_path / "caf\udce9.parquet")


AFEW = {"001": "01/001", "002": "01/002", "300": "06/300"}


class TestVideos:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["01/001", "01/002"], {"001": "01/001", "002": "01/002"}),  # annotated from the root
            (["001", "300"], {"001": "001", "300": "300"}),  # a part, or a flat copy
            (["001.mp4", "x/300.AVI"], {"001": "001.mp4", "300": "x/300.AVI"}),
            (["x/01/001"], {"001": "x/01/001"}),  # from above the root
            (["1", "01", "0001", "001.txt", "x001"], {}),
            (["01/001", "elsewhere/001", "001.mp4"], {"001": "01/001"}),  # by path goes first
        ],
    )
    def test_clips(self, names: list[str], expected: dict[str, str]) -> None:
        wanted = dataset({key: [0] for key in AFEW}, AFEW)
        for order in (names, names[::-1]):
            assert match_videos(wanted, [*AFEW], order) == expected

    def test_films(self) -> None:
        wanted = dataset({"105": [0], "106": [0]}, {"105": "videos/train/105.mp4"})
        for name in ("videos/train/105.mp4", "train/105.mp4", "105.mp4", "105.avi", "105"):
            assert match_videos(wanted, ["105", "106"], [name]) == {"105": name}

    def test_dots_in_names(self) -> None:
        videos = ["a.b", "a", "10.5-x", "v1.0.mp4-cut"]
        wanted = dataset({key: [0] for key in videos})
        names = [f"in.put/{video}" for video in videos]
        assert match_videos(wanted, videos, names) == dict(zip(videos, names, strict=True))
        assert match_videos(wanted, videos, ["a.b.mp4"]) == {"a.b": "a.b.mp4"}

    def test_pictures(self) -> None:
        wanted = dataset({"1/a.jpg": [0], "2/b.png": [0]})
        names = ["Manually_Annotated_Images/1/a.jpg", "b.jpg"]
        assert match_videos(wanted, ["1/a.jpg", "2/b.png"], names) == {
            "1/a.jpg": names[0],
            "2/b.png": "b.jpg",
        }

    def test_two_recordings_of_one_name(self) -> None:
        wanted = dataset({"105": [0], "106": [0]}, {"105": "videos/train/105.mp4"})
        names = ["x/105.mp4", "y/105.avi"]
        with pytest.raises(UsageError, match=r"x/105.mp4' and 'y/105.avi'.*videos/train/105.mp4"):
            match_videos(wanted, ["105"], names)
        assert match_videos(wanted, ["106"], names) == {}  # not asked for

    def test_two_labelled_pictures_of_one_name(self) -> None:
        """AffectNet's npy release numbers both of its sets from 0."""
        wanted = dataset({"train_set/images/5.jpg": [0], "val_set/images/5.jpg": [0]})
        own = ["val_set/images/5.jpg"]
        other = ["train_set/images/5.jpg"]
        assert match_videos(wanted, own, [*own, *other]) == {own[0]: own[0]}
        assert match_videos(wanted, own, other) == {}  # the other's, by its path
        with pytest.raises(UsageError, match=r"images/5.jpg' may be of train_set.* or of val_set"):
            match_videos(wanted, own, ["images/5.jpg"])

    def test_two_people_in_one_video(self) -> None:
        sides = ["x_left", "x_right"]
        wanted = dataset({key: [0] for key in sides}, dict.fromkeys(sides, "cropped_aligned/x"))
        for name in ("cropped_aligned/x", "x", "batch1/x.mp4"):
            assert match_videos(wanted, sides, [name]) == dict.fromkeys(sides, name)
        assert match_videos(dataset({key: [0] for key in sides}), sides, ["x"]) == dict.fromkeys(
            sides, "x"
        )
        own = ["a/x_left.mp4", "a/x_right.mp4", "a/x.mp4"]
        assert match_videos(wanted, sides, own) == dict(zip(sides, own[:2], strict=True))

    def test_the_crops_of_one_person_are_not_of_another(self) -> None:
        videos = ["x", "x_right"]
        crops = {video: f"cropped_aligned/{video}" for video in videos}
        wanted = dataset({key: [0] for key in videos}, crops)
        assert match_videos(wanted, videos, ["x", "x_right"]) == {"x": "x", "x_right": "x_right"}
        assert match_videos(wanted, videos, ["x"]) == {"x": "x"}
        assert match_videos(wanted, videos, ["x.mp4"]) == dict.fromkeys(videos, "x.mp4")

    def test_people_who_share_a_folder_of_crops(self) -> None:
        videos = ["x", "x_left"]
        wanted = dataset({v: [0] for v in videos}, dict.fromkeys(videos, "cropped_aligned/x"))
        for name in ("x", "cropped_aligned/x"):
            assert match_videos(wanted, videos, [name]) == dict.fromkeys(videos, name)

    def test_nothing_that_fits(self, tmp_path: Path) -> None:
        path = table(tmp_path, [row("y", 0, 0.5)])
        with pytest.raises(UsageError, match=r"the predictions are of y, the labels of x; expec"):
            predicted(dataset({"x": [0]}), path)
        path.unlink()
        pl.DataFrame(schema=dict.fromkeys(row("x", 0, 0.5), pl.Float64)).write_parquet(path)
        with pytest.raises(UsageError, match="the predictions are of nothing, the labels of x"):
            predicted(dataset({"x": [0]}), path)

    def test_what_is_not_asked_for_is_counted(self, tmp_path: Path) -> None:
        path = table(tmp_path, [row(video, 0, 0.5) for video in "xyz"])
        notices: list[str] = []
        wanted = dataset({"x": [0]})
        found = predictions_for(wanted, located(wanted), read_predictions(path), notices.append)
        assert found["video"].to_list() == ["x"]
        assert notices == ["2 of 3 predicted recordings are not among those scored"]


class TestFrames:
    def test_they_meet_by_index_never_by_order(self, tmp_path: Path) -> None:
        rows = [row(f"in/{v}.mp4", i, i / 100 + (v == "b")) for v in "ba" for i in (9, 4, 2, 7)]
        wanted = dataset({"a": [2, 3, 4], "b": [4, 9, 11]})
        found = predicted(wanted, table(tmp_path, rows))
        expected = {(v, i): i / 100 + (v == "b") for v in "ab" for i in (2, 4, 7, 9)}
        assert found == expected
        assert [*found] == sorted(expected)

        frames = join(located(wanted), predictions_for(
            wanted, located(wanted), read_predictions(tmp_path / "p.parquet"), print
        ))  # fmt: skip
        assert frames.columns == [*KEY, "time_s", "valence_label", "arousal_label", "valence",
                                  "arousal", "subject"]  # fmt: skip
        assert frames.select(KEY).rows() == wanted.labels.select(KEY).rows()
        assert frames["valence_label"].to_list() == [0.5] * 6
        assert [None if v is None else round(v, 4) for v in frames["valence"]] == [
            expected.get(key) for key in frames.select(KEY).iter_rows()
        ]

    def test_times_are_those_of_the_table(self, tmp_path: Path) -> None:
        path = table(tmp_path, [row("x", i, 0.5, time_s=i / 10) for i in range(3)])
        wanted = dataset({"x": [1]}, numbers={"x": [7, 8, 9]})
        found = predictions_for(wanted, located(wanted), read_predictions(path), print)
        assert found.select("frame_index", "time_s").rows() == [(0, 0.0), (1, 0.1), (2, 0.2)]

    def test_a_folder_of_sparse_pictures(self, tmp_path: Path) -> None:
        """Without timestamps, as annotate writes it, an index is a place in the folder."""
        wanted = dataset(
            {"x": [*range(30)], "y": [0, 1, 2]},
            {"x": "cropped_aligned/x", "y": "videos/y.mp4"},
            {"x": [3, 4, 8, 19]},
        )
        rows = [row("cropped_aligned/x", place, place / 10, pts=None) for place in (3, 0, 2)]
        rows += [row("videos/y.mp4", i, i / 10, pts=i) for i in range(2)]
        found = predicted(wanted, table(tmp_path, rows))
        assert found == {("x", 3): 0.0, ("x", 8): 0.2, ("x", 19): 0.3, ("y", 0): 0.0, ("y", 1): 0.1}

    def test_a_folder_as_annotate_writes_it(self, tmp_path: Path) -> None:
        path = tmp_path / "results.parquet"
        with TableWriter(path, RUN) as writer:
            writer.write(to_batch("x", [frame(i, 1, time=False) for i in range(3)]))
        wanted = dataset({"x": [*range(9)]}, numbers={"x": [2, 5, 6]})
        found = predictions_for(wanted, located(wanted), read_predictions(path), print)
        assert found["frame_index"].to_list() == [2, 5, 6]
        assert found["valence"].to_list() == [frame(i, 1).values[0, 0] for i in range(3)]
        assert found["time_s"].to_list() == [None] * 3

    @pytest.mark.parametrize("more", [{}, {"time_s": None}], ids=["no column", "no times"])
    def test_without_timestamps_indices_are_of_labels(self, tmp_path: Path, more: dict) -> None:
        wanted = dataset({"x": [0, 1, 2]}, numbers={"x": [5, 6, 7]})
        rows = [row("x", i, i / 10, **more) for i in range(3)]
        assert [*predicted(wanted, table(tmp_path, rows))] == [("x", 0), ("x", 1), ("x", 2)]

    def test_a_time_that_is_missing_makes_no_folder(self, tmp_path: Path) -> None:
        wanted = dataset({"x": [0, 1]}, numbers={"x": [5, 6]})
        rows = [row("x", i, 0.5, pts=pts) for i, pts in enumerate([0, None])]
        assert [*predicted(wanted, table(tmp_path, rows))] == [("x", 0), ("x", 1)]

    def test_a_folder_that_is_another_now(self, tmp_path: Path) -> None:
        wanted = dataset({"x": [0]}, numbers={"x": [0, 1]})
        path = table(tmp_path, [row("x", i, 0.5, pts=None) for i in range(3)])
        with pytest.raises(UsageError, match=r"x go up to picture 2.* holds 2\. Predict it again"):
            predicted(wanted, path)

    def test_pictures_of_two_people(self, tmp_path: Path) -> None:
        wanted = dataset({"x_left": [5], "x_right": [7]}, numbers={"x_left": [5], "x_right": [7]})
        found = predicted(wanted, table(tmp_path, [row("x", 0, 0.5, pts=None)]))
        assert found == {("x_left", 5): 0.5, ("x_right", 7): 0.5}

    @pytest.mark.parametrize(
        "more",
        [
            ({}, {}),
            ({"face_index": 0}, {"face_index": 0}),
            ({"x1": 1.0}, {"x1": 1.0}),
            ({"track_id": 4}, {"track_id": 4}),
            ({"face_index": 0, "track_id": 1}, {"face_index": 0, "track_id": 2}),
        ],
    )
    def test_a_face_that_is_there_twice(self, tmp_path: Path, more: Any) -> None:
        rows = [row("x", 0, 0.1), row("x", 8, 0.1, **more[0]), row("x", 8, 0.2, **more[1])]
        with pytest.raises(UsageError, match=r"x, frame 8 more than once; expected one row a fra"):
            predicted(dataset({"x": [0]}), table(tmp_path, rows))


@dataclass(frozen=True)
class Seen:
    """A face in a table; place: its face_index."""

    index: int
    value: float | None
    track: int | None
    box: Box | None
    place: int


def iou(a: Box | None, b: Box | None) -> float:
    """By counting pixels."""
    if a is None or b is None:
        return 0.0
    inside = [
        {(x, y) for x in range(12) for y in range(12) if q[0] <= x < q[2] and q[1] <= y < q[3]}
        for q in (a, b)
    ]
    return len(inside[0] & inside[1]) / len(inside[0] | inside[1])


def others_than(side: str, faces: Sequence[Seen], length: Counter[int]) -> set[int]:
    """Tracks that are on the other side in most frames of two people or more."""
    votes: dict[int, list[bool]] = {}
    for index in {face.index for face in faces}:
        pair = sorted(
            (-length[face.track], face.track, face.box[0] + face.box[2])
            for face in faces
            if face.index == index and face.track is not None and face.box is not None
        )[:2]
        if len(pair) == 2 and pair[0][2] != pair[1][2]:
            left, right = sorted(pair, key=lambda face: face[2])
            votes.setdefault(left[1], []).append(side == "right")
            votes.setdefault(right[1], []).append(side == "left")
    return {track for track, other in votes.items() if sum(other) > len(other) / 2}


def chosen(label: str, faces: Sequence[Seen], boxes: Mapping[Key, Box]) -> dict[Key, float | None]:
    """The value of the face that a label means in each frame of its recording."""
    length = Counter(face.track for face in faces if face.track is not None)
    side = SIDE.search(label)
    others = others_than(side[1], faces, length) if side else set()
    found: dict[Key, float | None] = {}
    for index in {face.index for face in faces}:
        box, best = boxes.get((label, index)), None
        for face in faces:
            is_one = face.index == index and face.track not in others
            if is_one and (best is None or goes_before(face, best, box, length)):
                best = face
        found[label, index] = best.value if best else None
    return found


def goes_before(a: Seen, b: Seen, box: Box | None, length: Counter[int]) -> bool:
    if iou(a.box, box) != iou(b.box, box):
        return iou(a.box, box) > iou(b.box, box)
    if a.track is None or b.track is None:
        return a.track is not None or (b.track is None and a.place < b.place)
    return (-length[a.track], a.track) < (-length[b.track], b.track)


corners = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6))
box_or_none = st.none() | corners.map(
    lambda c: (float(c[0]), float(c[1]), float(c[0] + c[2]), float(c[1] + c[3]))
)
frames_of_faces = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(st.tuples(st.none() | st.sampled_from([-0.5, 0.1, 0.8]), box_or_none), max_size=3),
        st.permutations([None, 1, 2, 3]),
        st.tuples(box_or_none, box_or_none),
    ),
    min_size=1,
    max_size=14,
)
LABELS_OF = {"a": ("a",), "b": ("b_left", "b_right")}


@settings(max_examples=300)
@given(frames_of_faces, st.randoms(use_true_random=False))
def test_the_face_that_is_meant(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], random: Any
) -> None:
    faces: dict[str, list[Seen]] = {"a": [], "b": []}
    boxes: dict[Key, Box] = {}
    frames: dict[str, list[int]] = {}
    rows = []
    for i, (video, found, tracks, given_boxes) in enumerate(drawn):
        for label, box in zip(LABELS_OF[video], given_boxes, strict=False):
            frames.setdefault(label, []).append(i)
            boxes |= {} if box is None else {(label, i): box}
        nobody = [] if found else [Seen(i, None, None, None, 0)]  # as annotate says it
        of_frame = [Seen(i, found[k][0], tracks[k], found[k][1], k) for k in range(len(found))]
        faces[video] += of_frame or nobody
        rows += [
            row(f"in/{video}.mp4", i, face.value, track_id=face.track)
            | {"face_index": face.place if found else None}
            | dict(zip(BOX, face.box or (None,) * 4, strict=True))
            for face in of_frame or nobody
        ]
    random.shuffle(rows)
    path = tmp_path_factory.mktemp("p") / "p.parquet"
    kinds: dict[str, Any] = dict.fromkeys(("valence", "arousal", *BOX), pl.Float64)
    kinds |= dict.fromkeys(("track_id", "face_index"), pl.Int64)
    pl.DataFrame(rows, schema_overrides=kinds).write_parquet(path)
    expected: dict[Key, float | None] = {}
    for label in frames:
        expected |= chosen(label, faces[label[0]], boxes)
    assert predicted(dataset(frames), path, boxes=boxes) == expected


class TestFaces:
    """What the reference above says, said in examples."""

    def test_a_lone_face_needs_no_overlap(self, tmp_path: Path) -> None:
        path = table(tmp_path, [row("x", 0, 0.5, **at(90), face_index=0)])
        assert predicted(dataset({"x": [0]}), path, boxes={("x", 0): (0, 0, 9, 9)}) == {
            ("x", 0): 0.5
        }

    def test_the_one_in_the_box(self, tmp_path: Path) -> None:
        rows = [row("x", 0, k / 10, **at(10 * k), face_index=k, track_id=k) for k in range(4)]
        rows += [row("x", i, 0.9, **at(0), face_index=0, track_id=0) for i in (1, 2, 3)]
        wanted, path = dataset({"x": [0]}), table(tmp_path, rows)
        assert predicted(wanted, path, boxes={("x", 0): (18, 0, 28, 9)})["x", 0] == 0.2
        assert predicted(wanted, path, boxes={("x", 0): (50, 0, 60, 9)})["x", 0] == 0.0
        assert predicted(wanted, path)["x", 0] == 0.0

    def test_the_longest_track_else_the_first_face(self, tmp_path: Path) -> None:
        rows = [row("x", 0, k / 10, face_index=k, track_id=k) for k in (0, 1)]
        rows += [row("x", 1, 0.7, face_index=0, track_id=1)]
        assert predicted(dataset({"x": [0]}), table(tmp_path, rows)) == {
            ("x", 0): 0.1,
            ("x", 1): 0.7,
        }
        rows = [row("x", 0, k / 10, face_index=k) for k in (2, 1, 3)]
        assert predicted(dataset({"x": [0]}), table(tmp_path, rows)) == {("x", 0): 0.1}

    def test_tracks_alone_tell_faces_apart(self, tmp_path: Path) -> None:
        rows = [row("x", i, k / 10, track_id=k) for k in (2, 1) for i in range(k, 3)]
        found = predicted(dataset({"x": [2]}), table(tmp_path, rows))
        assert found == {("x", 1): 0.1, ("x", 2): 0.1}

    def test_without_an_index_the_first_in_the_table(self, tmp_path: Path) -> None:
        rows = [row("x", i, (k + 1) / 10, **at(10 * k)) for i in range(50) for k in (3, 1, 2)]
        found = predicted(dataset({"x": [0]}), table(tmp_path, rows))
        assert found == {("x", i): 0.4 for i in range(50)}

    @pytest.mark.parametrize("none", [None, math.nan])
    def test_a_value_that_is_none_is_not_replaced_by_anothers(
        self, tmp_path: Path, none: float | None
    ) -> None:
        rows = [row("x", 0, none, **at(0), face_index=0), row("x", 0, 0.5, **at(20), face_index=1)]
        wanted, path = dataset({"x": [0]}), table(tmp_path, rows)
        assert predicted(wanted, path, boxes={("x", 0): (0, 0, 9, 9)}) == {("x", 0): None}
        assert predicted(wanted, path, boxes={("x", 0): (20, 0, 29, 9)}) == {("x", 0): 0.5}

    def test_a_frame_without_a_face_was_analysed(self, tmp_path: Path) -> None:
        rows = [row("x", 0, 0.5, face_index=0), row("x", 1, None, face_index=None)]
        assert predicted(dataset({"x": [0, 1, 2]}), table(tmp_path, rows)) == {
            ("x", 0): 0.5,
            ("x", 1): None,
        }

    def test_the_person_on_that_side(self, tmp_path: Path) -> None:
        """The left is track 1; track 2 is longer, and alone in frame 3; 5 is never beside one."""
        people = {0: {1: 0, 2: 50}, 1: {1: 40, 2: 30}, 2: {1: 0, 2: 50}, 3: {2: 0}, 4: {5: 0},
                  5: {2: 50}}  # fmt: skip
        rows = [
            row("x.mp4", i, track / 10, **at(x), face_index=k, track_id=track)
            for i, of_frame in people.items()
            for k, (track, x) in enumerate(of_frame.items())
        ]
        wanted = dataset({side: [*people] for side in ("x_left", "x_right")})
        found = predicted(wanted, table(tmp_path, rows))
        assert [found["x_left", i] for i in people] == [0.1, 0.1, 0.1, None, 0.5, None]
        assert [found["x_right", i] for i in people] == [0.2, 0.2, 0.2, 0.2, 0.5, 0.2]

    def test_no_side_in_the_crops_of_one_person(self, tmp_path: Path) -> None:
        """A passer-by at the edge of a crop says nothing of who the crop shows."""
        rows = [
            row("x_left", 0, 0.1, **at(0), face_index=0, track_id=9),
            *(row("x_left", i, 0.2, **at(30), face_index=1, track_id=1) for i in range(5)),
        ]
        wanted = dataset({"x_left": [*range(5)]}, {"x_left": "cropped_aligned/x_left"})
        assert {*predicted(wanted, table(tmp_path, rows)).values()} == {0.2}


def at(x: float) -> dict[str, float]:
    return dict(zip(BOX, (x, 0.0, x + 9, 9.0), strict=True))


sparse = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=25, unique=True
)


@given(sparse, sparse, st.sets(st.integers(0, 24)), st.sampled_from(["drop", "neutral", "carry"]))
def test_missing_predictions(
    labelled: list[Key], there: list[Key], without: set[int], missing: str
) -> None:
    values = {key: None if i in without else (i + 1) / 32 for i, key in enumerate(there)}
    predictions = pl.DataFrame(
        {
            "video": [video for video, _ in there],
            "frame_index": [index for _, index in there],
            "time_s": [None] * len(there),
            "valence": [*values.values()],
            "arousal": [None if v is None else -v for v in values.values()],
        },
        schema_overrides={"frame_index": pl.Int32, "time_s": pl.Float64, "valence": pl.Float32,
                          "arousal": pl.Float32},
    )  # fmt: skip
    labels = pl.DataFrame(
        {
            "video": [video for video, _ in labelled],
            "frame_index": [index for _, index in labelled],
            "valence": 0.25,
            "arousal": 0.5,
            "subject": None,
        },
        schema_overrides={"frame_index": pl.Int32},
    )
    frames = join(labels, predictions)
    scored = scored_values(frames, predictions, missing)

    expected = []
    for video, index in labelled:
        value = values.get((video, index))
        if value is None and missing == "neutral":
            value = 0.0
        if missing == "carry":
            for before in range(index + 1):
                value = values.get((video, before)) or value
        expected.append(value)
    assert scored.columns == frames.columns
    assert scored.schema["valence"] == pl.Float32
    assert scored.select(KEY).rows() == labelled
    assert scored["valence"].to_list() == expected
    assert scored["arousal"].to_list() == [None if v is None else -v for v in expected]
    assert scored["valence_label"].to_list() == [0.25] * len(labelled)


def test_the_last_prediction_is_carried_on() -> None:
    """From a frame without a label too; not from before the first, nor from another video."""
    keys = [("a", 0), ("a", 5), ("a", 9), ("b", 0), ("b", 2)]
    labels = pl.DataFrame(
        {"video": [v for v, _ in keys], "frame_index": [i for _, i in keys], "valence": 0.0,
         "arousal": 0.0, "subject": None},
        schema_overrides={"frame_index": pl.Int32},
    )  # fmt: skip
    predictions = pl.DataFrame(
        {"video": ["a", "a", "a", "b"], "frame_index": [4, 5, 7, 1], "time_s": None,
         "valence": [0.5, None, 0.25, 0.125], "arousal": [0.5, None, 0.25, 0.125]},
        schema_overrides={"frame_index": pl.Int32},
    )  # fmt: skip
    scored = scored_values(join(labels, predictions), predictions, "carry")
    assert scored["valence"].to_list() == [None, 0.5, 0.25, None, 0.125]
