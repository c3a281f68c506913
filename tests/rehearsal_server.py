"""COCO's server and the Hugging Face Hub on this machine: slow, and at times out of order.

What goes wrong is dealt out: the first requests for each file meet two of the troubles, of which
the seed decides.
"""

import contextlib
import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TROUBLES = BUSY, BREAKS_OFF, NO_RANGES = "answers 503", "breaks off", "ignores Range"
PIECES = 100  # that a file is sent in
CDN = "/cdn"  # where the Hub's answers lead


class Server(http.server.ThreadingHTTPServer):
    """Serves files by their paths. Whatever is below /timm/ is on the Hub, which states its
    SHA-256 and leads elsewhere."""

    def __init__(self, files: dict[str, Path], seconds: float, seed: int | None):
        """`seconds` is how long a whole file takes; without a seed nothing goes wrong."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.seconds, self.happened = files, seconds, []
        self.rng = np.random.default_rng(seed)
        self.troubles = {}
        if seed is not None:
            self.troubles = {path: self.rng.permutation(TROUBLES)[:2].tolist() for path in files}
        hub = [path for path in files if path.startswith("/timm/")]
        self.digests = {path: hashlib.sha256(files[path].read_bytes()).hexdigest() for path in hub}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def trouble(self, path: str, partial: bool) -> str:
        """What goes wrong with a request. A Range is ignored only where one is asked for."""
        left = self.troubles.get(path, [])
        possible = [each for each in left if partial or each != NO_RANGES]
        if not possible:
            return ""
        left.remove(possible[0])
        self.happened.append((Path(path).name, possible[0]))
        return possible[0]

    def handle_error(self, *_) -> None:  # a client that was killed
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, path = self.server, self.path.removeprefix(CDN)
        if path not in server.files:
            self.answer(404, 0)
            return
        if path in server.digests and not self.path.startswith(CDN):
            place, tag = f"{server.url}{CDN}{path}", f'"{server.digests[path]}"'
            self.answer(302, 0, {"Location": place, "X-Linked-ETag": tag})
            return
        size = server.files[path].stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        trouble = server.trouble(path, asked is not None)
        if trouble == BUSY:
            self.answer(503, 0, {"Retry-After": "1"})
            return
        first = int(asked[1]) if asked and trouble != NO_RANGES else 0
        if first >= size:
            self.answer(416, 0, {"Content-Range": f"bytes */{size}"})
            return
        headers = {"ETag": f'"{size:x}"', "Content-Type": "application/octet-stream"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        self.answer(206 if first else 200, size - first, headers)
        last = size
        if trouble == BREAKS_OFF:
            last = first + int(server.rng.uniform(0.2, 0.8) * (size - first))
        self.send(server.files[path], first, last, size)

    def answer(self, status: int, length: int, headers: dict | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, path: Path, first: int, last: int, size: int) -> None:
        piece = size // PIECES + 1
        with open(path, "rb") as file:
            file.seek(first)
            while first < last:
                count = min(piece, last - first)
                self.wfile.write(file.read(count))
                first += count
                time.sleep(self.server.seconds / PIECES)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(files: dict[str, Path], seconds: float, seed: int | None = None) -> Iterator[Server]:
    with Server(files, seconds, seed) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()
