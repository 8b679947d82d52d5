"""What has no face: drawn backgrounds, and pages of letters."""

import math
import string
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAGES = 0.2  # share of backgrounds, and of pictures of no face, that are pages of letters
# Pixels, height and width, of pages that are pictures of no face, and how many of these are drawn,
# once in each process, where they take 230 kB each.
PAGE, N_PAGES = (240, 320), 400
FONTS = sorted(  # Matplotlib's, but for one that has few letters
    file
    for file in (Path(matplotlib.get_data_path()) / "fonts/ttf").glob("DejaVu*.ttf")
    if "Display" not in file.name
)
SMALLEST_FONT = 8  # pixels
ALPHABETS = (string.ascii_lowercase, string.ascii_uppercase, string.digits + string.punctuation)


@lru_cache(maxsize=N_PAGES)
def kept_page(number: int) -> np.ndarray:
    """A page, uint8 (H, W, 3), always the same; not to be written to."""
    sheet = page(np.random.default_rng(number), *PAGE)
    sheet.flags.writeable = False
    return sheet


def page(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A plain sheet or screen with letters, uint8 (H, W, 3)."""
    paper = rng.uniform(200, 255) if rng.random() < 0.7 else rng.uniform(0, 80)
    sheet = np.full((height, width, 3), paper + rng.normal(0, 10, 3)).clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 5)):
        sheet = written(sheet, rng)
    return sheet


def written(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8 (H, W, 3), with a paragraph of printed letters on it."""
    height, width = picture.shape[:2]
    largest = max(SMALLEST_FONT + 1.0, 0.3 * min(height, width))
    size = math.exp(rng.uniform(math.log(SMALLEST_FONT), math.log(largest)))
    font = _font(FONTS[rng.integers(len(FONTS))], round(size))
    n_lines = rng.integers(1, 2 + min(10, int(height / size)))
    across = rng.uniform(0.2, 1) * width / (0.6 * size)
    text = "\n".join(_line(rng, max(1, int(across))) for _ in range(n_lines))
    # Most letters are dark on light or light on dark.
    shade = 255.0 * (picture.mean() < 128)
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.3 else np.abs(shade - rng.uniform(0, 90, 3))
    at = rng.uniform(-0.1, 0.6, 2) * (width, height)
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).multiline_text(
        (float(at[0]), float(at[1])), text, tuple(map(int, colour)), font, spacing=0.3 * size
    )
    return np.array(image)


def _line(rng: np.random.Generator, length: int) -> str:
    """Words of any letters."""
    alphabet = ALPHABETS[rng.choice(len(ALPHABETS), p=(0.7, 0.15, 0.15))]
    letters = np.array([*alphabet, " "])
    chances = np.full(len(letters), 0.85 / len(alphabet))
    chances[-1] = 0.15
    return "".join(rng.choice(letters, length, p=chances))


@lru_cache(maxsize=64)
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    # The layout that every Pillow has; the other needs libraries that some machines lack.
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Something without a face: noise of several grains, shapes, stripes, letters; float32."""
    if rng.random() < PAGES:
        return page(rng, height, width).astype(np.float32)
    canvas = np.full((height, width, 3), rng.uniform(0, 255, 3), np.float32)
    for _ in range(rng.integers(1, 4)):
        grain = 2 ** rng.uniform(0, 6)
        cells = (max(2, int(width / grain)), max(2, int(height / grain)))
        noise = rng.normal(0, rng.uniform(5, 70), (cells[1], cells[0], rng.choice((1, 3))))
        grown = cv2.resize(noise.astype(np.float32), (width, height))
        canvas += grown.reshape(height, width, -1)
    canvas = canvas.clip(0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(25)) if rng.random() < 0.8 else 0):
        colour = [*map(float, rng.uniform(0, 255, 3))]
        at = [(int(x * width), int(y * height)) for x, y in rng.uniform(-0.1, 1.1, (4, 2))]
        reach = max(2, int(rng.uniform(0.02, 0.35) * min(height, width)))
        thick = int(rng.choice((-1, 1, 2, 4)))
        match rng.integers(5):
            case 0:
                cv2.fillPoly(canvas, [np.array(at[: int(rng.integers(3, 5))])], colour)
            case 1:
                axes = (reach, max(1, int(reach * rng.uniform(0.3, 1))))
                cv2.ellipse(canvas, at[0], axes, float(rng.uniform(0, 180)), 0, 360, colour, thick)
            case 2:
                cv2.rectangle(canvas, at[0], (at[0][0] + reach, at[0][1] + reach), colour, thick)
            case 3:
                cv2.line(canvas, at[0], at[1], colour, max(1, thick))
            case _:
                text = "".join(map(chr, rng.integers(33, 127, 6)))
                cv2.putText(canvas, text, at[0], int(rng.integers(8)), reach / 25, colour, 2)
    if rng.random() < 0.15:
        period, turn = rng.uniform(4, 40), rng.uniform(0, math.pi)
        y, x = np.mgrid[:height, :width]
        wave = np.sin((x * math.cos(turn) + y * math.sin(turn)) * 2 * math.pi / period)
        return (canvas + rng.uniform(10, 80) * wave[..., None]).clip(0, 255).astype(np.float32)
    return canvas.astype(np.float32)
