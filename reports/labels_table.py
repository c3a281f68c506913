"""labels.csv: how well each model of a run knows each label, those that need work first.

All numbers are of the val photos at predict.py's threshold; shares are in percent.
"""

import math
from pathlib import Path

import numpy as np

from datasets.doubtful_labels import FEW
from runtime.csv_table import as_cell, csv_table
from runtime.terminal import printable

HEADER = [
    "label",
    "model",
    "training photos",
    "val photos",
    "AP",
    "precision",
    "recall",
    "F1",
    "most often predicted instead",  # `predicted_instead`
    "in val photos",
]
ENDS = 5  # labels that are named at either end of a list


def predicted_instead(predicted: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each label the one it is most often mistaken for, (n,), and in how many photos, (n,).

    Among the photos that show a label and where it is not predicted: the label that is wrongly
    predicted in most of them; of equal ones the first. 0 photos if no label is.
    `predicted` and `targets` are (M, n) of bool.
    """
    missed, wrong = targets & ~predicted, predicted & ~targets  # (M, n)
    photos = missed.T.astype(float) @ wrong.astype(float)  # (n, n), row missed, column wrong
    return photos.argmax(1), photos.max(1).astype(int)


def rows_of_model(
    model: str,
    classes: list[str],
    training_photos: np.ndarray | None,
    targets: np.ndarray,
    predicted: np.ndarray,
    ap: list[float | None],
) -> list[list]:
    """A row per label for HEADER. None where there is nothing to divide by.

    `training_photos` (n,) counts those of each label, if they are known; `targets` and `predicted`
    are (M, n).
    """
    targets = targets > 0
    right = (predicted & targets).sum(0)  # (n,)
    predictions, positives = predicted.sum(0), targets.sum(0)  # (n,), (n,)
    instead, photos = predicted_instead(predicted, targets)
    rows = []
    for j, name in enumerate(classes):
        precision = percent(right[j], predictions[j])
        recall = percent(right[j], positives[j])
        F1 = percent(2 * right[j], predictions[j] + positives[j]) if positives[j] else None
        mistaken = [classes[instead[j]], int(photos[j])] if photos[j] else [None, None]
        in_training = None if training_photos is None else int(training_photos[j])
        counts = [in_training, int(positives[j])]
        label_ap = None if ap[j] is None else round(ap[j], 2)
        rows.append([name, model, *counts, label_ap, precision, recall, F1, *mistaken])
    return rows


def save(path: Path, rows: list[list]) -> None:
    """Write the table; None is an empty cell."""
    with csv_table(path, HEADER) as add:
        for row in rows:
            add([in_a_cell(value) for value in row])


def in_a_cell(value: str | float | None) -> str:
    """Names cannot become formulas; numbers stay numbers, with their signs."""
    if value is None:
        return ""
    return as_cell(value) if isinstance(value, str) else str(value)


def percent(part: int, whole: int) -> float | None:
    return round(100 * float(part) / float(whole), 2) if whole else None


def what_needs_work_first(rows: list[list], model: str) -> list[list]:
    """Rows of all models, by ascending AP of `model`; labels on no val photo come last.

    Of equal AP the one with fewer training photos is first. The rows of a label stay together.
    """
    place = {}
    for name, row_model, training_photos, _, ap, *_ in rows:
        if row_model == model:
            place[name] = (math.inf if ap is None else ap, training_photos or 0, name)
    return sorted(rows, key=lambda row: place[row[0]])  # the order of models stays


def to_collect(classes: list[str], training_photos: np.ndarray) -> str:
    """The advice to collect photos of rare labels; empty if no label is rare."""
    rarest_first = np.argsort(training_photos, kind="stable")
    rare = [j for j in rarest_first if training_photos[j] < FEW]
    if not rare:
        return ""
    names = [f"{printable(classes[j], 40)} {training_photos[j]}" for j in rare[:ENDS]]
    if len(rare) > ENDS:
        names.append("...")
    subject, pronoun = f"{len(rare)} labels have", "these"
    if len(rare) == 1:
        subject, pronoun = "1 label has", "this"
    return (
        f"{subject} fewer than {FEW} training photos ({', '.join(names)}): collect {pronoun} first"
    )


def never_found(rows: list[list]) -> str:
    """The advice about labels of enough training photos that one model never finds on val; empty
    if there is none."""
    names = []
    for name, _, training_photos, val_photos, ap, _, recall, *_ in rows:
        if training_photos >= FEW and val_photos and not recall:
            counts = f"0 of {val_photos} val photos, {training_photos} in training, AP {ap:.0f}"
            names.append(f"{printable(name, 40)} ({counts})")
    if not names:
        return ""
    more = ", ..." if len(names) > ENDS else ""
    return (
        f"never found on val: {', '.join(names[:ENDS])}{more}; where the AP is high, a lower "
        "threshold finds them; else look whether these labels are right, and add photos"
    )


def best_and_worst(rows: list[list]) -> tuple[list[str], bool]:
    """The labels of the highest and of the lowest AP in one model's rows, with their val photos;
    and whether labels of fewer than FEW val photos were left out, as their AP is luck.

    If they are few they are all in one list; if no label has an AP there is none.
    """
    known = [(-row[4], row[0], row[3]) for row in rows if row[4] is not None]
    enough = [each for each in known if each[2] >= FEW] or known
    in_words = [
        f"{printable(name, 40)} {-ap:.0f} ({count:,})" for ap, name, count in sorted(enough)
    ]
    some_left_out = len(enough) < len(known)
    if not in_words:
        return [], some_left_out
    if len(in_words) <= 2 * ENDS:
        return [f"AP: {', '.join(in_words)}"], some_left_out
    highest = f"highest AP: {', '.join(in_words[:ENDS])}"
    return [highest, f"lowest AP: {', '.join(in_words[-ENDS:])}"], some_left_out
