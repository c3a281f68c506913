"""What comes from outside, checked once, where it is read: JSON, photos, word vectors.

A schema says what a file holds: a `Kind` where a value is, [schema] for a list of any length,
{"key": schema} for an object with these keys and others, {...: schema} for one of any keys. Whoever
holds what `read_json` returned need not look again.
"""

import contextlib
import csv
import json
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.terminal import brief, printable


@dataclass(frozen=True)
class Kind:
    """One value: what is expected, in words for a message, and whether a value is that."""

    expected: str
    fits: Callable[[object], bool]


def stays_inside(name: object) -> bool:
    """Whether a photo's name leads to no place but one inside the image folder.

    On any system: a backslash and a drive letter mean what they mean on Windows.
    """
    if type(name) is not str or "\0" in name:
        return False
    plain = name.replace("\\", "/")
    first = posixpath.normpath(plain).split("/")[0]  # "" of an absolute path
    return first not in ("", "..", ".") and not re.match("[A-Za-z]:", plain)


WHOLE = Kind("a whole number", lambda value: type(value) is int)
LABEL = Kind("a text, not blank", lambda value: type(value) is str and bool(value.strip()))
PHOTO = Kind(
    "a path inside the image folder, without leading .., drive letter or NUL", stays_inside
)
ANY = Kind("anything", lambda value: True)

# Polygons are four fifths of COCO's file and nine tenths of the time to parse it, so these lists of
# numbers are cut out of the text first: from the key up to the next quote, then back to the last
# bracket behind a digit or a bracket; one behind a brace closes another list.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[^"]*[\d\]]\s*\]')


def read_json(path: str | Path, schema: object) -> object:
    """The JSON of a file without polygons, checked. What does not fit is a ValueError."""
    content = POLYGONS.sub(b'"segmentation":0', Path(path).read_bytes())
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export it again") from None
    check(document, schema, path)
    return document


def check(value: object, schema: object, path: str | Path, place: str = "") -> None:
    """A ValueError that names the place, what was found there and what was expected."""
    problem, parts = None, ()
    if type(schema) is Kind:
        problem = None if schema.fits(value) else f"is {brief(value)}, expected {schema.expected}"
    elif type(schema) is not type(value):
        expected = "a list" if type(schema) is list else "an object"
        problem = f"is {brief(value)}, expected {expected}"
    elif type(schema) is list:
        parts = ((f"[{i}]", item, schema[0]) for i, item in enumerate(value))
    elif ... in schema:
        parts = ((f".{printable(key)}", item, schema[...]) for key, item in value.items())
    else:
        missing = [key for key in schema if key not in value]
        problem = f"has no {missing[0]!r}, it has {brief(list(value)[:8])}" if missing else None
        parts = ((f".{key}", value[key], each) for key, each in schema.items())
    if problem:
        where = place.lstrip(".") or "it"
        raise ValueError(f"{path}: {where} {problem}; correct it, or export the file again")
    for name, item, each in parts:
        check(item, each, path, place + name)


def check_once(values: Iterable, path: str | Path, what: str) -> None:
    """A ValueError if one of these values, ids or names, is there twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path}: {what} {brief(value)} is there twice; give each its own")
        seen.add(value)


def check_known(values: Iterable, known: Collection, path: str | Path, what: str) -> None:
    """A ValueError if one of these values, ids or names, is not among the known ones."""
    for value in values:
        if value not in known:
            raise ValueError(
                f"{path}: {what} {brief(value)} is not among the {len(known):,} there are; the "
                "file is damaged, cut by hand, or belongs to another one"
            )


HEIC = "pip install pillow-heif to read HEIC"
with contextlib.suppress(ImportError):  # what phones write; the package is optional
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
# Pillow reads more; of EPS, for one, it has Ghostscript run the program the file is.
FORMATS = "JPEG PNG WEBP BMP GIF TIFF PPM JPEG2000 AVIF HEIF".split()
FORMATS = [name for name in FORMATS if name in Image.OPEN]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def open_photo(path: str | Path, use: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """use(the photo). Whatever Pillow has against the file is a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged metadata, or many pixels
            with Image.open(path, formats=FORMATS) as image:
                return use(image)
    except Exception as error:  # of a dozen kinds
        reason = getattr(error, "strerror", None) or printable(error, 120) or type(error).__name__
        heic = str(path).lower().endswith((".heic", ".heif")) and "HEIF" not in FORMATS
        advice = HEIC if heic else "replace the file"
        raise ValueError(
            f"cannot read photo {printable(path, 200)} ({reason}); {advice}"
        ) from error


def walk(folder: str | Path) -> tuple[list[str], str]:
    """The photos in a folder and below it, by their paths in it, and how many files of which kinds
    are none, as text. Hidden files do not count."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{printable(folder, 200)} is no folder of photos")
    files = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    photos = [file.as_posix() for file in files if file.suffix.lower() in SUFFIXES]
    kinds = (file.suffix.lower() for file in files)
    others = Counter(kind or "without suffix" for kind in kinds if kind not in SUFFIXES)
    text = ", ".join(f"{n:,} {printable(kind)}" for kind, n in others.most_common(5))
    return photos, text + f" ({HEIC})" * (".heic" in others)


def read_vectors(path: str | Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The vectors (d,) of wanted words in a GloVe-format text file: a word and d numbers a line.

    Of a word that is there twice the first vector counts. Lines of other words are not parsed.
    """
    vectors, width, number = {}, None, 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")  # not split(): some words are blanks
                if number == 1 and len(values) == 1:  # word2vec's header: count and width
                    continue
                width = width or len(values)
                if len(values) < width or width < 2:  # more: some of GloVe's words hold blanks
                    raise ValueError(f"has {len(values)} numbers, line 1 has {width}")
                if word in wanted and word not in vectors and len(values) == width:
                    vectors[word] = np.array([float(value) for value in values])  # (d,)
                    if not np.isfinite(vectors[word]).all():
                        raise ValueError("holds a number that is not finite")
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(
            f"{path}, line {number}: {printable(error)}; expected UTF-8 text, a word and the same "
            "count of numbers a line"
        ) from None
    if not vectors:
        raise ValueError(
            f"{path} holds none of the {len(wanted)} words of the labels; give word vectors of "
            "their language"
        )
    return vectors


def read_matrix(path: str | Path, rows: int) -> np.ndarray:
    """A .npy file of finite numbers, (rows, d)."""
    with contextlib.suppress(ValueError, EOFError, TypeError, AttributeError):  # text, an .npz, ...
        matrix = np.load(path, allow_pickle=False)
        if matrix.ndim == 2 and len(matrix) == rows and np.isfinite(matrix).all():
            return matrix
    raise ValueError(f"{path} is no .npy file of finite numbers of shape ({rows}, d)")


def read_rows(path: str | Path) -> list[list[str]]:
    """The rows of a CSV, each as long as the first, without blanks around the cells, which are
    separated by commas, semicolons or tabs: by what comes first."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            between = re.match(r'(?:"[^"]*"|[^\t,;"\n]*)([\t,;])', file.readline())
            file.seek(0)
            cells = csv.reader(file, delimiter=between[1] if between else ",")
            rows = [[cell.strip() for cell in row] for row in cells if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f'{path} is not a CSV in UTF-8; save it as "CSV UTF-8" ({error})'
        ) from None
    uneven = [i for i, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if not rows or uneven:
        found = f"row {uneven[0]} has {len(rows[uneven[0] - 1])} cells" if rows else "it is empty"
        expected = f"{len(rows[0])} as in the first" if rows else "a photo and its labels a row"
        raise ValueError(
            f'{path}: {found}, expected {expected}; write several labels as "cat; dog" in quotes'
        )
    return rows
