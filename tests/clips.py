"""Clips made by ffmpeg whose every frame carries its own number in its pixels.

A frame is a grid of 4 by 4 cells. The first row says which way is up and which channel is red (red,
white, black, white); the other twelve cells are the bits of the frame's number, white for one.
Cells this large survive compression, scaling and rotation, and need no font.
"""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

GRID = 4
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
"""Fast, and without B-frames."""
X264_B = (
    *("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"),
    *("-bf", "2", "-g", "12", "-sc_threshold", "0"),
)
"""With B-frames and a keyframe every 12 frames."""
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p")


def run(*args: str | Path | bytes, stdin: bytes | None = None) -> bytes:
    """ffmpeg with these arguments; returns its stdout, raises with its stderr."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *args]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def draw(number: int, width: int, height: int) -> np.ndarray:
    """The picture of `number` (0..4095): uint8 (height, width, 3) RGB."""
    bits = [(number >> bit) & 1 for bit in range(12)]
    cells = np.zeros((GRID, GRID, 3), np.uint8)
    cells[0, 0, 0] = cells[0, 1] = cells[0, 3] = 255
    cells[1:] = np.reshape(bits, (GRID - 1, GRID, 1)) * 255
    rows = np.arange(height) * GRID // height
    columns = np.arange(width) * GRID // width
    return cells[rows][:, columns]


def read(image: np.ndarray) -> int:
    """The number drawn in uint8 (H, W, 3) RGB.

    Raises AssertionError where the first row is not as drawn: turned, mirrored, BGR or grey.
    """
    height, width, _ = image.shape
    centre = (np.arange(GRID) * 2 + 1) / (GRID * 2)
    rows, columns = (centre * height).astype(int), (centre * width).astype(int)
    cells = image[rows][:, columns] > 127
    assert cells[0, 0].tolist() == [True, False, False], f"no red corner: {image[rows[0]][columns]}"
    assert cells[0, 1:].all(axis=-1).tolist() == [True, False, True], "not the right way up"
    bits = cells[1:].all(axis=-1).ravel()
    return int(sum(1 << bit for bit in range(12) if bits[bit]))


def make(
    path: Path,
    *args: str,
    n: int = 48,
    size: tuple[int, int] = (160, 120),
    rate: str = "24",
    audio_s: float | None = None,
) -> Path:
    """A clip of frames 0..n-1 at `rate`, encoded as `args` say (default X264).

    `audio_s` adds a tone of that many seconds. Returns `path`.
    """
    width, height = size
    raw = np.stack([draw(number, width, height) for number in range(n)]).tobytes()
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate]
    tone: list[str] = []
    if audio_s is not None:
        tone = ["-f", "lavfi", "-t", str(audio_s), "-i", "sine=440:r=8000"]
    run(*source, "-i", "pipe:0", *tone, *(args or X264), path, stdin=raw)
    return path


def ffprobe_pts(path: Path) -> list[int | None]:
    """The pts of every frame that ffprobe decodes, in ticks; None where it has none."""
    command: Sequence[str | Path] = (
        *("ffprobe", "-v", "quiet", "-count_frames", "-select_streams", "v:0"),
        *("-show_entries", "frame=pts", "-of", "csv=p=0", path),
    )
    out = subprocess.run(command, capture_output=True, check=False).stdout.decode()
    fields = [line.strip().strip(",") for line in out.splitlines() if line.strip()]
    return [None if field == "N/A" else int(field) for field in fields]


_FOLDER = tempfile.TemporaryDirectory(prefix="clips-")

RECIPES: dict[str, Callable[[Path], object]] = {
    "plain.mp4": lambda path: make(path),
    "b.mp4": lambda path: make(path, *X264_B),
    "b.mkv": lambda path: make(path, *X264_B),
    "b.ts": lambda path: make(path, *X264_B),
    "b.avi": lambda path: make(path, *X264_B),
    "raw.h264": lambda path: make(path, *X264_B),
    "vfr.mp4": lambda path: make(
        path,
        *("-vf", "setpts='(N+3*floor(N/5))/24/TB'", "-fps_mode", "passthrough"),
        *("-enc_time_base", "1:240", *X264_B),
    ),
    "offset.mp4": lambda path: copy("b.mp4", path, "-output_ts_offset", "5.5"),
    "offset.mkv": lambda path: copy("b.mp4", path, "-output_ts_offset", "5.5"),
    "rotate90.mp4": lambda path: copy("plain.mp4", path, "-metadata:s:v:0", "rotate=90"),
    "rotate180.mp4": lambda path: copy("plain.mp4", path, "-metadata:s:v:0", "rotate=180"),
    "rotate270.mp4": lambda path: copy("plain.mp4", path, "-metadata:s:v:0", "rotate=270"),
    "odd444.mp4": lambda path: make(
        path, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv444p", size=(161, 121)
    ),
    "odd420.webm": lambda path: make(path, *VP9, size=(161, 121)),
    "vp9.webm": lambda path: make(path, *VP9),
    "vp8.webm": lambda path: make(path, "-c:v", "libvpx", "-b:v", "400k", "-pix_fmt", "yuv420p"),
    "av1.mp4": lambda path: make(
        path, *("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-pix_fmt", "yuv420p")
    ),
    "hevc10.mp4": lambda path: make(
        path,
        *("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"),
        *("-x265-params", "log-level=none"),
    ),
    "mpeg4.avi": lambda path: make(path, "-c:v", "mpeg4", "-q:v", "3"),
    "mpeg2.mpg": lambda path: make(path, *MPEG2),
    "wmv2.wmv": lambda path: make(path, "-c:v", "wmv2", "-q:v", "3"),
    "full_range.mp4": lambda path: make(
        path, "-vf", "scale=out_range=full", "-color_range", "pc", "-colorspace", "bt709", *X264
    ),
    "bt709.mp4": lambda path: make(
        path, "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", *X264
    ),
    "long_audio.mp4": lambda path: make(path, *X264_B, audio_s=4),
    "long_audio.mkv": lambda path: make(path, *X264_B, audio_s=4),
    # Cut between keyframes: -ss 1.3 leaves packets to discard, the lost first packet leaves
    # pictures that nothing decodes, up to the first keyframe or the first recovery.
    "edit_list.mp4": lambda path: run("-ss", "1.3", "-i", clip("b.mp4"), "-c", "copy", path),
    "no_keyframe.mkv": lambda path: copy("b.mp4", path, "-bsf:v", "noise=drop=eq(n\\,0)"),
}


def copy(source: str, path: Path, *args: str) -> None:
    """The recipe `source` remuxed to `path`, without encoding, as `args` say."""
    run("-i", clip(source), "-c", "copy", *args, path)


def clip(name: str) -> Path:
    """The clip called `name` in RECIPES, made when first asked for; not to be written to."""
    path = Path(_FOLDER.name) / name
    if not path.exists():
        RECIPES[name](path)
    return path
