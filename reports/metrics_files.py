"""scores-<model>.npz and metrics-<model>.json: the numbers of each model on val, for programs.

What people read is made from them in the other modules of this folder.

Symbols: M val photos, n labels. Metrics are in percent.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

import data
import metrics
from reports.trained_model import THRESHOLD
from runtime import ranks, writing
from runtime.folder import Folder

# What zipfile and NumPy raise of a damaged file: RuntimeError where the damage looks like an
# unknown compression or a password.
DAMAGED = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def save_numbers(
    folder: Folder, name: str, logits: np.ndarray, split: data.Split, start: dict, thresholds: list
) -> dict:
    """Write scores-<name>.npz and metrics-<name>.json of logits (M, n); returns the latter.

    `start` is the report that `models_of_run` began. `thresholds` are probabilities. The AP of a
    label that no image shows is None.
    """
    targets = split.targets  # (M, n)
    ap = metrics.average_precision(logits, targets)  # (n,), logits ranked: sigmoids would tie
    percent = [None if np.isnan(a) else 100 * float(a) for a in ap]
    report = start | {
        "mAP": metrics.mean_average_precision(ap),
        "images": len(targets),
        "left_out": int(np.isnan(ap).sum()),  # labels without a positive
        "thresholds": {},
        "top3": metrics.precision_recall_f1(logits, targets, top_k=3),
        "AP": dict(zip(split.classes, percent, strict=True)),
    }
    for p in sorted(set(thresholds)):
        at = metrics.precision_recall_f1(logits, targets, metrics.logit(p))
        report["thresholds"][f"{p:g}"] = at
    if "calibration" in start:  # where predict.py draws the line
        slope, offset = start["calibration"]
        line = (metrics.logit(start["threshold"]) - offset) / slope
        report["predict"] = metrics.precision_recall_f1(logits, targets, line)
    if ranks.rank() == 0:
        classes, path = np.array(split.classes), folder / f"scores-{name}.npz"
        with writing.replacing(path) as file, writing.explained(path):
            np.savez_compressed(file, logits=logits, targets=targets, classes=classes)
        writing.save_json(folder / f"metrics-{name}.json", report)
    return report


def read_logits(path: Path, classes: list[str]) -> np.ndarray:
    """The logits (M, n) of these classes in a file that `save_numbers` wrote, which may hold them
    in another order and beside others. A file that is damaged, or lacks one, is a ValueError."""
    try:
        with np.load(path) as stored:
            logits, names = stored["logits"], stored["classes"].tolist()
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged ({error}); run --phase eval again") from error
    fits = type(names) is list and logits.ndim == 2 and logits.shape[1] == len(names)
    if not fits or not set(classes) <= set(names):
        raise ValueError(f"{path} is not of these labels; run --phase eval again")
    return logits[:, [names.index(name) for name in classes]]


def predicted_by_default(report: dict) -> tuple[float, dict]:
    """predict.py's threshold for a model, and the metrics there."""
    if "predict" in report:
        return report["threshold"], report["predict"]
    return THRESHOLD, report["thresholds"][f"{THRESHOLD:g}"]
