"""The faces that a face detector finds where there is none."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import sklearn
from scipy.stats import chi2

from bench.detector_agreement import NO_FACE
from bench.tables import table
from vafer.faces import Detector
from vafer.pictures import PICTURE_SUFFIXES, read_picture
from vafer.probe import probe
from vafer.video import VideoReader

# Looked at one by one. Left out: those that are trained on (`train.detector.material.SCENERY`);
# astronaut, camera and coins, which show human faces, in flesh and in relief; motorcycle_right and
# chessboard_RGB, which are motorcycle_left and chessboard_GRAY again.
# chelsea.png is a cat's face from near by: not a face that vafer should rate.
FACE_FREE = [
    "chelsea.png",
    "chessboard_GRAY.png",
    "coffee.png",
    "horse.png",
    "logo.png",
    "moon.png",
    "motorcycle_left.png",
    "phantom.png",
    "china.jpg",
    "flower.jpg",
]

Pictures = Iterator[tuple[str, np.ndarray]]  # name, pixels in RGB


def variants(image: np.ndarray) -> Iterator[np.ndarray]:
    """A picture at half and double its size, turned, its middle, its quarters and those doubled.

    Pieces with a side below 64 pixels are left out.
    """
    height, width = image.shape[0] // 2, image.shape[1] // 2
    middle = image[height // 2 : height // 2 + height, width // 2 : width // 2 + width]
    quarters = [image[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    half = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    turned = np.ascontiguousarray(np.rot90(image))
    pieces = [half, enlarge(image, 2), turned, middle, *quarters]
    pieces += [enlarge(quarter, 2) for quarter in quarters]
    return (piece for piece in pieces if min(piece.shape[:2]) >= 64)


def enlarge(image: np.ndarray, times: int) -> np.ndarray:
    if times == 1:
        return image
    return cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)


def face_free_pictures(cut: Callable[[np.ndarray], Iterator[np.ndarray]]) -> Pictures:
    folders = [
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    ]
    for name in FACE_FREE:
        found = [folder / name for folder in folders if (folder / name).is_file()]
        image = read_picture(found[0]) if found else None
        if image is None:
            print(f"\n{name} is not in the installed scikit-image or scikit-learn: left out.")
            continue
        yield from ((name, piece) for piece in cut(image))


def pictures_in(folder: Path) -> Pictures:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            image = read_picture(path)
            if image is None:
                print(f"\n{path.name} cannot be read and is left out.")
            else:
                yield path.name, image


def frames_of(path: Path) -> Pictures:
    return ((f"frame {frame.index}", frame.image) for frame in VideoReader(probe(path)))


def rates(n_false: int, n_pictures: int) -> tuple[float, list[float]]:
    """False faces per 100 pictures, and its interval."""
    low = chi2.ppf(0.025, 2 * n_false) / 2 if n_false else 0.0
    high = chi2.ppf(0.975, 2 * n_false + 2) / 2
    of_one = 100 / max(1, n_pictures)
    return round(of_one * n_false, 2), [round(of_one * low, 2), round(of_one * high, 2)]


def show_false(
    detectors: Mapping[str, Detector], candidate: str, videos: Path, folders: list[Path]
) -> dict[str, Any]:
    """Prints a table; what is found of the candidate is returned, by where it was looked for.

    folders: of more pictures without a face, each with a name of its own.
    """
    summaries: dict[str, Any] = {}
    sources: dict[str, Pictures] = {}
    if (videos / NO_FACE).is_file():
        sources[NO_FACE] = frames_of(videos / NO_FACE)
    else:
        print(f"\n{NO_FACE} is not in the folder of videos and is left out.")
    sources["scikit-image and scikit-learn"] = face_free_pictures(lambda image: iter([image]))
    sources["the same, scaled and cut"] = face_free_pictures(variants)
    for folder in folders:
        if folder.name in {*sources, ""}:
            raise SystemExit(f"--face-free {folder}: expected a name that no other row has")
        sources[folder.name] = pictures_in(folder)
    rows = []
    sums = {name: np.zeros(2, int) for name in detectors}
    of_pictures = {name: np.zeros(2, int) for name in detectors}  # without the recording
    for source, pictures in sources.items():
        found: dict[str, list[tuple[float, str]]] = {name: [] for name in detectors}
        n_pictures = 0
        for picture, image in pictures:
            n_pictures += 1
            for name, detector in detectors.items():
                found[name] += [(score, picture) for score in detector.detect(image).scores]
        for name, faces in found.items():
            n_false = len(faces)
            largest = sorted(faces, reverse=True)[:5]
            names = ", ".join(f"{score:.2f} {picture}" for score, picture in largest)
            rows.append([*false_cells(source, name, n_false, n_pictures), names])
            sums[name] += n_false, n_pictures
            if source != NO_FACE:
                of_pictures[name] += n_false, n_pictures
            if name == candidate:
                per_100, between = rates(n_false, n_pictures)
                summaries[source] = {"false_per_100": per_100, "false_per_100_ci": between}
                summaries[source] |= {"false": n_false, "pictures": n_pictures}
    rows += [[*false_cells("all", name, *sums[name]), ""] for name in detectors]
    of_all_else = "all but the recording"
    rows += [[*false_cells(of_all_else, name, *of_pictures[name]), ""] for name in detectors]
    header = ["where", "pictures", "detector", "false faces", "per 100", "95 %", "largest scores"]
    table("False faces of any size", header, rows)
    return summaries


def false_cells(source: str, detector: str, n_false: int, n_pictures: int) -> list[str]:
    per_100, (low, high) = rates(n_false, n_pictures)
    counts = [source, str(n_pictures), detector, str(n_false)]
    return [*counts, f"{per_100:.1f}", f"{low:.1f} to {high:.1f}"]
