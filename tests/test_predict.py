"""predict.py: photos in, labels, JSON and pictures out; what goes wrong is one sentence.

Oracles: the model on pixels made by hand; the EXIF standard; pixels of the pictures.
"""

import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, drawn_photo, predicted, scores_by_hand
from PIL import Image

import iml_gcn
import predict
from backbones import efficientnet_lite
from reports import calibration, pictures
from reports.pictures import activation_maps
from runtime import reading


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


def test_a_heic_photo_says_what_reads_it(predictor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reading, "FORMATS", ["JPEG"])  # as where the plugin is not installed
    (tmp_path / "a.HEIC").write_bytes(b"HEIC")
    _, errors = predicted(capsys, predictor[0], tmp_path / "a.HEIC", code=1)
    assert "pip install pillow-heif" in errors


def test_saved_pictures_replace_no_file_but_their_own(predictor, tmp_path, capsys):
    names = ["a/x.png", "b/x.png", "b/X.jpg", "b/x-2.png", "y.png", "deep/x.png"]
    for seed, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(tmp_path / "in" / name)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))}
    out = tmp_path / "in" / "out"  # inside: what is written is not read the second time
    argv = [predictor[0], tmp_path / "in"]
    for _ in range(2):
        lines, _ = predicted(capsys, *argv, "--json", "--save", out)
        assert len(lines) == len(names)
        assert (out / "predictions.jsonl").read_text().splitlines() == lines
        written = [path.name for path in out.iterdir()]
        assert len(written) == len(names) + 1
        assert {path: path.read_bytes() for path in before} == before
    for line, name in zip(lines, ["x", "X", "x-2", "x-3", "x-4", "y"], strict=True):
        photo = np.asarray(Image.open(json.loads(line)["photo"]).convert("RGB"), int)
        picture = np.asarray(Image.open(out / f"{name}.jpg"), int)
        assert np.abs(picture[:60, 67:157] - photo[:60]).mean() < 8
    for photos, folder in [(argv[1], argv[1]), (argv[1], argv[1] / "a"), (out / "x.jpg", out)]:
        _, errors = predicted(capsys, argv[0], photos, "--save", folder, code=2)
        assert "--save" in errors
    assert {path: path.read_bytes() for path in before} == before


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
    labels = [(f"label {j}", "0.50") for j in range(500)]
    assert pictures.shortened(labels, 12) == [*labels[:12], ("and 488 more", "")]
    assert pictures.shortened(labels[:12], 12) == labels[:12]
    pictures.begin(tmp_path / "out", None)
    drawn_photo().save(tmp_path / "a.png")
    pictures.add(tmp_path / "out", None, tmp_path / "a.png", labels, "{}", [])
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
    assert len({colour for *_, colour in labels}) == 3
    picture = np.asarray(pictures.labelled(Image.new("RGB", (300, 60), "gray"), labels))
    for *_, colour in labels:
        assert (np.abs(picture[60:].astype(int) - colour).max(2) < 9).any()
    (nothing,) = pictures.judged(scores, targets * 0, ["cat", "dog", "cow", "bee"], 0.95)
    assert nothing[0] == "nothing, rightly"


def test_a_run_ends_with_a_sheet_of_judged_photos(finished):
    with Image.open(finished / "results.jpg") as sheet:
        assert sheet.width > 3 * pictures.TILE  # 12 photos, 4 a row


BAD_CALLS = [  # what of the checkpoint is another, arguments, words of the message
    ({}, "none.pt photo.png", "no checkpoint at"),
    ({}, "photo.png photo.png", "photo.png is not a checkpoint"),
    ({"classes": LABELS[:-1]}, "model.pt photo.png", "not a model this program wrote"),
    ({"classes": [*range(7)]}, "model.pt photo.png", "classes[0] is 0, expected a text"),
    ({"image_size": None}, "model.pt photo.png", "image_size is None, expected a whole number"),
    ({"image_size": 66}, "model.pt photo.png", "multiples of 4"),
    ({"threshold": "high"}, "model.pt photo.png", "threshold is 'high', expected a number"),
    ({}, "model.pt empty", "no photo in"),
    ({}, "model.pt", "name photos or folders"),
    ({}, "model.pt photo.png --top 0", "0 is not in 1 .."),
    ({}, "model.pt photo.png --threshold nan", "not in 0 .. 1"),
    ({}, "model.pt photo.png --threshold 0.5 --top 2", "not allowed with"),
    ({}, "model.pt photo.png --device cuda:77", "--device cuda:77"),
    ({}, "model.pt --export out.pt", "neither in .onnx nor in .pt2"),
    ({}, "model.pt --export out.onnx", "; pip install onnx onnxscript onnxruntime"),
    ({}, "model.pt --export out.pt2 --json", "--export writes a model"),
    ({"pool": "max"}, "model.pt photo.png --save out --where", "--where needs a backbone"),
    ({}, "model.pt photo.png --where", "--where draws pictures"),
    ({"calibration": "x"}, "model.pt photo.png", "calibration is 'x', expected a list"),
    ({}, "model.pt photo.png --save out --font model.pt", "no TrueType font"),
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
    try:
        code = predict.main(arguments.split())
    except SystemExit as end:  # argparse's
        code = end.code
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert re.match(r"([\w.]+: )?error: ", sentence)
    assert words in sentence
    assert not list(tmp_path.glob("out*"))
