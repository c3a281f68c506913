"""Downloads, of weights and of COCO, from a server on this machine that breaks off and lies.

Oracles: the bytes that the server has, and what it was asked for; the demo's files, which its zips
hold.
"""

import email.utils
import hashlib
import http.server
import io
import itertools
import multiprocessing
import re
import shutil
import signal
import socket
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import argv, refused, state_of

import backbones
import run
import tresnet
from datasets import coco_download
from datasets import demo as demo_scenes
from runtime import download, locks, signals

CONTENT = np.random.default_rng(0).bytes(200_000)
SOME = 70_000  # bytes, of a download that broke off
ZIPS = ["annotations/annotations_trainval2014.zip", "zips/train2014.zip", "zips/val2014.zip"]
TRAIN = ZIPS[1]
TREE = "annotations", "train2014", "val2014"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves web.files as a good server does, but for what web.always and the next of web.steps
    say: another status, body, type, tag; headers, None for none; ranges or not; `cut`, the bytes
    after which the connection is closed, or with `stall` kept; `drip`, seconds between bytes;
    `endless`, a header that drips and never ends."""

    def do_GET(self):
        web, path = self.server.web, self.path[1:].split("?")[0]
        step = web.always | (web.steps.pop(0) if web.steps else {})
        body = step.get("body", web.files.get(path, b""))
        tag = step.get("tag", f'"{hashlib.sha256(body).hexdigest()[:8]}"')
        first, status = 0, 200 if body else 404
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and step.get("ranges", True):
            first = int(asked[1])
            status = 206 if first < len(body) else 416
        status = step.get("status", status)
        web.asked.append((path, int(asked[1]) if asked else 0, status))
        headers = {"Content-Type": step.get("type", "application/octet-stream"), "ETag": tag}
        headers["Content-Length"] = len(body) - first if status < 300 else 0
        if status in (206, 416):
            part = f"{first}-{len(body) - 1}" if status == 206 else "*"
            headers["Content-Range"] = f"bytes {part}/{len(body)}"
        body = body[first:] if status < 300 else b""
        if step.get("chunked"):
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        self.send_response(status)
        if step.get("endless"):
            self.flush_headers()
            while not web.closing.wait(0.02):
                self.wfile.write(b"x")
            return
        for name, value in (headers | step.get("headers", {})).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        body = body[: step.get("cut")]
        if "drip" in step:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if web.closing.wait(step["drip"]):
                    return
        self.wfile.write(body)
        if step.get("stall"):
            web.closing.wait()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):  # a client that has gone
        pass


@pytest.fixture
def web(monkeypatch):
    """A server on this machine, and clients that do not pause between their tries."""
    web = SimpleNamespace(files={"file.bin": CONTENT}, steps=[], always={}, asked=[])
    web.closing = threading.Event()
    with Server(("127.0.0.1", 0), Handler) as server:
        server.web = web
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        web.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(coco_download, "SERVER", web.url)
        monkeypatch.setattr(download, "PAUSES", (0, 0, 0, 0, 0))
        monkeypatch.setattr(signals, "received", None)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield web
        web.closing.set()
        server.shutdown()


def fetched(web, folder, **more):
    """The bytes of the file that was downloaded; nothing else is left."""
    path = folder / "file.bin"
    assert download.fetch(f"{web.url}/file.bin", path, "the way out", **more) == path
    assert [file.name for file in folder.iterdir()] == ["file.bin"]
    return path.read_bytes()


def failure(web, folder, **more):
    """The sentence of a download that fails, and what is left of it."""
    with pytest.raises(FileNotFoundError) as error:
        download.fetch(f"{web.url}/file.bin", folder / "file.bin", "the way out", **more)
    sentence = str(error.value)
    assert sentence.startswith(f"cannot download {web.url}/file.bin (")
    assert sentence.endswith("); the way out")
    assert sentence.isprintable()
    assert {file.name for file in folder.iterdir()} <= {"file.part", "file.part.json"} | {
        "file.part.new"
    }
    part = folder / "file.part"
    return sentence, part.read_bytes() if part.is_file() else b""


@pytest.fixture
def begun(web, tmp_path):
    """The folder in which an earlier run has the beginning of the file."""
    web.steps = [{"cut": SOME}, {"status": 403}]
    assert failure(web, tmp_path)[1] == CONTENT[:SOME]
    web.asked.clear()
    return tmp_path


# One file


def test_a_download_that_breaks_goes_on_at_the_byte_it_had(web, tmp_path):
    web.steps = [{"cut": 0}, {"cut": 1000}, {"cut": 0}, {"cut": 1}, {"cut": 100_000}]
    assert fetched(web, tmp_path) == CONTENT
    assert [first for _, first, _ in web.asked] == [0, 0, 1000, 1000, 1001, 101_001]
    web.asked.clear()
    assert fetched(web, tmp_path) == CONTENT
    assert web.asked == []  # it is there


def test_it_goes_on_in_the_next_run(web, begun):
    assert fetched(web, begun) == CONTENT
    assert web.asked == [("file.bin", SOME, 206)]


def test_what_had_come_whole_before_a_kill_is_not_asked_for_again(web, begun):
    with open(begun / "file.part", "ab") as file:
        file.write(CONTENT[SOME:])
    assert fetched(web, begun) == CONTENT
    assert web.asked == []


def test_two_files_are_never_mixed(web, begun):
    other = web.files["file.bin"] = bytes(len(CONTENT))  # as long, and another ETag
    assert fetched(web, begun) == other
    assert web.asked == [("file.bin", SOME, 206), ("file.bin", 0, 200)]


def test_without_an_etag_the_date_tells_two_files_apart(web, tmp_path):
    web.always = {"tag": None, "headers": {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}}
    web.steps = [{"cut": SOME}]
    assert fetched(web, tmp_path) == CONTENT
    assert web.asked[1:] == [("file.bin", SOME, 206)]
    (tmp_path / "file.bin").unlink()
    web.steps = [{"cut": SOME}, {"headers": {"Last-Modified": "Thu, 22 Oct 2015 07:28:00 GMT"}}]
    assert fetched(web, tmp_path) == CONTENT
    assert [first for _, first, _ in web.asked[2:]] == [0, SOME, 0]


PAGE = {"body": b"<html>please log in</html>", "type": "text/html; charset=utf-8"}
JUNK = [  # in place of the rest of a file: an answer, and words of the sentence
    (PAGE, "a web page came"),
    (PAGE | {"ranges": False}, "a web page came"),
    ({"body": b'{"error": "please log in"}', "ranges": False}, "the server has 26 bytes"),
    ({"body": CONTENT + b"more"}, "the server has 200,004 bytes"),
    ({"ranges": False, "chunked": True}, "a file of unknown length"),
    ({"ranges": False, "headers": {"Content-Length": None}}, "does not say how long it is"),
    ({"headers": {"Content-Encoding": "gzip"}}, "it came as gzip"),
    ({"status": 204}, "HTTP 204"),
]


@pytest.mark.parametrize(("answer", "words"), JUNK)
def test_what_has_come_outlives_an_answer_that_is_something_else(web, begun, answer, words):
    web.always = answer
    sentence, part = failure(web, begun)
    assert words in sentence
    assert "70,000 bytes are kept" in sentence
    assert part == CONTENT[:SOME]
    web.always, web.asked = {}, []
    assert fetched(web, begun) == CONTENT
    assert web.asked == [("file.bin", SOME, 206)]


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ({"ranges": False}, [SOME]),
        ({"ranges": False, "cut": 100_000}, [SOME, SOME]),
        ({"status": 206, "headers": {"Content-Range": "bytes 0-199999/200000"}}, [SOME, 0]),
        ({"status": 206, "headers": {"Content-Range": None}}, [SOME, 0]),
    ],
)
def test_a_server_without_ranges_is_asked_for_the_whole_file(web, begun, answer, asked):
    web.steps = [answer]
    assert fetched(web, begun) == CONTENT
    assert [first for _, first, _ in web.asked] == asked


def test_a_beginning_of_which_nothing_is_known_is_judged_by_lengths(web, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetched(web, tmp_path) == CONTENT
    assert web.asked == [("file.bin", len(CONTENT), 416)]
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.part").write_bytes(CONTENT + b"x")
    sentence, part = failure(web, tmp_path)
    assert "the server has 200,000 bytes" in sentence
    assert part == CONTENT + b"x"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
def test_what_waiting_cannot_mend_ends_at_once(web, tmp_path, code):
    web.always = {"status": code}
    sentence, part = failure(web, tmp_path)
    assert f"HTTP Error {code}" in sentence
    assert len(web.asked) == 1
    assert part == b""


def test_what_may_pass_is_tried_again_but_not_for_ever(web, tmp_path, capsys):
    web.steps = [{"status": 503}, {"status": 429}, {"status": 502}, {"cut": SOME}]
    assert fetched(web, tmp_path) == CONTENT
    assert "HTTP Error 503: Service Unavailable; trying again in 0 s" in capsys.readouterr().out
    (tmp_path / "file.bin").unlink()
    web.always, web.asked = {"status": 503}, []
    assert "HTTP Error 503: Service Unavailable; tried 6 times" in failure(web, tmp_path)[0]
    assert len(web.asked) == 6


def test_tries_that_get_on_do_not_count(web, tmp_path):
    web.steps = [{"cut": SOME}, *[{"status": 503}] * 4, {"cut": SOME}, *[{"status": 503}] * 4]
    assert fetched(web, tmp_path) == CONTENT
    assert len(web.asked) == 11


def test_seconds_that_a_server_asks_to_wait():
    by_hand = {"7": 7, " 7 ": 7, "0": 1, "9" * 400: 120, "-1": None, "soon": None, "": None}
    by_hand |= {None: None, "Wed, 21 Oct 2015 07:28:00 GMT": 1}
    assert {text: download.asked_to_wait(text) for text in by_hand} == by_hand
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 <= download.asked_to_wait(in_a_minute) <= 60


def test_no_server_and_no_network_are_noticed_after_three_tries(web, tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web.url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert "Connection refused; tried 3 times" in failure(web, tmp_path)[0]
    assert capsys.readouterr().out.count("Connection refused; trying again in 0 s") == 2

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    web.url = "http://huggingface.invalid"
    assert "Name or service not known; tried 3 times" in failure(web, tmp_path)[0]
    assert list(tmp_path.iterdir()) == []


SLOW = [
    ({"stall": True, "cut": 0}, "nothing came for 0.2 s; tried 3 times"),
    ({"stall": True, "cut": 5000}, "nothing came for 0.2 s; tried 3 times"),
    ({"drip": 0.02}, "bytes came in 0 s; tried 3 times"),
    ({"endless": True}, "no answer within 0.3 s; tried 3 times"),
]


@pytest.mark.parametrize(("answer", "words"), SLOW)
def test_a_server_that_stalls_or_drips_is_given_up(web, tmp_path, monkeypatch, answer, words):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "WINDOW", 0.3)
    monkeypatch.setattr(download, "SLOWEST", 50_000)
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    web.steps = [answer]
    assert fetched(web, tmp_path) == CONTENT
    (tmp_path / "file.bin").unlink()
    web.always = answer
    sentence, part = failure(web, tmp_path)
    assert words in sentence
    assert part == CONTENT[: len(part)]


@pytest.mark.parametrize("answer", [{"drip": 0.05}, {"stall": True, "cut": 5000}])
def test_a_stop_is_heeded_while_a_server_drips_or_stalls(web, tmp_path, answer):
    web.always = answer

    def stop():
        signals.received = signal.SIGINT

    timer = threading.Timer(0.2, stop)
    timer.start()
    start = time.monotonic()
    with pytest.raises(signals.Stopped, match=r"stopped in the download of .*/file\.bin"):
        download.fetch(f"{web.url}/file.bin", tmp_path / "file.bin", "")
    assert time.monotonic() - start < 2.5
    signals.received, web.always = None, {}
    part = (tmp_path / "file.part").read_bytes()
    assert part
    assert fetched(web, tmp_path) == CONTENT
    assert web.asked[1:] == [("file.bin", len(part), 206)]


def redirect(web, digest, place="file.bin"):
    """As the Hub answers: to another server, and what it states of the file in that answer."""
    web.files["hub"] = b"x"
    headers = {"Location": f"{web.url}/{place}", "X-Linked-ETag": digest}
    return {"status": 302, "headers": headers, "tag": '"of the redirect"'}


@pytest.mark.parametrize("form", ['"{}"', "{}"])
def test_the_digest_that_the_hub_states_is_checked(web, tmp_path, form):
    digest = hashlib.sha256(CONTENT).hexdigest()
    web.steps = [redirect(web, form.format(digest)), {"cut": SOME}, {"status": 403}]
    failure(web, tmp_path)
    web.steps = [redirect(web, form.format(digest))]
    assert fetched(web, tmp_path) == CONTENT
    assert [first for _, first, _ in web.asked] == [0, 0, SOME, SOME, SOME]
    (tmp_path / "file.bin").unlink()
    web.steps = [redirect(web, form.format(digest[::-1]))]
    sentence, part = failure(web, tmp_path)
    assert f"its SHA-256 is {digest[:16]}..., expected {digest[::-1][:16]}..." in sentence
    assert list(tmp_path.iterdir()) == []
    web.steps = [redirect(web, '"0123456789abcdef"')]  # of git, no SHA-256
    assert fetched(web, tmp_path) == CONTENT


def test_the_digest_that_a_caller_knows_is_checked(web, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert fetched(web, tmp_path, sha256=digest[:8]) == CONTENT
    (tmp_path / "file.bin").unlink()
    assert "expected 63fe2227..." in failure(web, tmp_path, sha256="63fe2227")[0]


def test_a_redirect_leads_to_http_alone(web, tmp_path):
    for place in ("file:///etc/passwd", "ftp://127.0.0.1/file"):
        web.steps = [{"status": 302, "headers": {"Location": place}}]
        assert place in failure(web, tmp_path)[0]
    web.always = {"status": 302, "headers": {"Location": f"{web.url}/file.bin"}}
    assert "infinite loop" in failure(web, tmp_path)[0]


def test_a_chunked_answer_is_whole_at_its_last_chunk(web, tmp_path):
    web.always = {"chunked": True}
    web.steps = [{"cut": SOME}]
    assert fetched(web, tmp_path) == CONTENT
    assert web.asked[1][2] == 206


def test_a_disk_that_is_too_small_is_noticed_before_a_byte_is_written(web, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=199_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    sentence, part = failure(web, tmp_path)
    assert f"200,000 bytes to come, but only 199,999 bytes are free in {tmp_path}" in sentence
    assert part == b""


def test_a_full_disk_ends_it_in_one_sentence(web, tmp_path):
    (tmp_path / "file.part").symlink_to("/dev/full")
    assert "No space left on device" in failure(web, tmp_path)[0]
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:port/x", "http://[::1/x", f"http://{'x' * 70}.org/x"]
)
def test_what_is_no_url_ends_at_once(tmp_path, url):
    with pytest.raises(FileNotFoundError, match=r"it is not a URL"):
        download.fetch(url, tmp_path / "x", "")


def in_processes(count, work, *arguments):
    """Exit codes of processes that begin together."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_of_two_processes_one_downloads_and_the_other_waits(web, tmp_path):
    web.always = {"drip": 0.0}
    web.files["file.bin"] = CONTENT[:3000]
    codes = in_processes(3, download.fetch, f"{web.url}/file.bin", tmp_path / "file.bin", "")
    assert codes == [0, 0, 0]
    assert len(web.asked) == 1
    assert fetched(web, tmp_path) == CONTENT[:3000]


def test_a_lock_that_is_held_is_waited_for_and_no_lock_is_none(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lock"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def hold():
        with locks.one_at_a_time(path, "work"):
            there.send("held")
            there.recv()
            (tmp_path / "done").touch()

    process = context.Process(target=hold)
    process.start()
    assert here.recv() == "held"
    threading.Timer(0.5, here.send, ["go on"]).start()
    with locks.one_at_a_time(path, "the work"):
        assert (tmp_path / "done").exists()
    assert "the work: another run is busy with it" in capsys.readouterr().out
    assert not path.exists()

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)
    with locks.one_at_a_time(path, "the work"):
        assert capsys.readouterr().out == ""


# Weights


def test_urls_that_end_alike_have_files_of_their_own(web, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    web.files = {f"exp{i}/backbone.pt": bytes([i]) * 9 for i in (1, 2)}
    paths = [download.cached(f"{web.url}/exp{i}/backbone.pt?download=true") for i in (1, 2)]
    assert [path.read_bytes() for path in paths] == [b"\1" * 9, b"\2" * 9]
    for path in paths:
        assert re.fullmatch(r"backbone-[0-9a-f]{8}\.pt", path.name)
        assert path.parent == tmp_path / "checkpoints"


def test_a_failure_names_the_url_the_place_and_the_option(web, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        download.cached(f"{web.url}/absent.pth")
    place = re.search(r"put it at (\S+), or pass --weights FILE", str(error.value))[1]
    assert f"{web.url}/absent.pth (HTTP Error 404: " in str(error.value)
    web.files["absent.pth"] = b"late"
    assert download.cached(f"{web.url}/absent.pth") == Path(place)


HUB = {  # by hand: where timm has them
    "tresnet_m_21k": "tresnet_m.miil_in21k",
    "tresnet_m_1k": "tresnet_m.miil_in1k",
    "tresnet_m_1k_448": "tresnet_m.miil_in1k_448",
    "tresnet_l_1k": "tresnet_l.miil_in1k",
    "tresnet_l_1k_448": "tresnet_l.miil_in1k_448",
    "tresnet_xl_1k": "tresnet_xl.miil_in1k",
    "tresnet_xl_1k_448": "tresnet_xl.miil_in1k_448",
}


@pytest.mark.parametrize("slash", ["", "/"])
def test_names_of_weights_lead_to_the_hub_or_a_mirror(web, tmp_path, monkeypatch, slash):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", web.url + slash)
    addresses = [f"timm/{name}/resolve/main/model.safetensors" for name in HUB.values()]
    web.files |= {address: address.encode() for address in addresses}
    for name, address in zip(HUB, addresses, strict=True):
        path = backbones.fetch_weights(name)
        assert path.read_bytes() == address.encode()
        digest = hashlib.sha256(f"{web.url}/{address}".encode()).hexdigest()[:8]
        assert path.name == f"{HUB[name]}-{digest}.safetensors"
    assert web.asked == [(address, 0, 200) for address in addresses]
    monkeypatch.delenv("HF_ENDPOINT")
    asked = []
    monkeypatch.setattr(download, "cached", lambda url, name: asked.append(url))
    backbones.fetch_weights("tresnet_m_21k")
    url = "https://huggingface.co/timm/tresnet_m.miil_in21k/resolve/main/model.safetensors"
    assert asked == [url]


def test_a_run_starts_from_weights_of_the_hub(demo, web, tmp_path, monkeypatch, capsys):
    write = pytest.importorskip("safetensors.torch").save
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setitem(backbones.RELEASED, "tiny", "hub:timm/tiny")
    torch.manual_seed(5)
    state = tresnet.tresnet_tiny().state_dict()
    web.files["timm/tiny/resolve/main/model.safetensors"] = write(state)
    options = argv(demo, tmp_path / "out", "--phase backbone --limit 8 --epochs 1 --lr 0")
    assert run.main([*options, "--weights", "tiny"]) == 0
    assert "loaded 101 of 101 backbone tensors" in capsys.readouterr().out
    trained = state_of(tmp_path / "out/backbone.pt")
    assert trained["backbone.layer1.0.conv1.conv.weight"].equal(state["layer1.0.conv1.conv.weight"])
    web.files = {}
    monkeypatch.setenv("HF_ENDPOINT", f"{web.url}/other")
    sentence = refused(capsys, [*options, "--fresh", "--weights", "tiny"])
    assert f"{web.url}/other/timm/tiny/resolve/main/model.safetensors (HTTP Error 404" in sentence
    assert f"put it at {tmp_path}/checkpoints/tiny-" in sentence
    assert sentence.endswith(".safetensors, or pass --weights FILE")


def test_torchs_own_files_are_checked_by_their_names(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda url, path, advice, sha256: asked.append(sha256))
    download.cached("https://download.pytorch.org/models/resnet101-63fe2227.pth")
    download.cached("https://example.org/model-20240101.pth")  # a date is no digest
    assert asked == ["63fe2227", ""]


# COCO


@pytest.fixture
def coco(demo, web):
    """The server, with COCO's zips of the demo's files."""
    for address in ZIPS:
        folder = "annotations" if "annotations" in address else Path(address).stem
        web.files[address] = zip_of({f"{folder}/": b""} | contents(demo, folder))
    return web


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


def test_coco_is_downloaded_unpacked_trained_on_and_not_asked_for_again(demo, coco, tmp_path):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    for _ in range(2):
        assert run.main(options) == 0
        assert coco.asked == [(address, 0, 200) for address in ZIPS]
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(TREE)
    assert contents(tmp_path / "data", ".") == contents(demo, *TREE)


def test_coco_comes_whole_from_a_server_that_breaks_off(demo, coco, tmp_path):
    coco.steps = [{"cut": 1000}, {"status": 503}, {"ranges": False}, {"cut": 5000}, {"cut": 1}]
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    train = [(TRAIN, 0, 200), (TRAIN, 5000, 206), (TRAIN, 5001, 206)]
    assert coco.asked[3:] == [*train, (ZIPS[2], 0, 200)]


def test_a_download_of_coco_that_fails_goes_on_when_started_again(coco, tmp_path, capsys):
    options = argv(tmp_path, tmp_path / "out", "--download --phase backbone --limit 8")
    coco.steps = [{}, {"cut": 5000}, {"status": 403}]
    sentence = refused(capsys, options)
    assert f"{coco.url}/{TRAIN} (HTTP Error 403" in sentence
    assert f"put it at {tmp_path}/train2014.zip, and start again" in sentence
    assert run.main(options) == 0
    assert coco.asked[3:] == [(TRAIN, 5000, 206), (ZIPS[2], 0, 200)]


def test_a_zip_that_somebody_put_there_is_used_and_kept(demo, coco, tmp_path):
    (tmp_path / "train2014.zip").write_bytes(coco.files[TRAIN])
    coco_download.coco(tmp_path, "2014")
    assert [address for address, *_ in coco.asked] == [ZIPS[0], ZIPS[2]]
    assert contents(tmp_path, *TREE) == contents(demo, *TREE)
    assert (tmp_path / "train2014.zip").read_bytes() == coco.files[TRAIN]


def test_a_stop_leaves_nothing_half_done_and_what_has_come_is_not_fetched_again(
    demo, coco, tmp_path, monkeypatch
):
    entries = itertools.count(1)
    extract = zipfile.ZipFile.extract

    def stop_at_the_tenth(*arguments):
        signals.received = signal.SIGTERM if next(entries) == 10 else None
        return extract(*arguments)

    monkeypatch.setattr(zipfile.ZipFile, "extract", stop_at_the_tenth)
    with pytest.raises(signals.Stopped, match=r"stopped in the unpacking of .*train2014\.zip"):
        coco_download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    old = tmp_path / "train2014.tmp/train2014/old.jpg"
    assert list(old.parent.iterdir())
    old.touch()
    signals.received = None
    coco_download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert [address for address, *_ in coco.asked] == ZIPS


def test_what_a_kill_leaves_after_unpacking_is_removed(demo, coco, tmp_path):
    coco_download.coco(tmp_path, "2014")
    for name in ("train2014.zip.whole", "val2014.zip"):
        (tmp_path / name).touch()
    (tmp_path / "val2014.tmp").mkdir()
    coco_download.coco(tmp_path, "2014")
    assert {path.name for path in tmp_path.iterdir()} == {*TREE, "val2014.zip"}
    assert len(coco.asked) == 3


def test_folders_that_were_put_there_by_hand_are_used_and_kept(demo, coco, tmp_path):
    own = {"annotations/instances_val2014.json": b"{}", "val2014/own.jpg": b"own"}
    own |= {"annotations/captions_val2014.json": b"own", "annotations/notes/mine.txt": b"own"}
    for name, content in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train2014").mkdir()  # an empty one is no folder of photos
    coco_download.coco(tmp_path, "2014")
    train = "train2014", "annotations/instances_train2014.json"
    theirs = {k: v for k, v in contents(demo, *TREE).items() if k.startswith(train)}
    assert contents(tmp_path, ".") == theirs | own
    assert [address for address, *_ in coco.asked] == ZIPS[:2]


OUTSIDE = ["../a.jpg", "train2014/../../a.jpg", "/a.jpg", "C:/a.jpg", "val2014/a.jpg"]
OUTSIDE += ["train2014/../val2014/a.jpg", "annotations/instances_train2014.json"]
LINK = zipfile.ZipInfo("train2014/link.jpg")
LINK.external_attr = 0o120777 << 16


def test_nothing_of_a_zip_comes_to_lie_outside_its_folder_of_photos(demo, coco, tmp_path):
    hostile = contents(demo, "train2014") | {"train2014/b.jpg": b"photo", LINK: b"/etc/passwd"}
    coco.files[TRAIN] = zip_of(hostile | dict.fromkeys(OUTSIDE, b"bad"))
    coco_download.coco(tmp_path / "data", "2014")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    found = contents(tmp_path / "data", ".")
    train = {name: found.pop(name) for name in sorted(found) if name.startswith("train2014/")}
    assert found == contents(demo, "annotations", "val2014")
    assert train["train2014/b.jpg"] == b"photo"
    assert not (tmp_path / "data/train2014/link.jpg").is_symlink()


def flip(content, where, bit=1):
    """The content with a bit of the byte at `where` changed; counted from the end if negative."""
    changed = bytearray(content)
    changed[where] ^= bit
    return bytes(changed)


PHOTO = {"train2014/a.jpg": b"\x98" * 1000}
STORED = zip_of(PHOTO, zipfile.ZIP_STORED)
DIRECTORY = STORED.index(b"PK\1\2")
DAMAGED = [
    (STORED.replace(b"\x98", b"!", 9), "Bad CRC-32"),
    (STORED[:-30], "File is not a zip file"),
    (zip_of({"photos/a.jpg": b""}), "no folder train2014/ in it"),
    (zip_of(PHOTO), "it has 1 photos, .* names 24"),
    (flip(STORED, -12), "another number of entries"),
    (flip(STORED, DIRECTORY + 8), "encrypted"),
    (flip(STORED, DIRECTORY + 10), "compression"),
    (flip(STORED, DIRECTORY + 46), "differ"),  # the first letter of its folder
    (flip(STORED, DIRECTORY + 27, 128), "to unpack, "),  # says it has 2 GB
    (zip_of(PHOTO, zipfile.ZIP_LZMA)[:-1], "not a zip file|damaged|Truncated"),
    (b"", "File is not a zip file"),
]


@pytest.mark.parametrize(("content", "reason"), DAMAGED)
def test_a_zip_that_is_damaged_or_another_is_refused(coco, tmp_path, content, reason, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    coco.files[TRAIN] = content
    coco.always = {"status": 200}
    with pytest.raises(ValueError, match=rf"cannot unpack \S+train2014\.zip\.whole \(.*{reason}"):
        coco_download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    assert (tmp_path / "train2014.zip.whole").read_bytes() == content


def test_a_flipped_bit_in_a_zips_directory_loses_no_photo(demo, coco, tmp_path):
    photos = contents(demo, "train2014")
    whole = zip_of(photos, zipfile.ZIP_STORED)
    start = whole.index(b"PK\1\2")
    for folder in ("annotations", "val2014"):
        shutil.copytree(demo / folder, tmp_path / folder)
    rng, refusals = np.random.default_rng(0), []
    for _ in range(300):
        where, bit = int(rng.integers(start, len(whole))), 1 << int(rng.integers(8))
        (tmp_path / "train2014.zip").write_bytes(flip(whole, where, bit))
        try:
            coco_download.coco(tmp_path, "2014")
            assert contents(tmp_path, "train2014") == photos, (where, bit)
            shutil.rmtree(tmp_path / "train2014")
        except ValueError as error:
            refusals.append(str(error))
        assert not (tmp_path / "train2014").exists()
    assert 50 < len(refusals) < 300  # a date, for one, may change
    start = f"cannot unpack {tmp_path}/train2014.zip ("
    assert all(text.startswith(start) and text.isprintable() for text in refusals)


def test_entries_are_counted_in_zips_of_more_than_65535(tmp_path, monkeypatch):
    names = [f"train2014/{i}.jpg" for i in range(65_540)]
    content = zip_of(dict.fromkeys(names, b""), zipfile.ZIP_STORED)
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    assert coco_download.stated_entries(path, 65_540) == 65_540
    assert coco_download.stated_entries(path, 7) == 65_540
    end = content.rindex(b"PK\5\6")  # as old programs write it: 16 bits, and no second record
    low = (65_540 % 2**16).to_bytes(2, "little")
    old = content[: content.rindex(b"PK\6\6")] + content[end : end + 8] + low * 2
    path.write_bytes(old + content[end + 12 :])
    assert coco_download.stated_entries(path, 65_540) == 65_540
    assert coco_download.stated_entries(path, 65_539) != 65_539


def test_what_coco_needs_is_told_by_what_is_there(tmp_path, monkeypatch):
    GB = 10**9
    sizes = {"annotations_trainval2014": (1, 2), "train2014": (10, 11), "val2014": (5, 6)}
    monkeypatch.setattr(coco_download, "SIZES", sizes)
    # 2 of annotations; then train's zip and photos beside them, then val's beside those.
    assert coco_download.needed(tmp_path, "2014") == (16 * GB, max(1 + 2, 2 + 21, 2 + 11 + 11) * GB)
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014/1.jpg").touch()
    assert coco_download.needed(tmp_path, "2014") == (6 * GB, (2 + 11) * GB)
    with open(tmp_path / "val2014.zip.part", "wb") as file:
        file.truncate(4 * GB)  # sparse
    assert coco_download.needed(tmp_path, "2014") == (2 * GB, (2 + 1 + 6) * GB)
    (tmp_path / "val2014.zip").touch()
    assert coco_download.needed(tmp_path, "2014")[0] == 1 * GB
    usage = shutil.disk_usage(tmp_path)._replace(free=int(2.5 * GB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"needs 8\.0 GB in .* \(1\.0 GB .* only 2\.5 GB are free"):
        coco_download.check_room(tmp_path, "2014")


def test_of_two_runs_that_download_coco_one_waits(demo, coco, tmp_path):
    assert in_processes(3, coco_download.coco, tmp_path, "2014") == [0, 0, 0]
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert len(coco.asked) == 3


# The demo


def test_runs_that_draw_the_demo_at_once_all_have_it(demo, tmp_path):
    codes = in_processes(4, demo_scenes.make_demo, tmp_path, 0, 24, 12)
    assert codes == [0, 0, 0, 0]
    assert contents(tmp_path, ".") == contents(demo, ".")
