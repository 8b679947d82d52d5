"""Speed of annotation against the loop that everybody writes, and against its own stages.

    python bench/annotate.py VIDEO DETECTOR.onnx [--model NAME|PATH] [--seconds 300] [--repeats 3]

The plain loop: OpenCV decodes, insightface detects in squares of 640 pixels, the model runs face by
face. vafer: `vafer.annotate` as the command line calls it, with `--detect full` and `search`. Same
detector and model; loading them is not counted, starting processes is. VIDEO is repeated by ffmpeg
until it has --seconds. All run in turn; medians, with the lowest and highest ratio, and how much of
the cores' time went into each call as a whole, vafer's loading included.

After each turn, each stage is timed alone, with the threads that it has in a run of one recording:
frames out of a decoder process; faces, tracks and crops of frames in memory; predictions of crops
in memory. A run is held against its slowest stage, and against all its stages' work spread over
the cores without loss.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

# vafer first: it tells ONNX Runtime to keep to itself, which is read when that is imported.
import vafer

# isort: split

import cv2
import numpy as np
import torch
from insightface.model_zoo import get_model
from insightface.utils.face_align import norm_crop

from vafer.ahead import ParallelWalk
from vafer.decoding import MOST_FRAMES
from vafer.faces import Detector
from vafer.model import Model, load_model
from vafer.options import BATCH_SIZE, Sampling
from vafer.pipeline import Batches, Walk
from vafer.probe import probe
from vafer.staged import available_cores, shared_cores, threads_of_lane
from vafer.store import find_model
from vafer.video import Chunk, VideoReader
from vafer.workers import DecoderProcess

FRAMES_IN_MEMORY = 400


def repeated(video: Path, seconds: float, folder: Path) -> Path:
    """The recording over and over, without encoding it again."""
    duration = probe(video).duration_s
    assert duration
    out = folder / f"long{video.suffix}"
    times = max(0, round(seconds / duration) - 1)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-stream_loop",
        str(times),
        "-i",
        video,
        "-an",
        "-c",
        "copy",
    ]
    subprocess.run([*command, out], check=True)
    return out


def plain_loop(video: Path, detector: Any, model: Model) -> tuple[int, float]:
    """Frames and seconds."""
    started = time.perf_counter()
    capture = cv2.VideoCapture(str(video))
    rows = []
    index = 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        boxes, landmarks = detector.detect(frame)
        for box, points in zip(boxes, landmarks, strict=True):
            crop = norm_crop(frame, points, model.card.crop.size)
            tensor = torch.from_numpy(np.ascontiguousarray(crop[:, :, ::-1])).permute(2, 0, 1)
            valence, arousal = model.predict(tensor[None].float())[0].tolist()
            rows.append((index, *box.tolist(), valence, arousal))
        index += 1
    return index, time.perf_counter() - started


def annotated(video: Path, detector: Path, model: str | None, detect: str) -> tuple[int, float]:
    results = vafer.annotate(video, model=model, detector=detector, detect=detect)
    return results.n_frames, results.elapsed_s


def core_s(pid: int) -> float:
    """Seconds of a core that a process has had so far."""
    _, _, after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    user, system = after_name.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def decode_alone(video: Path) -> tuple[float, float]:
    """Seconds a frame, and seconds of a core a frame."""
    process = DecoderProcess()
    try:
        list(process.decode(video, Sampling(end_s=1), is_retry=False))  # it has started
        started, worked = time.perf_counter(), core_s(process.pid)
        items = process.decode(video, Sampling(), is_retry=False)
        n = sum(len(item.frames) for item in items if isinstance(item, Chunk))
        return (time.perf_counter() - started) / n, (core_s(process.pid) - worked) / n
    finally:
        process.close()


def faces_alone(
    video: Path, detector: Path, model: Model, *, searches: bool
) -> tuple[float, float]:
    """The same of detection, tracking and cropping."""
    reader = iter(VideoReader(probe(video)))
    frames = list(islice(reader, FRAMES_IN_MEMORY))
    chunks = [
        Chunk(some, np.stack([frame.image for frame in some]))
        for some in (frames[k : k + MOST_FRAMES] for k in range(0, len(frames), MOST_FRAMES))
    ]
    loaded = Detector(detector, n_threads=1)
    loaded.detect(frames[0].image)
    walk = ParallelWalk(
        loaded,
        model.card.crop,
        searches=searches,
        n_threads=threads_of_lane(1),
        is_over=threading.Event(),
    )
    with closing(walk):
        started, worked = time.perf_counter(), time.process_time()
        n = sum(1 for chunk in chunks for _ in walk.take(chunk)) + sum(1 for _ in walk.rest())
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return seconds / n, worked / n


def predict_alone(video: Path, detector: Path, model: Model) -> tuple[float, float]:
    """The same of predictions, with as many faces as the recording has."""
    walk = Walk(Detector(detector), model.card.crop, searches=True)
    reader = VideoReader(probe(video), sampling=Sampling(every=10))
    steps = [walk.step(frame) for frame in reader][:FRAMES_IN_MEMORY]
    batches: Batches[None, Any] = Batches(model, BATCH_SIZE)
    started, worked = time.perf_counter(), time.process_time()
    for result, patches in steps:
        list(batches.add(None, result, patches))
    list(batches.finish())
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return seconds / len(steps), worked / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    model = load_model(find_model(arguments.model))
    plain = get_model(str(arguments.detector), providers=["CPUExecutionProvider"])
    plain.prepare(ctx_id=-1, input_size=(640, 640), det_thresh=0.5)
    plain.detect(np.zeros((360, 640, 3), np.uint8))
    model.predict(torch.zeros(1, 3, model.card.crop.size, model.card.crop.size))

    with tempfile.TemporaryDirectory() as folder:
        video = repeated(arguments.video, arguments.seconds, Path(folder))
        ways: dict[str, Callable[[], tuple[int, float]]] = {
            "plain loop": lambda: plain_loop(video, plain, model),
            "vafer, full": lambda: annotated(video, arguments.detector, arguments.model, "full"),
            "vafer, search": lambda: annotated(
                video, arguments.detector, arguments.model, "search"
            ),
        }
        stages: dict[str, Callable[[], tuple[float, float]]] = {
            "decode": lambda: decode_alone(video),
            "faces, full": lambda: faces_alone(video, arguments.detector, model, searches=False),
            "faces, search": lambda: faces_alone(video, arguments.detector, model, searches=True),
            "predict": lambda: predict_alone(video, arguments.detector, model),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        busy: dict[str, list[float]] = {name: [] for name in ways}
        alone: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                before = os.times()
                n_frames, seconds = way()
                after = os.times()
                rates[name].append(n_frames / seconds)
                worked = sum(after[:4]) - sum(before[:4])  # here and in processes that have ended
                busy[name].append(worked / (after.elapsed - before.elapsed) / available_cores())
            with shared_cores():
                for name, stage in stages.items():
                    alone[name].append(stage())
    print(f"{arguments.video.name}, {arguments.detector.stem}, {model.card.name}")
    print(f"{n_frames:,} frames, {arguments.repeats} runs of each in turn, medians")
    for name in ways:
        found = rates[name]
        ratios = [a / b for a, b in zip(found, rates["plain loop"], strict=True)]
        print(
            f"{name:14} {statistics.median(found):7.1f} frames/s {statistics.median(ratios):6.2f}"
            f"  ({min(ratios):.2f} to {max(ratios):.2f})"
            f"  {statistics.median(busy[name]):.0%} of the cores' time"
        )
    for name, found in alone.items():
        seconds, worked = map(statistics.median, zip(*found, strict=True))
        print(
            f"{name + ' alone':20} {1 / seconds:7.1f} frames/s"
            f"  {1000 * worked:5.2f} ms of a core each"
        )
    for detect in ("full", "search"):
        parts = (alone["decode"], alone[f"faces, {detect}"], alone["predict"])
        of_slowest, of_all = [], []
        for rate, *turn in zip(rates[f"vafer, {detect}"], *parts, strict=True):
            of_slowest.append(rate * max(seconds for seconds, _ in turn))
            of_all.append(rate * sum(worked for _, worked in turn) / available_cores())
        print(
            f"{detect}: {spread(of_slowest)} of what its slowest stage does alone, "
            f"{spread(of_all)} of what {available_cores()} cores can do of all stages' work"
        )


def spread(shares: list[float]) -> str:
    return f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


if __name__ == "__main__":
    main()
