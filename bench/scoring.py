"""What the scores of a large table cost, in time and in memory, against a plain loop.

    python bench/scoring.py [--frames 10000000] [--videos 2000] [--subjects 400]

Scores a table drawn at random, every twentieth frame without predictions, with 1000 resamples of
subjects, of videos and of frames, and then with other sizes of the slices and of the resamples that
are looked at together. The plain loop scores every video and every subject with NumPy and
concatenates the frames of a few resamples of subjects; its time for 1000 is extrapolated.

Another process writes the table and this one maps it, so that it is no part of the anonymous memory
whose growth since the start is printed (sampled every 2 ms; Linux).
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from vafer import scoring
from vafer.metrics import DIMENSIONS

N_RESAMPLES = 1000
N_PLAIN_RESAMPLES = 5


def write_table(path: Path, n_frames: int, n_videos: int, n_subjects: int) -> None:
    """Frames in order of their videos, every subject in as many of these; predictions biased."""
    rng = np.random.default_rng(0)
    video = np.arange(n_frames) * n_videos // n_frames
    subject = video % n_subjects
    columns: dict[str, Any] = {
        "video": pl.Series([f"clips/{i:06d}.mp4" for i in range(n_videos)]).gather(video),
        "subject": pl.Series([f"{i:06d}" for i in range(n_subjects)]).gather(subject),
    }
    has_prediction = pl.int_range(pl.len()) % 20 > 0
    for dimension in DIMENSIONS:
        label = rng.uniform(-1, 1, n_frames)
        bias = rng.normal(0, 0.2, n_subjects)[subject]
        columns[f"{dimension}_label"] = label
        columns[dimension] = (label / 2 + bias + rng.normal(0, 0.2, n_frames)).astype(np.float32)
    frames = pl.DataFrame(columns).with_columns(
        pl.when(has_prediction).then(pl.col(dimension)) for dimension in DIMENSIONS
    )
    frames.write_ipc(path, compression="uncompressed")


def map_table(path: Path) -> pl.DataFrame:
    with pa.memory_map(str(path)) as mapped:
        frames = pl.from_arrow(pa.ipc.open_file(mapped).read_all())
    assert isinstance(frames, pl.DataFrame)
    return frames


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(work: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and the most anonymous memory meanwhile in bytes."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, most


def plain_scores(frames: pl.DataFrame) -> list[tuple[float, ...]]:
    found = []
    for dimension in DIMENSIONS:
        label = frames[f"{dimension}_label"].to_numpy()
        predicted = frames[dimension].to_numpy().astype(np.float64)
        (var_label, cov), (_, var_predicted) = np.cov(label, predicted, ddof=0)
        apart = var_label + var_predicted + (label.mean() - predicted.mean()) ** 2
        rmse = np.sqrt(np.mean((label - predicted) ** 2))
        sagr = np.mean(np.sign(label) == np.sign(predicted))
        found.append((rmse, sagr, cov / np.sqrt(var_label * var_predicted), 2 * cov / apart))
    return found


def plain_loop_seconds(frames: pl.DataFrame) -> tuple[float, float]:
    """Seconds for the scores, and for one resample of subjects."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    scored = frames.drop_nulls()
    subjects = scored.partition_by("subject")
    for part in (scored, *scored.partition_by("video"), *subjects):
        plain_scores(part)
    scores_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(N_PLAIN_RESAMPLES):
        plain_scores(
            pl.concat([subjects[i] for i in rng.integers(len(subjects), size=len(subjects))])
        )
    return scores_s, (time.perf_counter() - started) / N_PLAIN_RESAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--subjects", type=int, default=400)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.arrow"
        shape = (arguments.frames, arguments.videos, arguments.subjects)
        writer = get_context("spawn").Process(target=write_table, args=(path, *shape))
        writer.start()
        writer.join()
        compare(map_table(path))


def compare(frames: pl.DataFrame) -> None:
    print(f"{len(frames)} frames, {frames.estimated_size() / 1e6:.0f} MB")
    ways: dict[str, Callable[[], Any]] = {
        "by subject": lambda: scoring.score(frames, by="subject", n_resamples=N_RESAMPLES),
        "by video": lambda: scoring.score(frames, by="video", n_resamples=N_RESAMPLES),
        "by frame": lambda: scoring.score(frames, by="frame", n_resamples=N_RESAMPLES),
    }
    scoring.score(frames[:100_000], by="subject", n_resamples=10)  # starts what starts once
    before = anonymous_bytes()
    found = {name: measured(work) for name, work in ways.items()}

    scores_s, resample_s = plain_loop_seconds(frames)
    plain_s = scores_s + N_RESAMPLES * resample_s
    print(
        f"  plain loop: scores {scores_s:.1f} s, a resample {resample_s:.2f} s (mean of "
        f"{N_PLAIN_RESAMPLES}); with {N_RESAMPLES} it would take {plain_s:.0f} s"
    )
    for name, (seconds, most) in found.items():
        print(
            f"  {name:11} {seconds:5.1f} s, {(most - before) / 1e6:.0f} MB besides the table; "
            f"the plain loop would take {plain_s / seconds:.0f} times as long"
        )
    for constant in ("ROWS_AT_ONCE", "DRAWS_AT_ONCE"):
        chosen = getattr(scoring, constant)
        for size in (chosen >> 4, chosen >> 2, chosen, chosen << 2, chosen << 4):
            setattr(scoring, constant, size)
            seconds, _ = measured(ways["by frame"])
            print(f"  by frame, {constant} {size:8} {seconds:5.1f} s")
        setattr(scoring, constant, chosen)


if __name__ == "__main__":
    main()
