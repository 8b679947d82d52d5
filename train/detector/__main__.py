"""Train the embedded face detector from scratch.

    python -m train.detector --faces FACES --videos VIDEOS --teacher yunet.onnx \\
        [--scenery SCENERY ...] [--face-free FACE_FREE] [--people PEOPLE] \\
        [--begin-with LAST.pt] --out runs/detector

FACES holds fer2013.parquet and lfw_expressions.parquet, VIDEOS the recordings that the card names,
SCENERY and FACE_FREE pictures without a face, PEOPLE photographs of people; none of what it is
judged on. Of SCENERY is left out where the teacher is sure of a face, not of FACE_FREE.
The same command goes on where it was stopped, from a checkpoint every 250 steps. The ONNX file is
`detector.onnx` in the run folder.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import cv2
import torch

from train.detector.material import load_material
from train.detector.run import DetectorConfig, train_detector
from vafer.errors import VaferError
from vafer.lock import own_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="ONNX detector with landmarks")
    parser.add_argument(
        "--scenery", type=Path, nargs="+", default=[], help="folders of pictures without a face"
    )
    parser.add_argument("--face-free", type=Path, help="folder of such pictures, looked at by you")
    parser.add_argument("--people", type=Path, help="folder of photographs of people")
    parser.add_argument("--begin-with", type=Path, help="last.pt of another training")
    parser.add_argument("--out", type=Path, default=Path("runs/detector"))
    parser.add_argument("--cache", type=Path, help="of the labels; the run folder by default")
    parser.add_argument("--steps", type=int, default=DetectorConfig().steps)
    parser.add_argument("--scale", type=int, default=DetectorConfig().scale, help="of the batches")
    parser.add_argument("--bf16", action="store_true", help="for processors that compute in it")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that make scenes; one a core, with CUDA one less"
    )
    arguments = parser.parse_args()
    if arguments.workers is not None and arguments.workers < 0:
        parser.error(f"--workers {arguments.workers}: expected 0, which is none, or more")

    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - started:.0f} s: {text}", file=sys.stderr, flush=True)

    torch.set_flush_denormal(True)
    cv2.setNumThreads(1)  # the processes that make scenes inherit it, and share the cores already
    cores = len(os.sched_getaffinity(0))
    workers = max(1, cores - 1)
    if arguments.device == "cpu":
        # Scenes take about as long as what the network does with them (as a profile said).
        torch.set_num_threads(max(1, cores // 2))
        workers = cores
    if arguments.workers is not None:
        workers = arguments.workers
    try:
        config = DetectorConfig(steps=arguments.steps, scale=arguments.scale, bf16=arguments.bf16)
        with own_folder(arguments.out):
            material = load_material(
                arguments.faces,
                arguments.videos,
                arguments.teacher,
                arguments.cache or arguments.out,
                tell,
                scenery=arguments.scenery,
                face_free=arguments.face_free,
                people=arguments.people,
            )
            tell(
                f"{len(material.portraits)} portraits, {len(material.frames)} frames, "
                f"{len(material.scenery) + len(material.face_free)} pictures without a face, "
                f"{len(material.people)} photographs of people"
            )
            path = train_detector(
                material,
                arguments.out,
                config,
                begin_with=arguments.begin_with,
                device=arguments.device,
                workers=workers,
                on_progress=tell,
            )
    except KeyboardInterrupt:
        print(
            "interrupted: what the last checkpoint has is kept; the same command goes on",
            file=sys.stderr,
        )
        return 130
    except (VaferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
