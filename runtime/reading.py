"""What comes from outside, checked once, where it is read: JSON, photos, word vectors.

A schema says what a file holds: a `Kind` where a value is, [schema] for a list of any length,
{"key": schema} for an object with these keys and others, {...: schema} for one of any keys. What
`read_json` returns need not be checked again.

Which photo a name means is decided in `photo_names.py`.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import stat
import struct
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, PngImagePlugin

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


def read_json(path: str | Path, schema: object) -> object:
    """The JSON of a file, without polygons. What does not fit the schema is a ValueError."""
    content = POLYGONS.sub(b'"segmentation":0', Path(path).read_bytes())
    try:
        document = json.loads(content.decode(json.detect_encoding(content[:4])))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export it again") from None
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
                "file is damaged, cut by hand, or belongs to another data set"
            )


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 as PowerShell and Excel write it. A
    UnicodeDecodeError if it is in none of them."""
    content = Path(path).read_bytes()
    return content.decode(json.detect_encoding(content[:4]))


def digest(path: str | Path) -> str:
    """An id of a file's bytes; "unreadable" for a file that cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


# Photos

HEIC = "pip install pillow-heif to read HEIC"
with contextlib.suppress(Exception):  # phones write HEIC; the package may be missing
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
# Pillow reads more formats. An EPS file, for one, is a program, which it has Ghostscript run.
FORMATS = "JPEG PNG WEBP BMP GIF TIFF PPM JPEG2000 AVIF HEIF".split()
FORMATS = [name for name in FORMATS if name in Image.OPEN]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
# The texts and colour profiles of a PNG are not used, so it must not be refused for long ones.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB each, as for all together


def open_photo(path: str | Path, use: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `use` returns for the open photo. Any error of Pillow becomes a ValueError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe waits for ever
            raise ValueError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, or many pixels
            with Image.open(path, formats=FORMATS) as image:
                return use(image)
    except Exception as error:  # of a dozen kinds
        reason = getattr(error, "strerror", None) or printable(error, 120) or type(error).__name__
        advice = "replace the file"
        if isinstance(error, FileNotFoundError):
            advice = "correct the path"
        elif "HEIF" not in FORMATS and is_heic(path):
            advice = HEIC
        raise ValueError(
            f"cannot read photo {printable(path, 200)} ({reason}); {advice}"
        ) from error


def is_heic(path: str | Path) -> bool:
    """Whether a file is HEIC by its suffix, or by its content whatever the suffix is."""
    if not os.path.isfile(path):
        return False
    if str(path).lower().endswith((".heic", ".heif")):
        return True
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(12)
        return start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")
    return False


# What Pillow's EXIF reader raises when bytes are damaged.
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError)
DAMAGED += (SyntaxError, AssertionError, struct.error)


def orientation(image: Image.Image) -> int:
    """EXIF's number for how the camera was held; 1, upright, if it cannot be read.

    No other tag is looked at: a damaged one is no reason to refuse a photo.
    """
    try:
        number = image.getexif().get(0x112)
    except DAMAGED:
        number = None
    return number if isinstance(number, int) else 1


def walk(folder: str | Path) -> tuple[list[str], str]:
    """The paths in a folder of all photos in and below it, and a text that counts the other files
    by kind. Hidden files do not count. The pictures that run.py and predict.py --save have made in
    folders of their own are no photos. A folder that cannot be read is an OSError.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{printable(folder, 200)} is not a folder of photos")
    photos, others = [], Counter()
    for path, kind in files_in(str(folder)):
        suffix = os.path.splitext(path)[1].lower()
        if kind != "file":
            others[kind] += 1
        elif suffix in SUFFIXES:
            photos.append(path)
        else:
            others[suffix or "without suffix"] += 1
    pictures, made_in = made_pictures(str(folder), photos)
    photos = sorted(set(photos) - pictures, key=lambda path: path.split("/"))
    texts = [f"{n:,} {printable(kind)}" for kind, n in others.most_common(5)]
    if len(others) > 5:
        texts.append("...")
    if pictures:
        where = " and ".join(printable(name) for name in made_in[:3])
        texts.insert(0, f"{len(pictures):,} pictures that this program made in {where}")
    text = ", ".join(texts)
    if ".heic" in others:
        text += f" ({HEIC})"
    return photos, text


# What run.py draws in --out, and --fresh moves into before-fresh/ there.
DRAWN = {"results.jpg", "mistakes.jpg", "results-evaluated.jpg", "mistakes-evaluated.jpg"}
DRAWN |= {"curves.png", "graph.png"}
PREDICTIONS = "predictions.jsonl"  # the list in a folder of predict.py --save, and its sign
FIRST = b'{"photo": '  # how each of its lines begins


def made_pictures(root: str, photos: list[str]) -> tuple[set[str], list[str]]:
    """Of the photos below a folder, those that run.py and predict.py --save have made; and the
    folders where they made them."""
    photos_of = defaultdict(list)  # folder -> photos
    for photo in photos:
        photos_of[photo.rpartition("/")[0]].append(photo)
    pictures, made_in = set(), set()
    for folder, inside in photos_of.items():
        above = [place for place in map(str, PurePosixPath(folder).parents) if place != "."]
        run = above[0] if above and folder.endswith("/before-fresh") else folder
        if saved := [place for place in (folder, *above) if holds_predictions(root, place)]:
            pictures.update(inside)
            made_in.add(saved[-1])
        elif is_of_a_run(root, run):
            drawn = {photo for photo in inside if photo.rpartition("/")[2] in DRAWN}
            pictures |= drawn
            made_in.update([run] if drawn else [])
    return pictures, sorted(made_in)


def is_of_a_run(root: str, folder: str) -> bool:
    """Whether a folder below the root is one that run.py writes to."""
    files = (os.path.join(root, folder, name) for name in ("args.json", "lock"))
    return folder != "" and all(map(os.path.isfile, files))


def holds_predictions(root: str, folder: str) -> bool:
    """Whether a folder below the root is one of predict.py --save, by its list of pictures."""
    path = os.path.join(root, folder, PREDICTIONS)
    if not folder or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(FIRST)) == FIRST


def files_in(root: str) -> Iterable[tuple[str, str]]:
    """(path in the root folder, kind) of all files in and below it that are not hidden; a kind is
    "file", or says why there can be no photo.

    Linked folders are followed, after the real ones. Below each folder of the first level, no
    folder is entered twice, so that links in a circle come to an end.
    """
    folders, links = [("", set())], []  # (path in root, ids of the folders entered)
    while folders or links:
        path, entered = folders.pop() if folders else links.pop()
        number, entries = open_folder(os.path.join(root, path))
        if number in entered:
            continue
        entered.add(number)
        for entry in entries:
            inside = f"{path}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                folders.append((inside, entered if path else set(entered)))
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                yield inside, "file"
            elif os.path.isdir(entry.path):
                links.append((inside, entered if path else set(entered)))
            elif os.path.exists(entry.path):
                yield inside, "pipes, sockets or devices"
            else:
                yield inside, "broken links"


def open_folder(path: str) -> tuple[tuple[int, int], list[os.DirEntry]]:
    """A folder's id, which is the same whatever link leads to it, and its entries that are not
    hidden, in order of name."""
    try:
        status = os.stat(path)
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise type(error)(
            f"cannot read folder {printable(path, 200)} ({error.strerror}); make it readable, or "
            "move it away"
        ) from error
    return (status.st_dev, status.st_ino), sorted(visible, key=lambda entry: entry.name)


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
    raise ValueError(f"{path} is not a .npy file of finite numbers of shape ({rows}, d)")
