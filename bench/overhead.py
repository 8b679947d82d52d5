"""What a run in batches costs beside decoding and all that has to do with the GPU.

    python bench/overhead.py VIDEO DETECTOR.onnx [--copies N] [--json FILE]

VIDEO is annotated --copies times at once, as so many recordings, decoded for real. Uploads, and all
that is issued to a GPU and computed there, are left out: every frame has one face in its middle.
Printed is the CPU time of the rest in the one process that gathers it all, in milliseconds a frame,
by its threads. They take turns at Python's lock, so no run is faster than one frame in their sum;
what is left out takes its time, too.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import copies

import vafer
from vafer import batcher, faces, staged
from vafer.batcher import Batcher
from vafer.faces import Detector, Faces
from vafer.model import Model
from vafer.options import Sampling
from vafer.probe import probe

spent = list[tuple[str, float]]()  # role of a thread, its seconds of CPU time


def timed(work: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        started = time.thread_time()
        work(*arguments)
        role = threading.current_thread().name.partition("-")[0]
        spent.append((role, time.thread_time() - started))

    return run


def leave_out_the_device(width: int, height: int) -> None:
    middle, side = np.array([width, height]) / 2, min(width, height) / 4
    offsets = np.array([[-0.3, -0.2], [0.3, -0.2], [0, 0.1], [-0.25, 0.4], [0.25, 0.4]]) * side
    face = Faces(
        np.concatenate([middle - side / 2, middle + side / 2])[None].astype(np.float32),
        np.ones(1, np.float32),
        (middle + offsets)[None].astype(np.float32),
    )

    def crops(frames: Any, of_frame: Any, matrices: np.ndarray, size: int) -> torch.Tensor:
        return torch.zeros(1, 3, 1, 1).expand(len(matrices), 3, 1, 1)

    owners_and_stubs: list[tuple[Any, str, Callable[..., Any]]] = [
        (Detector, "detect_many", lambda self, frames: [face] * len(frames)),
        (Batcher, "upload", lambda self, pictures: torch.zeros(len(pictures), 1, 1, 3)),
        (batcher, "cut_and_warp", crops),
        (Model, "predict", lambda self, crops: torch.zeros(len(crops), 2)),
        (Batcher, "_run", timed(Batcher._run)),
        (staged._Run, "_guarded", timed(staged._Run._guarded)),
    ]
    for owner, name, stub in owners_and_stubs:
        setattr(owner, name, stub)
    faces.BY_TORCH = ("cpu",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    info = probe(arguments.video)
    leave_out_the_device(info.width, info.height)

    def run(videos: list[Path], sampling: Sampling) -> vafer.Results:
        return vafer.annotate(
            videos,
            detector=arguments.detector,
            device="cpu",
            detect="full",
            sampling=sampling,
            workers=len(videos),
        )

    with tempfile.TemporaryDirectory() as folder:
        videos = copies(arguments.video, arguments.copies, Path(folder))
        run(videos[:2], Sampling(every=50))  # loads what is loaded once
        spent.clear()
        started = time.thread_time()
        results = run(videos, Sampling())
        spent.append(("main", time.thread_time() - started))
    figures = dict[str, float]()
    for role, seconds in spent:
        figures[role] = figures.get(role, 0.0) + 1000 * seconds / results.n_frames
    figures["sum"] = sum(figures.values())
    print(f"{info.width} × {info.height}, {len(videos)} recordings, {results.n_frames:,} frames")
    for role, value in figures.items():
        print(f"{role}: {value:.3f} ms a frame")
    print(f"at most {1000 / figures['sum']:,.0f} frames/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
