"""The figures of a face detector's card: agreement with a stronger one, false faces, speed.

    python bench/detector.py CANDIDATE.onnx --reference scrfd_2.5g.onnx --videos DIR
        [--fast scrfd_500m.onnx] [--every N] [--face-free DIR ...] [--faces DIR]
        [--parts PART ...] [--one-look]
        [--json FILE]

All detectors run through `vafer.faces.Detector` as `vafer annotate` runs them: the longer side
shrunk to 640 pixels, threshold 0.5. Prints Markdown tables; --json keeps what a card holds.

agreement: nobody has marked the recordings' faces, so the reference's are taken for true, its
mistakes too. One candidate's face per face of the reference, by descending IoU, from 0.5 on. Sizes
are shorter sides in pixels of the frame. Intervals are 95 %, from 1,000 bootstrap samples of blocks
of 25 frames within each recording; 100 to 100 says that no block had a miss, not that there is none
to come. A landmark's error is in distances between the reference's eyes, small where a head turns.
false: `no_face.mp4`, every frame, and the pictures of scikit-image and scikit-learn that no human
face is in, as they are and in several scales and crops; --face-free adds folders of pictures, as
they are, each with a row of its name.
Intervals are 95 %, exact for a Poisson count, as if every picture were drawn by itself.
faces: DIR holds fer2013.parquet and lfw_expressions.parquet, and perhaps six_faces.jpg; of the two
tables what no detector was trained on.
speed: the detectors in turn, medians of rounds. Run it on an idle machine.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# vafer first: it tells ONNX Runtime to keep to itself, which is read when that is imported.
import vafer  # noqa: F401

# isort: split

import cv2
import numpy as np
import polars as pl

from bench.boxes import landmark_errors, match
from bench.detector_agreement import HELD_OUT, show_agreement
from bench.detector_false import enlarge, show_false
from bench.detector_speed import show_speed
from bench.tables import number, percent, quantile, table
from train.detector.material import LFW_FOLDS
from train.sets import NO_IDENTITY, fold_of
from vafer.errors import VaferError
from vafer.faces import Detector
from vafer.files import write_json
from vafer.onnx_file import onnx_weights_sha256
from vafer.pictures import read_picture

N_FACES = 1000
ENLARGED = (1, 2, 4)
PARTS = ["agreement", "false", "faces", "speed"]


def held_out(table: pl.DataFrame) -> pl.DataFrame:
    """FER2013's test split, or the persons of LFW that no training of a detector sees."""
    if "split" in table.columns:
        return table.filter(pl.col("split") == "test")
    named = table.filter(pl.col("identity") != NO_IDENTITY)
    return named.filter([fold_of(person, LFW_FOLDS) == 0 for person in named["identity"]])


def sample(path: Path) -> list[np.ndarray]:
    """The same 1,000 random pictures each time, RGB."""
    rows = held_out(pl.read_parquet(path))
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:N_FACES]]
    pictures = (
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in rows["jpeg"]
    )
    return [cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) for bgr in pictures if bgr is not None]


def faces_row(
    name: str, times: int, pictures: list[np.ndarray], candidate: Detector, reference: Detector
) -> list[str]:
    """How many pictures have a face, and how alike the reference's best face and ours are."""
    n_ours, n_true, overlaps, errors = 0, 0, [], []
    for picture in pictures:
        image = enlarge(picture, times)
        ours, true = candidate.detect(image), reference.detect(image)
        n_ours += len(ours) > 0
        n_true += len(true) > 0
        rows, found = match(true, ours)
        overlaps += list(found[:1])
        errors += list(landmark_errors(true, ours, rows)[:1].mean(axis=1))
    iou, error = np.array(overlaps), np.array(errors)
    return [
        name,
        f"×{times}",
        str(len(pictures)),
        percent(n_ours, len(pictures)),
        percent(n_true, len(pictures)),
        percent((iou > 0).sum(), len(iou)),
        number(iou[iou > 0].mean() if iou.any() else np.nan),
        number(quantile(error, 0.5)),
    ]


def show_faces(candidate: Detector, reference: Detector, folder: Path) -> None:
    rows = []
    files = {"FER2013, test": "fer2013.parquet", "LFW, held out": "lfw_expressions.parquet"}
    for name, file in files.items():
        path = folder / file
        if not path.is_file():
            print(f"\n{file} is not in the folder of faces and is left out.")
            continue
        pictures = sample(path)
        rows += [faces_row(name, times, pictures, candidate, reference) for times in ENLARGED]
    if rows:
        header = ["from", "enlarged", "pictures", "with a face, %", "reference, %"]
        header += ["of the reference's best face found, %", "mean IoU", "landmark error, median"]
        table("Pictures of single faces", header, rows)
    if (six := read_picture(folder / "six_faces.jpg")) is not None:
        true, ours = reference.detect(six), candidate.detect(six)
        n_found = (match(true, ours)[0] >= 0).sum()
        print(f"\nsix_faces.jpg: {len(ours)} faces; {n_found} of the reference's {len(true)}.")


def load(path: Path, arguments: argparse.Namespace) -> Detector:
    detector = Detector(path)
    detector.looks_twice &= not arguments.one_look
    return detector


def detector_files(arguments: argparse.Namespace) -> list[Path]:
    """Candidate, fast, reference; none of them twice."""
    files = [arguments.candidate, arguments.fast, arguments.reference]
    return list(dict.fromkeys(file for file in files if file))


def check(arguments: argparse.Namespace) -> None:
    for file in detector_files(arguments):
        if not file.is_file():
            raise SystemExit(f"{file} is missing: expected a face detector, an ONNX file")
    if len({file.stem for file in detector_files(arguments)}) < len(detector_files(arguments)):
        raise SystemExit("two detectors have one name: rename one, the tables tell them by name")
    folders = [("videos", arguments.videos), ("faces", arguments.faces)]
    for option, folder in [*folders, *(("face-free", folder) for folder in arguments.face_free)]:
        if folder and not folder.is_dir():
            raise SystemExit(f"--{option} {folder} is missing: expected a folder")
    if arguments.every < 1:
        raise SystemExit(f"--every {arguments.every}: expected 1 or more")
    if not any((arguments.videos / name).is_file() for name in HELD_OUT):
        raise SystemExit(f"{arguments.videos} holds none of the recordings {', '.join(HELD_OUT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--fast", type=Path, help="the detector whose speed is the measure")
    parser.add_argument("--every", type=int, default=1, help="frames of the recordings: one in N")
    parser.add_argument(
        "--face-free", type=Path, nargs="+", default=[], help="folders of pictures without a face"
    )
    parser.add_argument("--one-look", action="store_true", help="at each picture, not two")
    parser.add_argument("--faces", type=Path, help="folder of fer2013.parquet and the like")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="for `python -m train.embed --metrics`")
    arguments = parser.parse_args()
    check(arguments)
    warnings.simplefilter("ignore")  # insightface warns about its dependencies
    try:
        metrics: dict[str, Any] = {
            role: {"name": path.stem, "weights_sha256": onnx_weights_sha256(path)}
            for role, path in (
                ("candidate", arguments.candidate),
                ("reference", arguments.reference),
            )
        }

        if arguments.one_look:
            metrics["one_look"] = True
        if arguments.every != 1:
            metrics["every"] = arguments.every

        def keep(found: dict[str, Any]) -> None:
            metrics.update(found)
            if arguments.json:
                write_json(arguments.json, metrics)

        detectors = {path.stem: load(path, arguments) for path in detector_files(arguments)}
        candidate, reference = arguments.candidate.stem, arguments.reference.stem
        videos = arguments.videos
        if "agreement" in arguments.parts:
            every = arguments.every
            keep(show_agreement(detectors[candidate], arguments.reference, videos, every=every))
        if "false" in arguments.parts:
            keep(show_false(detectors, candidate, videos, arguments.face_free))
        if "faces" in arguments.parts and arguments.faces:
            show_faces(detectors[candidate], detectors[reference], arguments.faces)
        if "speed" in arguments.parts:
            base = arguments.fast.stem if arguments.fast else reference
            keep(show_speed(detectors, candidate, base, videos))
    except VaferError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
