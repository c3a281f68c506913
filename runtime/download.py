"""Downloads from servers that break off, stall or lie: a file arrives whole, or not at all.

Bytes received so far are in FILE.part; a download resumes from there, in this run or the next.
FILE.part.json says which file these bytes belong to: its length, its ETag, and its SHA-256 where
the server states it. If the server starts again from byte 0, its answer goes to FILE.part.new, so
that the bytes in FILE.part are not lost. What a file is for is not known here.
"""

import email.utils
import hashlib
import json
import os
import queue
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from ssl import SSLCertVerificationError
from urllib.error import HTTPError

import torch

from runtime.locks import one_at_a_time
from runtime.reading import reason_of
from runtime.signals import stop_if_asked
from runtime.terminal import Progress, printable, tell

MB = 10**6  # bytes
PIECE = 2**18  # bytes that are read at once
TIMEOUT = 20  # seconds; a connection is given up if no byte comes for so long
WINDOW = 60  # seconds over which the speed of a connection is measured
SLOWEST = 1000  # bytes per second; a connection that is slower over a window is given up
PAUSES = 2, 5, 15, 30, 60  # seconds before each further try; if the last one fails, it is an error
FEW = 2  # how many of these pauses are made if no server answers at all
LONGEST_PAUSE = 120  # seconds; the next try is not later, even if the server asks for that
MAY_PASS = 408, 425, 429, 500, 502, 503, 504  # HTTP errors that may be gone after a pause


class Hopeless(Exception):
    """A permanent failure."""


class Broken(Exception):
    """A temporary failure; try again."""


def is_url(text: str | Path) -> bool:
    return bool(re.match("https?://", str(text), re.IGNORECASE))


def cached(url: str, name: str = "") -> Path:
    """The file of weights at a URL, downloaded once into torch.hub's folder.

    Its name is `name` or the end of the URL, then a digest, since two URLs may have one end.
    """
    last = name or re.split("[?#]", url)[0].split("/")[-1]
    last = Path(re.sub(r"[^\w.-]", "_", last, flags=re.ASCII)[-80:] or "weights")
    digest = hashlib.sha256(url.encode(errors="replace")).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), "checkpoints", f"{last.stem}-{digest}{last.suffix}")
    sha256 = ""
    if url.startswith("https://download.pytorch.org/"):  # whose file names contain it
        sha256 = "".join(re.findall(r"-([0-9a-f]{8,})\.", last.name))
    advice = f"fetch it in another way and put it at {path}, or pass --weights FILE"
    return fetch(url, path, advice, sha256)


def fetch(url: str, path: Path, advice: str, sha256: str = "") -> Path:
    """The file at a URL, downloaded to `path` unless it is there.

    Its digest has to begin with `sha256`. If the download fails, the FileNotFoundError says
    why, then `advice`. A second process waits for the first.
    """
    if path.is_file():
        return path
    part = path.with_suffix(".part")
    try:
        with one_at_a_time(path.with_suffix(".part.lock"), f"download of {url}"):
            if not path.is_file():
                Download(url, part, sha256).finish(path)
    except BrokenPipeError:  # of stdout; a connection that breaks is a `Broken`
        raise
    except (Hopeless, OSError) as error:
        reason = " ".join(str(error).split())
        if part.is_file() and part.stat().st_size:
            reason += f"; {size_of(part.stat().st_size)} are kept, and the next run resumes there"
        raise FileNotFoundError(f"cannot download {url} ({reason}); {advice}") from error
    return path


class FirstAnswer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the digest that the Hub states before it redirects."""

    digest = None

    def redirect_request(self, request, file, code, message, headers, url):
        if not is_url(url):
            raise Hopeless(f"it redirects to {printable(url)}")
        self.digest = self.digest or headers.get("X-Linked-ETag")
        return super().redirect_request(request, file, code, message, headers, url)


class Download:
    """One file that is being downloaded into `part`."""

    def __init__(self, url: str, part: Path, sha256: str):
        self.url, self.part = url, part
        self.new, self.notes = (part.with_name(part.name + end) for end in (".new", ".json"))
        try:
            self.known = dict(json.loads(self.notes.read_text()))  # of the file in `part`
        except (OSError, ValueError, TypeError):
            self.known = {}
        self.promised = sha256  # by the caller
        self.stated = self.known.get("sha256")  # by the server
        self.resume = True  # ask for what `part` lacks, else for the whole file
        self.answered = False  # whether any answer has come, even an error
        self.received = 0  # bytes, in this run
        self.reading = False  # a thread is waiting for the server

    def finish(self, path: Path) -> None:
        """Try until the file is whole, check it, put it at `path`."""
        whole, tries = None, 0
        while whole is None:
            before, requested = self.received, None
            try:
                whole = self.receive()
                continue
            except HTTPError as error:
                self.answered = True
                if error.code not in MAY_PASS:
                    raise Hopeless(str(error)) from error
                reason, requested = str(error), asked_to_wait(error.headers.get("Retry-After"))
            except Broken as error:
                reason = str(error)
            if self.received - before >= WINDOW * SLOWEST:
                tries = 0
            pauses = PAUSES if self.answered else PAUSES[:FEW]
            if tries == len(pauses):
                raise Hopeless(f"{reason}; tried {tries + 1} times")
            pause = pauses[tries] if requested is None else requested
            tell(f"{self.url}: {reason}; trying again in {pause:.0f} s")
            self.wait(pause)
            tries += 1
        self.check(whole)
        os.replace(whole, path)
        for rest in (self.part, self.new, self.notes):
            rest.unlink(missing_ok=True)

    def receive(self) -> Path | None:
        """Make one request. Returns the file if it is whole now, None to ask again at once."""
        have = self.part.stat().st_size if self.part.is_file() else 0
        if have and have == self.known.get("total"):
            return self.part
        headers = {"User-Agent": "iml-gcn", "Accept-Encoding": "identity"}
        if have and self.resume:
            headers["Range"] = f"bytes={have}-"
        redirects = FirstAnswer()
        opener = urllib.request.build_opener(redirects)

        def ask() -> HTTPResponse:
            url = urllib.parse.quote(self.url, safe="%/:=&?~#+!$,;'@()*[]")
            return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)

        try:
            response = self.heeding_signals(ask)
        except HTTPError as error:
            if error.code != 416 or "Range" not in headers:
                raise
            self.resume = False  # nothing follows the bytes of `part`: it is whole, or foreign
            return self.part if total_of(error.headers) == have else None
        self.answered = True
        try:
            return self.take(response, have, redirects.digest)
        finally:
            if not self.reading:  # close() would wait for a thread that reads
                response.close()

    def take(self, response: HTTPResponse, have: int, digest: str | None) -> Path | None:
        """Write an answer into the right file, and return that; None if `part` is not the
        beginning of the file that the server has."""
        refuse_what_is_no_file(response, self.url)
        headers, partial = response.headers, response.status == 206
        total = total_of(headers) if partial else response.length
        tag = headers.get("ETag") or headers.get("Last-Modified")
        changed = tag and self.known.get("tag") and tag != self.known["tag"]
        if partial and (changed or not starts_at(headers, have)):
            if not self.resume:
                raise Hopeless(f"asked for the whole file, it sent {headers.get('Content-Range')}")
            self.resume = False
            return None
        expected = self.known.get("total")
        if expected:
            agrees = total == expected
        else:
            agrees = (total or 0) >= have
        if have and not agrees:
            offered = "a file of unknown length" if total is None else f"{total:,} bytes"
            begun = f"of {expected:,}" if expected else f"of at least {have:,}"
            raise Hopeless(
                f"the server has {offered}, {self.part} is the beginning of a file {begun} bytes; "
                "delete that one to fetch the file as it is now"
            )
        stated = re.fullmatch('"?([0-9a-f]{64})"?', digest or headers.get("X-Linked-ETag") or "")
        self.stated = stated[1] if stated else None
        file = self.part if partial or not have else self.new
        if file == self.part:
            self.known = {"total": total, "tag": tag, "sha256": self.stated}
            self.notes.write_text(json.dumps(self.known))
        self.write(response, file, have if partial else 0, total)
        return file

    def write(self, response: HTTPResponse, path: Path, first: int, total: int | None) -> None:
        """Write the body of an answer into a file, from byte `first` on."""
        left = None if total is None else total - first
        free = shutil.disk_usage(path.parent).free
        if left and left > free:
            raise Hopeless(
                f"{size_of(left)} to come, but only {size_of(free)} are free in {path.parent}"
            )
        tell(f"{self.url}: {size_of(left)} to come")
        progress = Progress(Path(self.url).name, (left or 0) / MB, "MB")
        start, count = time.monotonic(), 0  # of the current window
        try:
            with open(path, "ab" if first else "wb", buffering=0) as file:
                while piece := self.heeding_signals(lambda: response.read1(PIECE)):
                    unwritten = memoryview(piece)
                    while unwritten:
                        unwritten = unwritten[file.write(unwritten) :]
                    self.received += len(piece)
                    first += len(piece)
                    count += len(piece)
                    if progress.advance(len(piece) / MB):
                        progress.show()
                    seconds = time.monotonic() - start
                    if seconds > WINDOW and count < seconds * SLOWEST:
                        raise Broken(f"only {size_of(count)} came in {seconds:.0f} s")
                    if seconds > WINDOW:
                        start, count = time.monotonic(), 0
                    if first == total:
                        break
                os.fsync(file.fileno())
        finally:
            progress.close()
        if total is not None and first != total:
            raise Broken(f"closed early, {size_of(total - first)} are missing")

    def check(self, path: Path) -> None:
        """Delete a file, with an error, if its digest is not the one that was promised."""
        for expected in filter(None, (self.promised, self.stated)):
            digest = sha256_of(path)
            if not digest.startswith(expected):
                path.unlink()
                self.notes.unlink(missing_ok=True)
                raise Hopeless(
                    f"its SHA-256 is {digest[:16]}..., expected {expected[:16]}...: it is damaged, "
                    "or another file, and was deleted"
                )

    def heeding_signals(self, work: Callable):
        """The result of work(), which waits for the server in a thread of its own, so that the
        program can be stopped meanwhile.

        All errors of the connection are raised here. work() does nothing on disk.
        """
        results = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((work(), None))
            except (OSError, HTTPException, ValueError, Hopeless) as error:
                results.put((None, error))

        self.reading, deadline = True, time.monotonic() + WINDOW
        threading.Thread(target=run, daemon=True).start()
        while True:
            stop_if_asked(f"in the download of {self.url}")
            try:
                result, error = results.get(timeout=0.5)
                break
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise Broken(f"no answer within {WINDOW} s") from None
        self.reading = False
        if error is None:
            return result
        if isinstance(error, Hopeless | HTTPError):
            raise error
        if isinstance(error, InvalidURL | ValueError):
            raise Hopeless(f"it is not a URL: {printable(error)}") from error
        cause = getattr(error, "reason", error)  # URLError's
        if isinstance(cause, SSLCertVerificationError):
            raise Hopeless(printable(cause, 200)) from error
        if isinstance(cause, TimeoutError):
            raise Broken(f"nothing came for {TIMEOUT} s") from error
        raise Broken(reason_of(cause)) from error

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            stop_if_asked(f"in the download of {self.url}")
            time.sleep(min(left, 0.5))


def refuse_what_is_no_file(response: HTTPResponse, url: str) -> None:
    """Raise `Hopeless` if an answer cannot be the file, or could be cut off unnoticed."""
    encoding = response.headers.get("Content-Encoding") or "identity"
    if response.status not in (200, 206):
        raise Hopeless(f"HTTP {response.status} {printable(response.reason)}")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        advice = "; the file is at /resolve/, not /blob/" if "/blob/" in url else ""
        raise Hopeless(f"a web page came, not the file: is there a login or a proxy{advice}?")
    if encoding != "identity":
        raise Hopeless(f"it came as {printable(encoding)}, compressed, which was not asked for")
    if response.length is None and not response.chunked:
        raise Hopeless("the server does not say how long it is, so a cut would go unnoticed")


def starts_at(headers, first: int) -> bool:
    """Whether an answer is the part of a file that starts at this byte."""
    return bool(re.match(rf"bytes {first}-\d+/", headers.get("Content-Range", "")))


def total_of(headers) -> int | None:
    """The length of the whole file, as an answer with a part of it, or without one, states it."""
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def asked_to_wait(text: str | None) -> float | None:
    """The seconds that a Retry-After asks for, 1 to LONGEST_PAUSE; None if it has neither a number
    nor a date."""
    try:
        if text.strip().isdigit():
            seconds = float(text)
        else:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return min(max(seconds, 1), LONGEST_PAUSE)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(MB):
            digest.update(piece)
    return digest.hexdigest()


def size_of(count: int | None) -> str:
    """A number of bytes for a sentence."""
    if count is None:
        return "an unknown number of bytes"
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} bytes"
