"""The table of predict.py --csv: photo, labels, scores. `run.py --labels` reads it again, perhaps
after somebody has corrected the labels in a spreadsheet.

`csv_labels.py` reads other CSVs.
"""

import codecs
import csv
import itertools
import re
from pathlib import Path

from runtime.csv_table import as_cell, from_cell
from runtime.terminal import printable

HEADER = ["photo", "labels", "scores"]
HEADER_WITHOUT_SCORES = HEADER[:2]  # somebody deleted that column
SCORE = re.compile(r"[01]\.\d{6}")
WHOLE = {"0.000000", "1.000000"}  # they may be ticks of another program


def header_of(classes: list[str], columns: bool) -> list[str]:
    """The first row; with `columns` it has a cell for each label."""
    if columns:
        return ["photo", *map(as_cell, classes)]
    for name in classes:
        if ";" in name:
            raise ValueError(
                f"the label {printable(name)} holds a semicolon, which separates labels in --csv; "
                "add --columns"
            )
    return HEADER


def row_of(photo: str, labels: list[tuple[str, float]]) -> list[str]:
    """A photo with its labels and their scores."""
    names = [as_cell(name) for name, _ in labels]
    scores = [f"{score:.6f}" for _, score in labels]
    return [as_cell(photo), "; ".join(names), "; ".join(scores)]


def row_of_scores(photo: str, scores: list[float]) -> list[str]:
    """A photo with the scores of all labels."""
    return [as_cell(photo), *(f"{score:.6f}" for score in scores)]


def read_row(row: list[str]) -> tuple[str, list[str]]:
    """A photo and its labels, from the cells that `row_of` wrote."""
    photo, labels, _ = row
    return from_cell(photo), [from_cell(name.strip()) for name in labels.split(";")]


def is_table_of_ours(path: Path) -> bool:
    """Whether a file is empty, or a table of predict.py, of either form, as it was written; with
    `--columns` it may be a header alone."""
    with open(path, "rb") as file:
        start = file.read(len(codecs.BOM_UTF8))
    if start != codecs.BOM_UTF8:
        return not start
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            rows = list(itertools.islice(csv.reader(file), 2))
        except csv.Error:
            return False
    if not rows or rows[0][:1] != ["photo"] or len(rows[0]) == 1:
        return False
    return rows[0] == HEADER or len(rows) == 1 or holds_scores(rows)


def holds_scores(rows: list[list[str]]) -> bool:
    """Whether there are rows below the header and all are from `row_of_scores`, so that they hold
    no labels."""
    header, *rest = rows
    cells = [cell for row in rest for cell in row[1:]]
    if not cells or not all(SCORE.fullmatch(cell) for cell in cells):
        return False
    return header[0] == "photo" or not WHOLE.issuperset(cells)
