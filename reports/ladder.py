"""A ladder of thresholds for people: what predict.py finds, and gets right, at each of them."""

import numpy as np

import metrics

PRECISIONS = 0.5, 0.7, 0.9  # [ours]


def rungs(logits: np.ndarray, targets: np.ndarray, threshold: float) -> list[tuple]:
    """(threshold, precision, recall, labels a photo) at `threshold`, predict.py's own, and at the
    lowest that reaches each of PRECISIONS on calibrated logits (M, n); from low to high.

    The list is empty if no photo shows a label.
    """
    if not targets.any():
        return []
    points = metrics.operating_points(logits, targets)  # (99, 4)
    chosen = {int(np.abs(points[:, 0] - threshold).argmin())}
    for precision in PRECISIONS:
        reached = np.flatnonzero(points[:, 1] >= precision)
        if len(reached):
            chosen.add(int(reached[0]))
    return [tuple(points[i].tolist()) for i in sorted(chosen)]


def in_words(rung: tuple, threshold: float) -> str:
    """A rung as a person reads it; `threshold` is predict.py's own."""
    p, precision, recall, labels = rung
    text = f"at {p:.2f}: {precision:.0%} of labels right, {recall:.0%} found, {labels:.1f} a photo"
    if abs(p - threshold) < 0.005:
        text += " (predict.py's own)"
    return text
