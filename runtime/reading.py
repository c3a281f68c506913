"""What comes from outside, checked once, where it is read: JSON, text, word vectors.

A schema says what a file holds: a `Kind` where a value is, [schema] for a list of any length,
{"key": schema} for an object with these keys and others, {...: schema} for one of any keys. What
`read_json` returns need not be checked again.

`photo_files.py` opens photos; which photo a name means is decided in `photo_names.py`.
"""

import contextlib
import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


LONGEST_LABEL = 1000  # characters

LABEL = Kind(
    f"a text, not blank, of at most {LONGEST_LABEL:,} characters",
    lambda value: type(value) is str and len(value) <= LONGEST_LABEL and bool(value.strip()),
)
PHOTO = Kind(
    "a path inside the image folder, without leading .., drive letter or NUL", stays_inside
)
ANY = Kind("anything", lambda value: True)


def composed(text: str) -> str:
    """Text in Unicode's NFC: é as one letter, where a Mac writes an e and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


# Polygons are four fifths of COCO's file and nine tenths of the time to parse it, so these lists of
# numbers are cut out of the text first. A match goes from the key to the next quote, then back to
# the last ] that follows a digit or another ]. One that follows a brace closes another list.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[^"]*[\d\]]\s*\]')


def read_json(path: str | Path, schema: object, advice: str = "export it again") -> object:
    """The JSON of a file, without polygons. What does not fit the schema is a ValueError; `advice`
    says what to do about a file that is no JSON."""
    content = POLYGONS.sub(b'"segmentation":0', Path(path).read_bytes())
    try:
        document = json.loads(content.decode(json.detect_encoding(content[:4])))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {advice}") from None
    if not fits(document, schema):  # twice as fast as check(), which knows each place
        check(document, schema, path)
    return document


def fits(value: object, schema: object) -> bool:
    """Whether a value is what the schema says."""
    if type(schema) is Kind:
        return schema.fits(value)
    if type(schema) is not type(value):
        return False
    if type(schema) is list:
        return all(fits(item, schema[0]) for item in value)
    if ... in schema:
        return all(fits(item, schema[...]) for item in value.values())
    return all(key in value and fits(value[key], each) for key, each in schema.items())


def check(value: object, schema: object, path: str | Path, place: str = "") -> None:
    """A ValueError that names the place, what was found there and what was expected."""
    problem, parts = None, ()
    if type(schema) is Kind:
        if not schema.fits(value):
            problem = f"is {brief(value)}, expected {schema.expected}"
    elif type(schema) is not type(value):
        expected = "a list" if type(schema) is list else "an object"
        problem = f"is {brief(value)}, expected {expected}"
    elif type(schema) is list:
        parts = ((f"[{i}]", item, schema[0]) for i, item in enumerate(value))
    elif ... in schema:
        parts = ((f".{printable(key)}", item, schema[...]) for key, item in value.items())
    else:
        missing = [key for key in schema if key not in value]
        if missing:
            problem = f"has no {missing[0]!r}, it has {brief(list(value)[:8])}"
        parts = ((f".{key}", value[key], each) for key, each in schema.items())
    if problem:
        where = place.lstrip(".") or "it"
        raise ValueError(f"{path}: {where} {problem}; correct it, or export the file again")
    for name, item, each in parts:
        check(item, each, path, place + name)


def check_once(values: Iterable, path: str | Path, what: str) -> None:
    """A ValueError if one of these ids or names is there twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(
                f"{path}: {what} {brief(value)} is there twice; every one must be different"
            )
        seen.add(value)


def check_known(values: Iterable, known: Collection, path: str | Path, what: str) -> None:
    """A ValueError if one of these ids or names is not among the known ones."""
    for value in values:
        if value not in known:
            raise ValueError(
                f"{path}: {what} {brief(value)} is not among the {len(known):,} there are; the "
                "file is damaged, cut by hand, or belongs to another data set: export it again"
            )


def reason_of(error: BaseException, width: int = 120) -> str:
    """Why the system or a library failed, as one line for a sentence of ours."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text, width)


def described(error: BaseException) -> str:
    """The kind of an error and the first line of its text, for errors of many kinds: the text alone
    may say little, such as a KeyError's."""
    return printable(f"{type(error).__name__}: {error}".split("\n")[0], 120)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 as PowerShell and Excel write it. A
    UnicodeDecodeError if it is in none of them."""
    content = Path(path).read_bytes()
    return content.decode(json.detect_encoding(content[:4]))


# Word vectors


def read_vectors(path: str | Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The vectors (d,) of wanted words in a GloVe-format text file: a word and d numbers on a line.

    If a word is there twice, its first vector counts. Lines of other words are not parsed.
    """
    vectors, width, number = {}, None, 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")  # not split(): some words are blanks
                word = composed(word)
                if number == 1 and len(values) == 1:  # word2vec's header: count and width
                    continue
                width = width or len(values)
                if len(values) < width or width < 2:  # more: some words of GloVe hold blanks
                    raise ValueError(f"has {len(values)} numbers, line 1 has {width}")
                if word in wanted and word not in vectors and len(values) == width:
                    vectors[word] = np.array([float(value) for value in values])  # (d,)
                    if not fits_float32(vectors[word]):
                        raise ValueError("holds a number that is not finite")
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(
            f"{path}, line {number}: {printable(error)}; expected UTF-8 text, on each line a word "
            "and as many numbers as on the others"
        ) from None
    if not vectors:
        raise ValueError(
            f"{path} holds none of the {len(wanted)} words of the labels; choose word vectors of "
            "their language"
        )
    return vectors


def fits_float32(numbers: np.ndarray) -> bool:
    """Whether all are finite, and stay so in float32: 1e39 would become infinite."""
    return bool((np.abs(numbers) <= np.finfo(np.float32).max).all())


def read_matrix(path: str | Path, rows: int) -> np.ndarray:
    """A .npy file of finite numbers, (rows, d) with d of 1 or more, as float64."""
    with contextlib.suppress(ValueError, EOFError, TypeError, AttributeError):  # text, an .npz, ...
        matrix = np.load(path, allow_pickle=False)
        if matrix.ndim == 2 and len(matrix) == rows and matrix.size and matrix.dtype.kind in "fiu":
            matrix = matrix.astype(np.float64)
            if fits_float32(matrix):
                return matrix
    raise ValueError(
        f"{path} is not a .npy file of finite numbers of shape ({rows}, d); save a matrix with a "
        "row for each label with numpy.save, or pass word vectors as text"
    )
