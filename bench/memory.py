"""Memory over length: the peak over all processes of a long recording against a short one.

    python bench/memory.py VIDEO DETECTOR.onnx [--minutes 6 60] [--json FILE]

VIDEO is repeated without being encoded anew until it lasts so many minutes, and annotated by the
command, every frame. Memory is what the processes hold together, shared pages counted once (PSS),
looked at twice a second. Linux; needs ffmpeg.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

LOOK_EVERY_S = 0.5


def lengthened(video: Path, minutes: float, folder: Path) -> Path:
    long = folder / f"{minutes:g}min.mp4"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-stream_loop", "-1", "-i", video]
    subprocess.run([*command, "-t", f"{60 * minutes:g}", "-c", "copy", "-an", long], check=True)
    return long


def tree(pid: int) -> list[int]:
    """A process and all below it, but for those that are ending."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found


def held_bytes(pid: int, kind: str = "Pss") -> int:
    """Memory of a process and all below it, of one of the kinds of proc(5)'s smaps_rollup."""
    total = 0
    for one in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{kind}:"):
                    total += 1024 * int(line.split()[1])
    return total


def peak_of(video: Path, detector: Path) -> tuple[int, float]:
    """Largest sum in bytes, and seconds."""
    out = video.with_suffix(".parquet")
    vafer = Path(sys.executable).with_name("vafer")
    command = [vafer, "annotate", video, "--out", out, "--quiet"]
    started, peak = time.monotonic(), 0
    process = subprocess.Popen([*map(str, command), "--detector", str(detector)])
    while process.poll() is None:
        peak = max(peak, held_bytes(process.pid))
        time.sleep(LOOK_EVERY_S)
    assert process.returncode == 0, process.returncode
    return peak, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--minutes", type=float, nargs=2, default=(6, 60))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            video = lengthened(arguments.video, minutes, Path(folder))
            peaks[minutes], seconds = peak_of(video, arguments.detector)
            print(
                f"{minutes:g} min: {peaks[minutes] / 2**20:,.0f} MiB, {seconds:,.0f} s", flush=True
            )
    short, long = (peaks[minutes] for minutes in arguments.minutes)
    print(f"ratio: {long / short:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"bytes": peaks, "ratio": long / short}) + "\n")


if __name__ == "__main__":
    main()
