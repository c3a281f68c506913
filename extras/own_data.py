"""People's own photos and labels: the forms in which they come, and the photos held out for val.

Labels are COCO JSON, tags of whole photos (a CSV, Label Studio's JSON, CVAT's XML), or the folders
that the photos lie in. The trees of COCO and Visual Genome are `data.py`'s affair.

Symbols: M photos, n labels.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

import data
from runtime import checkpoints, ranks, reading
from runtime.reading import ANY, LABEL, PHOTO
from runtime.text import listed, printable

HELD_OUT = 0.2  # of the photos, where no val labels are given [ours]
PARTS = re.compile(r"(train|val|test)(ing|id|idation|\d*)", re.I)  # folders that are no labels
FORMS = "COCO JSON, Label Studio's JSON, CVAT's XML or a CSV of tags"


def load(
    photos: str, labels: str | None, val_photos: str | None, val_labels: str | None, kept: Path, **_
) -> tuple[data.Split, data.Split]:
    """Train and val, upright by EXIF. Without val's own files a fifth of the photos is held out,
    and named in `kept`; where that file is there, the photos it names are val, all others train."""
    train = read(photos, labels)
    if val_photos or val_labels:
        return train, read(val_photos or photos, val_labels)
    names = [Path(path).relative_to(photos).as_posix() for path in train.paths]
    with ranks.in_turn():
        held = stratified(train.targets, HELD_OUT)  # (M,)
        if kept.is_file():
            named = set(reading.read_json(kept, [PHOTO]))
            held = np.array([name in named for name in names], bool)
        if not train.targets[held].any() or held.all():
            raise ValueError(
                f"{photos}: of {len(held):,} photos none with a label can be held out; add more, "
                f"or give --val-labels{' and remove ' + str(kept) if kept.is_file() else ''}"
            )
        if not kept.is_file():
            checkpoints.save_json(kept, [names[row] for row in np.flatnonzero(held)])
    print(f"val: {held.sum():,} of the {len(held):,} photos, named in {kept}")
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def stratified(targets: np.ndarray, part: float, seed: int = 0) -> np.ndarray:
    """(M,) bool: this part of the photos, with this part of every label's, the rarest first.

    Iterative stratification of targets (M, n): Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011,
    Algorithm 1. A label of three photos or more, alone in them, is in both parts.
    """
    rng, shares = np.random.default_rng(seed), np.array([1 - part, part])
    wanted, of_label = shares * len(targets), np.outer(shares, targets.sum(0))  # (2,), (2, n)
    left, order = targets.sum(0).astype(int), rng.permutation(len(targets))  # left (n,)
    side = np.full(len(targets), -1)  # of each photo: 0, 1, or -1, which is none yet
    while left.any():
        label = np.where(left > 0, left, len(targets) + 1).argmin()
        for row in order[(targets[order, label] > 0) & (side[order] < 0)]:
            k = max((0, 1), key=lambda k: (of_label[k, label], wanted[k], rng.random()))
            side[row] = k
            wanted[k] -= 1
            of_label[k] -= targets[row]
            left -= targets[row]
    rest = order[side[order] < 0]  # without a label
    side[rest[: max(round(wanted[1]), 0)]] = 1
    return side == 1


def read(photos: str, labels: str | None) -> data.Split:
    """The photos of a folder that a file of labels names; without one, all, and their folders."""
    inside, left_out = reading.walk(photos)
    if left_out:
        print(f"{photos}: left out {left_out}, which are not read as photos")
    split = read_labels(labels, "") if labels else from_folders(photos, inside)
    names = found(split.paths, inside)
    unnamed = sorted(set(inside) - set(names)) if labels else []
    if unnamed:
        print(f"{photos}: {len(unnamed):,} photos that {labels} does not name{listed(unnamed)}")
    paths = [os.path.join(photos, name) for name in names]
    return data.Split(paths, split.targets, split.classes, upright=True)


def found(names: list[str], inside: list[str]) -> list[str]:
    """The photos of a folder that are meant: of the same path, or of its end; else the only one of
    that file name, in upper or lower case; Label Studio changes it, and writes eight digits before.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^-\w.]", "", os.path.basename(name).replace(" ", "_")).lower()

    known, by_name, paths = set(inside), defaultdict(list), []
    for path in inside:
        by_name[plain(path)].append(path)
    for name in names:
        parts = name.split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        same = [end for end in ends if end in known][:1] or by_name.get(plain(name))
        same = same or by_name.get(re.sub("^[0-9a-f]{8}-", "", plain(name)), [name])
        if len(same) > 1:
            raise ValueError(f"{name} may be {same[0]} or {same[1]}; write its path in the folder")
        paths += same
    reading.check_once(paths, "the labels", "photo")
    return paths


def from_folders(photos: str, inside: list[str]) -> data.Split:
    """A photo's label is the first folder on the way to it; in none, it has none. Photos of the
    same bytes in several folders are one photo with all their labels."""
    shown = {}  # content -> the first path, labels
    for path, content in zip(inside, contents(f"{photos}/{path}" for path in inside), strict=True):
        shown.setdefault(content, (path, set()))[1].update(path.split("/")[:-1][:1])
    split = tagged(photos, dict(shown.values()))
    parts = [name for name in split.classes if PARTS.fullmatch(name)]
    if len(parts) > 1:
        raise ValueError(
            f"{photos} holds folders {' and '.join(parts)}, which are no labels; give the folder "
            "of the training photos as --photos, the other as --val-photos"
        )
    return split


def contents(paths: Iterable[str]) -> list[str]:
    """The same text for files of the same bytes. Only those of a size that others have are read."""
    paths = list(paths)
    sizes = [os.path.getsize(path) for path in paths]
    count = Counter(sizes)
    return [
        hashlib.sha256(Path(path).read_bytes()).hexdigest() if count[size] > 1 else str(size)
        for path, size in zip(paths, sizes, strict=True)
    ]


def warn_of_twins(train: data.Split, val: data.Split) -> None:
    """Say which photos are in both: on them val measures what was learnt by heart."""
    content = contents([*train.paths, *val.paths])
    known, pairs = set(content[: len(train)]), zip(val.paths, content[len(train) :], strict=True)
    if twins := [path for path, each in pairs if each in known]:
        print(f"{len(twins):,} val photos are training photos, byte for byte{listed(twins)}")


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
    shown = {}  # photo -> labels
    for name, labels in lists:
        names = {label.strip() for label in labels} - {""}
        shown.setdefault(relative(name), set()).update(names)
    return tagged(path, shown, classes)


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
