"""labels.csv: how well each model of a run knows each label, those that need work first.

All numbers are of the val photos at predict.py's threshold; shares are in percent.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.doubtful_labels import FEW
from runtime.csv_table import as_cell, csv_table
from runtime.terminal import printable

HEADER = [  # of the fields of LabelRow
    "label",
    "model",
    "training photos",
    "val photos",
    "AP",
    "precision",
    "recall",
    "F1",
    "most often predicted instead",
    "in val photos",
]
ENDS = 5  # labels that are named at either end of a list


class LabelRow(NamedTuple):
    """How well a model knows a label; None where there is nothing to count or to divide by."""

    label: str
    model: str
    training_photos: int | None
    val_photos: int
    AP: float | None
    precision: float | None
    recall: float | None
    F1: float | None
    instead: str | None  # the label that is most often predicted in its place, and ...
    instead_photos: int | None  # ... in how many val photos: `predicted_instead`


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
) -> list[LabelRow]:
    """A row per label. `training_photos` (n,) counts those of each label, if they are known;
    `targets` and `predicted` are (M, n)."""
    targets = targets > 0
    right = (predicted & targets).sum(0)  # (n,)
    predictions, positives = predicted.sum(0), targets.sum(0)  # (n,), (n,)
    instead, photos = predicted_instead(predicted, targets)
    rows = []
    for j, name in enumerate(classes):
        row = LabelRow(
            label=name,
            model=model,
            training_photos=None if training_photos is None else int(training_photos[j]),
            val_photos=int(positives[j]),
            AP=None if ap[j] is None else round(ap[j], 2),
            precision=percent(right[j], predictions[j]),
            recall=percent(right[j], positives[j]),
            F1=percent(2 * right[j], predictions[j] + positives[j]) if positives[j] else None,
            instead=classes[instead[j]] if photos[j] else None,
            instead_photos=int(photos[j]) if photos[j] else None,
        )
        rows.append(row)
    return rows


def save(path: Path, rows: list[LabelRow]) -> None:
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


def worst_first(rows: list[LabelRow], model: str) -> list[LabelRow]:
    """Rows of all models, by ascending AP of `model`; labels on no val photo come last.

    Of equal AP the one with fewer training photos is first. The rows of a label stay together.
    """
    place = {}
    for row in rows:
        if row.model == model:
            ap = math.inf if row.AP is None else row.AP
            place[row.label] = ap, row.training_photos or 0, row.label
    return sorted(rows, key=lambda row: place[row.label])  # the order of models stays


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


def never_found(rows: list[LabelRow]) -> str:
    """The advice about labels of enough training photos that one model never finds on val; empty
    if there is none."""
    names = []
    for row in rows:
        if row.training_photos >= FEW and row.val_photos and not row.recall:
            names.append(
                f"{printable(row.label, 40)} (0 of {row.val_photos} val photos, "
                f"{row.training_photos} in training, AP {row.AP:.0f})"
            )
    if not names:
        return ""
    more = ", ..." if len(names) > ENDS else ""
    return (
        f"never found on val: {', '.join(names[:ENDS])}{more}; where the AP is high, a lower "
        "threshold finds them; otherwise check that these labels are right, and add photos"
    )


def best_and_worst(rows: list[LabelRow]) -> tuple[list[str], bool]:
    """The labels of the highest and of the lowest AP in one model's rows, with their val photos;
    and whether labels of fewer than FEW val photos were left out, as their AP is luck.

    If they are few they are all in one list; if no label has an AP there is none.
    """
    known = [row for row in rows if row.AP is not None]
    enough = [row for row in known if row.val_photos >= FEW] or known
    in_words = []
    for row in sorted(enough, key=lambda row: (-row.AP, row.label)):
        in_words.append(f"{printable(row.label, 40)} {row.AP:.0f} ({row.val_photos:,})")
    some_left_out = len(enough) < len(known)
    if not in_words:
        return [], some_left_out
    if len(in_words) <= 2 * ENDS:
        return [f"AP: {', '.join(in_words)}"], some_left_out
    highest = f"highest AP: {', '.join(in_words[:ENDS])}"
    return [highest, f"lowest AP: {', '.join(in_words[-ENDS:])}"], some_left_out
