"""Track ids and shot cuts on real recordings: ours against the libraries' own.

    python bench/tracks.py VIDEOS DETECTOR.onnx [--cache DIR]

Faces are found once per video (SCRFD, longer side at most 640, threshold 0.5) and cached. Ids of
`crowd_1080p.mp4` and `stage_cuts.mp4` were read off contact sheets of every track: the truth is our
own run over every frame, with the corrections in `truth`. Read its first column with that in mind.

A switch is a face whose id differs from the one it had last; a face under another's id is worse.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# vafer first: it tells ONNX Runtime to keep to itself, which is read when that is imported.
import vafer  # noqa: F401

# isort: split

import av
import cv2
import numpy as np
import supervision as sv
from insightface.model_zoo import get_model
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector, HashDetector, HistogramDetector
from trackers import ByteTrackTracker, CBIoUTracker, OCSORTTracker, SORTTracker
from trackers.utils.iou import BaseIoU, DIoU

from vafer.cuts import CUT_SIZE, CutDetector
from vafer.tracks import MAX_DISTANCE, Tracker, box_distance

# First frames of new shots, seen on contact sheets; in `face_then_none_vfr.mov` frame 72 is black.
CUTS = {
    "stage_cuts.mp4": [20, 82, 211],
    "none_then_face_vfr.mov": [96],
    "face_then_none_vfr.mov": [73],
}
ONE_FACE = [
    "smile_cry_smile.mp4",
    "expressive_33s.mp4",
    "expressive_talk.mp4",
    "turning_head.mp4",
    "portrait_hevc_1080x1920.mp4",
    "single_face.mp4",
    "none_then_face_vfr.mov",
    "face_then_none_vfr.mov",
]
MANY_FACES = ["crowd_1080p.mp4", "stage_cuts.mp4"]
SAMPLINGS = {"all": 1, "every 5": 5, "every 10": 10, "1 fps": None}
BLIND = "all, misses"  # every frame, but a detector that sees nothing for 0.4 s in every 1.3 s


@dataclass(frozen=True)
class Clip:
    name: str
    times: np.ndarray  # (F,) seconds
    images: np.ndarray  # (F, 90, 160, 3) uint8 RGB
    frame: np.ndarray  # (N,) the frame of each detection
    boxes: np.ndarray  # (N, 4) pixels of the full frame
    scores: np.ndarray  # (N,)

    def sampled(self, every: int | None) -> list[int]:
        if every:
            return list(range(0, len(self.times), every))
        chosen = [0]
        for index, time_s in enumerate(self.times):
            if time_s >= self.times[chosen[-1]] + 1 - 1e-6:
                chosen.append(index)
        return chosen


def load(path: Path, detector: Path, cache: Path) -> Clip:
    cached = cache / f"{path.name}.npz"
    if not cached.exists():
        np.savez(cached, **detect(path, detector))
    return Clip(path.name, **np.load(cached))


def detect(path: Path, detector: Path) -> dict[str, np.ndarray]:
    model = get_model(str(detector), providers=["CPUExecutionProvider"])
    times, images, frame, found = [], [], [], []
    with av.open(path) as container:
        stream = container.streams.video[0]
        for index, decoded in enumerate(container.decode(stream)):
            bgr = decoded.to_ndarray(format="bgr24")
            scale = min(1.0, 640 / max(bgr.shape[:2]))
            height, width = round(bgr.shape[0] * scale), round(bgr.shape[1] * scale)
            padded = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
            padded[:height, :width] = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
            if index == 0:
                model.prepare(ctx_id=-1, input_size=padded.shape[1::-1], det_thresh=0.5)
            faces, _ = model.detect(padded)
            times.append(float(decoded.pts * stream.time_base))
            small = cv2.resize(bgr, CUT_SIZE, interpolation=cv2.INTER_AREA)
            images.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
            frame += [index] * len(faces)
            found.append(faces / np.array([scale] * 4 + [1], np.float32))
    rows = np.concatenate(found)
    return {
        "times": np.array(times),
        "images": np.array(images),
        "frame": np.array(frame),
        "boxes": rows[:, :4],
        "scores": rows[:, 4],
    }


class OurTracker:
    """vafer's, with cuts as annotation finds them."""

    def __init__(self) -> None:
        self.tracker, self.cuts = Tracker(), CutDetector()

    def update(self, boxes, scores, *, time_s, image):
        return self.tracker.update(boxes, scores, time_s=time_s, is_cut=self.cuts.update(image))


class LibraryTracker:
    """A tracker of the `trackers` package under our rules: time-based gaps, reset at cuts, no -1.

    A track is given its id when it starts, not when it is first matched; the library keeps it.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        self.make, self.tracker, self.cuts = make, make(), CutDetector()
        self.n_ids, self.last_time_s = 0, None

    def update(self, boxes, scores, *, time_s, image):
        if self.cuts.update(image):
            self.tracker = self.make()
        gap = 0.0 if self.last_time_s is None else time_s - self.last_time_s
        self.last_time_s = time_s
        self.tracker.maximum_time_without_update = max(0.5, gap) + 1e-6
        known = list(self.tracker.tracks)
        detections = sv.Detections(
            xyxy=boxes.astype(float), confidence=scores, data={"row": np.arange(len(boxes))}
        )
        result = self.tracker.update(detections, timestamp=time_s)
        ids = np.full(len(boxes), -1)
        if len(boxes):
            ids[result.data["row"]] = result.tracker_id
        for track in self.tracker.tracks:
            if not any(track is other for other in known):
                free = np.flatnonzero(ids < 0)
                row = free[np.abs(boxes[free] - track.get_state_bbox()).sum(1).argmin()]
                track.tracker_id = ids[row] = self.n_ids
                self.n_ids += 1
        for row in np.flatnonzero(ids < 0):
            ids[row] = self.n_ids
            self.n_ids += 1
        return ids


class OurDistance(BaseIoU):
    def _compute(self, boxes_1: np.ndarray, boxes_2: np.ndarray) -> np.ndarray:
        # Shifted by 0.1: OC-SORT uses one threshold for this and for its second pass, on IoU.
        return MAX_DISTANCE + 0.1 - box_distance(boxes_1, boxes_2)


# Every tracker confirms at once and accepts every score, so that no face is left without an id.
COMMON = {"lost_track_buffer": 15, "frame_rate": 30.0, "minimum_consecutive_frames": 1}
SORT = COMMON | {"track_activation_threshold": 0.0}
TRACKERS: dict[str, Callable[[], object]] = {
    "ours": OurTracker,
    "SORT, IoU 0.3": lambda: LibraryTracker(lambda: SORTTracker(**SORT)),
    "SORT, IoU 0.1": lambda: LibraryTracker(lambda: SORTTracker(**SORT, minimum_iou_threshold=0.1)),
    "SORT, DIoU -0.2": lambda: LibraryTracker(
        lambda: SORTTracker(**SORT, minimum_iou_threshold=-0.2, iou=DIoU())
    ),
    "ByteTrack": lambda: LibraryTracker(lambda: ByteTrackTracker(**SORT)),
    "OC-SORT, IoU 0.3": lambda: LibraryTracker(
        lambda: OCSORTTracker(**COMMON, high_conf_det_threshold=0.0)
    ),
    "OC-SORT, IoU 0.1": lambda: LibraryTracker(
        lambda: OCSORTTracker(**COMMON, high_conf_det_threshold=0.0, minimum_iou_threshold=0.1)
    ),
    "SORT, ours": lambda: LibraryTracker(
        lambda: SORTTracker(**SORT, minimum_iou_threshold=0.1, iou=OurDistance())
    ),
    "OC-SORT, ours": lambda: LibraryTracker(
        lambda: OCSORTTracker(
            **COMMON, high_conf_det_threshold=0.0, minimum_iou_threshold=0.1, iou=OurDistance()
        )
    ),
    "C-BIoU": lambda: LibraryTracker(
        lambda: CBIoUTracker(
            **SORT, high_conf_det_threshold=0.0, instant_first_frame_activation=False
        )
    ),
}


def track(
    clip: Clip, make: Callable[[], object], every: int | None, *, blind: bool = False
) -> tuple[np.ndarray, float]:
    """The id of every detection of the sampled frames (-1 elsewhere) and the ms per update."""
    ids, tracker, elapsed = np.full(len(clip.boxes), -1), make(), 0.0
    frames = clip.sampled(every)
    for index in frames:
        rows = np.flatnonzero(clip.frame == index)
        if blind and clip.times[index] % 1.3 > 0.9:
            rows = rows[:0]
        start = time.perf_counter()
        ids[rows] = tracker.update(
            clip.boxes[rows],
            clip.scores[rows],
            time_s=clip.times[index],
            image=clip.images[index],
        )
        elapsed += time.perf_counter() - start
    return ids, elapsed / len(frames) * 1e3


def truth(clip: Clip) -> np.ndarray:
    """Who each detection shows, (N,), as seen on contact sheets of our tracks; see the top."""
    ids, _ = track(clip, Tracker, 1)
    if clip.name == "crowd_1080p.mp4":
        if len(ids) != 631:
            raise SystemExit("the ids by eye belong to scrfd_2.5g.onnx: 631 faces in the crowd")
        ids[(ids == 9) & (clip.frame >= 90)] = 99  # a bald man steps in front of the woman
        ids[ids == 8] = 9  # the same woman, before someone passed in front of her
        ids[ids == 15] = 14  # the same bald man, lost for five frames
    return ids


def errors(clip: Clip, true_ids: np.ndarray, ids: np.ndarray) -> tuple[int, int]:
    """Switches (a face's id differs from its last one) and faces under someone else's id."""
    rows = np.flatnonzero(ids >= 0)
    last: dict[int, int] = {}
    switches = 0
    for person, given in zip(true_ids[rows], ids[rows], strict=True):
        switches += last.get(person, given) != given
        last[person] = given
    foreign = 0
    for given in np.unique(ids[rows]):
        _, counts = np.unique(true_ids[ids == given], return_counts=True)
        foreign += counts.sum() - counts.max()
    return switches, foreign


class LibraryCuts:
    def __init__(self, detector) -> None:
        self.detector, self.n = detector, 0

    def update(self, image: np.ndarray) -> bool:
        self.n += 1
        timecode = FrameTimecode(self.n, fps=25.0)
        small = cv2.cvtColor(cv2.resize(image, CUT_SIZE), cv2.COLOR_RGB2BGR)
        return bool(self.detector.process_frame(timecode, small))


CUT_DETECTORS: dict[str, Callable[[], object]] = {
    "ours": CutDetector,
    "ContentDetector": lambda: LibraryCuts(ContentDetector(min_scene_len=0)),
    "HashDetector": lambda: LibraryCuts(HashDetector(min_scene_len=0)),
    "HistogramDetector": lambda: LibraryCuts(HistogramDetector(min_scene_len=0)),
}
FLASHES = {
    "x1.7": lambda image: image * 1.7,
    "+60": lambda image: image + 60,
    "gamma 0.5": lambda image: 255 * (image / 255) ** 0.5,
    "x0.5": lambda image: image * 0.5,
    "x2.5+40": lambda image: image * 2.5 + 40,
}


def cut_errors(clip: Clip, make: Callable[[], object], every: int | None) -> tuple[int, int, int]:
    """Cuts found, true cuts (several between two sampled frames count once), and false cuts."""
    detector, previous = make(), -1
    found = true = false = 0
    for index in clip.sampled(every):
        expected = any(previous < cut <= index for cut in CUTS.get(clip.name, []))
        reported = detector.update(clip.images[index])
        true += expected
        found += expected and reported
        false += reported and not expected
        previous = index
    return found, true, false


def flash_rate(clips: list[Clip], make: Callable[[], object], flash: Callable) -> float:
    """The share of frames at which a flash, put on every tenth frame, is taken for a cut."""
    taken = []
    for clip in clips:
        for index in range(0, len(clip.images) - 1, 10):
            detector = make()
            detector.update(clip.images[index])
            lit = np.clip(flash(clip.images[index].astype(np.float32)), 0, 255).astype(np.uint8)
            taken.append(detector.update(lit) or detector.update(clip.images[index]))
    return float(np.mean(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "vafer_bench_tracks"
    )
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # insightface and supervision warn about their dependencies
    clips = {
        name: load(options.videos / name, options.detector, options.cache)
        for name in MANY_FACES + ONE_FACE
    }

    for name in MANY_FACES:
        clip, true_ids = clips[name], truth(clips[name])
        print(f"\n{name}: switches / faces under another's id / ids")
        print(f"{'':18}" + "".join(f"{label:>14}" for label in [*SAMPLINGS, BLIND]) + "  ms")
        for label, make in TRACKERS.items():
            cells = []
            for every, blind in [*((every, False) for every in SAMPLINGS.values()), (1, True)]:
                ids, milliseconds = track(clip, make, every, blind=blind)
                switches, foreign = errors(clip, true_ids, ids)
                n_ids = len(np.unique(ids[ids >= 0]))
                cells.append((f"{switches}/{foreign}/{n_ids}", milliseconds))
            row = "".join(f"{text:>14}" for text, _ in cells)
            print(f"{label:18}{row}{cells[0][1]:6.2f}")

    print("\nOne face: share of its frames under the most frequent id (number of ids)")
    print(f"{'':28}{'':18}" + "".join(f"{label:>14}" for label in [*SAMPLINGS, BLIND]))
    for name in ONE_FACE:
        for label, make in TRACKERS.items():
            row = ""
            for every, blind in [*((every, False) for every in SAMPLINGS.values()), (1, True)]:
                ids, _ = track(clips[name], make, every, blind=blind)
                counts = np.unique(ids[ids >= 0], return_counts=True)[1]
                row += f"{f'{counts.max() / counts.sum():.2f} ({len(counts)})':>14}"
            print(f"{name:28}{label:18}{row}")

    print("\nCuts: found of true, false (per sampling, all videos)")
    print(f"{'':18}" + "".join(f"{label:>14}" for label in SAMPLINGS))
    for label, make in CUT_DETECTORS.items():
        row = ""
        for every in SAMPLINGS.values():
            counts = np.sum([cut_errors(clip, make, every) for clip in clips.values()], axis=0)
            row += f"{f'{counts[0]}/{counts[1]}, {counts[2]}':>14}"
        print(f"{label:18}{row}")

    print("\nOne-frame flashes taken for cuts, share")
    print(f"{'':18}" + "".join(f"{label:>14}" for label in FLASHES))
    for label, make in CUT_DETECTORS.items():
        rates = (flash_rate(list(clips.values()), make, flash) for flash in FLASHES.values())
        print(f"{label:18}" + "".join(f"{rate:>14.2f}" for rate in rates))


if __name__ == "__main__":
    main()
