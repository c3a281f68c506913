"""Which photo of a folder a name in a label file means.

A name may be a path in the folder, a path of another computer, or a link. It means the photo of
exactly that path, or else the one photo whose path ends as the name does. Upper and lower case
differ; how an accent is encoded does not matter (Unicode's NFC). No name leads out of the folder.

`data.py` and `datasets/` read the label files themselves.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from runtime import photo_files
from runtime.reading import Kind, composed
from runtime.terminal import printable, tell

# How a photo was found, as a message says it.
EXACTLY = "by the exact path"
BY_END = "by the end of the path"
BY_FILE_NAME = "by the file name alone"
WITHOUT_SUFFIX = "by a name without a suffix"
UPLOADED = "by the name that Label Studio gives an upload"

# Names of folders that hold one part of a data set; their photos belong to no other part.
PART = re.compile(r"(train|val|test)(ing|id|idation|\d*)", re.I)
UPLOAD = re.compile(r"(?:^|/)upload/(?:\d+/)?([0-9a-f]{8}-[^/]+)$")  # where Label Studio keeps them
PHOTO_SUFFIXES = photo_files.READABLE | {".heic", ".heif", ".avif"}  # readable here or not


def parts_of(name: str) -> list[str]:
    """The folders and the file name of a path, of any system, or of a link: without a drive, a
    scheme, and whatever leads upwards."""
    if not re.search(r"[/\\:]", name) and name not in ("", ".", ".."):
        return [name]
    path = re.sub(r"^([\w.+-]+:/|[A-Za-z]:)", "", name.replace("\\", "/"))
    path = posixpath.normpath(path.lstrip("/"))
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def is_relative(name: str) -> bool:
    """Whether a name is a path in some folder, and leads nowhere else on any system."""
    parts = parts_of(name)
    return parts == [name] or posixpath.normpath(name.replace("\\", "/")) == "/".join(parts)


def names_a_photo(name: object) -> bool:
    return type(name) is str and "\0" not in name and bool(parts_of(name))


NAME = Kind("the path of a photo, without NUL", names_a_photo)


def has_photo_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES


def without_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if has_photo_suffix(name) else name


def uploaded(name: str) -> str:
    """A file's name as Label Studio keeps it, without the digits it puts in front: blanks become
    underscores, and only letters, digits, _, - and . are kept.

    We keep combining marks (vowels in many scripts). Label Studio drops them, so such photos are
    not found.
    """
    letters = name.strip().replace(" ", "_")
    return "".join(c for c in letters if c.isalnum() or c in "_-." or is_mark(c))


def is_mark(character: str) -> bool:
    """Whether a character is one of Unicode's combining marks."""
    return unicodedata.category(character).startswith("M")


def decoded(name: str) -> str:
    """A link without its query and with its %20 and the like decoded; other names unchanged."""
    if "://" not in name:
        return name
    return unquote(re.split("[?#]", name, maxsplit=1)[0])


def data_set_parts(folders: list[str]) -> set[str]:
    """The parts of a data set (train, val, test) that these folders are named after."""
    matches = [PART.fullmatch(folder) for folder in folders]
    return {match[1].lower() for match in matches if match}


class Index:
    """Photos by their whole paths, as `key` writes these, and by every end of them."""

    def __init__(self, photos: list[str], key: Callable[[str], str] = str):
        self.whole, self.ends = {}, {}
        for photo in photos:
            parts = composed(key(photo)).split("/")
            self.whole.setdefault("/".join(parts), []).append(photo)
            for i in range(len(parts)):
                self.ends.setdefault("/".join(parts[i:]), []).append(photo)

    def exactly(self, parts: list[str]) -> list[str]:
        """The photos of this path: one, unless two names differ only in how accents are encoded."""
        return self.whole.get(composed("/".join(parts)), [])

    def by_end(self, parts: list[str]) -> tuple[list[str], str]:
        """The photos whose paths end with all of this path; or else those whose own path is an end
        of it, the longest one. Also how they were found."""
        photos = self.ends.get(composed("/".join(parts)), [])
        if photos:
            return photos, BY_FILE_NAME if len(parts) == 1 else BY_END
        for i in range(1, len(parts)):
            if photos := self.exactly(parts[i:]):
                return photos, BY_FILE_NAME if i == len(parts) - 1 else BY_END
        return [], ""


class PhotoFolder:
    """A folder of photos. It is searched only when a name is not a path in it."""

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        self.above = parts_of(composed(os.path.abspath(folder)))  # the folders that lead to it

    @cached_property
    def photos(self) -> list[str]:
        """Their paths in the folder; none where there is no folder."""
        return photo_files.walk(self.folder)[0] if os.path.isdir(self.folder) else []

    @cached_property
    def index(self) -> Index:
        return Index(self.photos)

    @cached_property
    def index_without_suffixes(self) -> Index:
        return Index(self.photos, without_suffix)

    @cached_property
    def index_of_uploads(self) -> Index:
        return Index(self.photos, lambda photo: uploaded(composed(os.path.basename(photo))))

    def find(self, name: str, uploads: bool = False) -> tuple[str, str]:
        """The path in the folder of the photo that a name means, and how it was found; ("", "") if
        there is no certain match. A name that may mean several photos is a ValueError.

        `uploads`: the name is Label Studio's, which renames what is uploaded.
        """
        for written in dict.fromkeys([name, decoded(name)]):
            parts = parts_of(written)
            path = "/".join(parts)
            if is_relative(written) and os.path.isfile(f"{self.folder}/{path}"):
                return path, EXACTLY
            for photos, how in self.meanings(written, parts, uploads):
                photos = [photo for photo in photos if not self.in_another_part(parts, photo)]
                if photos:
                    return self.only_one(name, photos), how
        return "", ""

    def meanings(
        self, name: str, parts: list[str], uploads: bool
    ) -> Iterator[tuple[list[str], str]]:
        """Photos that a name may mean and how they are found, the surest first."""
        if self.index.whole.get(name) == [name]:  # such as a\\b.jpg on Linux
            yield [name], EXACTLY
        end = BY_FILE_NAME if len(parts) == 1 else BY_END
        yield self.index.exactly(parts), EXACTLY if is_relative(name) else end
        yield self.index.exactly(self.from_the_folder_on(parts)), EXACTLY
        yield self.index.by_end(parts)
        if not has_photo_suffix(name):
            yield self.index_without_suffixes.exactly(parts), WITHOUT_SUFFIX
            yield self.index_without_suffixes.by_end(parts)[0], WITHOUT_SUFFIX
        upload = UPLOAD.search("/".join(parts))
        if upload or uploads:
            file_name = upload[1] if upload else parts[-1]
            yield self.index.by_end([file_name])
            original = re.sub("^[0-9a-f]{8}-", "", file_name)
            yield self.index_of_uploads.exactly([uploaded(composed(original))]), UPLOADED

    def from_the_folder_on(self, parts: list[str]) -> list[str]:
        """The part of a path below this folder, if the path also names the folder."""
        for i in range(len(parts) - 1, 0, -1):
            if [composed(part) for part in parts[:i]] == self.above[-i:]:
                return parts[i:]
        return []

    def in_another_part(self, parts: list[str], photo: str) -> bool:
        """Whether a name leads through a folder train, say, and the photo's path through val."""
        named = data_set_parts(parts[:-1])
        real = data_set_parts([*self.above[-1:], *photo.split("/")[:-1]])
        return bool(named) and bool(real) and not named & real

    def only_one(self, name: str, photos: list[str]) -> str:
        """The photo, of one or several; several paths to one file are one photo."""
        real = {os.path.realpath(f"{self.folder}/{photo}"): photo for photo in reversed(photos)}
        if len(real) > 1:
            raise ValueError(
                f"{printable(name)} may be {printable(photos[0])} or {printable(photos[1])}; "
                "write its path in the folder"
            )
        return photos[0]

    def lookalike(self, name: str) -> str:
        """A photo of this file name in another folder or in other letters, "" if there is none."""
        return self.by_loose_file_name.get(composed(parts_of(name)[-1]).lower(), "")

    @cached_property
    def by_loose_file_name(self) -> dict[str, str]:
        return {composed(os.path.basename(photo)).lower(): photo for photo in self.photos}


def locate(
    names: list[str], folder: PhotoFolder, source: str | Path, uploads: bool = False
) -> list[str]:
    """The paths of the photos that the names in a label file mean, each in the folder.

    A name without a certain match keeps its own path: the photo counts as missing.
    Two names for one photo are a ValueError, unless Label Studio made them up. A line says how many
    photos were found by less than the exact path.
    """
    matches = {}  # name -> path in the folder, how it was found
    for name in dict.fromkeys(names):
        try:
            matches[name] = folder.find(name, uploads)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    check_apart(matches, folder, source)
    tell_how(matches, source)
    tell_lookalikes([name for name, (photo, _) in matches.items() if not photo], folder, source)
    paths = {name: photo or "/".join(parts_of(name)) for name, (photo, _) in matches.items()}
    return [os.path.join(folder.folder, paths[name]) for name in names]


def check_apart(
    matches: dict[str, tuple[str, str]], folder: PhotoFolder, source: str | Path
) -> None:
    """An error if two names mean one photo, since one of them may belong to a photo that is gone.
    Names that Label Studio made up for uploads do not count, nor does one path in two spellings."""
    name_of = {}  # photo -> the first name that means it
    for name, (photo, how) in matches.items():
        path = "/".join(parts_of(name))
        if not photo or how == UPLOADED or UPLOAD.search(path):
            continue
        other = name_of.setdefault(photo, name)
        if composed("/".join(parts_of(other))) != composed(path):
            raise ValueError(
                f"{source}: {printable(other)} and {printable(name)} would both be the photo "
                f"{printable(photo)}; write the photos' paths in {printable(folder.folder)}"
            )


def tell_how(matches: dict[str, tuple[str, str]], source: str | Path) -> None:
    """Say how many photos were found by less than the exact path, with an example of each way."""
    names_by = {}  # how -> names
    for name, (photo, how) in matches.items():
        if photo and how != EXACTLY:
            names_by.setdefault(how, []).append(name)
    if names_by:
        ways = [
            f"{len(names):,} {how} ({printable(names[0])} is {printable(matches[names[0]][0])})"
            for how, names in names_by.items()
        ]
        count = sum(map(len, names_by.values()))
        tell(
            f"{source}: {count:,} of {len(matches):,} photos are not at the exact path that it "
            f"names but were found: {', '.join(ways)}"
        )


def tell_lookalikes(missing: list[str], folder: PhotoFolder, source: str | Path) -> None:
    """Say how many missing photos have the file name of a photo that was not taken for them."""
    pairs = [(name, folder.lookalike(name)) for name in missing]
    pairs = [(name, photo) for name, photo in pairs if photo]
    if pairs:
        name, photo = pairs[0]
        tell(
            f"{source}: photos that count as missing, though one of that file name is in another "
            f"folder, or differs in upper and lower case: {len(pairs):,} ({printable(name)} is not "
            f"taken to be {printable(photo)})"
        )
