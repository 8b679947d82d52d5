"""The four scores of the paper, over all frames pooled, population form (ddof = 0).

Source: Kim & Song, AAAI 2021, "Evaluation metrics". An undefined score is None, never NaN.
"""

import numpy as np


def rmse(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Root mean squared error of two series (N,); None when N = 0."""
    return float(np.sqrt(np.mean((predicted - label) ** 2))) if len(label) else None


def sagr(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of N with sign(label) = sign(predicted), where sign(0) = 0; None when N = 0."""
    return float(np.mean(np.sign(label) == np.sign(predicted))) if len(label) else None


def pcc(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Pearson correlation of two series (N,); None when one is constant or N < 2."""
    if _is_constant(label) or _is_constant(predicted):
        return None
    deviation = np.std(label) * np.std(predicted)
    return float(_covariance(label, predicted) / deviation) if deviation else None


def ccc(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Lin's concordance correlation of two series (N,); None when one is constant or N < 2."""
    if _is_constant(label) or _is_constant(predicted):
        return None
    apart = np.var(label) + np.var(predicted) + (np.mean(label) - np.mean(predicted)) ** 2
    return float(2 * _covariance(label, predicted) / apart)


def scores(label: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, float | None]]:
    """All four of (N, 2) labels and predictions, columns valence and arousal."""
    label, predicted = np.asarray(label, np.float64), np.asarray(predicted, np.float64)
    functions = {"rmse": rmse, "sagr": sagr, "pcc": pcc, "ccc": ccc}
    return {
        dimension: {name: f(label[:, i], predicted[:, i]) for name, f in functions.items()}
        for i, dimension in enumerate(("valence", "arousal"))
    }


def _is_constant(series: np.ndarray) -> bool:
    """By its range: the deviation of a constant is often a little above 0."""
    return len(series) < 2 or not np.ptp(series)


def _covariance(label: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean((label - np.mean(label)) * (predicted - np.mean(predicted))))
