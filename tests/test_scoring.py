"""Scores and intervals of a table against plain NumPy over its rows."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from vafer import scoring
from vafer.scoring import score

DIMENSIONS = ("valence", "arousal")
NAMES = ("rmse", "sagr", "pcc", "ccc")
EMPTY = pl.DataFrame(
    schema={
        "video": pl.String,
        "subject": pl.String,
        "valence_label": pl.Float64,
        "arousal_label": pl.Float64,
        "valence": pl.Float32,
        "arousal": pl.Float32,
    }
)


def table(video: list[str], subject: list[str | None], values: np.ndarray) -> pl.DataFrame:
    """Rows from values (N, 4): the labels, then the predictions, NaN where there is none."""
    columns = {name: values[:, i] for i, name in enumerate(EMPTY.columns[2:])}
    frames = pl.DataFrame({"video": video, "subject": subject, **columns}, schema=EMPTY.schema)
    return frames.with_columns(pl.col(DIMENSIONS).fill_nan(None))


def clips(seed: int = 0) -> pl.DataFrame:
    """Ten videos of some thirty frames, shuffled: three subjects have two each, two have none, and
    one of these is named like a subject; 07 is constant, 08 has no predictions, 09 has one.
    """
    rng = np.random.default_rng(seed)
    names = ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09"]
    subjects = [None, "c", "b", "b", "00", "00", "c", None, "d", "e"]
    of_frame = rng.permutation(np.repeat(np.arange(10), rng.integers(20, 40, 10)))
    labels = np.round(
        rng.normal(0, 0.4, (10, 2))[of_frame] + rng.normal(0, 0.3, (len(of_frame), 2)), 1
    )
    predicted = (0.5 * labels + rng.normal(0, 0.3, labels.shape)).astype(np.float32)
    labels[of_frame == 7] = 0.3
    predicted[(rng.random(len(of_frame)) < 0.2) | (of_frame == 8)] = np.nan
    predicted[np.flatnonzero(of_frame == 9)] = np.nan
    predicted[np.flatnonzero(of_frame == 9)[3]] = 0.25
    return table(
        [names[i] for i in of_frame], [subjects[i] for i in of_frame], np.c_[labels, predicted]
    )


def plain(label: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    label, predicted = label.astype(np.float64), predicted.astype(np.float64)
    if not len(label):
        return dict.fromkeys(NAMES)
    found: dict[str, float | None] = {
        "rmse": np.sqrt(np.mean((label - predicted) ** 2)),
        "sagr": np.mean(np.sign(label) == np.sign(predicted)),
        "pcc": None,
        "ccc": None,
    }
    if np.ptp(label) and np.ptp(predicted):
        (var_y, cov), (_, var_p) = np.cov(label, predicted, ddof=0)
        found["pcc"] = cov / np.sqrt(var_y * var_p)
        found["ccc"] = 2 * cov / (var_y + var_p + (label.mean() - predicted.mean()) ** 2)
    return found


def by_hand(frames: pl.DataFrame) -> dict[str, Any]:
    scored = frames.drop_nulls(DIMENSIONS)
    return {"n_labelled": len(frames), "n_scored": len(scored)} | {
        d: plain(scored[f"{d}_label"].to_numpy(), scored[d].to_numpy()) for d in DIMENSIONS
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal to 1e-9, whatever intervals there are besides."""
    assert found["n_labelled"] == expected["n_labelled"]
    assert found["n_scored"] == expected["n_scored"]
    for dimension in DIMENSIONS:
        for name in NAMES:
            value, wanted = found[dimension][name], expected[dimension][name]
            assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-9))


@pytest.mark.parametrize("rows_at_once", [7, 1 << 20])
@pytest.mark.parametrize("by", ["subject", "video", "frame"])
def test_scores_are_those_of_a_loop(
    by: Any, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", rows_at_once)
    frames = clips()
    found = score(frames, by=by, n_resamples=0)
    assert_same(found["overall"], by_hand(frames))
    for kind in ("video", "subject"):
        names = sorted({n for n in frames[kind] if n is not None}) if by != "frame" else []
        assert [row[kind] for row in found[f"per_{kind}"]] == names
        for row in found[f"per_{kind}"]:
            assert_same(row, by_hand(frames.filter(pl.col(kind) == row[kind])))


def test_scores_are_not_the_mean_over_videos() -> None:
    found = score(clips(), by="video", n_resamples=0)
    of_videos = [row["valence"]["ccc"] for row in found["per_video"]]
    mean = np.mean([ccc for ccc in of_videos if ccc is not None])
    assert abs(found["overall"]["valence"]["ccc"] - mean) > 0.05


def units_of(frames: pl.DataFrame, by: str) -> list[pl.DataFrame]:
    """The scored frames of each unit in order: subjects, then videos of unknown ones."""
    scored = frames.drop_nulls(DIMENSIONS)
    if by == "frame":
        return [scored[i] for i in range(len(scored))]
    of_known = pl.col(by).is_not_null()
    return [
        unit
        for kind, part in ((by, scored.filter(of_known)), ("video", scored.filter(~of_known)))
        for unit in part.sort(kind, maintain_order=True).partition_by(kind)
    ]


@pytest.mark.parametrize("draws_at_once", [1, 1 << 20])
@pytest.mark.parametrize(("by", "n_units"), [("subject", 6), ("video", 9), ("frame", None)])
def test_intervals_are_those_of_the_frames_of_resampled_units(
    by: Any, n_units: int | None, draws_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "DRAWS_AT_ONCE", draws_at_once)
    frames, n_resamples, seed = clips(), 40, 5
    units = units_of(frames, by)
    found = score(frames, by=by, n_resamples=n_resamples, seed=seed)
    assert found["bootstrap"] == {
        "by": by,
        "n_units": n_units or frames["valence"].count(),
        "n_blocks": None,
        "n_resamples": n_resamples,
        "seed": seed,
        "level": 0.95,
    }
    draws = np.random.default_rng(seed).integers(len(units), size=(n_resamples, len(units)))
    resampled = [by_hand(pl.concat([units[i] for i in drawn])) for drawn in draws]
    for dimension in DIMENSIONS:
        for name in NAMES:
            values = [r[dimension][name] for r in resampled if r[dimension][name] is not None]
            expected = np.percentile(values, [2.5, 97.5])
            interval = found["overall"][dimension][f"{name}_ci"]
            assert interval == pytest.approx(expected, abs=1e-9)
            assert interval[0] < interval[1]


def test_frames_of_one_subject_are_alike_and_the_interval_knows() -> None:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(20), 50)
    bias = rng.normal(0, 0.3, (20, 2))[who]
    labels = rng.uniform(-1, 1, (1000, 2))
    names = [f"{i:02d}" for i in who]
    frames = table(names, names, np.c_[labels, labels + bias + rng.normal(0, 0.1, (1000, 2))])
    subjects, singles = (score(frames, by=by)["overall"] for by in ("subject", "frame"))
    for dimension in DIMENSIONS:
        for name in ("rmse_ci", "pcc_ci", "ccc_ci"):
            assert np.diff(subjects[dimension][name]) > 2 * np.diff(singles[dimension][name])


def test_many_units_are_bunched_and_the_interval_hardly_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, (5000, 2))
    predicted = 0.7 * labels + rng.normal(0, 0.3, labels.shape)
    predicted[::5] = np.nan
    names = [f"{i:04d}" for i in range(5000)]
    frames = table(names, [None] * 5000, np.c_[labels, predicted])
    singly = score(frames, by="frame")["overall"]
    monkeypatch.setattr(scoring, "MOST_BLOCKS", 500)
    for by in ("frame", "video"):
        found = score(frames, by=by)
        assert found["bootstrap"]["n_units"] == 4000
        assert found["bootstrap"]["n_blocks"] == 500
        assert_same(found["overall"], by_hand(frames))
        for dimension in DIMENSIONS:
            for name in NAMES:
                width = np.diff(singly[dimension][f"{name}_ci"])
                assert np.diff(found["overall"][dimension][f"{name}_ci"]) == pytest.approx(
                    width, rel=0.15
                )  # 1 / sqrt(2 × 500) = 3 % for the blocks, and as much for 1000 resamples


@pytest.mark.parametrize("by", ["subject", "video", "frame"])
def test_nothing_and_next_to_nothing(by: Any) -> None:
    none = dict.fromkeys([*NAMES, *(f"{name}_ci" for name in NAMES)])
    found = score(EMPTY, by=by)
    assert found["overall"] == {"n_labelled": 0, "n_scored": 0, "valence": none, "arousal": none}
    assert found["per_video"] == found["per_subject"] == []

    unscored = table(["v"] * 3, [None] * 3, np.full((3, 4), [0.1, 0.2, np.nan, np.nan]))
    found = score(unscored, by=by)
    assert found["overall"] == {"n_labelled": 3, "n_scored": 0, "valence": none, "arousal": none}
    assert found["bootstrap"]["n_units"] == 0

    one = score(table(["v"], ["s"], np.array([[0.5, 0, 0.25, 0]])), by=by)
    assert one["overall"]["valence"] == none | {"rmse": 0.25, "sagr": 1}
    assert one["overall"]["arousal"] == none | {"rmse": 0, "sagr": 1}
    json.dumps([found, one], allow_nan=False)


def test_resamples_that_do_not_define_a_score_are_left_out() -> None:
    """Of ten pictures one differs in both, which 65 % of resamples see; then two in one each."""
    names = [str(i) for i in range(10)]
    values = np.zeros((10, 4))
    values[3] = 0.5
    found = score(table(names, names, values), by="frame")["overall"]["valence"]
    assert found["pcc_ci"] == pytest.approx([1, 1])
    values[3], values[4] = [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]
    found = score(table(names, names, values), by="frame")["overall"]["valence"]
    assert found["pcc"] == pytest.approx(-1 / 9)
    assert found["pcc_ci"] is None
    assert found["rmse_ci"] is not None


@pytest.mark.parametrize("by", ["subject", "video", "frame"])
def test_the_result_is_json_and_depends_on_the_seed_alone(by: Any) -> None:
    first, again, other = (
        json.dumps(score(clips(), by=by, n_resamples=50, seed=seed), allow_nan=False)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert json.loads(first)["overall"] != json.loads(other)["overall"]


def test_the_order_of_rows_matters_to_the_last_digits_only() -> None:
    frames = clips()
    found, turned = (score(f, by="subject", n_resamples=50) for f in (frames, frames.reverse()))
    for name in NAMES:
        for key in (name, f"{name}_ci"):
            expected = found["overall"]["arousal"][key]
            assert turned["overall"]["arousal"][key] == pytest.approx(expected, abs=1e-12)
