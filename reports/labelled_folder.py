"""The folder of predict.py --save: a picture of every photo with its labels, and predictions.jsonl.

Nothing outside the folder is written, and only files that predict.py made are replaced.
pictures.py draws the pictures.
"""

import contextlib
import io
import itertools
import os
import re
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

import data
from reports import fonts
from reports.pictures import JPEG, LABELS, Caption, grid, lit, shortened, with_labels
from runtime.locks import locked
from runtime.photo_files import FIRST, PREDICTIONS, is_ours
from runtime.reading import reason_of
from runtime.terminal import printable


class LabelledFolder:
    """`with LabelledFolder(path, font) as folder:`, and `folder.add(...)` for every photo.

    The folder is new, empty, or that of an earlier call, whose pictures are removed first.
    Everything else in it stays as it is.
    """

    def __init__(self, path: Path, font: str | None = None):
        self.path, self.font = path, font

    def __enter__(self) -> "LabelledFolder":
        path, predictions = self.path, self.path / PREDICTIONS
        fonts.check(self.font)
        others = any(path.iterdir()) if path.is_dir() else path.exists()
        if others and not is_list_of_ours(predictions):
            raise ValueError(
                f"--save {printable(path, 200)} holds other files; choose a new or empty folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        self.predictions = open(predictions, "a", encoding="utf-8")
        try:
            self.hold()
            remove_pictures(path)
            self.predictions.truncate(0)
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
        file = self.new_file(PurePosixPath(relative))
        try:
            with file:
                file.write(picture.getbuffer())
            self.predictions.write(line + "\n")
            self.predictions.flush()
        except OSError as error:
            Path(file.name).unlink(missing_ok=True)
            raise OSError(
                f"cannot write {printable(file.name, 200)} ({reason_of(error)}); the pictures "
                "before it are whole"
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
    """The folder of this name, made if need be; a numbered one where the name is a file's, or a
    link's, which may lead out of --save."""
    for number in itertools.count(1):
        path = folder / numbered(name, number)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        if path.is_dir() and not path.is_symlink():
            return path


def numbered(name: str, number: int) -> str:
    """The name, shortened and with `_` for letters that some file systems refuse; from 2 on, with
    its number."""
    name = re.sub(r"[^\w.() -]|^\.+$", "_", name)[:60]
    return name if number == 1 else f"{name}-{number}"


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier call, and the folders that are empty without them."""
    touched = set()  # folders that something was removed from
    for place, _, names in os.walk(folder, topdown=False):  # follows no links
        place = Path(place)
        for path in (place / name for name in names):
            if is_picture_of_ours(path):
                path.unlink()
                touched.add(place)
        if place in touched and place != folder and not any(place.iterdir()):
            place.rmdir()
            touched.add(place.parent)


def is_list_of_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(FIRST)) in (b"", FIRST)


def is_picture_of_ours(path: Path) -> bool:
    return path.suffix == ".jpg" and not path.is_symlink() and path.is_file() and is_ours(path)
