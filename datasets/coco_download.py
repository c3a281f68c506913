"""COCO from its own server: the zips into --data, each part of the way kept when it breaks off.

What ends in .part is a zip of ours, or the bytes so far, and deleted when unpacked. What ends in
.tmp is being unpacked, and renamed in one go. The rest is whole, and stays as it is.
Nothing that arrives is trusted: the server has no https, and COCO publishes no checksums.
"""

import shutil
import time
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from runtime.signals import stop_if_asked
from runtime.terminal import Progress

SERVER = "http://images.cocodataset.org"  # its certificate is another name's: https fails
TRIES, PAUSE, TIMEOUT, MB = 20, 5, 60, 10**6  # PAUSE, TIMEOUT: seconds


def coco(folder: Path, year: str) -> None:
    """Fetch and unpack the folders that `folder` lacks; one zip of ours is there at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("annotations/annotations_trainval", "zips/train", "zips/val"):
        url = f"{SERVER}/{kind}{year}.zip"
        part = folder / f"{Path(url).name}.part"
        name = Path(url).stem if kind.startswith("zips") else "annotations"
        there = f"annotations/instances_val{year}.json" if name == "annotations" else name
        try:
            if not (folder / there).exists():
                fetch(url, part)
                unpack(part, folder, name)
            part.unlink(missing_ok=True)  # unpacked, now or before a kill
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"cannot fetch {url} into {folder} ({error}); start again, it goes on from there, "
                f"with 30 GB of room (2017: 45); or delete {part.name} where that is damaged"
            ) from error


def fetch(url: str, part: Path) -> None:
    """Download what `part` lacks, and go on where the connection breaks."""
    part.touch()
    tries = 0  # that got no further
    while tries < TRIES:
        have = part.stat().st_size
        try:
            return receive(url, part)
        except (HTTPException, URLError, ConnectionError, TimeoutError) as error:
            code = getattr(error, "code", 500)  # of HTTP
            if code == 416:  # no byte comes after those that are there
                return
            if code < 500:
                raise
            print(f"{url}: {error}; it goes on in {PAUSE} s", flush=True)
        tries = 0 if part.stat().st_size > have else tries + 1
        time.sleep(PAUSE)
        stop_if_asked(f"the download of {url}")
    raise ConnectionError(f"{TRIES} times in a row nothing came")


def receive(url: str, part: Path) -> None:
    """Append the bytes after those of `part`; of a server that knows no Range, all anew."""
    request = Request(url, headers={"Range": f"bytes={part.stat().st_size}-"})
    with urlopen(request, timeout=TIMEOUT) as response:
        progress = Progress(url, (response.length or 0) / MB, "MB")
        print(f"{url}: {progress.total:,.0f} MB are to come", flush=True)
        with open(part, "ab" if response.status == 206 else "wb") as file:
            for piece in iter(lambda: response.read(MB), b""):
                file.write(piece)
                if progress.due(1):
                    progress.show()
                stop_if_asked(f"the download of {url}")
        if response.length:  # of Content-Length: what did not come
            raise ConnectionError("closed early")


def unpack(path: Path, folder: Path, name: str) -> None:
    """The folder of this name in a zip, to `folder`: all at once."""
    print(f"unpacking {path}", flush=True)
    temporary = folder / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with zipfile.ZipFile(path) as zipped:
        entries = [entry for entry in zipped.namelist() if entry.startswith(f"{name}/")]
        for entry in entries:
            zipped.extract(entry, temporary)  # nothing outside it; checks the CRC
            stop_if_asked(f"the unpacking of {path}")
    (temporary / name).rename(folder / name)
    shutil.rmtree(temporary)
