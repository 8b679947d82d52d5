"""Annotation on a GPU: frames a second from file to table, and what its stages do alone.

    python bench/gpu.py VIDEO DETECTOR.onnx [--copies N] [--device cuda] [--json FILE]

VIDEO is annotated --copies times at once, as so many recordings, one a core without (the figures in
docs/performance.md are of 1,280 × 720 pixels and one face). Printed are the rate, that of decoding
alone by as many processes, and their ratio; the detector by PyTorch in batches against insightface
frame by frame on the CPU, with how far their boxes are apart; and predictions in float32, bfloat16
and float16, with how far their values are apart.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import vafer
from vafer.batcher import FRAMES_IN_BATCH
from vafer.crops import cut, cut_and_warp, warp
from vafer.faces import Detector
from vafer.model import load_model
from vafer.options import BATCH_SIZE, Sampling
from vafer.probe import probe
from vafer.staged import available_cores
from vafer.store import find_model
from vafer.video import Chunk, VideoReader
from vafer.workers import DecoderProcess

N_FRAMES = 128  # in memory
BATCHES = (1, 4, 16, 32, 64)
REPEATS = 3


def copies(video: Path, n: int, folder: Path) -> list[Path]:
    paths = [folder / f"{i:02d}{video.suffix}" for i in range(n)]
    for path in paths:
        path.symlink_to(video.resolve())
    return paths


def annotated(videos: list[Path], detector: Path, device: str) -> float:
    """Frames a second from file to table, loading left out, starting processes not."""
    results = vafer.annotate(
        videos, detector=detector, device=device, detect="full", workers=len(videos)
    )
    assert (results.videos["status"] == "done").all()
    return results.n_frames / results.elapsed_s


def decoded(videos: list[Path]) -> float:
    """Frames a second out of decoder processes, one for each recording."""

    def work(video: Path) -> int:
        process = DecoderProcess()
        try:
            items = process.decode(video, Sampling(), is_retry=False)
            return sum(len(item.frames) for item in items if isinstance(item, Chunk))
        finally:
            process.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(len(videos)) as threads:
        n_frames = sum(threads.map(work, videos))
    return n_frames / (time.perf_counter() - started)


def rate(work: Callable[[], object], n: int, device: str) -> float:
    """Frames or faces a second, median of three."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return n / (time.perf_counter() - started)

    once()
    return statistics.median(once() for _ in range(REPEATS))


def detection(frames: list[np.ndarray], path: Path, device: str) -> dict[str, float]:
    batched, alone = Detector(path, device=device), Detector(path)
    on_device = torch.from_numpy(np.stack(frames)).to(device)
    found: dict[str, float] = {"insightface on the CPU, frames/s": rate(
        lambda: [alone.detect(frame) for frame in frames[:32]], 32, "cpu"
    )}  # fmt: skip
    for size in BATCHES:
        found[f"batches of {size}, frames/s"] = rate(
            lambda size=size: [batched.detect_many(part) for part in on_device.split(size)],
            len(frames),
            device,
        )
    apart = []
    for own, expected in zip(
        batched.detect_many(on_device), map(alone.detect, frames), strict=True
    ):
        assert len(own) == len(expected), "another number of faces"
        apart += [*np.abs(own.boxes - expected.boxes).ravel()]
    found["boxes apart, largest, pixels of the frame"] = float(np.max(apart))
    found["boxes apart, median"] = float(np.median(apart))
    return found


def prediction(frames: list[np.ndarray], path: Path, device: str) -> dict[str, float]:
    model, detector = load_model(find_model(None), device=device), Detector(path)
    size, maps, of_frame = model.card.crop.size, list[np.ndarray](), list[int]()
    frames = frames[:FRAMES_IN_BATCH]
    for k, frame in enumerate(frames):
        faces = detector.detect(frame)
        if len(faces):
            maps += [*model.card.crop.matrices(faces.boxes, faces.landmarks)]
            of_frame += [k] * len(faces)
    of, matrices = np.array(of_frame), np.array(maps)
    on_device = torch.from_numpy(np.stack(frames)).to(device)
    crops = cut_and_warp(on_device, of, matrices, size)
    one_by_one = warp(
        [cut(frames[k], matrix, size) for k, matrix in zip(of, matrices, strict=True)], size
    )
    apart = (model.predict(crops) - model.predict(one_by_one)).abs().max()
    crops = crops.repeat(-(-BATCH_SIZE // len(crops)), 1, 1, 1)[:BATCH_SIZE]
    expected = model.predict(crops)
    found = {
        "crops of a batch of frames, faces/s": rate(
            lambda: cut_and_warp(on_device, of, matrices, size), len(matrices), device
        ),
        "values of those and of crops made one by one apart, largest": float(apart),
        "float32, faces/s": rate(lambda: model.predict(crops), len(crops), device),
    }
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        with torch.autocast(device.partition(":")[0], dtype):
            found[f"{name}, faces/s"] = rate(lambda: model.predict(crops), len(crops), device)
            apart = (model.predict(crops) - expected).abs().max()
        found[f"{name}, values apart, largest"] = float(apart)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--copies", type=int, default=available_cores())
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    info = probe(arguments.video)
    reader = VideoReader(info, sampling=Sampling(every=4))
    frames = [frame.image for frame in islice(reader, N_FRAMES)]

    figures: dict[str, float] = {}

    def tell(found: dict[str, float]) -> None:
        figures.update(found)
        for name, value in found.items():
            print(f"{name}: {value:,.4g}", flush=True)

    is_cuda = arguments.device.startswith("cuda")
    name = torch.cuda.get_device_name(arguments.device) if is_cuda else arguments.device
    print(f"{info.width} × {info.height}, {available_cores()} cores, {name}")
    tell(detection(frames, arguments.detector, arguments.device))
    tell(prediction(frames, arguments.detector, arguments.device))
    with tempfile.TemporaryDirectory() as folder:
        videos = copies(arguments.video, arguments.copies, Path(folder))
        whole, decoding = [], []
        for _ in range(REPEATS):
            decoding.append(decoded(videos))
            whole.append(annotated(videos, arguments.detector, arguments.device))
        shares = [w / d for w, d in zip(whole, decoding, strict=True)]
        names = ("decoding alone, frames/s", "annotation, frames/s", "share of decoding")
        tell(dict(zip(names, map(statistics.median, (decoding, whole, shares)), strict=True)))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
