"""COCO from its own server: the zips into --data, each part of the way kept when it breaks off.

What ends in .part is a zip of ours, or the bytes so far, and deleted when unpacked. What ends in
.tmp is being unpacked, and renamed in one go. The rest is whole, and stays as it is.
Nothing that arrives is trusted: the server has no https, and COCO publishes no checksums.
"""

import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from runtime.signals import stop_if_asked
from runtime.text import Progress

SERVER = "http://images.cocodataset.org"  # its certificate is another name's: https fails
TRIES, PAUSE, TIMEOUT = 6, 2, 60  # tries that get no further; seconds: doubled each time, silence
MB, MOST = 10**6, 40 * 10**9  # MOST that a zip may unpack to; train2017 holds about 20 GB


def coco(folder: Path, year: str) -> None:
    """Fetch and unpack what `folder` does not have; at most one zip of ours is there at a time."""
    names = [f"annotations/instances_{split}{year}.json" for split in ("train", "val")]
    wanted = {f"annotations/annotations_trainval{year}.zip": names}
    wanted |= {f"zips/{split}{year}.zip": [f"{split}{year}"] for split in ("train", "val")}
    for address, names in wanted.items():
        path = folder / Path(address).name
        part = path.with_name(path.name + ".part")
        try:
            if lacking := [name for name in names if not (folder / name).exists()]:
                (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
                if not path.is_file():
                    fetch(f"{SERVER}/{address}", part)
                unpack(path if path.is_file() else part, folder, lacking)
            if part.is_file():  # unpacked, now or before a kill
                part.unlink()
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"cannot fetch {SERVER}/{address} into {folder} ({error}); what is there is kept; "
                "start again with 30 GB of room (2017: 45), or put the zip there yourself"
            ) from error


def fetch(url: str, part: Path) -> None:
    """Download what `part` lacks: as long as that gets further, and TRIES times where not."""
    part.touch()
    tries, most = 0, part.stat().st_size
    while True:
        try:
            return receive(url, part)
        except (HTTPException, URLError, ConnectionError, TimeoutError) as error:
            have, code = part.stat().st_size, getattr(error, "code", 0)  # of HTTP
            if code == 416:  # no byte comes after those that are there
                return
            tries, most = (tries + 1, most) if have <= most else (0, have)
            if tries == TRIES or 400 <= code < 500:  # 4xx: asking again would not help
                raise
        time.sleep(PAUSE * 2**tries)
        stop_if_asked(f"the download of {url}")


def receive(url: str, part: Path) -> None:
    """Append the bytes after those of `part`; of a server that knows no Range, all anew."""
    request = Request(url, headers={"Range": f"bytes={part.stat().st_size}-"})
    with urlopen(request, timeout=TIMEOUT) as response:
        pieces, left = iter(lambda: response.read(MB), b""), response.length or 0
        with open(part, "ab" if response.status == 206 else "wb") as file:
            for piece in watched(f"download of {url}", pieces, left // MB, "MB"):
                file.write(piece)
        if response.length:  # of Content-Length: what did not come
            raise ConnectionError("closed early")


def unpack(path: Path, folder: Path, names: list[str]) -> None:
    """What is named, from the zip of one folder's files, to `folder`: the photos all at once."""
    top = names[0].split("/")[0]
    temporary = folder / f"{top}.zip.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            check_entries(entries, path, top)
            for entry in watched(f"unpacking of {path}", entries, len(entries), "files"):
                zipped.extract(entry, temporary)  # at most file_size bytes; checks the CRC
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # or encrypted
        raise ValueError(f"{path} is damaged ({error}); delete it and start again") from error
    if hasattr(os, "sync"):
        os.sync()  # on disk before the zip goes
    for name in names:  # two files, or the photos' folder
        (temporary / name).rename(folder / name)
    shutil.rmtree(temporary, ignore_errors=True)


def check_entries(entries: list[zipfile.ZipInfo], path: Path, top: str) -> None:
    """Only plain files right in `top`, each once, of a size that can be."""
    last = {entry.filename.lower(): entry for entry in entries}
    size = sum(entry.file_size for entry in entries)
    for entry in entries:
        name, kind = entry.filename, entry.external_attr >> 28  # 8: a plain file, 0: not said
        inside = re.fullmatch(rf"{top}/\.?\w[\w.-]*", name, re.ASCII)
        if not inside or last[name.lower()] is not entry or kind not in (0, 8) or size > MOST:
            raise ValueError(
                f"{path} holds {name!r:.80} of {size:,} bytes in all, expected plain files in "
                f"{top}/ only, each once, of at most {MOST:,}; it is not COCO's zip: delete it"
            )


def watched(what: str, parts: Iterable, total: int, unit: str) -> Iterator:
    """The parts one by one: a line for the log first, then one that rewrites itself; or a stop."""
    print(f"{what}: {total:,} {unit} are to come", flush=True)
    progress = Progress(what, total, unit)
    for part in parts:
        yield part
        if progress.due(1):
            progress.show()
        stop_if_asked(f"the {what}")
