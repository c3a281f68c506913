"""predict.py: photos in, labels, JSON and pictures out; what goes wrong is one sentence.

Oracles: the model on pixels made by hand; the EXIF standard; pixels of the pictures.
"""

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, drawn_photo, predicted, scores_by_hand, scores_of
from PIL import Image

import data
import iml_gcn
import predict
from backbones import efficientnet_lite
from datasets import own_photos
from reports import calibration, pictures
from reports.labelled_folder import LabelledFolder
from reports.pictures import Caption, activation_maps
from runtime import signals


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_folders_photos_get_the_classifiers_scores_highest_first(
    predictor, tmp_path, capsys, batch_size
):
    path, model = predictor
    names = ["b.png", "deep/a.PNG", "a.png"]
    for seed, name in enumerate([*names, ".hidden.png", ".git/a.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        drawn_photo(seed, (90 + seed, 70)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    argv = [path, tmp_path, "--batch-size", batch_size]
    as_json, _ = predicted(capsys, *argv, "--json", "--top", len(LABELS))
    as_text, _ = predicted(capsys, *argv)
    in_order = ["a.png", "b.png", "deep/a.PNG"]
    for name, line, text in zip(in_order, map(json.loads, as_json), as_text, strict=True):
        scores = scores_by_hand(model, drawn_photo(names.index(name), (90 + names.index(name), 70)))
        ranked = sorted(zip(LABELS, scores, strict=True), key=lambda pair: -pair[1])
        assert line["photo"] == str(tmp_path / name)
        assert [item["label"] for item in line["labels"]] == [label for label, _ in ranked]
        expected = pytest.approx([score for _, score in ranked], abs=2e-6)
        assert [item["score"] for item in line["labels"]] == expected
        assert re.findall(r" (\d\.\d\d)(?:,|$)", text) == [f"{s:.2f}" for _, s in ranked if s > 0.8]


# How a camera stores the upright photo U (rows from the top, columns from the left) under each
# orientation: the EXIF standard names where the stored row 0 and column 0 are in U.
STORED = {
    1: lambda U: U,  # row 0 is the top, column 0 the left
    2: lambda U: U[:, ::-1],  # top, right
    3: lambda U: U[::-1, ::-1],  # bottom, right
    4: lambda U: U[::-1],  # bottom, left
    5: lambda U: U.transpose(1, 0, 2),  # left, top
    6: lambda U: U.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda U: U.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda U: U.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def test_a_photo_is_labelled_upright_whatever_way_the_camera_was_held(predictor, tmp_path, capsys):
    U = np.asarray(drawn_photo())
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        photo = Image.fromarray(np.ascontiguousarray(stored(U)))
        photo.save(tmp_path / f"{orientation}.png", exif=exif)
    argv = [predictor[0], tmp_path, "--json", "--top", 7, "--save", tmp_path / "out"]
    lines, _ = predicted(capsys, *argv)
    assert len({json.dumps(json.loads(line)["labels"]) for line in lines}) == 1
    for orientation in STORED:
        with Image.open(tmp_path / f"out/{orientation}.jpg") as picture:
            assert np.abs(np.asarray(picture, int)[:60, 67:157] - U[:60]).mean() < 8  # JPEG's


def test_the_threshold_is_the_command_lines_else_the_checkpoints_else_asls(
    predictor, tmp_path, capsys
):
    path, model = predictor
    photo = tmp_path / "photo.png"
    drawn_photo().save(photo)
    checkpoint = torch.load(path)
    scores = sorted(scores_by_hand(model, drawn_photo()))
    between = [(a + b) / 2 for a, b in itertools.pairwise(scores)]
    torch.save(checkpoint | {"threshold": between[-2]}, tmp_path / "two.pt")

    def count(*argv):
        lines, _ = predicted(capsys, *argv, photo, "--json")
        return len(json.loads(lines[0])["labels"])

    assert count(tmp_path / "two.pt") == 2
    assert count(tmp_path / "two.pt", "--threshold", between[0]) == len(LABELS) - 1
    assert count(tmp_path / "two.pt", "--top", 5) == 5
    assert count(path) == sum(score > 0.8 for score in scores) not in (0, len(LABELS))
    lines, _ = predicted(capsys, path, photo, "--threshold", 1)
    assert lines[0].startswith(f"{photo}: no label above 1, highest: ")
    assert lines[0].endswith(f" {scores[-1]:.2f}")


def test_unreadable_photos_are_named_the_others_labelled_and_no_control_character_printed(
    predictor, tmp_path, capsys
):
    folder = tmp_path / "photos\x1b[2J"
    folder.mkdir()
    drawn_photo().save(folder / "a\x07\nb.jpg")
    whole = (folder / "a\x07\nb.jpg").read_bytes()
    (folder / "cut\x1b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no photo")
    argv = [predictor[0], folder, tmp_path / "missing.jpg", "--top", len(LABELS)]
    for more in [(), ("--json",), ("--save", tmp_path / "out")]:
        (line,), errors = predicted(capsys, *argv, *more, code=1)
        named = re.findall(r"^cannot read photo \S+/(\S+) .*$", errors, re.M)
        assert sorted(named) == ["cut\\x1b.jpg", "missing.jpg", "text.jpg"]
        assert all(text.isprintable() for text in [line, *errors.split("\n")])
        assert "cat" in line
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) == 2  # the picture and predictions.jsonl
    assert all(name.isprintable() for name in names)


def test_saved_pictures_keep_the_tree_and_replace_no_file_but_their_own(
    predictor, tmp_path, capsys
):
    names = ["a/x.png", "b/x.png", "b/X.jpg", "b/x-2.png", "y.png", "deep/er/x.png"]
    for seed, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(tmp_path / "in" / name)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))}
    out = tmp_path / "in" / "out"  # inside: what is written is not read the second time
    argv = [predictor[0], tmp_path / "in", tmp_path / "in/b"]  # two folders with an x.png each
    pictures_of = {  # picture -> photo
        **{"a/x": "a/x.png", "b/x": "b/x.png", "b/X": "b/X.jpg", "b/x-2": "b/x-2.png"},
        **{"y": "y.png", "deep/er/x": "deep/er/x.png"},
        **{"x": "b/x.png", "X": "b/X.jpg", "x-2": "b/x-2.png"},
    }
    for _ in range(2):
        lines, _ = predicted(capsys, *argv, "--json", "--save", out)
        assert (out / "predictions.jsonl").read_text().splitlines() == lines
        written = {path for path in out.rglob("*") if path.is_file()}
        assert written == {out / "predictions.jsonl", *(out / f"{p}.jpg" for p in pictures_of)}
        assert {path: path.read_bytes() for path in before} == before
    for picture, name in pictures_of.items():
        photo = np.asarray(Image.open(tmp_path / "in" / name).convert("RGB"), int)
        picture = np.asarray(Image.open(out / f"{picture}.jpg"), int)
        assert np.abs(picture[:60, 67:157] - photo[:60]).mean() < 8
    places = [(argv[1], argv[1]), (argv[1], argv[1] / "a"), (out / "x.jpg", out), (out / "b", out)]
    for photos, folder in places:
        _, errors = predicted(capsys, argv[0], photos, "--save", folder, code=2)
        assert "--save" in errors
    assert {path: path.read_bytes() for path in before} == before
    predicted(capsys, *argv[:1], tmp_path / "in/a", "--save", out)
    assert {path.name for path in out.iterdir()} == {"predictions.jsonl", "x.jpg"}


def test_saved_pictures_stay_inside_the_folder_whatever_is_there(predictor, tmp_path, capsys):
    photos, out, elsewhere = tmp_path / "in", tmp_path / "out", tmp_path / "elsewhere"
    for seed, name in enumerate(["a.PNG", "a.jpg/b.png", "sub/c.png", "d.png"]):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(photos / name)
    elsewhere.mkdir()
    predicted(capsys, predictor[0], photos / "d.png", photos / "sub/c.png", "--save", out)
    (out / "d.jpg").unlink()
    (out / "d.jpg").symlink_to(elsewhere / "new.jpg")  # leads nowhere yet
    (out / "sub").symlink_to(elsewhere)
    predicted(capsys, predictor[0], photos, "--save", out)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written >= {"a.jpg", "a.jpg-2/b.jpg", "sub-2/c.jpg", "d-2.jpg", "predictions.jsonl"}
    assert not list(elsewhere.iterdir())
    for text in ("somebody's", None):  # not ours; a link
        (other := tmp_path / f"other {text}").mkdir()
        (elsewhere / "list").write_text('{"photo": 1}')
        if text:
            (other / "predictions.jsonl").write_text(text)
        else:
            (other / "predictions.jsonl").symlink_to(elsewhere / "list")
        _, errors = predicted(capsys, predictor[0], photos, "--save", other, code=2)
        assert "holds other files" in errors
        assert (other / "predictions.jsonl").read_text() == (text or '{"photo": 1}')


def test_on_a_full_disk_no_picture_is_left_that_is_cut(predictor, tmp_path, capsys):
    resource = pytest.importorskip("resource")  # of the system's limit on the size of a file
    drawn_photo().save(tmp_path / "photo.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        argv = predictor[0], tmp_path / "photo.png", "--save", tmp_path / "out"
        _, errors = predicted(capsys, *argv, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot write {tmp_path}/out/photo.jpg" in errors
    assert not list(tmp_path.glob("out/*.jpg"))


def test_two_calls_do_not_write_to_one_folder_of_pictures_at_once(predictor, tmp_path, capsys):
    drawn_photo().save(tmp_path / "a.png")
    argv = predictor[0], tmp_path / "a.png", "--save", tmp_path / "out"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def write():
        with LabelledFolder(tmp_path / "out"):
            there.send("writing")
            there.recv()

    process = context.Process(target=write)
    process.start()
    assert here.recv() == "writing"
    _, errors = predicted(capsys, *argv, code=2)
    assert "in use" in errors
    here.send("stop")
    process.join(60)
    predicted(capsys, *argv)


def test_a_folder_of_pictures_used_again_has_those_of_the_last_call_and_of_others(
    predictor, tmp_path, capsys
):
    for seed, name in enumerate(("a.png", "b.png")):
        drawn_photo(seed).save(tmp_path / name)
    out = tmp_path / "out"
    for name in ("a.png", "b.png"):
        predicted(capsys, predictor[0], tmp_path / name, "--save", out)
        drawn_photo().save(out / "mine.jpg", comment="by somebody else")
        (out / "c.jpg").write_bytes(b"no picture")
    names = {path.name for path in out.iterdir()}
    assert names == {"b.jpg", "mine.jpg", "c.jpg", "predictions.jsonl"}
    drawn_photo().save(tmp_path / "mine.png")
    before = (out / "mine.jpg").read_bytes()
    predicted(capsys, predictor[0], tmp_path / "mine.png", "--save", out)
    assert (out / "mine.jpg").read_bytes() == before
    assert (out / "mine-2.jpg").is_file()


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saved_pictures_stay_until_a_new_one_takes_their_place(predictor, tmp_path, capsys):
    out, table = tmp_path / "out", tmp_path / "t.csv"
    for folder, seeds in (("in", (0, 1)), ("new", (2,))):
        for seed in seeds:
            (tmp_path / folder).mkdir(exist_ok=True)
            drawn_photo(seed).save(tmp_path / folder / f"{seed}.png")
    predicted(capsys, predictor[0], tmp_path / "in", "--save", out, "--csv", table)
    before = {path: path.read_bytes() for path in (table, *content_of(out))}
    assert len(before) == 4  # the table, the list and two pictures
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable/a.png").write_text("no photo")
    (tmp_path / "file").touch()
    refusals = [
        ("new", table.parent / "folder.csv", "choose another name for the table"),
        ("new", tmp_path / "file/t.csv", "file/t.csv"),
        ("unreadable", table, "no photo could be read"),
    ]
    for photos, named, words in refusals:
        argv = predictor[0], tmp_path / photos, "--save", out, "--csv", named
        _, errors = predicted(capsys, *argv, code=2)
        assert words in errors
        assert {path: path.read_bytes() for path in before} == before
    _, errors = predicted(capsys, predictor[0], tmp_path / "unreadable", "--save", out, code=2)
    assert "no photo could be read" in errors
    assert {path: path.read_bytes() for path in before} == before
    predicted(capsys, predictor[0], tmp_path / "new", "--save", out)
    assert {path.name for path in out.iterdir()} == {"predictions.jsonl", "2.jpg"}


def test_pictures_of_other_calls_and_runs_below_the_folder_stay(predictor, out, tmp_path, capsys):
    saved, run = tmp_path / "saved", tmp_path / "saved/run"
    for seed, name in enumerate(["a.png", "two/a.png", "run/a.png"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(tmp_path / "in" / name)
    first, all_photos = tmp_path / "in/a.png", tmp_path / "in"
    predicted(capsys, predictor[0], first, "--save", saved)
    predicted(capsys, predictor[0], first, "--save", saved / "two")
    shutil.copytree(out, run)
    others = content_of(saved / "two") | content_of(run)
    assert {saved / "two/a.jpg", run / "results.jpg"} <= set(others)
    for photos in (all_photos, all_photos, first):
        predicted(capsys, predictor[0], photos, "--save", saved)
        assert content_of(saved / "two") | content_of(run) == others
        names = {"a.jpg", "two-2/a.jpg", "run-2/a.jpg"} if photos == all_photos else {"a.jpg"}
        ours = content_of(saved).keys() - others.keys() - {saved / "predictions.jsonl"}
        assert {path.relative_to(saved).as_posix() for path in ours} == names


def test_an_error_of_the_system_is_a_sentence_that_names_the_path(tmp_path, capsys):
    for path, number in ((tmp_path / "gone", errno.ENOENT), (tmp_path, errno.EISDIR)):
        assert signals.code_of(lambda path=path: path.read_bytes()) == 2
        sentence = f"cannot use {path} ({os.strerror(number)}); correct the path, or choose a "
        assert sentence in capsys.readouterr().err


def test_a_list_that_json_wrote_makes_no_folder_of_pictures(predictor, out, tmp_path, capsys):
    drawn_photo().save(tmp_path / "a.png")
    lines, _ = predicted(capsys, predictor[0], tmp_path / "a.png", "--json")
    mine, alone = tmp_path / "mine", tmp_path / "alone"
    for folder in (mine, alone):
        folder.mkdir()
    drawn_photo(1).save(mine / "b.png")
    for folder in (mine, alone, out):  # among photos, by itself, in a run with its results.jpg
        for text in ("\n".join(lines) + "\n", ""):  # "" is what a shell leaves of a failed call
            if folder == alone and not text:
                continue
            (folder / "predictions.jsonl").write_text(text)
            before = content_of(folder)
            argv = predictor[0], tmp_path / "a.png", "--save", folder
            _, errors = predicted(capsys, *argv, code=2)
            assert f"--save {folder} holds other files" in errors
            assert content_of(folder) == before


def test_a_place_that_cannot_be_written_is_said_in_a_sentence(
    predictor, tmp_path, capsys, monkeypatch
):
    photo, make = tmp_path / "a.png", os.mkdir
    drawn_photo().save(photo)
    (tmp_path / "file").touch()
    (tmp_path / "model.pt2").mkdir()

    def mkdir(path, *more):
        if "read-only" in str(path):
            raise OSError(30, "Read-only file system", str(path))
        make(path, *more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    cases = [
        (["--save", tmp_path / "file"], "is a file; choose a folder"),
        (["--save", tmp_path / "file/out"], "choose a place that can be written"),
        (["--save", tmp_path / "read-only/out"], "(Read-only file system)"),
        (["--export", tmp_path / "read-only/x/m.pt2"], "(Read-only file system)"),
        (["--csv", tmp_path / "read-only/x/t.csv"], "(Read-only file system)"),
        (["--export", tmp_path / "model.pt2"], "is not a file; choose another name"),
    ]
    for argv, words in cases:
        _, errors = predicted(capsys, predictor[0], photo, *argv, code=2)
        assert words in errors
        assert "Errno" not in errors
        assert "; choose a" in errors
        assert "disk is full" not in errors


@pytest.mark.parametrize("head", ["linear", "gcn"])
def test_the_mean_of_a_labels_map_is_its_logit(head):
    torch.manual_seed(0)
    backbone = efficientnet_lite.efficientnet_lite0().double().eval()
    heads = {"linear": torch.nn.Linear(1280, 4)}
    heads["gcn"] = iml_gcn.LabelGCN(torch.randn(4, 5), torch.eye(4), 1280)
    model = iml_gcn.Model(backbone, calibration.Calibrated(heads[head].double(), 2.0, -3.0))
    model.double()
    images = torch.rand(2, 3, 96, 64, dtype=torch.double)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda x: x)  # stays in float64
        maps = activation_maps(model, images)
        torch.testing.assert_close(maps.mean((2, 3)), model(images))
    assert maps.shape == (2, 4, 3, 2)


def test_where_lights_the_place_that_a_label_comes_from(tmp_path):
    photo = Image.new("RGB", (80, 40), (200, 200, 200))
    heat = np.full((2, 4), -1.0)
    heat[1, 3] = 3.0  # at the bottom right, 60 to 80 and 20 to 40
    picture = np.asarray(pictures.lit(photo, heat), int)
    assert picture[34, 74].min() > 150
    assert (picture[:20, :40] == 40).all()
    below = np.asarray(pictures.lit(photo, heat - 5), int)  # a low score: negative everywhere
    assert below[34, 74].min() > 150


def test_long_lists_of_labels_are_cut_in_pictures(tmp_path, capsys):
    labels = [Caption(f"label {j}", "0.50") for j in range(500)]
    assert pictures.shortened(labels, 12) == [*labels[:12], Caption("and 488 more")]
    assert pictures.shortened(labels[:12], 12) == labels[:12]
    drawn_photo().save(tmp_path / "a.png")
    with LabelledFolder(tmp_path / "out") as folder:
        folder.add(tmp_path, "a.png", labels, "{}", [])
    with Image.open(tmp_path / "out/a.jpg") as picture:
        assert picture.height < 1500


def test_where_draws_a_picture_for_each_of_the_highest_labels(predictor, tmp_path, capsys):
    drawn_photo(size=(300, 200)).save(tmp_path / "photo.png")
    widths = []
    for more in ((), ("--where",), ("--where", "--top", 2)):
        argv = predictor[0], tmp_path / "photo.png", "--save", tmp_path / "out"
        lines, _ = predicted(capsys, *argv, *more)
        shown = len(lines[0].split(", "))
        with Image.open(tmp_path / "out/photo.jpg") as picture:
            widths.append((picture.width, shown))
    (alone, all_labels), (some, _), (two, _) = widths
    assert some == alone * (1 + min(3, all_labels))
    assert two == alone * 3


def test_a_judged_photo_has_what_is_right_wrong_and_missed_by_sign_and_colour(tmp_path):
    scores, targets = np.array([0.9, 0.2, 0.6, 0.1]), np.array([0, 1, 1, 0])
    labels = pictures.judged(scores, targets, ["cat", "dog", "cow", "bee"], 0.5)
    assert [label[:2] for label in labels] == [
        ("x cat", "0.90"),
        ("+ cow", "0.60"),
        ("- dog", "0.20"),
    ]
    assert len({label.colour for label in labels}) == 3
    picture = np.asarray(pictures.with_labels(Image.new("RGB", (300, 60), "gray"), labels))
    for label in labels:
        assert (np.abs(picture[60:].astype(int) - label.colour).max(2) < 9).any()
    (nothing,) = pictures.judged(scores, targets * 0, ["cat", "dog", "cow", "bee"], 0.95)
    assert nothing.text == "no label, correctly"


def test_a_sheet_of_judged_photos_has_beneath_each_photo_its_own_labels(tmp_path, monkeypatch):
    fills = {"+": (0, 0, 200), "x": (200, 0, 0), "-": (0, 200, 0)}  # of the photos
    for sign, fill in fills.items():
        Image.new("RGB", (64, 64), fill).save(tmp_path / f"{ord(sign)}.png")
    paths = [str(tmp_path / f"{ord(sign)}.png") for sign in fills]
    split = data.Split(paths, np.array([[1], [0], [1]], np.uint8), ["cat"])
    draw, beneath = pictures.with_labels, {}

    def noted(photo, labels, font):
        beneath[photo.resize((1, 1)).getpixel((0, 0))] = labels
        return draw(photo, labels, font)

    monkeypatch.setattr(pictures, "with_labels", noted)
    scores = np.array([[0.9], [0.8], [0.1]])
    pictures.save_judged(split, scores, 0.5, tmp_path / "sheet.jpg", "a caption")
    first = {fill: labels[0][:2] for fill, labels in beneath.items()}
    assert first == {
        fills["+"]: ("+ cat", "0.90"),
        fills["x"]: ("x cat", "0.80"),
        fills["-"]: ("- cat", "0.10"),
    }
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width > 2 * pictures.TILE


def test_the_map_of_a_label_is_the_one_whose_mean_is_its_logit(predictor, tmp_path):
    drawn_photo(size=(300, 200)).save(tmp_path / "photo.png")
    of_file = predict.Predictor(predictor[0], "cpu")
    photos = [predict.Photo(str(tmp_path), "photo.png")]
    (prediction,) = predict.predictions(of_file, photos, top=3, where=True)
    for (_, score), heat in zip(prediction.labels, prediction.maps, strict=True):
        assert 1 / (1 + np.exp(-float(heat.mean()))) == pytest.approx(score, abs=1e-5)


# --csv


def table_of(path):
    """The cells as Python's csv reads them, after the byte order mark that Excel needs."""
    content = path.read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(content[3:].decode("utf-8"), newline="")))


def test_the_table_has_the_labels_or_the_scores_that_are_printed(predictor, tmp_path, capsys):
    path, model = predictor
    (tmp_path / "in/sub").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "sub/b.png"]):
        drawn_photo(seed).save(tmp_path / "in" / name)
    (tmp_path / "in/c.png").write_text("no photo")
    table, argv = tmp_path / "new/t.csv", (path, tmp_path / "in", "--json")
    for more in (("--threshold", 0.3), ("--threshold", 1), ("--top", 2)):
        lines, errors = predicted(capsys, *argv, *more, "--csv", table, code=1)
        assert f"{table}: 2 photos" in errors
        header, *rows = table_of(table)
        assert header == ["photo", "labels", "scores"]
        for row, line in zip(rows, map(json.loads, lines), strict=True):  # c.png is in neither
            photo, labels, scores = row
            assert photo == line["photo"]
            assert labels == "; ".join(item["label"] for item in line["labels"])
            expected = [f"{item['score']:.6f}" for item in line["labels"]]
            assert scores == "; ".join(expected)
    table.unlink()
    assert predicted(capsys, *argv[:2], "--csv", table, code=1)[0] == []  # the table has them
    predicted(capsys, *argv, "--columns", "--csv", table, code=1)
    header, *rows = table_of(table)
    assert header == ["photo", *LABELS]
    for seed, row in enumerate(rows):
        expected = scores_by_hand(model, drawn_photo(seed))
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("named", ["photos", "./photos", "../here/photos", "{}/photos"])
def test_a_table_is_read_as_labels_however_the_photos_were_named(
    predictor, tmp_path, capsys, monkeypatch, named
):
    (tmp_path / "here/photos/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    names = ["a.png", "sub/b.png"]
    for seed, name in enumerate(names):
        drawn_photo(seed).save(f"photos/{name}")
    named = named.format(tmp_path / "here")
    lines, _ = predicted(capsys, predictor[0], named, "--top", 2, "--csv", "t.csv", "--json")
    split = own_photos.read("photos", "t.csv")
    assert split.paths == [f"photos/{name}" for name in names]
    for row, line in zip(split.targets, map(json.loads, lines), strict=True):
        labels = {item["label"].strip() for item in line["labels"]}  # blanks do not count
        assert {split.classes[j] for j in row.nonzero()[0]} == labels


def test_a_table_is_written_whole_and_replaces_none_but_its_like(
    predictor, tmp_path, capsys, monkeypatch
):
    for seed in range(3):
        drawn_photo(seed).save(tmp_path / f"{seed}.png")
    table, compute, computed = tmp_path / "t.csv", predict.Predictor.compute, []
    argv = predictor[0], *sorted(tmp_path.glob("*.png")), "--batch-size", 1, "--csv", table

    def interrupted(self, images, with_maps):
        assert list(tmp_path.glob("t.csv.*.tmp"))
        if computed:  # the first photo's row is written
            raise KeyboardInterrupt
        computed.append(images)
        return compute(self, images, with_maps)

    def full(*_):
        raise OSError(28, "No space left on device")

    for before in (None, b"\xef\xbb\xbfphoto,labels,scores\r\nold.png,,\r\n"):
        if before:
            table.write_bytes(before)
        files = set(tmp_path.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(predict.Predictor, "compute", interrupted)
            computed.clear()
            _, errors = predicted(capsys, *argv, code=130)
        assert f"{table} was not written" in errors
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            _, errors = predicted(capsys, *argv, code=2)
        assert f"cannot write {table} (No space left on device)" in errors
        assert set(tmp_path.iterdir()) == files
        assert not before or table.read_bytes() == before
    for more in (["--columns"], ["--columns"], []):  # of either form, over either
        predicted(capsys, *argv, *more)
        assert len(table_of(table)) == 4
    others = [b"photo,labels\r\na.png,cat\r\n", b"photo,labels,scores\n", b"\xff\xd8\xff", b"x"]
    others += [
        b"\xef\xbb\xbf" + text for text in (b"photo,labels\r\na.png,cat\r\n", b"photo", b'"')
    ]
    for content in others:  # by somebody else, or edited
        table.write_bytes(content)
        _, errors = predicted(capsys, *argv, code=2)
        assert "choose another name" in errors
        assert table.read_bytes() == content
    assert set(tmp_path.iterdir()) == {*files, table}


# --precision


def test_precision_takes_the_threshold_that_found_most_with_it(predictor, tmp_path, capsys):
    drawn_photo().save(tmp_path / "a.png")
    points = [  # threshold, precision, recall, labels a photo; precision goes up and down
        [0.1, 0.30, 0.90, 6.0],
        [0.2, 0.81, 0.70, 3.0],
        [0.3, 0.78, 0.60, 2.5],
        [0.4, 0.85, 0.60, 2.2],
        [0.5, 0.90, 0.40, 1.5],
        [0.6, 0.93, 0.40, 1.4],
        [0.7, 0.00, 0.00, 0.0],  # nothing is above it
    ]
    model = tmp_path / "model.pt"
    changed = {"operating_points": points, "val_photos": 50}
    torch.save(torch.load(predictor[0]) | changed, model)
    said = {
        0.8: "at 0.2: 81% of 150 labels right on val, 70% found, 3.0 per photo",
        0.82: "at 0.4: 85% of 110 labels right on val, 60% found, 2.2 per photo",
        0.9: "at 0.6: 93% of 70 labels right on val, 40% found, 1.4 per photo",
        0: "at 0.1: 30% of 300 labels right on val, 90% found, 6.0 per photo",
    }
    for precision, sentence in said.items():
        lines, errors = predicted(
            capsys, model, tmp_path / "a.png", "--json", "--precision", precision
        )
        assert errors.startswith(sentence + "\n")
        threshold = re.findall(r"at (\S+):", sentence)
        expected, _ = predicted(
            capsys, model, tmp_path / "a.png", "--json", "--threshold", *threshold
        )
        assert lines == expected
    _, errors = predicted(capsys, model, tmp_path / "a.png", "--precision", 0.95, code=2)
    assert (
        "no threshold reached a precision of 0.95 on val; the highest was 0.93, at the " in errors
    )
    _, errors = predicted(capsys, predictor[0], tmp_path / "a.png", "--precision", 0.5, code=2)
    assert "does not say which precision" in errors


def test_a_trained_model_reaches_on_val_what_precision_promises(demo, finished, capsys):
    photos = sorted((demo / "val2014").iterdir())
    _, targets = scores_of(finished, "backbone")
    classes = np.load(finished / "scores-backbone.npz")["classes"].tolist()
    argv = finished / "backbone.pt", *photos, "--json", "--precision", 0.4
    lines, errors = predicted(capsys, *argv)
    labels = [{item["label"] for item in json.loads(line)["labels"]} for line in lines]
    predictions = np.array([[name in names for name in classes] for names in labels])  # (M, n)
    right = (predictions & (targets > 0)).sum()
    precision, recall = right / predictions.sum(), right / targets.sum()
    assert precision >= 0.4
    per_photo = predictions.sum() / len(photos)
    of_labels = f"{100 * precision:.0f}% of {predictions.sum()} labels right on val"
    assert f"{of_labels}, {100 * recall:.0f}% found" in errors
    assert f"{per_photo:.1f} per photo" in errors


# A run's folder in place of a checkpoint


def test_of_a_runs_folder_the_model_of_the_verdict_is_used(predictor, tmp_path, capsys):
    (run := tmp_path / "run").mkdir()
    (tmp_path / "photos").mkdir()
    drawn_photo().save(tmp_path / "photos/a.png")
    argv = tmp_path / "photos", run  # in either order

    def used(code=0):
        _, errors = predicted(capsys, *argv, "--top", 1, code=code)
        return errors

    assert "holds no backbone.pt or gcn-*.pt" in used(code=2)  # and photos/ holds none either
    shutil.copy(predictor[0], run / "gcn-pca.pt")
    assert f"{run}/gcn-pca.pt: the only model" in used()
    for name in ("backbone.pt", "gcn-image.pt", "last-backbone.pt"):
        shutil.copy(predictor[0], run / name)
    holds = f"{run} holds backbone.pt, gcn-image.pt, gcn-pca.pt, and no verdict.json that compares "
    holds += "them; pass one of them, or run --phase eval first"
    assert holds in used(code=2)
    all_three = {"backbone.pt": {}, "gcn-image.pt": {}, "gcn-pca.pt": {}}
    for use in ("gcn-random.pt", "../photos/a.png", 5, None):  # not there, or not one of them
        (run / "verdict.json").write_text(json.dumps({"use": use, "models": all_three}))
        assert holds in used(code=2)
    (run / "verdict.json").write_text(json.dumps({"use": "backbone.pt", "models": {}}))
    assert holds in used(code=2)  # it does not know the others
    (run / "verdict.json").write_text(json.dumps({"use": "backbone.pt", "models": all_three}))
    assert f"{run}/backbone.pt: the model to use, as verdict.json says" in used()
    sha256 = hashlib.sha256(predictor[0].read_bytes()).hexdigest()
    known = {name: {"sha256": sha256} for name in all_three}
    (run / "verdict.json").write_text(json.dumps({"use": "backbone.pt", "models": known}))
    assert f"{run}/backbone.pt: the model to use, as verdict.json says" in used()
    known["gcn-pca.pt"] = {"sha256": "of a model that was there when phase eval ran"}
    (run / "verdict.json").write_text(json.dumps({"use": "backbone.pt", "models": known}))
    assert f"{run}/gcn-pca.pt is not the model that verdict.json compared" in used(code=2)
    (run / "verdict.json").write_text("{")
    assert "verdict.json is not valid JSON" in used(code=2)


# From Python


def test_a_predictor_has_the_classifiers_scores_in_the_order_of_the_paths(predictor, tmp_path):
    path, model = predictor
    seeds = [4, 1, 3, 0, 2]
    paths = [tmp_path / f"{seed}.png" for seed in seeds]
    for seed, photo in zip(seeds, paths, strict=True):
        drawn_photo(seed).save(photo)
    label = predict.Predictor(path, device="cpu", batch_size=2)
    scores = label(paths)
    expected = [scores_by_hand(model, drawn_photo(seed)) for seed in seeds]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert (label.classes, label.image_size, label.threshold) == (LABELS, 64, 0.8)
    assert label([]).shape == (0, len(LABELS))
    paths[2].write_text("no photo")
    with pytest.raises(ValueError, match=r"cannot read photo .*3\.png"):
        label(map(str, paths))
    some = label(map(str, paths), allow_unreadable=True)
    assert np.isnan(some).any(1).tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(np.delete(some, 2, 0), np.delete(scores, 2, 0), atol=1e-6)
    with pytest.raises(ValueError, match="expected a list of paths"):
        label(str(paths[0]))


def test_a_predictor_reads_no_more_photos_than_it_needs(predictor, tmp_path):
    drawn_photo().save(tmp_path / "a.png")
    asked = []
    endless = (asked.append(row) or tmp_path / "a.png" for row in itertools.count())
    batches = predict.Predictor(predictor[0], "cpu", batch_size=3).batches(endless)
    assert [next(batches).rows for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert len(asked) == 6


# What a process says to others


def test_json_is_utf8_whatever_the_terminal_is_and_hides_nothing(predictor, tmp_path, monkeypatch):
    names = [
        "人 Stühle 🚦.png",
        "\u202egnp.exe.png",
        "a\x9b\x7f\u2028.png",
        b"\xff.png".decode("utf-8", "surrogateescape"),
    ]
    for name in names:
        drawn_photo().save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert predict.main([str(predictor[0]), *names, "--json", "--top", "5"]) == 0
    terminal.flush()
    text = terminal.buffer.getvalue().decode("utf-8")
    assert "人 Stühle 🚦.png" in text
    assert "café" in text
    assert text.replace("\n", "").isprintable()
    assert [json.loads(line)["photo"] for line in text.splitlines()] == names


def test_sentences_of_predict_fit_the_window(predictor, tmp_path, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    (tmp_path / "photos").mkdir()
    drawn_photo().save(tmp_path / "photos/a.png")
    (tmp_path / "photos/notes.txt").write_text("no photo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", Screen())
    call = [str(predictor[0]), *"photos --threshold 1 --csv t.csv --device cpu".split()]
    assert predict.main(call) == 0
    assert sys.stderr.getvalue().splitlines() == [
        "photos: left out 1 .txt, which are not",
        "  read as photos",
        "t.csv: 1 photos",
        "no label is above 1; choose a lower",
        "  --threshold, or --top 3",
    ]


BAD_CALLS = [  # what of the checkpoint is another, arguments, words of the message
    ({}, "none.pt photo.png", "no checkpoint at"),
    ({}, "photo.png photo.png", "photo.png is not a checkpoint"),
    ({"classes": LABELS[:-1]}, "model.pt photo.png", "not a model this program wrote"),
    ({"classes": [*range(7)]}, "model.pt photo.png", "classes[0] is 0, expected a text"),
    *[({"image_size": S}, "model.pt photo.png", "image_size is ") for S in (None, 0, 20_000, 64.0)],
    *[({"image_size": S}, "model.pt photo.png", "takes no images of ") for S in (1, 66)],
    *[
        ({"threshold": p}, "model.pt photo.png", "threshold is ")
        for p in ("high", -0.1, 1.1, math.nan, None, True, 10**400)
    ],
    *[
        ({"calibration": line}, "model.pt photo.png", "calibration")
        for line in ([], [1.0], [1.0, 0.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [math.nan, 0.0])
    ],
    *[
        ({"operating_points": points}, "model.pt photo.png", "operating_points")
        for points in (
            [[0.5, 1, 1]],
            [[]],
            [[0.5, 1.5, 1, 1]],
            [0.5],
            [["a"] * 4],
            [[math.nan] * 4],
        )
    ],
    ({"classes": ["cat"] * 7}, "model.pt photo.png", "label 'cat' is there twice"),
    ({"classes": [*"a;bcdef"]}, "model.pt photo.png --csv out.csv", "holds a semicolon"),
    ({}, "model.pt photo.png --columns", "name a file for it: --csv"),
    ({}, "model.pt photo.png --csv empty", "is not a file; choose another name"),
    ({}, "model.pt photo.png --precision 80", "80 is not in 0 .. 1; write 0.8 for 80%"),
    ({}, "model.pt photo.png --precision 0,8", "0,8 is not a number here; write 0.8"),
    ({}, "model.pt photo.png --precision 80%", "80% is not a number here; write 0.8"),
    ({}, "model.pt2 photo.png", "model.pt2 is an exported model, for other programs"),
    ({}, "model.pt photo.png --csv out.xlsx", "call it NAME.csv"),
    ({}, "none.pt photo.png --csv out.xlsx", "call it NAME.csv"),  # before the model is read
    ({}, "model.pt nowhere", "there is no nowhere"),
    ({}, "model.pt empty/ missing.jpg", "there is no missing.jpg"),
    ({}, "model.pt photo.png --precision 0.5 --top 2", "not allowed with"),
    ({}, "model.pt --export out.pt2 --csv out.csv", "--export writes a model"),
    ({}, "model.pt empty", "no photo in"),
    ({}, "model.pt model.pt photo.png", "model.pt and model.pt are two models; name one"),
    ({}, "run model.pt photo.png", "run and model.pt are two models; name one"),
    ({}, "model.pt", "name photos or folders"),
    ({}, "model.pt photo.png --top 0", "0 is too small; expected a whole number of at least 1"),
    ({}, "model.pt photo.png --top 9999999999", "9999999999 is too large; expected a whole number"),
    ({}, "model.pt photo.png --threshold nan", "not in 0 .. 1"),
    ({}, "model.pt photo.png --threshold 0.5 --top 2", "not allowed with"),
    ({}, "model.pt photo.png --device cuda:77", "--device cuda:77"),
    ({}, "model.pt --export out.pt", "neither in .onnx nor in .pt2"),
    ({}, "model.pt --export out.onnx", "; pip install onnx onnxscript onnxruntime"),
    ({}, "model.pt --export out.pt2 --json", "--export writes a model"),
    ({"pool": "max"}, "model.pt photo.png --save out --where", "--where needs a backbone"),
    ({}, "model.pt photo.png --where", "--where draws pictures"),
    ({}, "model.pt photo.png --save out --font model.pt", "not a TrueType font"),
]


@pytest.mark.parametrize(("change", "arguments", "words"), BAD_CALLS)
def test_bad_calls_of_predict_end_with_code_2_and_one_sentence(
    predictor, tmp_path, capsys, monkeypatch, change, arguments, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # its import fails
    drawn_photo().save("photo.png")
    (tmp_path / "empty").mkdir()
    torch.save(torch.load(predictor[0]) | change, "model.pt")
    (tmp_path / "run").mkdir()
    shutil.copyfile("model.pt", "run/backbone.pt")
    try:
        code = predict.main(arguments.split())
    except SystemExit as end:  # argparse's
        code = end.code
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert re.match(r"(\S+: )?error: ", sentence)
    assert words in sentence
    assert not list(tmp_path.glob("out*"))


SPOILT = [  # how the weights are changed, words of the message
    (lambda state: state["head.weight"].fill_(math.nan), "head.weight hold numbers that are not"),
    (lambda state: state["backbone.conv1.bn.bias"].fill_(math.inf), "are not finite"),
    (lambda state: state["backbone.conv1.bn.running_var"].fill_(-1), "scores that are not finite"),
    (lambda state: state["head.weight"].fill_(3e38), "scores that are not finite"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_weights_that_give_no_scores_are_refused(predictor, tmp_path, capsys, spoil, words):
    drawn_photo().save(tmp_path / "photo.png")
    checkpoint = torch.load(predictor[0])
    spoil(checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "model.pt")
    _, errors = predicted(capsys, tmp_path / "model.pt", tmp_path / "photo.png", code=2)
    assert errors.startswith(f"error: {tmp_path}/model.pt")
    assert words in errors


def test_a_gcns_labels_are_as_many_as_its_names(finished, tmp_path, capsys):
    drawn_photo().save(tmp_path / "photo.png")
    checkpoint = torch.load(finished / "gcn-pca.pt")
    for classes in (checkpoint["classes"][1:], [*checkpoint["classes"], "another"]):
        torch.save(checkpoint | {"classes": classes}, tmp_path / "model.pt")
        _, errors = predicted(capsys, tmp_path / "model.pt", tmp_path / "photo.png", code=2)
        assert (
            f"names {len(classes)} labels, its head scores {len(checkpoint['classes'])}" in errors
        )
