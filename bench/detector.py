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
faces: DIR holds fer2013.parquet and lfw_expressions.parquet, and perhaps six_faces.jpg.
speed: the detectors in turn, medians of rounds. Run it on an idle machine.
"""

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# vafer first: it tells ONNX Runtime to keep to itself, which is read when that is imported.
import vafer  # noqa: F401

# isort: split

import cv2
import numpy as np
import onnx
import onnxruntime
import polars as pl
import skimage
import sklearn
from scipy.stats import chi2

from train.detector.material import HELD_OUT as NEVER_TRAINED_ON
from vafer.errors import VaferError
from vafer.faces import Detector, Faces
from vafer.files import write_json
from vafer.onnx_file import onnx_weights_sha256
from vafer.options import DetectorOptions, Sampling
from vafer.pictures import PICTURE_SUFFIXES, read_picture
from vafer.probe import probe
from vafer.video import VideoReader

TRAINED_ON = [
    "single_face.mp4",
    "face_then_none_vfr.mov",
    "none_then_face_vfr.mov",
    "stage_cuts.mp4",
    "expressive_33s.mp4",
    "expressive_talk.mp4",
]
NO_FACE = "no_face.mp4"
HELD_OUT = [name for name in NEVER_TRAINED_ON if name != NO_FACE]
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
MIN_SIDE = 40  # pixels of the frame
MIN_IOU = 0.5
LOW = 0.2  # threshold at which the reference is asked once more
BINS = [(20, 40), (40, 80), (80, 160), (160, None)]
LANDMARKS = ["left eye", "right eye", "nose", "left mouth", "right mouth"]
BLOCK = 25  # frames
N_BOOTSTRAP = 1000
N_FACES = 1000
ENLARGED = (1, 2, 4)
CANVASES = [(640, 384), (640, 640), (320, 192)]  # width, height
N_ROUNDS, N_CALLS = 15, 5
PARTS = ["agreement", "false", "faces", "speed"]

Pictures = Iterator[tuple[str, np.ndarray]]  # name, pixels in RGB


@dataclass(frozen=True)
class Agreement:
    """The candidate against the reference on one recording; N faces of the reference."""

    name: str
    n_frames: int
    block: np.ndarray  # (N,) which block of frames the face is in
    side: np.ndarray  # (N,) shorter side in pixels of the frame
    iou: np.ndarray  # (N,) with the candidate's face, 0 where it found none
    error: np.ndarray  # (N, 5) of the landmarks, in distances between the eyes; NaN where unknown
    n_extra: int  # faces of the candidate, at least 40 pixels, that the reference does not have
    n_extra_low: int  # nor has at the low threshold

    @property
    def is_large(self) -> np.ndarray:
        return self.side >= MIN_SIDE


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    print("| " + " | ".join(header) + " |")
    print("|---|" + "--:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def number(value: float, form: str = ".3f") -> str:
    return "–" if np.isnan(value) else format(value, form)


def percent(part: float, whole: float) -> str:
    return number(100 * part / whole if whole else np.nan, ".1f")


def quantile(values: np.ndarray, q: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.quantile(values, q)) if len(values) else np.nan


def above(faces: Faces, threshold: float) -> Faces:
    """What the detector would have found at a higher threshold: lower boxes suppress no others."""
    kept = faces.scores >= threshold
    landmarks = None if faces.landmarks is None else faces.landmarks[kept]
    return Faces(faces.boxes[kept], faces.scores[kept], landmarks)


def sides(faces: Faces) -> np.ndarray:
    return (faces.boxes[:, 2:] - faces.boxes[:, :2]).min(axis=1)


def ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) and (M, 4) → (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def match(reference: Faces, candidate: Faces) -> tuple[np.ndarray, np.ndarray]:
    """For each face of the reference the candidate's row or -1, and their IoU or 0."""
    rows, found = np.full(len(reference), -1), np.zeros(len(reference))
    overlap = ious(reference.boxes, candidate.boxes)
    while overlap.size and overlap.max() >= MIN_IOU:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        rows[i], found[i] = j, overlap[i, j]
        overlap[i], overlap[:, j] = 0, 0
    return rows, found


def landmark_errors(reference: Faces, candidate: Faces, rows: np.ndarray) -> np.ndarray:
    """(N, 5) distances over the distance between the reference's eyes; NaN where not matched."""
    errors = np.full((len(rows), 5), np.nan)
    if reference.landmarks is None or candidate.landmarks is None:
        return errors
    matched = rows >= 0
    true, given = reference.landmarks[matched], candidate.landmarks[rows[matched]]
    eyes = np.linalg.norm(true[:, 0] - true[:, 1], axis=1)
    errors[matched] = np.linalg.norm(given - true, axis=2) / np.maximum(eyes, 1)[:, None]
    return errors


def agree(path: Path, candidate: Detector, reference_low: Detector, every: int) -> Agreement:
    block, side, iou, error = [], [], [], []
    n_frames = n_extra = n_extra_low = 0
    for frame in VideoReader(probe(path), sampling=Sampling(every=every)):
        low, ours = reference_low.detect(frame.image), candidate.detect(frame.image)
        true = above(low, DetectorOptions().threshold)
        rows, found = match(true, ours)
        block.append(np.full(len(true), frame.index // BLOCK))
        side.append(sides(true))
        iou.append(found)
        error.append(landmark_errors(true, ours, rows))
        large = np.flatnonzero(sides(ours) >= MIN_SIDE)
        n_frames += 1
        n_extra += len(np.setdiff1d(large, rows))
        n_extra_low += len(np.setdiff1d(large, match(low, ours)[0]))
    return Agreement(
        name=path.name,
        n_frames=n_frames,
        block=np.concatenate(block),
        side=np.concatenate(side),
        iou=np.concatenate(iou),
        error=np.concatenate(error),
        n_extra=n_extra,
        n_extra_low=n_extra_low,
    )


def interval(clips: list[Agreement]) -> tuple[float, float] | None:
    """95 % interval of the share found, in %, over blocks of frames within each recording."""
    rng = np.random.default_rng(0)
    sums = np.zeros((N_BOOTSTRAP, 2))
    for clip in clips:
        names, block = np.unique(clip.block[clip.is_large], return_inverse=True)
        if len(names):
            found = np.bincount(block, clip.iou[clip.is_large] > 0, len(names))
            counts = np.stack([found, np.bincount(block, minlength=len(names))], axis=1)
            chosen = rng.integers(0, len(names), (N_BOOTSTRAP, len(names)))
            sums += counts[chosen].sum(axis=1)
    if not sums[:, 1].all():
        return None
    low, high = np.quantile(100 * sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)


def agreement_row(name: str, clips: list[Agreement]) -> list[str]:
    iou = np.concatenate([clip.iou[clip.is_large] for clip in clips])
    error = np.concatenate([clip.error[clip.is_large] for clip in clips]).mean(axis=1)
    n_frames = sum(clip.n_frames for clip in clips)
    between = interval(clips)
    extra = [sum(clip.n_extra for clip in clips), sum(clip.n_extra_low for clip in clips)]
    return [
        name,
        str(n_frames),
        str(len(iou)),
        percent((iou > 0).sum(), len(iou)),
        "–" if between is None else f"{between[0]:.1f} to {between[1]:.1f}",
        number(iou[iou > 0].mean() if iou.any() else np.nan),
        percent(extra[0], n_frames),
        percent(extra[1], n_frames),
        number(quantile(error, 0.5)),
        number(quantile(error, 0.95)),
    ]


def by_size(clips: list[Agreement]) -> list[dict[str, Any]]:
    side = np.concatenate([clip.side for clip in clips])
    found = np.concatenate([clip.iou for clip in clips]) > 0
    rows = []
    for low, high in BINS:
        inside = (side >= low) & (side < (high or np.inf))
        name = f"{low} to {high} px" if high else f"{low} px and more"
        rows.append({"size": name, "found": int(found[inside].sum()), "faces": int(inside.sum())})
    return rows


def show_sizes(kind: str, clips: list[Agreement]) -> None:
    groups = [by_size(group) for group in [*([clip] for clip in clips), clips]]
    rows = [
        [cells[0]["size"], *(f"{percent(c['found'], c['faces'])} of {c['faces']}" for c in cells)]
        for cells in zip(*groups, strict=True)
    ]
    header = ["face", *(clip.name for clip in clips), "all"]
    table(f"{kind}: found by size of the face, % of the reference's", header, rows)


def show_landmarks(kind: str, clips: list[Agreement]) -> None:
    error = np.concatenate([clip.error[clip.is_large] for clip in clips])
    rows = [
        [name, number(quantile(error[:, i], 0.5)), number(quantile(error[:, i], 0.95))]
        for i, name in enumerate(LANDMARKS)
    ]
    header = ["landmark, as seen in the image", "median", "95th percentile"]
    table(f"{kind}: error by landmark, in distances between the eyes", header, rows)


def summary(clips: list[Agreement]) -> dict[str, Any]:
    """What a card holds of some recordings together."""
    iou = np.concatenate([clip.iou[clip.is_large] for clip in clips])
    error = np.concatenate([clip.error[clip.is_large] for clip in clips]).mean(axis=1)
    between = interval(clips)
    return {
        "recall": round(float((iou > 0).mean()), 4) if len(iou) else None,
        "recall_ci": [round(value / 100, 4) for value in between] if between else None,
        "found": int((iou > 0).sum()),
        "faces": len(iou),
        "frames": sum(clip.n_frames for clip in clips),
        "more_than_reference": sum(clip.n_extra for clip in clips),
        "mean_iou": round(float(iou[iou > 0].mean()), 4) if iou.any() else None,
        "landmark_error_median": round(quantile(error, 0.5), 4) if iou.any() else None,
    }


def show_agreement(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    candidate = load(arguments.candidate, arguments)
    reference_low = Detector(arguments.reference, DetectorOptions(threshold=LOW))
    for kind, names in (("Held out", HELD_OUT), ("Trained on", TRAINED_ON)):
        paths = [arguments.videos / name for name in names]
        for path in paths:
            if not path.is_file():
                print(f"\n{kind}: {path.name} is not in the folder of videos and is left out.")
        clips = [
            agree(path, candidate, reference_low, arguments.every)
            for path in paths
            if path.is_file()
        ]
        if not clips:
            continue
        header = ["recording", "frames", f"faces ≥ {MIN_SIDE} px", "found, %", "95 % interval"]
        header += ["mean IoU", "more than the reference, per 100 frames"]
        header += [f"more than it has at {LOW}", "landmark error, median", "95th percentile"]
        rows = [agreement_row(clip.name, [clip]) for clip in clips]
        title = f"{kind}, one frame in {arguments.every}" if arguments.every > 1 else kind
        title += f": {arguments.candidate.stem} against {arguments.reference.stem}"
        table(title, header, [*rows, agreement_row("all", clips)])
        show_sizes(kind, clips)
        show_landmarks(kind, clips)
        found[kind.lower()] = {
            **summary(clips),
            "recordings": [{"recording": clip.name, **summary([clip])} for clip in clips],
            "sizes": by_size(clips),
        }
    return found


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


def show_false(arguments: argparse.Namespace) -> dict[str, Any]:
    summaries: dict[str, Any] = {}
    detectors = {path.stem: load(path, arguments) for path in detector_files(arguments)}
    sources: dict[str, Pictures] = {}
    if (arguments.videos / NO_FACE).is_file():
        sources[NO_FACE] = frames_of(arguments.videos / NO_FACE)
    else:
        print(f"\n{NO_FACE} is not in the folder of videos and is left out.")
    sources["scikit-image and scikit-learn"] = face_free_pictures(lambda image: iter([image]))
    sources["the same, scaled and cut"] = face_free_pictures(variants)
    for folder in arguments.face_free:
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
            if name == arguments.candidate.stem:
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


def sample(path: Path, split: str | None) -> list[np.ndarray]:
    """The same 1,000 random pictures each time, RGB."""
    rows = pl.read_parquet(path)
    if split:
        rows = rows.filter(pl.col("split") == split)
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


def show_faces(arguments: argparse.Namespace) -> None:
    candidate, reference = (load(p, arguments) for p in (arguments.candidate, arguments.reference))
    rows = []
    files = {"FER2013, test": ("fer2013.parquet", "test"), "LFW": ("lfw_expressions.parquet", None)}
    for name, (file, split) in files.items():
        path = arguments.faces / file
        if not path.is_file():
            print(f"\n{file} is not in the folder of faces and is left out.")
            continue
        pictures = sample(path, split)
        rows += [faces_row(name, times, pictures, candidate, reference) for times in ENLARGED]
    if rows:
        header = ["from", "enlarged", "pictures", "with a face, %", "reference, %"]
        header += ["of the reference's best face found, %", "mean IoU", "landmark error, median"]
        table("Pictures of single faces", header, rows)
    if (six := read_picture(arguments.faces / "six_faces.jpg")) is not None:
        true, ours = reference.detect(six), candidate.detect(six)
        n_found = (match(true, ours)[0] >= 0).sum()
        print(f"\nsix_faces.jpg: {len(ours)} faces; {n_found} of the reference's {len(true)}.")


def size_of(path: Path) -> list[str]:
    """Bytes, parameters and multiply–adds of the convolutions at 640×640, or – if unknown."""
    model = onnx.load(str(path))
    graph = model.graph
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    n_weights = sum(
        int(np.prod(weight.dims))
        for weight in graph.initializer
        if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    )
    # Sizes that the file declares for its outputs may be those of another input.
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for axis, size in enumerate((1, 3, 640, 640)):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in [*inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    macs = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            kernel, out = shapes.get(node.input[1], [0]), shapes.get(node.output[0], [0])
            one = int(np.prod(kernel[1:]) * np.prod(out[1:]))  # of one picture
            macs = macs + one if one and len(out) == 4 else -np.inf
    cells = [f"{path.stat().st_size / 1e6:.2f} MB", f"{n_weights / 1e3:.0f} k"]
    return [*cells, f"{macs / 1e6:.0f} M" if macs > 0 else "–"]


def session(path: Path, n_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def network(path: Path, n_threads: int, canvas: tuple[int, int]) -> Callable[[], object] | None:
    """One call of the network alone; None where its input is fixed to another size."""
    loaded = session(path, n_threads)
    given = loaded.get_inputs()[0]
    width, height = canvas
    for declared, wanted in zip(given.shape[1:], (3, height, width), strict=True):
        if isinstance(declared, int) and declared != wanted:
            return None
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    return lambda: loaded.run(None, {given.name: picture})


def milliseconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median ms of a call, the ways taking turns."""
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(N_ROUNDS):
        for name, call in ways.items():
            started = time.perf_counter()
            for _ in range(N_CALLS):
                call()
            rounds[name].append((time.perf_counter() - started) / N_CALLS * 1e3)
    return {name: statistics.median(values) for name, values in rounds.items()}


def scene(videos: Path, canvas: tuple[int, int]) -> np.ndarray:
    """A frame of a held-out recording at that size: decoding boxes costs only where faces are."""
    for name in HELD_OUT:
        if (videos / name).is_file():
            frame = next(iter(VideoReader(probe(videos / name))))
            return cv2.resize(frame.image, canvas, interpolation=cv2.INTER_AREA)
    raise SystemExit(f"{videos} holds none of {', '.join(HELD_OUT)}: expected one to time with")


def detecting(detector: Detector, image: np.ndarray) -> Callable[[], object]:
    return lambda: detector.detect(image)


def show_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    files = detector_files(arguments)
    table(
        "Sizes",
        ["detector", "file", "parameters", "multiply–adds at 640×640"],
        [[path.stem, *size_of(path)] for path in files],
    )
    base = (arguments.fast or arguments.reference).stem
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows, ratios = [], list[dict[str, Any]]()

    def time_in_turn(size: str, what: str, ways: dict[str, Callable[[], object]]) -> None:
        times = milliseconds(ways)
        cells = [f"{value:.2f} ({value / times[base]:.2f})" for value in times.values()]
        rows.append([size, what, *cells])
        ratio = round(times[arguments.candidate.stem] / times[base], 3)
        ratios.append({"canvas": size, "what": what, f"time over {base}'s": ratio})

    for canvas in CANVASES:
        size = f"{canvas[0]}×{canvas[1]}"
        for n_threads, label in ((1, "network, 1 thread"), (0, "network, all threads")):
            ways = {path.stem: network(path, n_threads, canvas) for path in files}
            fitting = {name: call for name, call in ways.items() if call is not None}
            if len(fitting) < len(ways):
                fixed = ", ".join(name for name in ways if name not in fitting)
                print(f"\n{size}: the input of {fixed} has another size; not timed.")
                continue
            time_in_turn(size, label, fitting)
        image = scene(arguments.videos, canvas)
        detectors = {path.stem: detecting(load(path, arguments), image) for path in files}
        time_in_turn(size, "Detector.detect", detectors)
    title = f"ms per call (ratio to {base}), {platform.machine()} with {n_cores} cores"
    table(title, ["canvas", "what", *(path.stem for path in files)], rows)
    return {"speed": ratios}


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

        if "agreement" in arguments.parts:
            keep(show_agreement(arguments))
        if "false" in arguments.parts:
            keep(show_false(arguments))
        if "faces" in arguments.parts and arguments.faces:
            show_faces(arguments)
        if "speed" in arguments.parts:
            keep(show_speed(arguments))
    except VaferError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
