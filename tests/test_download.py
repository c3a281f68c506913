"""TODO"""

import io
import shutil
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TRAIN, TREE, ZIPS, argv, contents, zip_of

import run
from extras import download
from runtime import signals


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


def test_a_server_that_knows_no_ranges_starts_over(demo, web, tmp_path):
    web.ranges, web.breaks = False, [1000, 500]
    download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert web.asked == [(address, 0, 200) for address in [ZIPS[0]] * 2 + ZIPS]


@pytest.mark.parametrize(
    ("if_range", "keep", "statuses"),
    [(True, 1, [200]), (False, 1, [206, 200]), (False, 0.1, [416, 200])],
)
def test_a_file_that_changes_between_two_tries_is_fetched_anew(
    demo, web, tmp_path, monkeypatch, if_range, keep, statuses
):
    web.if_range, web.breaks, new = if_range, [3000, 0], web.files[TRAIN]
    monkeypatch.setattr(download, "TRIES", 1)
    web.files[TRAIN] = bytes(int(len(new) / keep))  # the old one: as long, or ten times
    with pytest.raises(ConnectionError, match=r"3,000 bytes so far"):
        download.fetch(f"{web.url}/{TRAIN}", tmp_path / "z", tmp_path / "z.json")
    web.tag, web.files[TRAIN] = '"2"', new if keep == 1 else new[:2000]
    monkeypatch.setattr(download, "TRIES", 2)
    web.asked.clear()
    download.fetch(f"{web.url}/{TRAIN}", tmp_path / "z", tmp_path / "z.json")
    assert (tmp_path / "z").read_bytes() == web.files[TRAIN]
    assert [status for *_, status in web.asked] == statuses


def test_a_download_that_fails_says_how_to_go_on_and_does_so(demo, web, tmp_path, capsys):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    whole = web.files.pop(TRAIN)
    assert run.main(options) == 2
    asked = [(ZIPS[0], 0, 200), (TRAIN, 0, 404)]  # once: 404 will not change
    assert web.asked == asked
    web.files[TRAIN], web.breaks = whole, [5000] + [0] * 6
    assert run.main(options) == 2
    assert web.asked[2:] == [(TRAIN, 0, 200)] + [(TRAIN, 5000, 206)] * 6
    web.asked.clear()
    assert run.main(options) == 0
    assert web.asked == [(TRAIN, 5000, 206), (ZIPS[2], 0, 200)]
    errors = capsys.readouterr().err.splitlines()
    for line, reason in zip(errors, ["HTTP 404", "closed early; 5,000 bytes so far"], strict=True):
        assert line.startswith(f"error: cannot download {web.url}/{TRAIN} (")
        assert reason in line
        assert line.endswith(f"put it into {tmp_path}/data")


def test_a_full_disk_keeps_what_has_come(demo, web, tmp_path, capsys, monkeypatch):
    class Full(io.FileIO):
        def write(self, piece):
            if self.tell() + len(piece) > 1000:
                super().write(piece[: 1000 - self.tell()])
                raise OSError(28, "No space left on device")
            return super().write(piece)

    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", Full, raising=False)
        assert run.main(options) == 2
    size = (tmp_path / "data" / f"{Path(ZIPS[0]).name}.part").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=17))
        assert run.main(options) == 2
    assert run.main(options) == 0
    assert web.asked[1:3] == [(ZIPS[0], size, 206)] * 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"error: cannot write to {tmp_path}/data (No space left on device)" in first
    assert f"room for 17 bytes, {len(web.files[ZIPS[0]]) - size:,} more" in second


def test_an_interrupted_unpacking_is_noticed_and_goes_on(demo, web, tmp_path, monkeypatch):
    opened, open_entry = [], zipfile.ZipFile.open

    def open_and_note(self, entry, *more):
        opened.append(entry.filename)
        if len(opened) == 9:
            signals.received = signal.SIGTERM
        return open_entry(self, entry, *more)

    monkeypatch.setattr(process, "received", None)
    monkeypatch.setattr(zipfile.ZipFile, "open", open_and_note)
    with pytest.raises(signals.Stopped, match=r"unpacking of .*train2014.zip, what is there is"):
        download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    (tmp_path / "train2014.zip.tmp" / opened[-1]).write_bytes(b"cut")  # this one is unpacked again
    signals.received = None
    download.coco(tmp_path, "2014")
    again = {opened[8]}
    assert len(opened) == len(set(opened)) + len(again)
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert len(web.asked) == 3


def test_a_zip_put_there_by_hand_is_used_and_kept(demo, web, tmp_path):
    (tmp_path / "train2014.zip").write_bytes(web.files.pop(TRAIN))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.json").write_text("mine")
    download.coco(tmp_path, "2014")
    mine = {"annotations/mine.json": b"mine"}
    assert contents(tmp_path, *TREE) == contents(demo, *TREE) | mine
    assert {path.name for path in tmp_path.iterdir()} == {*TREE, "train2014.zip"}


def entry(name, mode=0o644, **more):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "name",
    [
        *["../a.jpg", "train2014/../../a.jpg", "/tmp/a.jpg", "train2014/..", "train2014/b/a.jpg"],
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


def test_a_zip_that_swells_beyond_its_word_or_reason_is_refused(web, tmp_path, monkeypatch):
    bomb = zip_of({"train2014/a.jpg": bytes(10**6)})
    size = (10**6).to_bytes(4, "little")
    assert bomb.count(size) == 2  # in front of the file and in the directory
    for content, reason in [
        (bomb, "would unpack to 1,000,000 bytes"),
        (bomb.replace(size, (1000).to_bytes(4, "little")), "is damaged"),
    ]:
        (tmp_path / "train2014.zip").write_bytes(content)
        monkeypatch.setattr(download, "MOST", 10**5)
        with pytest.raises(ValueError, match=reason):
            download.unpack(tmp_path / "train2014.zip", tmp_path, "train2014")
        written = [path.stat().st_size for path in tmp_path.rglob("*.jpg")]
        assert sum(written) <= 1000


def test_a_damaged_zip_is_named_and_nothing_of_it_is_used(web, tmp_path, capsys):
    whole = zip_of({"train2014/a.jpg": bytes(range(256))}, zipfile.ZIP_STORED)
    middle = whole.index(bytes(range(256))) + 100
    spoilt = whole[:middle] + b"!" + whole[middle + 1 :]
    for content, reason in [(spoilt, "Bad CRC-32"), (b"<html>", "not a zip"), (whole[:-9], "zip")]:
        web.files[TRAIN] = content
        options = argv(tmp_path / "data", tmp_path / "out", "--download")
        assert run.main(options) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path}/data/train2014.zip is damaged, or no zip at all" in error
        assert reason in error
        assert not (tmp_path / "data" / "train2014").exists()
        (tmp_path / "data" / "train2014.zip").unlink()  # as the sentence says


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--dataset vg500", "VG-500 visualgenome.org SSGRL README"),
        ("--dataset demo", "COCO only"),
        ("--train-json t.json", "COCO only"),
        ("--val-images v", "COCO only"),
    ],
)
def test_download_is_for_cocos_own_tree(demo, web, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as stop:
        run.main(argv(tmp_path, tmp_path, "--download", more))
    assert stop.value.code == 2
    assert web.asked == []
    error = capsys.readouterr().err.splitlines()[-1]
    assert [word for word in words.split() if word not in error] == []
