"""Strong and weak emotions: labels part at a threshold (Algorithm 1, line 3).

Kim & Song, AAAI 2021. Labels stay on the CPU, so that the sizes of the groups are known without
waiting for a device. Otsu's threshold (1979) is exact here: no bins, every gap between two distinct
values is a candidate.
"""

from dataclasses import dataclass

import numpy as np

from train.config import GroupingConfig

MOST_DISTINCT = 2048  # values that k-means looks at; of more, neighbours are merged


@dataclass(frozen=True, slots=True)
class Groups:
    """The strong group P and the weak group Q of N labels.

    is_strong: bool (N,). radius: δ_r, the threshold of r = sqrt(valence² + arousal²).
    """

    is_strong: np.ndarray
    radius: float

    @property
    def strong(self) -> np.ndarray:
        """Indices of the strong, ascending, int64."""
        return np.flatnonzero(self.is_strong)

    @property
    def weak(self) -> np.ndarray:
        """Indices of the weak, ascending, int64."""
        return np.flatnonzero(~self.is_strong)

    @property
    def n_strong(self) -> int:
        return int(self.is_strong.sum())

    @property
    def n_weak(self) -> int:
        return len(self.is_strong) - self.n_strong

    @property
    def are_usable(self) -> bool:
        """Whether both have the two members that a critic needs."""
        return min(self.n_strong, self.n_weak) >= 2


def group(labels: np.ndarray, radius: float) -> Groups:
    """Part labels (N, 2): strong where r ≥ radius, which holds for corners with r > 1 too."""
    return Groups(_radii(labels) >= radius, radius)


def threshold_radius(labels: np.ndarray, config: GroupingConfig) -> float:
    """δ_r = sqrt(δ_v² + δ_a²) of labels (N, 2); δ by Otsu, or as the mean of k cluster centres.

    Labels of one magnitude are their own threshold, so that all are strong.
    """
    domains = np.asarray(labels, np.float64)
    if config.values == "magnitude":
        domains = np.abs(domains)
    if config.method == "otsu":
        thresholds = [otsu(domain) for domain in domains.T]
    else:
        thresholds = [kmeans_centres(domain, config.k).mean() for domain in domains.T]
    return float(_radii(np.array([thresholds]))[0])


def otsu(values: np.ndarray) -> float:
    """The threshold of values (N,) that maximises the variance between the two classes.

    It lies midway between the largest value below and the smallest above. Of equal maxima the
    lowest is taken; equal values are their own threshold.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    if len(distinct) == 1:
        return float(distinct[0])
    below = counts.cumsum()[:-1]
    above = counts.sum() - below
    sums = (counts * distinct).cumsum()
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    at = int(np.argmax(below * above * gap**2))
    return float((distinct[at] + distinct[at + 1]) / 2)


def kmeans_centres(values: np.ndarray, k: int) -> np.ndarray:
    """The k centres, ascending, that minimise the squared distances of values (N,) → (≤ k,).

    In one dimension clusters are runs of the sorted values, so the optimum is found by dynamic
    programming over where they end; there is no start to draw. Fewer distinct values than k are
    their own centres. More than MOST_DISTINCT are merged to as many means of neighbours.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    if len(distinct) <= k:
        return distinct
    if len(distinct) > MOST_DISTINCT:
        starts = np.linspace(0, len(distinct), MOST_DISTINCT, endpoint=False).astype(int)
        merged = np.add.reduceat(counts, starts)
        distinct, counts = np.add.reduceat(counts * distinct, starts) / merged, merged
    n = len(distinct)
    weights = np.append(0, counts.cumsum())
    sums = np.append(0, (counts * distinct).cumsum())
    squares = np.append(0, (counts * distinct**2).cumsum())
    # cost[a, b]: of one cluster of the values a..b; none where it would end before its start.
    weight = np.maximum(weights[None, 1:] - weights[:-1, None], 1)
    total = sums[None, 1:] - sums[:-1, None]
    cost = squares[None, 1:] - squares[:-1, None] - total**2 / weight
    cost = np.where(np.tri(n, k=-1, dtype=bool), np.inf, np.maximum(cost, 0))

    best, firsts = cost[0], []
    for _ in range(k - 1):
        ways = np.append(np.inf, best[:-1])[:, None] + cost
        firsts.append(ways.argmin(axis=0))
        best = ways.min(axis=0)
    edges = [n]
    for first in reversed(firsts):
        edges.append(int(first[edges[-1] - 1]))
    edges = [0, *edges[::-1]]
    return np.diff(sums[edges]) / np.diff(weights[edges])


def _radii(labels: np.ndarray) -> np.ndarray:
    return np.sqrt((np.asarray(labels, np.float64) ** 2).sum(axis=1))
