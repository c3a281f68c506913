"""COCO from its own server: the zips into --data, each part of the way kept when it breaks off.

    <data>/train2014.zip.json    which file of the server the next two are: size and version
    <data>/train2014.zip.part    its bytes so far
    <data>/train2014.zip         all of them
    <data>/train2014.zip.tmp/    its photos so far; unpacking begins again
    <data>/train2014/            all of them: renamed in one go, then what is above is deleted

Nothing that arrives is trusted: the server has no https, and COCO publishes no checksums.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from runtime.signals import stop_if_asked
from runtime.text import Progress

SERVER = "http://images.cocodataset.org"  # its certificate is another name's: https fails
TRIES, PAUSE, TIMEOUT = 6, 2, 60  # tries that get no further; seconds: doubled each time, silence
PIECE, MB = 1 << 20, 1e6
BROKEN = http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError
MOST = 40 * 1000**3  # bytes that a zip may unpack to; the largest, train2017, holds about 20 GB


def coco(folder: Path, year: str) -> None:
    """Fetch and unpack what `folder` does not have; a file or folder that is there stays as it is.

    At most one zip is there at a time. A zip that was put there by hand is used, and kept.
    """
    names = [f"annotations/instances_{split}{year}.json" for split in ("train", "val")]
    wanted = {f"annotations/annotations_trainval{year}.zip": names}
    wanted |= {f"zips/{split}{year}.zip": [f"{split}{year}"] for split in ("train", "val")}
    for address, names in wanted.items():
        path = folder / os.path.basename(address)
        about = path.with_name(path.name + ".json")  # only with a zip of ours
        if not all(is_there(folder / name) for name in names):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not path.is_file():
                    fetch(f"{SERVER}/{address}", path, about)
                unpack(path, folder, names[0].split("/")[0])
            except OSError as error:
                if error.errno is None:
                    raise
                raise OSError(
                    f"cannot write to {folder} ({error.strerror}); what is there is kept; with "
                    "room for 30 GB (2017: 45) and the right to write there, start again"
                ) from error
        if about.is_file():
            path.unlink(missing_ok=True)
            about.unlink()


def is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def fetch(url: str, path: Path, about: Path) -> None:
    """Download to `path`, whole; a part that is there is gone on with if it is of the same file.

    A broken connection is tried again as long as that gets further, and TRIES times where not.
    """
    part, known, tries, most = path.with_name(path.name + ".part"), {}, 0, 0
    with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: it was cut short
        known = json.loads(about.read_text(encoding="utf-8"))
    while True:
        have = part.stat().st_size if known and part.is_file() else 0
        if known and have == known["size"]:
            os.replace(part, path)
            return
        tries, most = (tries + 1, most) if have <= most else (1, have)
        try:
            if tries > 1:
                time.sleep(PAUSE * 2 ** (tries - 2))
            stop_if_asked(f"the download of {url}, what is there is kept")
            headers = {"Accept-Encoding": "identity"}
            if have and known["version"]:
                headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                if response.status == 206 and not goes_on(response, have, known):
                    part.unlink()
                    raise ConnectionError("the file on the server changed")
                if response.status != 206:  # the whole of it, from the start
                    part.unlink(missing_ok=True)  # before `about` says what the next part is of
                    have, known = 0, described(response)
                    about.write_text(json.dumps(known), encoding="utf-8")
                receive(response, part, url, known["size"] - have)
                if part.stat().st_size < known["size"]:
                    raise ConnectionError("closed early")
        except BROKEN as error:
            code = getattr(error, "code", None)  # of HTTP
            if code == 416:  # no such range: the file is a shorter one now
                part.unlink(missing_ok=True)
            elif tries >= TRIES or code in range(400, 416):  # asking again would not help
                raise OSError(
                    f"cannot download {url} ({error}; {have:,} bytes so far); start again to go "
                    f"on, or fetch it in another way and put it into {path.parent}"
                ) from error


def described(response) -> dict:
    """The size of a file, and a version that If-Range understands; "" where the server has none."""
    length, tag = response.headers["Content-Length"] or "", response.headers["ETag"] or ""
    if not length.isdecimal():
        raise ValueError(f"{response.url} does not say its size, so it cannot be checked")
    version = tag if tag.startswith('"') else response.headers["Last-Modified"] or ""
    return {"size": int(length), "version": version}


def goes_on(response, have: int, known: dict) -> bool:
    """Whether a 206 is the rest of the file that the part is of."""
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    same = sent and [int(sent[1]), int(sent[2])] == [have, known["size"]]
    return bool(same) and described(response)["version"] in ("", known["version"])


def receive(response, part: Path, url: str, left: int) -> None:
    """Append to `part` what comes."""
    progress = told(f"{url} to {part.parent}", left)
    with open(part, "ab") as file:
        while piece := response.read(PIECE):
            file.write(piece)
            if progress.due(len(piece) / MB):
                progress.show()
            stop_if_asked(f"the download of {url}, what is there is kept")


def unpack(path: Path, folder: Path, top: str) -> None:
    """The files of the zip, which must all lie in `top`, to folder/top; none of them leaves it."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as zipped:
            entries = [entry for entry in zipped.infolist() if entry.filename != f"{top}/"]
            check_entries(entries, path, top)
            (temporary / top).mkdir(parents=True)
            progress = told(f"unpacking {path}", sum(entry.file_size for entry in entries))
            for entry in entries:
                with zipped.open(entry) as source, open(temporary / entry.filename, "wb") as sink:
                    shutil.copyfileobj(source, sink, PIECE)  # at most file_size; checks the CRC
                if progress.due(entry.file_size / MB):
                    progress.show()
                stop_if_asked(f"the unpacking of {path}, which begins again")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is damaged, or no zip at all ({error}); delete it and start again"
        ) from error
    if hasattr(os, "sync"):
        os.sync()  # on disk before the zip goes
    if not is_there(folder / top):
        with contextlib.suppress(FileNotFoundError):
            (folder / top).rmdir()  # an empty one
        os.rename(temporary / top, folder / top)
    else:
        for file in (temporary / top).iterdir():  # annotations, of another year or our own
            os.replace(file, folder / top / file.name)
    shutil.rmtree(temporary)


def check_entries(entries: list[zipfile.ZipInfo], path: Path, top: str) -> None:
    """Only plain files right in `top`, each once, of a size that can be."""
    seen, size = set(), sum(entry.file_size for entry in entries)
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        inside = re.fullmatch(rf"{top}/\.?\w[\w.-]*", name, re.ASCII) and name.lower() not in seen
        if not inside or kind not in (0, stat.S_IFREG) or entry.flag_bits & 1 or size > MOST:
            raise ValueError(
                f"{path} holds {name!r:.80} of {size:,} bytes in all, expected plain files in "
                f"{top}/ only, each once, of at most {MOST:,}; it is not COCO's zip: delete it"
            )
        seen.add(name.lower())


def told(what: str, size: int) -> Progress:
    """A line for the log now; then one that rewrites itself."""
    print(f"{what}: {size / MB:,.0f} MB are to come", flush=True)
    return Progress(what, size / MB, "MB")
