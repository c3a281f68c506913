"""--download: from a server on this machine that breaks off and lies.

Oracles: the demo's files, which the zips hold, byte by byte; and what the server was asked for.
"""

import http.server
import io
import itertools
import re
import signal
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import argv, refused

import run
from extras import download
from runtime import signals

ZIPS = ["annotations/annotations_trainval2014.zip", "zips/train2014.zip", "zips/val2014.zip"]
TRAIN = ZIPS[1]
TREE = "annotations", "train2014", "val2014"


@pytest.fixture
def web(demo, monkeypatch):
    """A server of COCO's zips on this machine, which may break off."""
    web = SimpleNamespace(files={})
    web.breaks = []  # of the next answers, the bytes after which they are cut off
    web.asked = []  # path, first byte asked for, status

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, status, first = self.path[1:], 200, 0
            if path not in web.files:
                web.asked.append((path, 0, 404))
                return self.send_error(404)
            body = web.files[path]
            if "Range" in self.headers:
                status = 206
                first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            web.asked.append((path, first, status))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) - first))
            self.send_header("ETag", '"1"')
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            end = first + web.breaks.pop(0) if web.breaks else None
            self.wfile.write(body[first:end])

        def log_message(self, *_):
            pass

    for address in ZIPS:
        folder = "annotations" if "annotations" in address else Path(address).stem
        web.files[address] = zip_of({f"{folder}/": b""} | contents(demo, folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        web.url = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setattr(download, "SERVER", web.url)
        monkeypatch.setattr(download, "PAUSE", 0)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield web
        httpd.shutdown()


def zip_of(entries, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip; a key may be a ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def contents(root, *folders):
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_coco_is_downloaded_unpacked_trained_on_and_not_asked_for_again(demo, web, tmp_path):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    for _ in range(2):
        assert run.main(options) == 0
        assert web.asked == [(address, 0, 200) for address in ZIPS]
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(TREE)
    assert contents(tmp_path / "data", ".") == contents(demo, *TREE)


def test_a_download_that_breaks_goes_on_at_the_byte_it_had(demo, web, tmp_path):
    size = len(web.files[ZIPS[0]])
    web.breaks = [0, 1000, 0, 1, size // 2, 0, 0, 0]  # 7 tries without a byte, but not in a row
    download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    starts = [0, 0, 1000, 1000, 1001, *[1001 + size // 2] * 4]
    assert [first for _, first, _ in web.asked[:-2]] == starts
    assert [status for *_, status in web.asked[:-2]] == [200, 200] + [206] * 7


def test_a_download_that_fails_says_how_to_go_on_and_does_so(demo, web, tmp_path, capsys):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    whole = web.files.pop(TRAIN)
    assert run.main(options) == 2
    assert web.asked == [(ZIPS[0], 0, 200), (TRAIN, 0, 404)]  # once: 404 will not change
    web.files[TRAIN], web.breaks = whole, [5000] + [0] * 6
    assert run.main(options) == 2
    assert web.asked[2:] == [(TRAIN, 0, 200)] + [(TRAIN, 5000, 206)] * 6
    web.asked.clear()
    assert run.main(options) == 0
    assert web.asked == [(TRAIN, 5000, 206), (ZIPS[2], 0, 200)]
    errors = capsys.readouterr().err.splitlines()
    reasons = ["HTTP Error 404", "closed early; 5,000 bytes so far"]
    for line, reason in zip(errors, reasons, strict=True):
        assert line.startswith(f"error: cannot download {web.url}/{TRAIN} (")
        assert reason in line
        assert line.endswith(f"put it into {tmp_path}/data")


def test_an_interrupted_unpacking_leaves_nothing_half_done_and_begins_again(
    demo, web, tmp_path, monkeypatch
):
    pieces = itertools.count(1)

    def stop_after_some(self, count):
        signals.received = signal.SIGTERM if next(pieces) == 9 else None

    monkeypatch.setattr(download.Progress, "due", stop_after_some)
    monkeypatch.setattr(signals, "received", None)
    with pytest.raises(signals.Stopped, match=r"unpacking of .*train2014.zip, which begins again"):
        download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert len(web.asked) == 3


def entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        *["../a.jpg", "train2014/../../a.jpg", "/etc/a.jpg", "train2014/..", "train2014/b/a.jpg"],
        *["train2014/..\\a.jpg", "C:\\a.jpg", "C:/a.jpg", "train2014/C:a.jpg", "train2014/a\n.jpg"],
        *["val2014/a.jpg", "annotations/instances_train2014.json", "train2014/B.JPG"],
        *[entry("train2014/a.jpg", 0o120777), entry("train2014/a.jpg", 0o060644)],  # link, device
    ],
)
def test_a_hostile_zip_writes_nothing(demo, web, tmp_path, name):
    web.files[TRAIN] = zip_of({"train2014/b.jpg": b"good", name: b"/etc/passwd"})
    with pytest.raises(ValueError, match=r"train2014.zip holds '.*delete it"):
        download.coco(tmp_path / "data", "2014")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    there = {"annotations", "train2014.zip", "train2014.zip.json"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == there


WHOLE = {"train2014/a.jpg": bytes(range(256)) * 4000}
SIZE = (256 * 4000).to_bytes(4, "little")  # in front of the file and in the directory


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zip_of(WHOLE), "1,024,000 bytes in all, .* at most 100,000"),
        (zip_of(WHOLE).replace(SIZE, (1000).to_bytes(4, "little")), "damaged"),
        (zip_of(WHOLE, zipfile.ZIP_STORED).replace(b"\x98", b"!", 9), "damaged.*Bad CRC-32"),
        (b"<html>", "not a zip"),
    ],
)
def test_a_zip_that_is_damaged_or_swells_beyond_its_word_or_reason_is_refused(
    web, tmp_path, capsys, monkeypatch, content, reason
):
    web.files[TRAIN] = content
    monkeypatch.setattr(download, "MOST", 10**7 if "CRC" in reason else 10**5)
    sentence = refused(capsys, argv(tmp_path / "data", tmp_path / "out", "--download"))
    assert re.search(f"{tmp_path}/data/train2014.zip .*{reason}", sentence)
    assert not (tmp_path / "data" / "train2014").exists()
    written = (tmp_path / "data/train2014.zip.tmp").rglob("*.jpg")
    assert sum(path.stat().st_size for path in written) <= max(1000, "CRC" in reason and 10**7)
