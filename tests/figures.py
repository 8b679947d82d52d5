"""What a figure shows, for the tests that ask."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def words(figure: Figure) -> str:
    found = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    return "\n".join(text.get_text() for text in found)


def check_picture(path: Path, n_panels_high: int) -> None:
    """A PNG of a size to read, alone in its folder."""
    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == "PNG"
        width, height = picture.size
    assert 1200 <= width <= 2000
    assert 200 * n_panels_high <= height <= 800 * n_panels_high
    assert list(path.parent.iterdir()) == [path]
