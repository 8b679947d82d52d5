"""What listing a dataset's labels costs, in seconds and in memory, against a plain loop.

    python bench/labels.py [--rows 1000000] [--pictures 20000] [--folder DIR]

Writes label files of that size without any picture (a million lines of AffectNet's list come to a
gigabyte), and reads each in a process of its own: by vafer's reader, and line by line into Python
objects. AffectNet's list also by polars' own reader of CSV. Prints seconds, and the most memory the
process held beyond what it held before reading.
"""

import argparse
import csv
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from vafer.datasets import aff_wild2, affectnet

LINES_A_VIDEO = 4000
HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,"
    "valence,arousal\n"
)
EYES = (range(36, 42), range(42, 48))
ENDS = ("val", "aro", "lnd")


def write_list(folder: Path, n: int) -> None:
    """training.csv of AffectNet with n pictures and 68 points each."""
    rng = np.random.default_rng(0)
    faces = [";".join(f"{x:.2f}" for x in rng.uniform(10, 400, 136)) for _ in range(500)]
    labels = rng.uniform(-1, 1, (n, 2)).round(6)
    with (folder / "training.csv").open("w") as file:
        file.write(HEADER)
        for i, (valence, arousal) in enumerate(labels):
            box = f"{i % 90},{i % 70},{i % 200 + 100},{i % 200 + 100}"
            name = f"{i % 1300 + 1}/{i:056x}.jpg"
            file.write(f"{name},{box},{faces[i % 500]},{i % 8},{valence},{arousal}\n")


def write_videos(folder: Path, n: int) -> None:
    """Label files of Aff-Wild2 with n lines in all, every twentieth invalid."""
    labels_folder = folder / "VA_Set" / "Train_Set"
    labels_folder.mkdir(parents=True)
    for number in range(n // LINES_A_VIDEO):
        labels = np.random.default_rng(number).uniform(-1, 1, (LINES_A_VIDEO, 2)).round(4)
        labels[::20] = -5
        np.savetxt(
            labels_folder / f"video{number}.txt",
            labels,
            fmt="%.4g",
            delimiter=",",
            header="valence,arousal",
            comments="",
        )


def write_arrays(folder: Path, n: int) -> None:
    """The annotations of AffectNet's npy release for n pictures, numbers as text."""
    notes = folder / "train_set" / "annotations"
    notes.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (valence, arousal) in enumerate(rng.uniform(-1, 1, (n, 2)).round(6)):
        values = (np.array(str(valence)), np.array(str(arousal)), rng.uniform(10, 400, 136))
        for end, value in zip(ENDS, values, strict=True):
            np.save(notes / f"{number}_{end}.npy", value)


def list_by_loop(folder: Path) -> int:
    rows = []
    with (folder / "training.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            points = [float(x) for x in row["facial_landmarks"].split(";")]
            box = tuple(float(row[f"face_{side}"]) for side in ("x", "y", "width", "height"))
            label = (float(row["valence"]), float(row["arousal"]))
            rows.append((row["subDirectory_filePath"], *label, box, five_of(points)))
    return len(rows)


def five_of(points: list[float]) -> list[float]:
    eyes = [sum(points[2 * i + axis] for i in eye) / 6 for eye in EYES for axis in (0, 1)]
    return [*eyes, *(points[2 * i + axis] for i in (30, 48, 54) for axis in (0, 1))]


def list_by_polars(folder: Path) -> int:
    """The same columns by polars' streaming engine, with the points that the five are made of."""
    used = [2 * point + axis for point in (*range(36, 48), 30, 48, 54) for axis in (0, 1)]
    parts = pl.col("facial_landmarks").str.split(";").list.gather(used)
    numbers = pl.col("valence", "arousal").cast(pl.Float64)
    points = parts.list.eval(pl.element().cast(pl.Float32))
    table = pl.scan_csv(folder / "training.csv", infer_schema=False).select(
        "subDirectory_filePath", numbers, pl.col("^face_.*$").cast(pl.Float32), points
    )
    return len(table.collect(engine="streaming"))


def videos_by_loop(folder: Path) -> int:
    rows = []
    for path in sorted((folder / "VA_Set" / "Train_Set").iterdir()):
        with path.open() as file:
            next(file)
            for index, line in enumerate(file):
                valence, arousal = (float(text) for text in line.split(","))
                if valence != -5 and arousal != -5:
                    rows.append((path.stem, index, valence, arousal))
    return len(rows)


def arrays_by_loop(folder: Path) -> int:
    rows = []
    notes = folder / "train_set" / "annotations"
    for path in sorted(notes.glob("*_val.npy")):
        name = path.stem.removesuffix("_val")
        valence, arousal, points = (np.load(notes / f"{name}_{end}.npy") for end in ENDS)
        rows.append((name, float(valence), float(arousal), five_of(points.tolist())))
    return len(rows)


def by_vafer(folder: Path) -> int:
    reader = aff_wild2 if (folder / "VA_Set").is_dir() else affectnet
    return len(reader.read(folder, lambda notice: None).labels)


def most_bytes() -> int:
    """The most memory that this process has held."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def measure(way: Callable[[Path], int], folder: Path) -> tuple[int, float, int]:
    """Rows, seconds, bytes."""
    before, started = most_bytes(), time.perf_counter()
    n = way(folder)
    return n, time.perf_counter() - started, most_bytes() - before


def compare(title: str, folder: Path, ways: dict[str, Callable[[Path], int]]) -> None:
    print(title)
    context = multiprocessing.get_context("spawn")
    for name, way in ways.items():
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            n, seconds, grown = pool.submit(measure, way, folder).result()
        print(f"  {name:14} {n:9,} rows   {seconds:6.2f} s   {grown / 1e6:6.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=20_000, help="of the npy release")
    parser.add_argument("--folder", type=Path, help="where the files are written for a while")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        listed, videos, arrays = (Path(name) / kind for kind in ("list", "videos", "arrays"))
        listed.mkdir()
        write_list(listed, arguments.rows)
        write_videos(videos, arguments.rows)
        write_arrays(arrays, arguments.pictures)
        ways = {"vafer": by_vafer, "plain loop": list_by_loop, "polars' CSV": list_by_polars}
        compare("AffectNet, training.csv with landmarks", listed, ways)
        ways = {"vafer": by_vafer, "plain loop": videos_by_loop}
        compare(f"Aff-Wild2, {arguments.rows // LINES_A_VIDEO} files", videos, ways)
        ways = {"vafer": by_vafer, "plain loop": arrays_by_loop}
        compare(f"AffectNet, npy, {len(ENDS)} files a picture", arrays, ways)


if __name__ == "__main__":
    main()
