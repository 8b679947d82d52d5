"""What decord and PyAV cost, and how far decord runs ahead of a consumer that waits.

    python bench/decode.py VIDEO [--repeats 3]

Prints frames/s as RGB, in turn and as medians: PyAV as vafer uses it, decord alone, and vafer's
reader as it is planned for this file (with decord that includes PyAV's check of it). Before that, a
consumer takes one frame from decord and waits until memory grows no more, or has grown by 4 GB:
what it grew by, and how many frames of RGB that would be. For the run-ahead, take a long file:
`ffmpeg -stream_loop 14 -i VIDEO -c copy long.mp4`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import decord

from vafer.probe import VideoInfo, probe
from vafer.video import VideoReader

MOST_BYTES = 4 * 10**9  # where the run-ahead is given up


def by_reader(info: VideoInfo) -> int:
    return sum(1 for _ in VideoReader(info))


def by_decord(path: Path) -> int:
    reader = decord.VideoReader(str(path), num_threads=1)
    for _ in range(len(reader)):
        reader.next().asnumpy()
    return len(reader)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_ahead(path: Path) -> tuple[int, int, int]:
    """Bytes that memory grew by while a consumer waited, that in frames, and the file's frames."""
    reader = decord.VideoReader(str(path), num_threads=1)
    before = resident_bytes()
    frame = reader.next().asnumpy()
    grown, growth = 0, frame.nbytes
    while growth >= frame.nbytes and grown < MOST_BYTES:
        time.sleep(1)
        growth = resident_bytes() - before - grown
        grown += growth
    return grown, grown // frame.nbytes, len(reader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    grown, ahead, n_frames = run_ahead(arguments.video)  # first, while memory is small
    info = probe(arguments.video)
    ways: dict[str, Callable[[], int]] = {
        "PyAV": lambda: by_reader(replace(info, decoder="pyav")),
        "decord alone": lambda: by_decord(arguments.video),
        f"reader, planned for {info.decoder}": lambda: by_reader(info),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, decode in ways.items():
            started = time.perf_counter()
            n_decoded = decode()
            rates[name].append(n_decoded / (time.perf_counter() - started))
    print(f"{info}; medians of {arguments.repeats} runs in turn")
    base = statistics.median(rates["PyAV"])
    for name, found in rates.items():
        median = statistics.median(found)
        print(f"  {name:28} {median:8.0f} frames/s   {median / base:.2f} of PyAV's")
    end = "and growing" if grown >= MOST_BYTES else "at rest"
    print(f"  decord's run-ahead: {grown / 1e6:.0f} MB {end}, {ahead} of {n_frames} frames")


if __name__ == "__main__":
    main()
