"""The four scores of the paper, over all frames pooled, population form (ddof = 0).

All follow from the moments of groups of frames. Moments pool exactly, so that a video, a person and
a resample of persons are scored without a second look at the frames.
Source: Kim & Song, AAAI 2021, "Evaluation metrics". An undefined score is None, never NaN.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

DIMENSIONS = ("valence", "arousal")


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What the scores need of G groups of frames, each (G,) float64; label and predicted paired.

    Squares and cross products are sums about the group's own mean. A mean is kept in two parts, for
    one rounded to 53 bits is too coarse where values differ in their last bits only. Undefined
    scores of a group are NaN here. An empty group has n = 0 and means of 0.
    """

    n: np.ndarray
    label_mean: np.ndarray
    label_rest: np.ndarray  # what rounding left out of label_mean
    predicted_mean: np.ndarray
    predicted_rest: np.ndarray
    label_square: np.ndarray
    predicted_square: np.ndarray
    cross: np.ndarray
    error_square: np.ndarray  # sum of (predicted - label)²
    n_agree: np.ndarray  # frames where the signs are equal
    label_low: np.ndarray
    label_high: np.ndarray
    predicted_low: np.ndarray
    predicted_high: np.ndarray

    @classmethod
    def of_frames(cls, label: np.ndarray, predicted: np.ndarray) -> "Moments":
        """Every frame of two series (N,) a group of its own."""
        y, p = np.asarray(label, np.float64), np.asarray(predicted, np.float64)
        one, zero = np.ones_like(y), np.zeros_like(y)
        agree = (np.sign(y) == np.sign(p)).astype(np.float64)
        return cls(one, y, zero, p, zero, zero, zero, zero, (p - y) ** 2, agree, y, y, p, p)

    @classmethod
    def join(cls, parts: Iterable["Moments"]) -> "Moments":
        """The groups of all parts, one after another."""
        return cls(*map(np.concatenate, zip(*(part._columns() for part in parts), strict=True)))

    def take(self, chosen: np.ndarray) -> "Moments":
        """The groups at these indices, in this order; one may be taken many times."""
        return Moments(*(column[chosen] for column in self._columns()))

    def pool(self, into: np.ndarray, n_pools: int) -> "Moments":
        """Group i becomes part of pool into[i]: (G,) groups → (n_pools,), by the parallel axes."""

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(into, values, n_pools)

        def centred(mean: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, ...]:
            """The pools' means in two parts, and how far off each group's mean is."""
            middle = total(self.n * mean) / filled
            away = mean - middle[into] + rest
            left_out = total(self.n * away) / filled
            return middle, left_out, away - left_out[into]

        n = total(self.n)
        filled = np.maximum(n, 1)
        label_mean, label_rest, y = centred(self.label_mean, self.label_rest)
        predicted_mean, predicted_rest, p = centred(self.predicted_mean, self.predicted_rest)
        return Moments(
            n,
            label_mean,
            label_rest,
            predicted_mean,
            predicted_rest,
            total(self.label_square + self.n * y * y),
            total(self.predicted_square + self.n * p * p),
            total(self.cross + self.n * y * p),
            total(self.error_square),
            total(self.n_agree),
            _extreme(np.minimum, self.label_low, into, np.full(n_pools, np.inf)),
            _extreme(np.maximum, self.label_high, into, np.full(n_pools, -np.inf)),
            _extreme(np.minimum, self.predicted_low, into, np.full(n_pools, np.inf)),
            _extreme(np.maximum, self.predicted_high, into, np.full(n_pools, -np.inf)),
        )

    def rmse(self) -> np.ndarray:
        """Root mean squared errors (G,)."""
        return np.sqrt(_ratio(self.error_square, self.n, self.n > 0))

    def sagr(self) -> np.ndarray:
        """Shares of frames whose signs are equal (G,), where sign(0) = 0."""
        return _ratio(self.n_agree, self.n, self.n > 0)

    def pcc(self) -> np.ndarray:
        """Pearson correlations (G,)."""
        deviations = np.sqrt(self.label_square) * np.sqrt(self.predicted_square)
        return _ratio(self.cross, deviations, self._varied())

    def ccc(self) -> np.ndarray:
        """Lin's concordance correlations (G,): 2 s_yp / (s_y² + s_p² + (ȳ - p̄)²).

        The denominator is 2 s_yp and the mean squared error, which no difference of means enters.
        """
        return _ratio(2 * self.cross, 2 * self.cross + self.error_square, self._varied())

    def scores(self) -> dict[str, np.ndarray]:
        """All four (G,), by name."""
        return {"rmse": self.rmse(), "sagr": self.sagr(), "pcc": self.pcc(), "ccc": self.ccc()}

    def _varied(self) -> np.ndarray:
        """By the range: the sum of squares of a constant is often a little above 0."""
        return (self.label_high > self.label_low) & (self.predicted_high > self.predicted_low)

    def _columns(self) -> list[np.ndarray]:
        return [getattr(self, field.name) for field in fields(self)]


def rmse(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Root mean squared error of two series (N,); None when N = 0."""
    return or_none(_pooled(label, predicted).rmse()[0])


def sagr(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of N with sign(label) = sign(predicted), where sign(0) = 0; None when N = 0."""
    return or_none(_pooled(label, predicted).sagr()[0])


def pcc(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Pearson correlation of two series (N,); None when one is constant or N < 2."""
    return or_none(_pooled(label, predicted).pcc()[0])


def ccc(label: np.ndarray, predicted: np.ndarray) -> float | None:
    """Lin's concordance correlation of two series (N,); None when one is constant or N < 2."""
    return or_none(_pooled(label, predicted).ccc()[0])


def scores(label: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, float | None]]:
    """All four of (N, 2) labels and predictions, columns valence and arousal."""
    label, predicted = np.asarray(label), np.asarray(predicted)
    return {
        dimension: {
            name: or_none(values[0])
            for name, values in _pooled(label[:, i], predicted[:, i]).scores().items()
        }
        for i, dimension in enumerate(DIMENSIONS)
    }


def or_none(score: float) -> float | None:
    """A score as JSON can hold it."""
    return None if math.isnan(score) else float(score)


def _pooled(label: np.ndarray, predicted: np.ndarray) -> Moments:
    return Moments.of_frames(label, predicted).pool(np.zeros(len(label), np.intp), 1)


def _extreme(
    of_two: np.ufunc, values: np.ndarray, into: np.ndarray, start: np.ndarray
) -> np.ndarray:
    of_two.at(start, into, values)
    return start


def _ratio(above: np.ndarray, below: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """NaN where undefined, also where a spread is so small that its square is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=defined & (below > 0))
