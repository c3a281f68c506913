"""COCO from its own server: the zips into --data, each part of the way kept when it breaks off.

    <data>/train2014.zip.json    which file of the server the next two are: address, size, version
    <data>/train2014.zip.part    its bytes so far
    <data>/train2014.zip         all of them, zipfile's own test passed or to come
    <data>/train2014.zip.tmp/    its photos so far
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
            for rest in (path, path.with_name(path.name + ".part")):
                rest.unlink(missing_ok=True)
            shutil.rmtree(path.with_name(path.name + ".tmp"), ignore_errors=True)
            about.unlink()


def is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def fetch(url: str, path: Path, about: Path) -> None:
    """Download to `path`, whole; a part that is there is gone on with if it is of the same file.

    A broken connection is tried again as long as that gets further, and TRIES times where not.
    """
    part, known, tries, most, reason = path.with_name(path.name + ".part"), {}, 0, 0, ""
    with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: it was cut short
        known = json.loads(about.read_text(encoding="utf-8"))
    while True:
        have = part.stat().st_size if part.is_file() else 0
        if known and have == known["size"]:
            break
        tries, most = (tries + 1, most) if have <= most else (1, have)
        if tries > TRIES:
            raise ConnectionError(
                f"cannot download {url} ({reason}; {have:,} bytes so far); start again to go on, "
                f"or fetch it in another way and put it into {path.parent}"
            )
        if tries > 1:
            pause(url, PAUSE * 2 ** (tries - 2))
        headers = {"Accept-Encoding": "identity"}
        if have and known.get("version"):
            headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
        try:
            response = urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=TIMEOUT
            )
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # no such range: the file is a shorter one now
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                tries = TRIES  # asking again would not help
            continue
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
            continue
        with response:
            if response.status == 206:
                if not goes_on(response, have, known):
                    part.unlink(missing_ok=True)
                    reason = "the file on the server changed"
                    continue
            else:  # the whole of it: another file, or the server knows no ranges
                part.unlink(missing_ok=True)  # before `about` says what the next part is of
                length = response.headers["Content-Length"] or ""
                if not length.isdecimal():
                    raise ValueError(f"{url} does not say its size, so it cannot be checked")
                known = {"url": url, "size": int(length), "version": version(response)}
                about.write_text(json.dumps(known), encoding="utf-8")
                have = 0
            check_room(path.parent, known["size"] - have)
            reason = receive(response, part, url, known["size"])
    os.replace(part, path)


def version(response) -> str:
    """What If-Range understands; "" where the server gives none: then a try starts over."""
    tag = response.headers["ETag"] or ""
    return tag if tag.startswith('"') else response.headers["Last-Modified"] or ""


def goes_on(response, have: int, known: dict) -> bool:
    """Whether a 206 is the rest of the file that the part is of."""
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    same = sent and [int(sent[1]), int(sent[2])] == [have, known.get("size")]
    return bool(same) and version(response) in ("", known["version"])


def receive(response, part: Path, url: str, size: int) -> str:
    """Append what comes to `part`; returns why it ended, should bytes be missing."""
    with open(part, "ab") as file:
        progress = told(f"{url} to {part.parent}", size, file.tell())
        while True:
            try:
                piece = response.read(PIECE)
            except (OSError, http.client.HTTPException) as error:
                return f"the connection broke: {error}"
            if not piece:
                return "the connection was closed early"
            file.write(piece)
            if progress.due(len(piece) / MB):
                progress.show()
            stop_if_asked(f"the download of {url}, what is there is kept")


def unpack(path: Path, folder: Path, top: str) -> None:
    """The files of the zip, which must all lie in `top`, to folder/top; none of them leaves it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with zipfile.ZipFile(path) as zipped:
            entries = [entry for entry in zipped.infolist() if entry.filename != f"{top}/"]
            check_entries(entries, path, top)
            (temporary / top).mkdir(parents=True, exist_ok=True)
            entries = [e for e in entries if not is_unpacked(temporary / e.filename, e)]
            check_room(folder, sum(entry.file_size for entry in entries))
            progress = told(f"unpacking {path}", sum(entry.file_size for entry in entries))
            for entry in entries:
                with zipped.open(entry) as source, open(temporary / entry.filename, "wb") as sink:
                    shutil.copyfileobj(source, sink, PIECE)  # at most file_size; checks the CRC
                if progress.due(entry.file_size / MB):
                    progress.show()
                stop_if_asked(f"the unpacking of {path}, what is there is kept")
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


def check_entries(entries: list, path: Path, top: str) -> None:
    """Only plain files right in `top`, each once, of a size that can be."""
    seen = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if not re.fullmatch(rf"{top}/\.?\w[\w.-]*", name, re.ASCII) or name.lower() in seen:
            raise ValueError(
                f"{path} holds {name!r:.80}, expected files in {top}/ only, each once; it is not "
                "COCO's zip: delete it"
            )
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise ValueError(
                f"{path} holds {name!r:.80} as a link, a device or encrypted, expected plain "
                "files; it is not COCO's zip: delete it"
            )
        seen.add(name.lower())
    size = sum(entry.file_size for entry in entries)
    if size > MOST:
        raise ValueError(
            f"{path} would unpack to {size:,} bytes, expected at most {MOST:,}; it is not COCO's "
            "zip: delete it"
        )


def is_unpacked(path: Path, entry: zipfile.ZipInfo) -> bool:
    """Whether an unpacking that was interrupted had come past this file."""
    if not path.is_file() or path.stat().st_size != entry.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc == entry.CRC


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has room for {free:,} bytes, {needed:,} more are to come; what is there is "
            "kept; make room, start again"
        )


def pause(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop_if_asked(f"the download of {url}, what is there is kept")
        time.sleep(min(left, 0.2))


def told(what: str, size: int, have: int = 0) -> Progress:
    """A line for the log now; then one that rewrites itself."""
    print(f"{what}: {have / MB:,.0f} of {size / MB:,.0f} MB are there", flush=True)
    return Progress(what, (size - have) / MB, "MB")
