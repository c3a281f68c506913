"""What predict.py finds, and gets right, at a threshold; and which thresholds results.md names.

The numbers of all thresholds are computed in metrics.py.

Symbols: M photos, n labels.
"""

from typing import NamedTuple

import numpy as np

import metrics

PRECISIONS = 0.5, 0.7, 0.9  # [ours]


class OperatingPoint(NamedTuple):
    """What a threshold gave on val; a row of `metrics.operating_points`."""

    threshold: float
    precision: float  # share of the predicted labels that are right
    recall: float  # share of the right labels that are predicted
    labels_per_photo: float


def point_for(points: list[OperatingPoint], precision: float) -> OperatingPoint | None:
    """The point to use for a precision: of those that reach it, the one that finds most labels, and
    of several equally good ones the middle one; None if none does. Precision is not monotone in the
    threshold, so all points are compared."""
    reached = [point for point in points if point.precision >= precision]
    if not reached:
        return None
    highest = max((point.recall, point.precision) for point in reached)
    best = [point for point in reached if (point.recall, point.precision) == highest]
    return best[len(best) // 2]


def suggested(logits: np.ndarray, targets: np.ndarray, threshold: float) -> list[OperatingPoint]:
    """The points at `threshold`, predict.py's own, and at those for each of PRECISIONS, of
    calibrated logits (M, n); from low to high. The list is empty if no photo shows a label."""
    if not targets.any():
        return []
    points = [OperatingPoint(*row) for row in metrics.operating_points(logits, targets).tolist()]
    chosen = [min(points, key=lambda point: abs(point.threshold - threshold))]
    for precision in PRECISIONS:
        point = point_for(points, precision)
        if point is not None:
            chosen.append(point)
    return sorted(set(chosen))


def in_words(point: OperatingPoint, threshold: float) -> str:
    """A point as a person reads it; `threshold` is predict.py's own."""
    text = (
        f"at {point.threshold:.2f}: {point.precision:.0%} of labels right, {point.recall:.0%} "
        f"found, {point.labels_per_photo:.1f} per photo"
    )
    if abs(point.threshold - threshold) < 0.005:
        text += " (predict.py's own)"
    return text
