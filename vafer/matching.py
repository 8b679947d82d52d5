"""Labels ⋈ predictions: which recording is which, which face of a frame is meant, what is missing.

They meet by recording and frame index, never by order or time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import polars as pl

from vafer.datasets.aff_wild2 import SIDE
from vafer.datasets.labels import BOX, Dataset, some
from vafer.errors import UsageError
from vafer.pictures import PICTURE_SUFFIXES
from vafer.probe import VIDEO_SUFFIXES

MISSING = ("drop", "carry", "neutral")
KEY = ("video", "frame_index")
ROWS_AT_ONCE = 1_000_000
_GIVEN = {name: f"{name}_given" for name in BOX}
_PLACED = {"video": pl.String, "frame_index": pl.Int32, "number": pl.Int32}


def match_videos(
    dataset: Dataset, videos: Sequence[str], predicted: Sequence[str]
) -> dict[str, str]:
    """The recording in a table of predictions that each labelled video is: by path, else by stem.

    Those without one are left out; so is what is another labelled video by path. Raises UsageError
    where a stem is that of several.
    """
    labelled = dataset.labels["video"].unique().sort().to_list()
    by_path = {name for video in labelled for name in _names(dataset, video)}
    by_stem: dict[str, list[str]] = {}
    for name in predicted:
        if name not in by_path:
            by_stem.setdefault(_stem(name), []).append(name)
    n_called = Counter(map(_stem, labelled))
    there, found = {*predicted}, {}
    for video in videos:
        match = next((name for name in _names(dataset, video) if name in there), None)
        if match is None:
            stems = (_stem(video), SIDE.sub("", video))
            candidates = next((by_stem[stem] for stem in stems if stem in by_stem), [])
            if len(candidates) > 1:
                raise UsageError(
                    f"the predictions hold {candidates[0]!r} and {candidates[1]!r}; expected one "
                    f"that is the labelled video {video}. Predict the folders apart, or name them "
                    f"as in the dataset: {_names(dataset, video)[0]}"
                )
            if candidates and n_called[stems[0]] > 1:
                same = [other for other in labelled if _stem(other) == stems[0]]
                raise UsageError(
                    f"the prediction of {candidates[0]!r} may be of {same[0]} or of {same[1]}; "
                    "expected a name that is of one. Name predictions as in the dataset"
                )
            match = next(iter(candidates), None)
        if match is not None:
            found[video] = match
    return found


def _names(dataset: Dataset, video: str) -> tuple[str, ...]:
    """What stands for a labelled video alone: its path, its name, and that of its recording, which
    two people may share.
    """
    recording = dataset.recordings.get(video)
    if recording is None:
        return video, SIDE.sub("", video)
    return recording, video, _stem(recording)


def _stem(video: str) -> str:
    path = PurePosixPath(video)
    is_file = path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES
    return path.stem if is_file else path.name


def predictions_for(
    dataset: Dataset, labels: pl.DataFrame, table: pl.DataFrame, on_notice: Callable[[str], None]
) -> pl.DataFrame:
    """A table of predictions → one a frame of each labelled video: the face that the label means.

    labels: located rows. Gives video, frame_index, time_s, valence, arousal; null values where the
    frame was analysed and has none. Raises UsageError where nothing fits, or a key is there twice.
    """
    videos = labels["video"].unique().sort().to_list()
    names = table["video"].unique().sort().to_list()
    matched = match_videos(dataset, videos, names)
    if not matched:
        raise UsageError(
            "no prediction is of a labelled video: the predictions are of "
            f"{some(names) or 'nothing'}, the labels of {some(videos)}; expected the same paths or "
            "file names. Predict the recordings of this dataset, or rename"
        )
    if without := [video for video in videos if video not in matched]:
        on_notice(
            f"{len(without):,} of {len(videos):,} labelled recordings have no prediction: "
            f"{some(without)}. They are matched by path or file name, zeros and all"
        )
    unused = len({*names} - {*matched.values()})
    if unused:
        on_notice(f"{unused:,} of {len(names):,} predicted recordings are not among those scored")
    pairs = pl.DataFrame(
        {
            "label": [*matched],
            "video": [*matched.values()],
            "wants_left": [_wants_left(label, name) for label, name in matched.items()],
        },
        schema_overrides={"wants_left": pl.Boolean},
    )
    return pl.concat(
        _faces_meant(
            dataset,
            labels.filter(pl.col("video").is_in(some_pairs["label"].implode())),
            some_pairs.join(table, on="video", maintain_order="left_right"),
        )
        for some_pairs in _in_groups(pairs, table)
    )


def _in_groups(pairs: pl.DataFrame, table: pl.DataFrame) -> list[pl.DataFrame]:
    """Recordings in groups of about ROWS_AT_ONCE predictions, which bounds the memory."""
    counts = table.group_by("video").agg(n=pl.len())
    before = pl.col("n").cum_sum() - pl.col("n")
    grouped = pairs.join(counts, on="video", how="left", maintain_order="left").with_columns(
        group=before // ROWS_AT_ONCE
    )
    return [part.drop("n", "group") for part in grouped.partition_by("group", maintain_order=True)]


def _faces_meant(dataset: Dataset, labels: pl.DataFrame, faces: pl.DataFrame) -> pl.DataFrame:
    faces = _numbered_as_labels(dataset, faces.drop("video").rename({"label": "video"}))
    _refuse_twice(faces)
    times = faces.group_by(KEY).agg(pl.col("time_s").first())
    return times.join(_meant(labels, faces), on=KEY, how="left").sort(KEY)


def _wants_left(video: str, predicted: str) -> bool | None:
    """Of two people in a recording, whether the left one is meant; None where it shows one."""
    side = SIDE.search(video)
    return side[1] == "left" if side and _stem(predicted) == SIDE.sub("", video) else None


def _numbered_as_labels(dataset: Dataset, faces: pl.DataFrame) -> pl.DataFrame:
    """Frame indices of a folder of pictures are places in it → those of the labels."""
    if "pts" not in faces.columns:
        return faces
    numbers = pl.concat([pl.DataFrame(schema=_PLACED), *_places(dataset, faces)])
    placed = faces.join(numbers, on=KEY, how="left", maintain_order="left")
    return placed.with_columns(pl.coalesce("number", "frame_index").alias("frame_index")).drop(
        "number"
    )


def _places(dataset: Dataset, faces: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Of each recording that is a folder of numbered pictures, the number of every place in it."""
    videos = faces.group_by("video").agg(
        pl.col("pts").is_null().all().alias("is_folder"), pl.col("frame_index").max()
    )
    for video, last in videos.filter("is_folder").drop("is_folder").iter_rows():
        numbers = dataset.picture_numbers(video)
        if numbers is None:
            continue
        if last >= len(numbers):
            raise UsageError(
                f"the predictions of {video} go up to picture {last}, counted from 0; expected "
                f"those of its folder, which holds {len(numbers):,}. Predict it again"
            )
        yield pl.DataFrame(
            {"video": video, "frame_index": range(len(numbers)), "number": numbers}, schema=_PLACED
        )


def _refuse_twice(faces: pl.DataFrame) -> None:
    """A face is there once: a frame with several must tell them apart."""
    apart = ["face_index"] if faces["face_index"].is_not_null().any() else ["track_id", *BOX]
    twice = faces.filter(faces.select(*KEY, *apart).is_duplicated()).head(1)
    if len(twice):
        raise UsageError(
            f"the predictions hold {twice['video'][0]}, frame {twice['frame_index'][0]} more than "
            "once; expected one row a frame, or faces told apart by face_index, track_id or boxes. "
            "Leave one of the rows out, or add such a column"
        )


def _meant(labels: pl.DataFrame, faces: pl.DataFrame) -> pl.DataFrame:
    """One face a frame: a lone one; else that which overlaps the label's box most; else that of
    the longest track. Of two people in a video, `_left` and `_right` tell whom.
    """
    has_track = pl.col("track_id").is_not_null()
    faces = faces.with_columns(length=pl.when(has_track).then(pl.len().over("video", "track_id")))
    boxes = labels.select(*KEY, pl.col(BOX).name.map(_GIVEN.__getitem__))
    ranked = (
        faces.join(_other_person(faces), on=["video", "track_id"], how="anti")
        .join(boxes, on=KEY, how="left", maintain_order="left")
        .with_columns(overlap=_overlap())
        .sort(
            "video", "frame_index", "overlap", "length", "track_id", "face_index",
            descending=[False, False, True, True, False, False],
            nulls_last=True,
            maintain_order=True,
        )
    )  # fmt: skip
    return ranked.unique(KEY, keep="first", maintain_order=True).select(*KEY, "valence", "arousal")


def _overlap() -> pl.Expr:
    """Intersection over union of a face with the given box; 0 where one of them has none."""
    own = {name: pl.col(name) for name in BOX}
    given = {name: pl.col(_GIVEN[name]) for name in BOX}
    width = pl.min_horizontal(own["x2"], given["x2"]) - pl.max_horizontal(own["x1"], given["x1"])
    height = pl.min_horizontal(own["y2"], given["y2"]) - pl.max_horizontal(own["y1"], given["y1"])
    shared = width.clip(0) * height.clip(0)
    areas = sum((b["x2"] - b["x1"]) * (b["y2"] - b["y1"]) for b in (own, given))
    has_both = pl.all_horizontal(pl.col(*BOX, *_GIVEN.values()).is_finite()).fill_null(False)
    return pl.when(has_both & (shared > 0)).then(shared / (areas - shared)).otherwise(0.0)


def _other_person(faces: pl.DataFrame) -> pl.DataFrame:
    """Whom a label of one side does not mean, as video and track_id.

    A track is on the side where it is in most of the frames that show two people or more, of the
    two longest tracks there; one that is never beside another may be either.
    """
    sided = faces.with_columns(middle=pl.col("x1") + pl.col("x2")).filter(
        pl.all_horizontal(pl.col("wants_left", "track_id", "middle").is_not_null())
    )
    longest = sided.sort("length", "track_id", descending=[True, False]).group_by(KEY).head(2)
    beside = longest.filter(pl.col("middle").n_unique().over(KEY) == 2)
    is_left = pl.col("middle") == pl.col("middle").min().over(KEY)
    sides = (
        beside.with_columns(is_other=is_left != pl.col("wants_left"))
        .group_by("video", "track_id")
        .agg(pl.col("is_other").mean())
    )
    return sides.filter(pl.col("is_other") > 0.5)


def join(labels: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """Located labels and one prediction a frame → rows of `frames.parquet`, and the subject."""
    renamed = {"valence": "valence_label", "arousal": "arousal_label"}
    labelled = labels.select(*KEY, *renamed, "subject").rename(renamed)
    predicted = predictions.select(*KEY, "time_s", "valence", "arousal")
    joined = labelled.join(predicted, on=KEY, how="left", maintain_order="left", validate="m:1")
    return joined.select(
        *KEY, "time_s", "valence_label", "arousal_label", "valence", "arousal", "subject"
    )


def scored_values(frames: pl.DataFrame, predictions: pl.DataFrame, missing: str) -> pl.DataFrame:
    """The values that frames are scored with: where there is no prediction, none (`drop`), 0
    (`neutral`), or the last one before in the same video (`carry`; none before the first).
    """
    values = ("valence", "arousal")
    if missing == "neutral":
        return frames.with_columns(pl.col(values).fill_null(0.0))
    if missing == "drop":
        return frames
    known = predictions.select(*KEY, *values).drop_nulls().sort("frame_index")
    carried = (
        frames.drop(values)
        .with_row_index("row")
        .sort("frame_index")
        .join_asof(known, on="frame_index", by="video", check_sortedness=False)
    )
    return carried.sort("row").select(frames.columns)
