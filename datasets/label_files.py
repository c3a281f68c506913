"""The forms in which labels come: COCO JSON, Label Studio's JSON, CVAT's XML, a CSV of tags.

Which photos are meant, and which of them are held out, is `own_photos.py`'s affair.

Symbols: M photos, n labels.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

import data
from datasets import predicted_labels
from runtime import reading
from runtime.reading import ANY, LABEL, PHOTO
from runtime.terminal import printable

FORMS = "COCO JSON, Label Studio's JSON, CVAT's XML or a CSV of tags"


def read_labels(path: str | Path, photos: str | Path) -> data.Split:
    """A file of labels, of whatever form it is, with paths of photos in that folder."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}; expected {FORMS}")
    with open(path, "rb") as file:
        start = file.read(2000).decode("utf-8-sig", "replace").lstrip()
    looks = [what for pattern, what in FOREIGN.items() if re.match(pattern, start)]
    if looks:
        raise ValueError(f"{path} looks like {looks[0]}; expected {FORMS}")
    if start.startswith("{"):
        split = data.load_coco(path, photos)
        if len(split) and not split.targets.any():
            lost = "no annotation: tags of whole photos are lost in such exports"
            other = FORMS.split(", ", 1)[1]
            raise ValueError(f"{path} has {len(split):,} images and {lost}; export {other}")
        return split
    read = {"[": read_label_studio, "<": read_cvat}.get(start[:1], read_tags)
    split = read(path)
    split.paths = [os.path.join(photos, name) for name in split.paths]
    return split


FOREIGN = {  # how files begin that hold labels in another form
    r"\d+( -?[\d.]+){4,}\s": "YOLO's, which hold the boxes of one photo each",
    r"(path|train|val|nc|names) *:": "YOLO's list of data",
    r"[^\n\[{]*annotation_id|\[\s*\{[^\[]*annotation_id": "Label Studio's CSV or JSON-MIN",
    "filepath,tags,": "FiftyOne's CSV, in which labels cannot be told from each other",
    "PK": "a zip; unpack it",
}
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")  # in columns of labels


def tagged(path: str | Path, shown: dict[str, set[str]], classes: list | None = None) -> data.Split:
    """Photo -> labels as a split; the classes are those given, or what is shown, by name."""
    classes = sorted(set().union(*shown.values())) if classes is None else classes
    reading.check(list(shown), [PHOTO], path)
    reading.check(classes, [LABEL], path)
    reading.check_once(classes, path, "label")
    if not classes:
        raise ValueError(f"{path} has no labels; give --labels {FORMS}, or a folder a label")
    targets = np.array([[c in names for c in classes] for names in shown.values()], np.uint8)
    return data.Split(list(shown), targets.reshape(-1, len(classes)), classes)


def read_tags(path: str | Path) -> data.Split:
    """Image-level labels of a CSV, one photo a row: `file,"cat; fire hydrant"`, or under a header
    with the labels' names a 0 or 1 for each.

    Tags are separated by the first of ; | , that a cell of the file has. Blanks around names do not
    count. A photo without labels is a row all the same; one that is there twice has the labels of
    both rows.
    """
    rows, classes = reading.read_rows(path), None
    if predicted_labels.holds_scores(rows):
        raise ValueError(f"{path} holds scores, no labels; write it without --columns")
    if rows[0] == predicted_labels.HEADER:
        return tagged(path, united(predicted_labels.read_row(row) for row in rows[1:]))
    first = next((i for i, cell in enumerate(rows[-1]) if is_photo(cell)), 0)  # pandas' index: no
    rows = [row[first:] for row in rows]
    header, cells = rows[0], {cell.lower() for row in rows[1:] for cell in row[1:]}
    if cells - {""} and cells <= {"", *YES, *NO}:
        classes = header[1:]
        lists = [
            (row[0], [c for c, cell in zip(classes, row[1:], strict=True) if cell.lower() in YES])
            for row in rows[1:]
        ]
    else:
        headed = not is_photo(header[0]) and (len(rows) == 1 or is_photo(rows[1][0]))
        if headed and len(header) > 2:
            raise ValueError(
                f"{path} has the columns {', '.join(map(printable, header))}; expected a photo and "
                "one column of tags, or 0 and 1 in a column for each label and no other column"
            )
        texts = [(row[0], "\n".join(row[1:])) for row in rows[headed:]]
        separator = next((s for s in ";|" if any(s in text for _, text in texts)), ",")
        lists = [(name, re.split(f"[\n{separator}]", text)) for name, text in texts]
    return tagged(path, united(lists), classes)


def united(lists: Iterable[tuple[str, list[str]]]) -> dict[str, set[str]]:
    """Photo -> labels of all its rows."""
    shown = {}
    for name, labels in lists:
        names = {label.strip() for label in labels} - {""}
        shown.setdefault(relative(name), set()).update(names)
    return shown


def is_photo(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in reading.SUFFIXES


def relative(path: str) -> str:
    """Without what comes before the first folder: a drive, a scheme, slashes."""
    return re.sub(r"^(\w+:)?/+", "", path.replace("\\", "/"))


def read_cvat(path: str | Path) -> data.Split:
    """CVAT's own export, "CVAT for images 1.1": the labels of tags, and of boxes and the like."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: of an unknown encoding
        raise ValueError(f"{path} is not valid XML ({error}); export it again") from None
    images = root.findall("image")
    if not images:
        raise ValueError(f'{path} has no images; of XML, CVAT\'s "for images 1.1" alone is read')
    classes = [name.text for name in root.iterfind("meta//labels/label/name")]
    shown = {each.get("name"): {mark.get("label") for mark in each} - {None} for each in images}
    unknown = set().union(*shown.values()) - set(classes)
    return tagged(path, shown, classes + sorted(unknown))


# Label Studio's exports: a task a photo, of any number of annotations. A photo that nobody has
# looked at, or that was skipped, is left out; one that somebody found nothing in has no label.

TASKS = [{"data": {...: ANY}, "annotations": [{"result": [{...: ANY}]}]}]


def read_label_studio(path: str | Path) -> data.Split:
    """The choices, and the labels of boxes and the like, of all annotations of a photo."""
    shown = {}
    for task in reading.read_json(path, TASKS):
        done = [each for each in task["annotations"] if not each.get("was_cancelled")]
        values = [result.get("value") for each in done for result in each["result"]]
        pairs = [pair for value in values if isinstance(value, dict) for pair in value.items()]
        names = [named for key, named in pairs if key == "choices" or key.endswith("labels")]
        reading.check(names, [[LABEL]], path)
        if done:
            shown.setdefault(photo_of(task["data"].values()), set()).update(*names)
    return tagged(path, shown)


def photo_of(values: Iterable) -> str:
    """The path of the photo that a task's data name: of an upload, a link, or a local file."""
    texts = [value for value in values if isinstance(value, str)]
    paths = [text.split("?d=")[1] if "?d=" in text else text.split("?")[0] for text in texts]
    return relative(unquote(next(filter(is_photo, paths), paths[0] if paths else "")))
