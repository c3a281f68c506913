"""Multi-label metrics on scores and targets, both (M, n): M images, n labels. NumPy only.

Published code disagrees on all of these conventions, so here they are:
  - scores may be logits or probabilities; a threshold is on the same scale, and a label is
    predicted strictly above it. `run.py` passes float32 logits, because sigmoids round into ties.
  - AP is the area under the step-wise precision-recall curve, no interpolation. Equal scores share
    one threshold, so the order of the images cannot matter.
  - A label without positives has no AP, recall or F1, so it is left out of mAP, CR and CF1. A label
    that is never predicted counts 0 in CP, which is a mean over all n labels.
  - CF1 is the mean over labels of their F1 (the paper's and ASL's), CF1_h the harmonic mean of CP
    and CR (ML-GCN's). OF1 is the harmonic mean of OP and OR in all of them. Difference 5.
  - `mean_average_precision` and `precision_recall_f1` are in percent, 0 to 100, like the paper's
    tables, but for N+, a count. Everything else is in [0, 1].
"""

import math

import numpy as np


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP of every label, (n,) in [0, 1]; NaN for a label without positives.

    The mean, over a label's positives, of the precision among the images that score at least as
    high.
    """
    scores, targets = checked(scores, targets)
    result = np.full(scores.shape[1], np.nan)
    # Copies of the transposed: a label's scores lie together, and sort faster.
    for j, (column, positive) in enumerate(zip(scores.T.copy(), targets.T.copy(), strict=True)):
        ranked = np.sort(column)  # (M,), ascending
        positives = np.sort(column[positive])  # (K,), ascending
        if len(positives):
            retrieved = len(ranked) - np.searchsorted(ranked, positives)  # (K,), scores >= this one
            hits = len(positives) - np.searchsorted(positives, positives)  # (K,), positives among
            result[j] = np.mean(hits / retrieved)
    return result


def checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets > 0, both (M, n); a ValueError on other shapes and on NaN."""
    scores, targets = np.asarray(scores), np.asarray(targets) > 0
    if scores.dtype.kind != "f":
        scores = scores.astype(float)  # -scores of unsigned integers would wrap around
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}; expected two of (M, n)")
    if np.isnan(scores).any():
        raise ValueError(
            "scores hold NaN, which has no rank: a photo that could not be read, or a model that "
            "diverged"
        )
    return scores, targets


def mean_average_precision(ap: np.ndarray) -> float:
    """mAP in percent from `average_precision`'s (n,), over the labels that have positives."""
    return 100 * float(np.mean(ap[~np.isnan(ap)])) if (~np.isnan(ap)).any() else float("nan")


def precision_recall_f1(
    scores: np.ndarray, targets: np.ndarray, threshold: float = -np.inf, top_k: int | None = None
) -> dict[str, float]:
    """CP, CR, CF1, CF1_h, OP, OR and OF1 in percent, for labels predicted strictly above
    `threshold`; and N+, the number of labels that were found at least once (recall above 0).

    With top_k, only the k highest scores of an image count as predicted; of equal ones, the first.
    """
    scores, targets = checked(scores, targets)
    predicted = scores > threshold  # (M, n)
    if top_k is not None:
        highest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # (M, k)
        within = np.zeros_like(predicted)
        np.put_along_axis(within, highest, True, axis=1)
        predicted = predicted & within
    tp = (predicted & targets).sum(0)  # (n,)
    predictions, positives = predicted.sum(0), targets.sum(0)  # (n,), (n,)
    present = positives > 0  # (n,)

    def f1(precision, recall):
        return 2 * precision * recall / np.maximum(precision + recall, 1e-12)

    precision = tp / np.maximum(predictions, 1)  # (n,), never predicted: 0
    recall = tp / np.maximum(positives, 1)  # (n,)
    CP = precision.mean()
    CR = recall[present].mean() if present.any() else np.nan
    CF1 = f1(precision, recall)[present].mean() if present.any() else np.nan
    OP = tp.sum() / max(predictions.sum(), 1)
    OR = tp.sum() / max(positives.sum(), 1)
    return {
        "CP": 100 * float(CP),
        "CR": 100 * float(CR),
        "CF1": 100 * float(CF1),
        "CF1_h": 100 * float(f1(CP, CR)),
        "OP": 100 * float(OP),
        "OR": 100 * float(OR),
        "OF1": 100 * float(f1(OP, OR)),
        "N+": int((tp > 0).sum()),
    }


def logit(p: float) -> float:
    """The logit whose sigmoid is the probability p, a threshold; infinite for 0 and 1."""
    if p in (0, 1):
        return math.inf if p else -math.inf
    return math.log(p / (1 - p))


def best_threshold(logits: np.ndarray, targets: np.ndarray) -> float:
    """The probability, in steps of 0.01, whose predictions have the highest OF1; of several, the
    middle one. `predict.py` uses it, on calibrated logits (difference 6)."""
    OF1 = {}
    for k in range(1, 100):
        p = k / 100
        OF1[p] = precision_recall_f1(logits, targets, logit(p))["OF1"]
    best = [p for p in OF1 if OF1[p] == max(OF1.values())]
    return best[len(best) // 2]


def operating_points(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(99, 4): a threshold from 0.01 to 0.99, and above it OP and OR (0 to 1) and labels per photo.

    For whoever chooses between few wrong labels and few missed ones, on calibrated logits (M, n).
    """
    points = []
    for k in range(1, 100):
        p = k / 100
        at = precision_recall_f1(logits, targets, logit(p))
        per_photo = (np.asarray(logits) > logit(p)).sum() / len(logits)
        points.append((p, at["OP"] / 100, at["OR"] / 100, per_photo))
    return np.array(points)
