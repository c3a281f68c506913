"""Files of labels: which form one has, and the split of a folder's photos that it names.

The forms are COCO JSON (`data.py` reads it), Label Studio's JSON, CVAT's XML and a CSV; each reader
gives (name of a photo, its labels) for every row, and a name may be in several. `own_photos.py`
decides which photos are held out for val.

Symbols: M photos, n labels.
"""

import json
import os
import re
from pathlib import Path

import numpy as np

import data
from datasets import csv_labels, cvat, label_studio
from runtime import reading
from runtime.photo_names import NAME, PhotoFolder
from runtime.reading import LABEL, composed

FORMS = "COCO JSON, Label Studio's JSON, CVAT's XML or a CSV"
FOREIGN = {  # how a file in another form begins -> what it is
    r"\d+( -?[\d.]+){4,}\s": "one of YOLO's files, which hold the boxes of one photo each",
    r"(path|train|val|nc|names) *:": "YOLO's list of data",
    r"[^\n\[{]*annotation_id|\[\s*\{[^\[]*annotation_id": "Label Studio's CSV or JSON-MIN",
    "filepath,tags,": "FiftyOne's CSV, in which labels cannot be told from each other",
    r"\{[^\n]*\}\s*\n\s*\{": "JSON Lines",
    "PK\x03\x04": "a zip or a spreadsheet of Excel; unpack it, or save it as CSV",
    "\x1f[\x8b\ufffd]": "a gzip file; unpack it",
}


def read_labels(path: str | Path, folder: str | Path) -> data.Split:
    """The split of the photos in a folder that a file of labels names, whatever its form."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}; expected {FORMS}")
    start = beginning(path)
    for pattern, form in FOREIGN.items():
        if re.match(pattern, start):
            raise ValueError(f"{path} looks like {form}; expected {FORMS}")
    if start.startswith("{"):
        return read_coco(path, folder)
    photos = PhotoFolder(folder)
    if start.startswith("["):
        rows, classes = label_studio.read(path)
        return as_split(rows, classes, photos, path, uploads=True)
    if start.startswith("<"):
        rows, classes = cvat.read(path)
    else:
        rows, classes = csv_labels.read(path, photos)
    return as_split(rows, classes, photos, path)


def beginning(path: str | Path) -> str:
    """The first 2,000 bytes of a file as text, without a byte order mark and leading blanks."""
    with open(path, "rb") as file:
        start = file.read(2000)
    encoding = json.detect_encoding(start)
    return start.decode(encoding, "replace").lstrip("\ufeff \t\r\n")


def read_coco(path: str | Path, folder: str | Path) -> data.Split:
    split = data.load_coco(path, folder)
    if len(split) and not split.targets.any():
        raise ValueError(
            f"{path} has {len(split):,} images and no annotation, since tags of whole photos are "
            f"lost in such exports; export {FORMS.split(', ', 1)[1]}"
        )
    return split


def as_split(
    rows: list[tuple[str, set[str]]],
    classes: list[str] | None,
    photos: PhotoFolder,
    source: str | Path,
    uploads: bool = False,
) -> data.Split:
    """Rows of (name of a photo, its labels) as a split. The classes are those given, or else all
    labels in alphabetical order."""
    rows = [(name, {composed(label) for label in labels}) for name, labels in rows]
    if classes is None:
        classes = sorted(set().union(*(labels for _, labels in rows)))
    names = [name for name, _ in rows]
    reading.check(names, [NAME], source, "photo")
    reading.check(classes, [LABEL], source, "label")
    classes = [composed(name) for name in classes]
    reading.check_once(classes, source, "label")
    if not classes:
        raise ValueError(
            f"{source} has no labels; pass --labels {FORMS}, or sort the photos into a folder per "
            "label"
        )
    column_of = {label: j for j, label in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), np.uint8)  # (M, n)
    for row, (_, labels) in enumerate(rows):
        targets[row, [column_of[label] for label in labels]] = 1
    return data.photos_named(names, targets, classes, photos, source, uploads)
