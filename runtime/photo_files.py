"""Photo files: how one is opened, and which files of a folder are photos.

What the pixels become is in `data.py`; which photo a name means is decided in `photo_names.py`.
"""

import contextlib
import hashlib
import os
import stat
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from PIL import Image, PngImagePlugin

from runtime.folder import DRAWN
from runtime.reading import reason_of
from runtime.terminal import printable

HEIC = "pip install pillow-heif to read HEIC"
with contextlib.suppress(Exception):  # phones write HEIC; the package may be missing
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
# Pillow reads more formats. An EPS file, for one, is a program, which it has Ghostscript run.
FORMATS = "JPEG PNG WEBP BMP GIF TIFF PPM JPEG2000 AVIF HEIF".split()
FORMATS = [name for name in FORMATS if name in Image.OPEN]
READABLE = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
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
        advice = "replace the file"
        if isinstance(error, FileNotFoundError):
            advice = "correct the path"
        elif "HEIF" not in FORMATS and is_heic(path):
            advice = HEIC
        raise ValueError(
            f"cannot read photo {printable(path, 200)} ({reason_of(error)}); {advice}"
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


def digest(path: str | Path) -> str:
    """An id of a file's bytes; "unreadable" for a file that cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def walk(folder: str | Path) -> tuple[list[str], str]:
    """The paths in a folder of all photos in and below it, and a text that counts the other files
    by kind. Hidden files do not count. The pictures that run.py and predict.py --save have made in
    folders of their own are no photos; other files there may be. A folder that cannot be read is an
    OSError.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{printable(folder, 200)} is not a folder of photos")
    photos, others = [], Counter()
    for path, kind in files_in(str(folder)):
        suffix = os.path.splitext(path)[1].lower()
        if kind != "file":
            others[kind] += 1
        elif suffix in READABLE:
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


PREDICTIONS = "predictions.jsonl"  # the list in a folder of predict.py --save, and its sign
FIRST = b'{"photo": '  # how each of its lines begins
OURS = b"labelled by IML-GCN"  # the comment of our JPEGs, which tells them from others


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
            labelled = {photo for photo in inside if is_ours(os.path.join(root, photo))}
            pictures |= labelled
            made_in.update(saved[-1:] if labelled else [])
        if is_of_a_run(root, run):
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


def is_ours(path: str | Path) -> bool:
    """Whether a file has the comment of the JPEGs that this program makes. The list beside it does
    not tell: predict.py --json may have been sent to a file of that name among somebody's photos.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return OURS in file.read(4096)
    return False


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
