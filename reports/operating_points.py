"""A ladder of thresholds for people: what predict.py finds, and gets right, at each of them."""

import numpy as np

import metrics

PRECISIONS = 0.5, 0.7, 0.9  # [ours]


def point_for(points: np.ndarray, precision: float) -> np.ndarray | None:
    """The row of `metrics.operating_points` to use for a precision: of those that reach it, the one
    that finds most labels; None if none does. Precision is not monotone in the threshold, so all
    rows are compared."""
    reached = points[points[:, 1] >= precision]
    if not len(reached):
        return None
    return max(reached, key=lambda point: (point[2], point[1]))  # recall, then precision


def rungs(logits: np.ndarray, targets: np.ndarray, threshold: float) -> list[tuple]:
    """(threshold, precision, recall, labels per photo) at `threshold`, predict.py's own, and at
    those for each of PRECISIONS, of calibrated logits (M, n); from low to high.

    The list is empty if no photo shows a label.
    """
    if not targets.any():
        return []
    points = metrics.operating_points(logits, targets)  # (99, 4)
    chosen = [points[np.abs(points[:, 0] - threshold).argmin()]]
    for precision in PRECISIONS:
        point = point_for(points, precision)
        if point is not None:
            chosen.append(point)
    return sorted({tuple(point.tolist()) for point in chosen})


def in_words(rung: tuple, threshold: float) -> str:
    """A rung as a person reads it; `threshold` is predict.py's own."""
    p, precision, recall, labels = rung
    text = (
        f"at {p:.2f}: {precision:.0%} of labels right, {recall:.0%} found, {labels:.1f} per photo"
    )
    if abs(p - threshold) < 0.005:
        text += " (predict.py's own)"
    return text
