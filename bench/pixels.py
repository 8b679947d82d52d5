"""What pixels that are not square do to values: recordings squeezed to three quarters, as in HDV.

    python bench/pixels.py VIDEO... [--every 6]

Each is encoded as it is, squeezed with its container saying so, and squeezed without. Prints how
far the values of the best-scored face of each frame are from those of the first. Needs ffmpeg.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import vafer

SQUEEZED = "scale=trunc(iw*3/8)*2:ih"
WAYS = {
    "as it is": "null",
    "squeezed, told": f"{SQUEEZED},setsar=4/3",
    "squeezed, untold": f"{SQUEEZED},setsar=1",
}
ENCODING = ("-an", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "12")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--every", type=int, default=6)
    arguments = parser.parse_args()
    for path in arguments.videos:
        with tempfile.TemporaryDirectory() as folder:
            compare(path, Path(folder), vafer.Sampling(every=arguments.every))


def compare(path: Path, folder: Path, sampling: vafer.Sampling) -> None:
    for way, filters in WAYS.items():
        out = folder / f"{way}.mp4"
        command = ["ffmpeg", "-v", "error", "-i", path, "-vf", filters, *ENCODING, out]
        subprocess.run(command, check=True)
    table = vafer.annotate(folder, sampling=sampling, detect="full").table.filter(face_index=0)
    first, *others = WAYS
    expected = table.filter(video=f"{first}.mp4").select("frame_index", "valence", "arousal")
    print(f"{path.name}, {len(expected)} frames with a face; median distance, mean difference")
    for way in others:
        both = table.filter(video=f"{way}.mp4").join(expected, on="frame_index", suffix="_expected")
        for value in ("valence", "arousal"):
            apart = both[value] - both[f"{value}_expected"]
            print(f"{way:18} {value:8} {apart.abs().median():.3f} {apart.mean():+.3f}")


if __name__ == "__main__":
    main()
