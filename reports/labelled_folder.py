"""The folder of predict.py --save: a picture of every photo with its labels, and predictions.jsonl.

Nothing outside the folder is written, and only files that predict.py made are replaced.
pictures.py draws the pictures.
"""

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

import data
from reports import fonts
from reports.pictures import JPEG, LABELS, Caption, grid, lit, shortened, with_labels
from runtime.locks import locked
from runtime.photo_files import FIRST, PREDICTIONS, is_of_a_run, is_ours
from runtime.reading import reason_of
from runtime.terminal import printable
from runtime.writing import explained


class LabelledFolder:
    """`with LabelledFolder(path, font) as folder:`, and `folder.add(...)` for every photo.

    The folder is new, empty, or that of an earlier call, whose pictures are removed when the first
    new one is ready. Everything else in it stays as it is.
    """

    def __init__(self, path: Path, font: str | None = None):
        self.path, self.font, self.is_cleared = path, font, False

    def __enter__(self) -> "LabelledFolder":
        path, predictions = self.path, self.path / PREDICTIONS
        fonts.check(self.font)
        if path.exists() and not path.is_dir():
            raise ValueError(f"--save {printable(path, 200)} is a file; choose a folder")
        if path.is_dir() and not (is_empty(path) or is_of_an_earlier_call(path)):
            raise ValueError(
                f"--save {printable(path, 200)} holds other files; choose a new or empty folder"
            )
        with explained(predictions):
            path.mkdir(parents=True, exist_ok=True)
            self.predictions = open(predictions, "a", encoding="utf-8")
        try:
            self.hold()
        except BaseException:
            self.predictions.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.predictions.close()

    def hold(self) -> None:
        """Lock the folder: two calls at once would remove each other's pictures, so the second is
        refused."""
        try:
            is_ours = locked(self.predictions)
        except OSError:  # a file system without locks
            return
        if not is_ours:
            raise ValueError(
                f"--save {printable(self.path, 200)} is in use by another call; wait for its end, "
                "or choose another folder"
            )

    def add(
        self, root: str, relative: str, labels: list[Caption], line: str, maps: list[np.ndarray]
    ) -> None:
        """Write a picture of the photo root/relative, with its labels, under the same path here,
        and add its line of JSON.

        With maps (h, w) of the first labels, the photo is drawn once more for each, to the right.
        """
        image = data.read_photo(Path(root, relative))
        most = 4096 if maps else 8192  # px; a side of a JPEG has at most 65,500
        image.thumbnail((most, most))
        tiles = [with_labels(image, shortened(labels, LABELS), self.font)]
        for heat, label in zip(maps, labels, strict=False):
            tiles.append(with_labels(lit(image, heat), [label], self.font))
        picture = io.BytesIO()  # Pillow does not notice if a disk takes half of a file
        grid(tiles, len(tiles)).save(picture, "JPEG", **JPEG)
        if not self.is_cleared:
            remove_pictures(self.path)
            self.predictions.truncate(0)
            self.is_cleared = True
        file = None
        try:
            file = self.new_file(PurePosixPath(relative))
            with file:
                file.write(picture.getbuffer())
            self.predictions.write(line + "\n")
            self.predictions.flush()
        except OSError as error:
            if file:
                Path(file.name).unlink(missing_ok=True)
            place = file.name if file else self.path
            raise OSError(
                f"cannot write {printable(place, 200)} ({reason_of(error)}); the pictures before "
                "it are whole; make room if the disk is full, and start again"
            ) from error

    def new_file(self, relative: PurePosixPath) -> BinaryIO:
        """A new .jpg file under this path, its name followed by a number if it is taken."""
        folder = self.path
        for part in relative.parent.parts:
            folder = folder_in(folder, part)
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                name = f"{numbered(relative.stem, number)}.jpg"
                return open(folder / name, "xb")  # through no link


def folder_in(folder: Path, name: str) -> Path:
    """The folder of this name, made if need be; a numbered one where the name is a file's, that of
    another call's folder, or a link's, which may lead out of --save."""
    for number in itertools.count(1):
        path = folder / numbered(name, number)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        if path.is_dir() and not path.is_symlink() and not is_of_others(path):
            return path


def numbered(name: str, number: int) -> str:
    """The name, shortened and with `_` for letters that some file systems refuse; from 2 on, with
    its number."""
    name = re.sub(r"[^\w.() -]|^\.+$", "_", name)[:60]
    return name if number == 1 else f"{name}-{number}"


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier call, and the folders that are empty without them."""
    pictures = list(pictures_in(folder))
    for path in pictures:
        with explained(path):
            path.unlink()
    places = {place for path in pictures for place in path.parents if folder in place.parents}
    for place in sorted(places, reverse=True):  # a folder comes after those in it
        if not any(place.iterdir()):
            place.rmdir()


def pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures that calls with --save FOLDER have made."""
    for place, folders, names in os.walk(folder):  # follows no links
        folders[:] = [name for name in folders if not is_of_others(Path(place, name))]
        yield from (path for name in names if is_picture_of_ours(path := Path(place, name)))


def is_of_others(folder: Path) -> bool:
    """Whether a folder below --save is the --save of other calls, or the --out of a run."""
    return os.path.lexists(folder / PREDICTIONS) or is_of_a_run(str(folder), ".")


def is_empty(folder: Path) -> bool:
    """Whether there is nothing but perhaps the list of a call that ended before its first line."""
    paths = list(folder.iterdir())
    return not paths or (paths == [folder / PREDICTIONS] and starts_with(paths[0], b""))


def is_of_an_earlier_call(folder: Path) -> bool:
    """Whether there are a list and pictures of ours. A list by itself may be what `predict.py
    --json` printed, and pictures without a list may be those of a run."""
    has_list = starts_with(folder / PREDICTIONS, FIRST) and not is_of_a_run(str(folder), ".")
    return has_list and any(pictures_in(folder))


def starts_with(path: Path, start: bytes) -> bool:
    """Whether a file, but not one behind a link, begins so; an empty start is an empty file's."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(FIRST)) == start


def is_picture_of_ours(path: Path) -> bool:
    return path.suffix == ".jpg" and not path.is_symlink() and path.is_file() and is_ours(path)
