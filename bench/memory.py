"""Memory over length: the peak over all processes of a long recording against a short one.

    python bench/memory.py VIDEO DETECTOR.onnx [--minutes 6 60] [--json FILE]

VIDEO is repeated without being encoded anew until it lasts so many minutes, and annotated by the
command, every frame. Memory is what the processes hold together, shared pages counted once, looked
at twice a second. Linux; needs ffmpeg.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
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


def held_bytes(pid: int) -> int:
    """Memory that a process and all below it hold together, however many strangers share in it.

    Pages of files, of libraries most of all, are shared with whoever else maps these, so that PSS
    would depend on them. Each file counts as much as the process that has most of it in memory:
    a little less than the truth where two have different parts.
    """
    total, of_files = 0, defaultdict[str, int](int)
    for one in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            files = _file_pages(Path(f"/proc/{one}/smaps").read_text())
            total += _not_of_files(one)
            for path, size in files.items():
                of_files[path] = max(of_files[path], size)
    return total + sum(of_files.values())


def held_but_for_files(pid: int) -> int:
    """Of `held_bytes` what no file holds; of what processes share, each has its part (PSS)."""
    total = 0
    for one in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += _not_of_files(one)
    return total


def _not_of_files(pid: int) -> int:
    sizes = dict(_sizes(Path(f"/proc/{pid}/smaps_rollup").read_text()))
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"]


def _sizes(text: str) -> Iterator[tuple[str, int]]:
    """Names and bytes of those lines of proc(5)'s smaps that have any."""
    for line in text.splitlines():
        if line.endswith(" kB"):
            key, _, kib = line[:-3].partition(":")
            yield key, 1024 * int(kib)


def _file_pages(smaps: str) -> dict[str, int]:
    """Bytes of each file's pages that are in memory as they are on the disk."""
    pages, in_memory = defaultdict[str, int](int), _memory_devices()
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        head, _, rest = mapping.partition("\n")
        _, _, _, device, _, *path = head.split(maxsplit=5)
        if path and path[0].startswith("/") and device not in in_memory:
            sizes = dict(_sizes(rest))
            pages[path[0]] += sizes["Rss"] - sizes["Anonymous"]
    return pages


@cache
def _memory_devices() -> set[str]:
    """Devices, as smaps names them, whose files are shared memory: the kernel's own, and tmpfs."""
    found = {"00:01"}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - tmpfs " in line:
            major, minor = map(int, line.split()[2].split(":"))
            found.add(f"{major:02x}:{minor:02x}")
    return found


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
