"""What the paper reports for a dataset: Kim & Song, AAAI 2021, Tables 1 to 4, mean of five runs.

Its validation videos of Aff-Wild are not named, so a difference there may be one of videos.
"""

from typing import Any

SCORES = ("rmse", "sagr", "pcc", "ccc")


def _row(*values: float) -> dict[str, dict[str, float]]:
    """Eight figures in the order of the tables: valence and arousal of each score."""
    return {
        dimension: dict(zip(SCORES, values[i::2], strict=True))
        for i, dimension in enumerate(("valence", "arousal"))
    }


# By the backbone of CAF.
PUBLISHED: dict[str, dict[str, Any]] = {
    "affectnet": {
        "ResNet18": _row(0.2186, 0.1873, 0.80, 0.84, 0.86, 0.85, 0.83, 0.84),
        "AlexNet": _row(0.2216, 0.1916, 0.79, 0.84, 0.81, 0.86, 0.80, 0.85),
    },
    "afew-va": {
        "ResNet18": _row(0.17, 0.18, 0.68, 0.87, 0.67, 0.60, 0.59, 0.54),
        "AlexNet": _row(0.20, 0.20, 0.66, 0.83, 0.67, 0.63, 0.58, 0.57),
    },
    "aff-wild": {
        "ResNet18": _row(0.22, 0.20, 0.70, 0.76, 0.57, 0.57, 0.55, 0.56),
        "AlexNet": _row(0.24, 0.21, 0.68, 0.78, 0.55, 0.57, 0.54, 0.56),
    },
    "aff-wild2": {},
}
