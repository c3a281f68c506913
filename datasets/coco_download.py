"""COCO from its own server: the zips into --data, unpacked.

In --data, names end in

    .part   while a zip is downloading
    .whole  for our zip, which is deleted when it is unpacked
    .tmp    while a folder is unpacking; it is put into its place in one go

All else is whole and stays as it is, a zip that somebody put there too. Nothing that arrives is
trusted: the server has no https, and COCO publishes no checksums.
"""

import mmap
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from runtime import download
from runtime.locks import one_at_a_time
from runtime.reading import reason_of
from runtime.signals import Stopped, stop_if_asked
from runtime.terminal import tell

SERVER = "http://images.cocodataset.org"  # its certificate is for another name: https fails
GB = 10**9
SIZES = {  # GB of each zip on COCO's server, and of what is in it
    "annotations_trainval2014": (0.26, 1.0),
    "train2014": (13.52, 13.7),
    "val2014": (6.65, 6.8),
    "annotations_trainval2017": (0.26, 1.0),
    "train2017": (19.34, 19.6),
    "val2017": (0.82, 0.84),
}


class Part(NamedTuple):
    """One of COCO's zips, and the folder that is in it."""

    root: Path  # --data
    url: str
    folder: str

    def instances(self, split: str) -> Path:
        """The labels of a split of this year."""
        return self.root / f"annotations/instances_{split}{Path(self.url).stem[-4:]}.json"

    def is_there(self) -> bool:
        if self.folder == "annotations":
            return self.instances("train").is_file() and self.instances("val").is_file()
        path = self.root / self.folder
        return path.is_dir() and any(path.iterdir())

    @property
    def by_hand(self) -> Path:
        """Where somebody may put the zip, to be used and kept."""
        return self.root / Path(self.url).name

    @property
    def ours(self) -> Path:
        return self.by_hand.with_name(f"{self.by_hand.name}.whole")

    @property
    def temporary(self) -> Path:
        return self.root / f"{self.folder}.tmp"


def parts(root: Path, year: str) -> list[Part]:
    return [
        Part(root, f"{SERVER}/annotations/annotations_trainval{year}.zip", "annotations"),
        Part(root, f"{SERVER}/zips/train{year}.zip", f"train{year}"),
        Part(root, f"{SERVER}/zips/val{year}.zip", f"val{year}"),
    ]


def needed(root: Path, year: str) -> tuple[float, float]:
    """Bytes that `coco` has to download, and bytes of disk that it needs besides what is there."""
    to_come, room, growth = 0.0, 0.0, 0.0
    for part in parts(root, year):
        if part.is_there():
            continue
        zipped, unpacked = (size * GB for size in SIZES[Path(part.url).stem])
        have = 0  # bytes of our zip that are on disk
        for path in (part.ours.with_suffix(".part"), part.ours):
            if path.is_file():
                have = path.stat().st_size
        missing = max(zipped - have, 0)
        if part.by_hand.is_file() or part.ours.is_file():
            missing = 0
        to_come += missing
        room = max(room, growth + missing + unpacked)  # while it is unpacked
        growth += unpacked - have  # our zip is deleted then
    return to_come, room


def check_room(root: Path, year: str) -> None:
    """A ValueError, before anything is fetched, if the disk is too small for what `root` lacks."""
    to_come, room = needed(root, year)
    folder = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if room > free:
        raise ValueError(
            f"--download of COCO {year} needs {room / GB:.1f} GB in {root} ({to_come / GB:.1f} GB "
            f"to download, and room to unpack), but only {free / GB:.1f} GB are free; make room, "
            "or choose another --data"
        )


def coco(root: Path, year: str) -> None:
    """Fetch and unpack the folders that `root` lacks, with one of our zips on disk at a time."""
    everything = parts(root, year)
    if all(part.is_there() for part in everything):  # perhaps in a folder that cannot be written
        remove_leftovers(everything)
        return
    with one_at_a_time(root / "download.lock", f"--download into {root}"):
        for part in everything:
            if part.is_there():
                continue
            path = part.by_hand
            if not path.is_file():
                advice = f"fetch it in another way, put it at {path}, and start again"
                path = download.fetch(part.url, part.ours, advice)
            try:
                unpack(path, part)
            except Stopped:
                raise
            except Exception as error:  # of a dozen kinds, if a zip is damaged or odd
                raise ValueError(
                    f"cannot unpack {path} ({reason_of(error, 150)}); make room if the disk is "
                    f"full, else delete that zip and start again, to fetch {part.url} anew"
                ) from error
            part.ours.unlink(missing_ok=True)
        remove_leftovers(everything)


def remove_leftovers(everything: list[Part]) -> None:
    """Remove what a run has left that was killed after unpacking."""
    for part in everything:
        if part.ours.is_file():
            part.ours.unlink()
        if part.temporary.is_dir():
            shutil.rmtree(part.temporary)


def unpack(path: Path, part: Part) -> None:
    """Unpack the folder of a part from its zip: all of it, checked, or nothing."""
    tell(f"unpacking {path}")
    shutil.rmtree(part.temporary, ignore_errors=True)
    with zipfile.ZipFile(path) as zipped:
        entries = zipped.infolist()
        if len(entries) != stated_entries(path, len(entries)):
            raise ValueError("its directory is damaged: it states another number of entries")
        size = sum(entry.file_size for entry in entries)
        free = shutil.disk_usage(part.root).free
        if size > free:
            raise ValueError(
                f"{download.size_of(size)} to unpack, but only {download.size_of(free)} are free "
                f"in {part.root}"
            )
        for entry in entries:  # zipfile compares the name before the bytes, and the CRC
            if entry.is_dir() and not entry.file_size:
                continue
            if entry.filename.startswith(f"{part.folder}/"):
                zipped.extract(entry, part.temporary)  # writes nothing outside it
            else:
                read_through(zipped, entry)
            stop_if_asked(f"in the unpacking of {path}")
    unpacked = part.temporary / part.folder
    if not unpacked.is_dir():
        raise ValueError(f"there is no folder {part.folder}/ in it")
    if part.folder == "annotations":
        put_beside(unpacked, part)
    else:
        check_count(unpacked, part.instances(part.folder[:-4]))
        unpacked.rename(part.root / part.folder)
    shutil.rmtree(part.temporary)


def stated_entries(path: Path, counted: int) -> int:
    """The number of entries that the end of a zip states, which Python's reader ignores.

    It has 16 bits. For more entries there is a record of 64 bits, or the higher bits are missing:
    then they are those of `counted`.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 22 - 2**16 - 20, 0))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        (count,) = struct.unpack_from("<H", tail, end + 10)
        if tail[max(end - 20, 0) :].startswith(b"PK\6\7"):  # where the record of 64 bits lies
            file.seek(struct.unpack_from("<Q", tail, end - 20 + 8)[0])
            return struct.unpack_from("<Q", file.read(56), 32)[0]
    return count + (counted - counted % 2**16)


def read_through(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Check an entry that is not wanted: it may be one that is, under a damaged name."""
    with zipped.open(entry) as file:
        while file.read(download.MB):
            pass


def put_beside(unpacked: Path, part: Part) -> None:
    """Move annotations into a folder that may have others; files that are there already stay."""
    (part.root / part.folder).mkdir(exist_ok=True)
    for file in unpacked.iterdir():
        if not (part.root / part.folder / file.name).exists():
            file.rename(part.root / part.folder / file.name)
    if not part.is_there():
        names = [part.instances(split).name for split in ("train", "val")]
        raise ValueError(f"it lacks {' or '.join(names)}")


def check_count(photos: Path, labels: Path) -> None:
    """A ValueError if there are fewer photos than the label file names; no check without it."""
    if not labels.is_file() or not labels.stat().st_size:
        return
    with open(labels, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        named = sum(1 for _ in re.finditer(b'"file_name"', text))
    count = sum(1 for path in photos.rglob("*") if path.is_file())
    if count < named:
        raise ValueError(f"it has {count:,} photos, {labels} names {named:,}")
