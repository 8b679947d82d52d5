"""A recording to try vafer on, made on the spot: `python -m vafer.sample astronaut.mp4`.

The face is that of the astronaut Eileen Collins, in a NASA photograph in the public domain that
ships inside scikit-image; it moves and grows over time.
"""

import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

WIDTH, HEIGHT, RATE, SECONDS = 640, 360, 25, 6


def write_sample(path: Path, *, seconds: float = SECONDS) -> Path:
    """Write the recording: H.264 in the container that the ending names, 640×360, 25 frames/s.

    In the last half second the face has left the picture.
    """
    from skimage.data import astronaut

    portrait: np.ndarray = astronaut()  # type: ignore[no-untyped-call]  # untyped in scikit-image
    n_frames = round(seconds * RATE)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for index in range(n_frames):
            gone = index >= n_frames - RATE // 2
            frame = av.VideoFrame.from_ndarray(_picture(portrait, index / RATE, gone=gone), "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _picture(portrait: np.ndarray, time_s: float, *, gone: bool) -> np.ndarray:
    picture = np.full((HEIGHT, WIDTH, 3), (72, 84, 96), np.uint8)
    if gone:
        return picture
    scale = 0.75 + 0.25 * math.sin(time_s)
    turn: np.ndarray = cv2.getRotationMatrix2D((220, 110), 6 * math.sin(1.7 * time_s), scale)
    turn[:, 2] += np.array([WIDTH / 2 + 120 * math.sin(0.9 * time_s) - 220, HEIGHT / 2 - 110])
    return cv2.warpAffine(
        portrait, turn, (WIDTH, HEIGHT), dst=picture, borderMode=cv2.BORDER_TRANSPARENT
    )


def show(recording: Path, results: Path, picture: Path) -> None:
    """Print some rows of a recording's table and draw it."""
    import polars as pl

    from vafer.parts import read_table
    from vafer.plots import plot_annotation

    table = read_table(results).filter(pl.col("video") == recording.name)
    columns = ["time_s", "track_id", "x1", "y1", "x2", "y2", "det_score", "valence", "arousal"]
    with pl.Config(
        tbl_cols=-1,
        tbl_width_chars=160,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        float_precision=3,
    ):
        print(table.filter(pl.col("frame_index") % 15 == 0).select("frame_index", *columns))
    plot_annotation(table, recording, picture)
    print(f"picture: {picture}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--show", recording, results, picture]:
            show(Path(recording), Path(results), Path(picture))
        case [out] if not out.startswith("-"):
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            print(write_sample(Path(out)))
        case _:
            sys.exit(
                "usage: python -m vafer.sample [--show RECORDING RESULTS PICTURE.png | OUT.mp4]"
            )
