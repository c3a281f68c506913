"""--download: from a server on this machine that breaks off and lies.

Oracles: the demo's files, which the zips hold, byte by byte; and what the server was asked for.
"""

import http.server
import io
import itertools
import signal
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import argv, refused

import run
from datasets import coco_download
from runtime import signals

ZIPS = ["annotations/annotations_trainval2014.zip", "zips/train2014.zip", "zips/val2014.zip"]
TRAIN = ZIPS[1]
TREE = "annotations", "train2014", "val2014"


@pytest.fixture
def web(demo, monkeypatch):
    """A server of COCO's zips on this machine, which may break off."""
    web = SimpleNamespace(files={}, ranges=True)
    web.breaks = []  # of the next answers, the bytes after which they are cut off
    web.asked, web.pauses = [], []  # path, first byte, status; seconds

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, body = self.path[1:], web.files.get(self.path[1:], b"")
            first = int(self.headers["Range"][len("bytes=") : -len("-")]) if web.ranges else 0
            status = 416 if first >= len(body) else 206 if web.ranges else 200
            status = status if body else 404
            web.asked.append((path, first, status))  # before the client can go on
            self.send_response(status)
            self.send_header("Content-Length", str(len(body[first:])))
            self.end_headers()
            self.wfile.write(body[first:][: web.breaks.pop(0) if web.breaks else None])

        def log_message(self, *_):
            pass

    for address in ZIPS:
        folder = "annotations" if "annotations" in address else Path(address).stem
        web.files[address] = zip_of({f"{folder}/": b""} | contents(demo, folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        web.url = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setattr(coco_download, "SERVER", web.url)
        monkeypatch.setattr(coco_download, "time", SimpleNamespace(sleep=web.pauses.append))
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
        assert web.asked == [(address, 0, 206) for address in ZIPS]
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(TREE)
    assert contents(tmp_path / "data", ".") == contents(demo, *TREE)


def test_a_download_that_breaks_goes_on_at_the_byte_it_had(demo, web, tmp_path):
    size = len(web.files[ZIPS[0]])
    web.breaks = [0, 1000, 0, 1, size // 2, 0, 0, 0]
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    starts = [0, 0, 1000, 1000, 1001, *[1001 + size // 2] * 4]
    assert web.asked[:-2] == [(ZIPS[0], start, 206) for start in starts]
    assert web.pauses == [coco_download.PAUSE] * 8


def test_a_server_that_knows_no_ranges_sends_all_anew(demo, web, tmp_path):
    web.ranges, web.breaks = False, [1000, 500]
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert web.asked[:3] == [(ZIPS[0], 0, 200)] * 3


def test_a_download_that_fails_says_so_and_goes_on_when_started_again(web, tmp_path, capsys):
    options = argv(tmp_path, tmp_path / "out", "--download --phase backbone --limit 8")
    failed = f"error: cannot fetch {web.url}/{TRAIN} into {tmp_path} ("
    whole = web.files.pop(TRAIN)
    assert refused(capsys, options).startswith(f"{failed}HTTP Error 404")
    assert web.asked == [(ZIPS[0], 0, 206), (TRAIN, 0, 404)]  # once: 404 will not change
    tries = coco_download.TRIES
    web.files[TRAIN], web.breaks = whole, [5000] + [0] * tries
    assert refused(capsys, options).startswith(f"{failed}{tries} times in a row")
    assert web.asked[2:] == [(TRAIN, 0, 206)] + [(TRAIN, 5000, 206)] * tries
    assert run.main(options) == 0
    assert web.asked[3 + tries :] == [(TRAIN, 5000, 206), (ZIPS[2], 0, 206)]


def test_a_full_disk_ends_it_in_one_sentence(web, tmp_path, capsys):
    (tmp_path / "annotations_trainval2014.zip.part").symlink_to("/dev/full")
    sentence = refused(capsys, argv(tmp_path, tmp_path / "out", "--download"))
    assert sentence.startswith(f"error: cannot fetch {web.url}/{ZIPS[0]} into {tmp_path} (")
    assert "No space left on device" in sentence
    assert len(web.asked) == 1


def test_a_stop_leaves_nothing_half_done_and_what_has_come_is_not_fetched_again(
    demo, web, tmp_path, monkeypatch
):
    pieces = itertools.count(1)  # annotations come in one, train2014 too

    def stop_at_piece(self, count):
        signals.received = signal.SIGTERM if next(pieces) == 2 else None

    monkeypatch.setattr(coco_download.Progress, "due", stop_at_piece)
    monkeypatch.setattr(signals, "received", None)
    with pytest.raises(signals.Stopped, match=r"stopped in the download of .*train2014.zip"):
        coco_download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    old = tmp_path / "train2014.tmp/train2014/old.jpg"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.touch()
    signals.received = None
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert web.asked[2:] == [(TRAIN, len(web.files[TRAIN]), 416), (ZIPS[2], 0, 206)]


def test_folders_that_were_put_there_by_hand_are_used_and_kept(demo, web, tmp_path):
    own = {"annotations/instances_val2014.json": b"own", "val2014/own.jpg": b"own"}
    for name, content in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, "train2014") | own
    assert web.asked == [(TRAIN, 0, 206)]


OUTSIDE = ["../a.jpg", "train2014/../../a.jpg", "/a.jpg", "C:/a.jpg", "val2014/a.jpg"]
OUTSIDE += ["train2014/../val2014/a.jpg", "annotations/instances_train2014.json"]
LINK = zipfile.ZipInfo("train2014/link.jpg")
LINK.external_attr = 0o120777 << 16


def test_nothing_of_a_zip_comes_to_lie_outside_its_folder_of_photos(demo, web, tmp_path):
    hostile = {"train2014/b.jpg": b"photo", LINK: b"/etc/passwd"} | dict.fromkeys(OUTSIDE, b"bad")
    web.files[TRAIN] = zip_of(hostile)
    coco_download.coco(tmp_path / "data", "2014")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    found = contents(tmp_path / "data", ".")
    train = {name: found.pop(name) for name in sorted(found) if name.startswith("train2014/")}
    assert found == contents(demo, "annotations", "val2014")
    assert train["train2014/b.jpg"] == b"photo"
    assert not (tmp_path / "data/train2014/link.jpg").is_symlink()


STORED = zip_of({"train2014/a.jpg": b"\x98" * 1000}, zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (STORED.replace(b"\x98", b"!", 9), "Bad CRC-32"),
        (STORED[:-30], "File is not a zip file"),
        (zip_of({"photos/a.jpg": b""}), "No such file"),
    ],
)
def test_a_zip_that_is_damaged_or_another_is_refused(web, tmp_path, content, reason):
    web.files[TRAIN] = content
    with pytest.raises(ValueError, match=rf"train2014.zip into \S+ \(.*{reason}.*or delete"):
        coco_download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
