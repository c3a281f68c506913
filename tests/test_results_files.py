"""What phase eval leaves for people: labels.csv, results.md, its thresholds, mistakes.jpg.

Oracles: photos and labels worked out by hand; Python's csv reader; a reader of Markdown in ten
lines; the width of a terminal; a shell.
"""

import csv
import json
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from conftest import drawn_photo
from PIL import Image

import data
import metrics
from reports import (
    labels_table,
    markdown,
    metrics_files,
    mistakes,
    operating_points,
    pictures,
    results,
)
from runtime.folder import Folder

# Five photos, three labels, above a half: cat is missed twice and a dog is seen in its place both
# times, a cow once; dog is right once of three times; nobody shows a cow.
CLASSES = ["cat", "dog", "cow"]
TARGETS = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.uint8)
SCORES = np.array(
    [[0.4, 0.9, 0.8], [0.2, 0.7, 0.035], [0.9, 0.6, 0.2], [0.035, 0.3, 0.035], [0.035, 0.2, 0.035]]
)


CAT = labels_table.LabelRow("cat", "a.pt", 9, 3, 70.0, 100.0, 33.33, 50.0, "dog", 2)


def logits_of(scores):
    return np.log(scores / (1 - scores))


def test_a_label_is_mistaken_for_what_is_wrongly_seen_where_it_is_missed():
    labels, photos = labels_table.predicted_instead(SCORES > 0.5, TARGETS > 0)
    assert (labels[0], photos.tolist()) == (1, [2, 0, 0])


def test_rows_of_labels_by_hand():
    ap = [70.0, 60.0, None]
    training = np.array([9, 3, 0])
    rows = labels_table.rows_of_model("a.pt", CLASSES, training, TARGETS, SCORES > 0.5, ap)
    assert rows == [  # precision, recall, F1: cat 1 of 1, 1 of 3; dog 1 of 3, 1 of 2; cow 0 of 1
        ("cat", "a.pt", 9, 3, 70.0, 100.0, 33.33, 50.0, "dog", 2),
        ("dog", "a.pt", 3, 2, 60.0, 33.33, 50.0, 40.0, None, None),
        ("cow", "a.pt", 0, 0, None, 0.0, None, None, None, None),
    ]
    other = [row._replace(model="b.pt") for row in rows]
    ordered = labels_table.worst_first([*rows, *other], "a.pt")
    names = [(row.label, row.model) for row in ordered]
    assert names == [(name, model) for name in ("dog", "cat", "cow") for model in ("a.pt", "b.pt")]


def test_labels_with_few_training_photos_are_to_be_collected_first():
    assert labels_table.to_collect(CLASSES, np.array([5, 4, 0])) == (
        "2 labels have fewer than 5 training photos (cow 0, dog 4): collect these first"
    )
    assert labels_table.to_collect(CLASSES, np.array([5, 5, 5])) == ""


def test_labels_that_are_never_found_are_named_if_they_have_training_photos():
    rows = [CAT]
    assert labels_table.never_found(rows) == ""
    for name, training, val in (("cow", 6, 2), ("owl", 4, 2), ("emu", 6, 0)):
        row = CAT._replace(label=name, training_photos=training, val_photos=val, AP=5.0)
        rows.append(row._replace(recall=0.0 if val else None))
    expected = "never found on val: cow (0 of 2 val photos, 6 in training, AP 5); "
    assert labels_table.never_found(rows).startswith(expected)


def test_labels_of_few_val_photos_are_not_among_the_best_where_others_are():
    rows = [CAT._replace(val_photos=5, AP=40.0)]
    rows.append(CAT._replace(label="owl", val_photos=4, AP=100.0))
    assert labels_table.best_and_worst(rows) == (["AP: cat 40 (5)"], True)
    assert labels_table.best_and_worst(rows[1:]) == (["AP: owl 100 (4)"], False)


def test_the_thresholds_of_results_md_are_the_points_for_each_precision_by_hand():
    # Above 0.04 are 10 labels, 2 per photo, and all 5 that are right: the first threshold with 50%.
    # So it is up to 0.19, and 0.12 is the middle one of these 16.
    # 70% and 90% are not reached: of the highest two, 0.9, one is right. Above 0.5 are cat, dog,
    # dog, dog and cow, of which cat and the dog of photo 2 are right.
    low, own = operating_points.suggested(logits_of(SCORES), TARGETS, 0.5)
    assert low == pytest.approx((0.12, 5 / 10, 5 / 5, 10 / 5))
    assert own == pytest.approx((0.5, 2 / 5, 2 / 5, 5 / 5))
    words = operating_points.in_words(low, 0.5)
    assert words == "at 0.12: 50% of labels right, 100% found, 2.0 per photo"
    words = operating_points.in_words(own, 0.5)
    assert words.endswith("1.0 per photo (predict.py's own)")
    assert operating_points.suggested(logits_of(SCORES), TARGETS * 0, 0.5) == []


HOSTILE = ["=1+1", "+a", "-b", "@c", "\td", " =e", "＝f", 'g"h', "i,j;k", "l\nm", "\ud800", "人 é"]


def test_a_spreadsheet_reads_every_label_and_computes_none(tmp_path):
    path = tmp_path / "labels.csv"
    labels_table.save(path, [CAT._replace(label=name, AP=-1.5) for name in [*HOSTILE, None]])
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == labels_table.HEADER
    assert all(row[header.index("AP")] == "-1.5" for row in rows)  # numbers are no formulas
    for name, (cell, *_) in zip(HOSTILE, rows, strict=False):
        if name == "\ud800":  # half a letter: nothing can store it
            name = "\\ud800"
        assert cell.removeprefix("'") == name
        assert cell.strip()[0] not in "=+-@＝"
    assert rows[-1][0] == ""


def unescaped(text):
    """What Markdown shows of a text of one line that has no markup (CommonMark 2.4 and 2.5)."""
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, letter)
    return text


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "`x`",
        "<script>",
        "[x](http://evil.com)",
        "a*b*c",
        "__init__",
        "~~no~~",
        "$a$ &amp;",
        r"a\*b",
    ],
)
def test_names_are_shown_by_markdown_as_they_are(name):
    escaped = markdown.escape(name)
    assert unescaped(escaped) == name
    bare = re.sub(r"\\.", "", escaped)  # what is not escaped is no markup
    assert not re.search(r"[|`<>*_~$\[\]]|://", bare)


def test_addresses_become_no_links():
    for address in ("http://a.b", "HTTPS://a.b", "www.a.b", "me@a.b"):
        assert not re.search(r"(?i)https?:|www\.|\w@", markdown.escape(address))


@pytest.fixture
def evaluation(tmp_path):
    """Of two models on twelve photos and the hostile labels, named by a long path."""
    generator = np.random.default_rng(0)
    names = [name for name in HOSTILE if name != "l\nm"]
    names += ["x" * 90, "a|b`c`<script>", "[x](y)", "שלום"]
    photos = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(photos):
        drawn_photo(i).save(path)
    targets = (generator.random((12, len(names))) < 0.4).astype(np.uint8)
    split = data.Split([str(path) for path in photos], targets, names)
    about = {"parameters": 10**9, "dataset": "own", "unreadable": 1}
    logits, reports = {}, {}
    folder = Folder(tmp_path, names)
    for name, label in (
        ("backbone", "direct (ASL)"),
        ("evaluated", f"{tmp_path}/{'y' * 120}|<_.pt"),
    ):
        logits[name] = generator.standard_normal(targets.shape).astype(np.float32)
        reports[name] = metrics_files.save_numbers(
            folder,
            name,
            logits[name],
            split,
            about | {"label": label, "calibration": [2.0, -1.0], "threshold": 0.37},
            [0.5, 0.8],
        )
    return results.Evaluation("COCO 2014", 64, split, logits, reports, np.arange(len(names)))


def test_what_is_printed_fits_80_columns_and_the_whole_table_is_in_results_md(
    evaluation, tmp_path, capsys
):
    results.save(evaluation, Folder(tmp_path, evaluation.split.classes))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if " predict.py " not in line) <= 80
    page = (tmp_path / "results.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<" not in page
    for column in ("parameters", "CP", "CF1\\_h", "86.6"):
        assert column.replace("\\", "") in page.replace("\\", "")
    judgement = json.loads((tmp_path / "verdict.json").read_text())
    assert judgement["use"] == "backbone.pt"
    assert judgement["sentence"] in unescaped(page)
    with open(tmp_path / "labels.csv", encoding="utf-8-sig", newline="") as file:
        _, *labels = csv.reader(file)
    assert len(labels) == 2 * len(evaluation.split.classes)


@pytest.mark.parametrize("name", ["plain", "my run", "it's", 'a "b" $HOME', "long " * 40])
def test_the_printed_command_reaches_predict_whole(evaluation, tmp_path, capsys, name):
    folder = tmp_path / name
    folder.mkdir()
    results.save(evaluation, Folder(folder, evaluation.split.classes))
    *_, printed = re.split(r"to label photos:\s+", capsys.readouterr().out)
    script = "python() { printf '%s\\0' \"$@\"; }\n" + printed
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split("\0") == ["predict.py", str(folder), "PHOTOS", ""]
    if name == "plain":
        assert printed == f"python predict.py {folder} PHOTOS\n"


@pytest.fixture
def earlier(evaluation, tmp_path):
    """Another model in before-fresh/, whose labels stood in another order, with one more that was
    on no val photo; what its verdict.json holds; and say(), what is said of it."""
    split, folder = evaluation.split, Folder(tmp_path, evaluation.split.classes)
    judgement = results.judge(evaluation)

    def say():
        return results.before_fresh(evaluation, folder, judgement, "backbone")

    assert say() == ""
    logits = np.random.default_rng(0).normal(size=evaluation.logits["backbone"].shape)
    mAP = metrics.mean_average_precision(metrics.average_precision(logits, split.targets))
    models = {"backbone.pt": {"name": "direct", "mAP": mAP}}
    verdict = {"models": models, "val_id": judgement["val_id"]}
    old = tmp_path / "before-fresh"
    old.mkdir()
    (old / "verdict.json").write_text(json.dumps(verdict))
    classes = [*split.classes[:-1], "gone", split.classes[-1]][::-1]
    logits = np.insert(logits[:, ::-1], 1, 7.0, axis=1)
    np.savez(old / "scores-backbone.npz", logits=logits, classes=np.array(classes))
    return old, verdict, say


def test_the_model_before_fresh_is_compared_on_the_same_val_whatever_the_other_labels(
    evaluation, earlier, tmp_path, capsys
):
    old, verdict, say = earlier
    then = verdict["models"]["backbone.pt"]["mAP"]
    now = evaluation.reports["backbone"]["mAP"]
    change = f"on the same val photos it is now {now:.1f} ({now - then:+.1f}): "
    assert say().startswith(f"before --fresh, direct had an mAP of {then:.1f}; {change}")
    results.save(evaluation, Folder(tmp_path, evaluation.split.classes))
    assert say() in " ".join(capsys.readouterr().out.split())
    (old / "verdict.json").write_text(json.dumps(verdict | {"val_id": "0123456789abcdef"}))
    other = "on other val photos or labels: do not compare"
    assert say() == f"before --fresh, direct had an mAP of {then:.1f}, {other}"


def change_zip(path, place, value):
    """Change a byte of the first file's entry in the list at the end of a ZIP."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda old, text: (old / "verdict.json").write_text("{"),
        lambda old, text: (old / "verdict.json").write_text("[]"),
        lambda old, text: (old / "verdict.json").write_text("[" * 200_000),
        lambda old, text: (old / "verdict.json").write_text(
            re.sub(r'"mAP": [\d.]+', '"mAP": NaN', text)
        ),
        # Of another run than the scores: the model was not in the last --fresh.
        lambda old, text: (old / "verdict.json").write_text(
            re.sub(r'"mAP": [\d.]+', '"mAP": 9.9', text)
        ),
        lambda old, text: (old / "scores-backbone.npz").write_bytes(b""),
        lambda old, text: (old / "scores-backbone.npz").write_bytes(b"PK"),
        lambda old, text: np.savez(old / "scores-backbone.npz", logits=np.zeros(3), classes=["a"]),
        lambda old, text: np.savez(
            old / "scores-backbone.npz", logits=np.zeros((3, 1)), classes=["a"]
        ),
        lambda old, text: np.savez(old / "scores-backbone.npz", logits=np.zeros((3, 1)), classes=1),
        lambda old, text: change_zip(old / "scores-backbone.npz", 8, 1),  # flags: a password
        lambda old, text: change_zip(old / "scores-backbone.npz", 10, 99),  # kind of compression
        lambda old, text: (old / "scores-backbone.npz").unlink(),
    ],
)
def test_files_before_fresh_that_are_damaged_or_of_two_runs_are_not_compared(earlier, damage):
    old, verdict, say = earlier
    damage(old, json.dumps(verdict))
    assert say() == ""


def test_the_id_of_val_is_that_of_its_photos_and_the_names_on_them(evaluation):
    split = evaluation.split
    same = replace(
        split, classes=[*split.classes, "new"], targets=np.pad(split.targets, [(0, 0), (0, 1)])
    )
    renamed = replace(split, classes=[f"{name}s" for name in split.classes])
    assert results.val_id(same) == results.val_id(split)
    assert results.val_id(renamed) != results.val_id(split)
    assert results.val_id(split.select(np.arange(len(split))[::-1])) != results.val_id(split)


def test_numbers_of_labels_csv_are_those_of_predicts_row(evaluation, tmp_path):
    rows = results.label_rows(evaluation, "backbone")
    own = [row for row in rows if row.model == "backbone.pt"]
    recalls = [row.recall for row in own if row.recall is not None]
    assert np.mean(recalls) == pytest.approx(
        evaluation.reports["backbone"]["predict"]["CR"], abs=0.01
    )


def test_the_worst_mistakes_name_a_photo_once_and_a_label_as_rarely_as_can_be(monkeypatch):
    wrong = mistakes.most_confident_wrong(SCORES, TARGETS, 0.5)
    # Wrong are dog 0.9 and cow 0.8 of photo 0, dog 0.7 of photo 1.
    assert wrong == [(0, 1), (1, 1)]
    missed = mistakes.most_painful_missed(SCORES, TARGETS, 0.5)
    assert missed == [(1, 0), (3, 1), (0, 0)]  # cat 0.2, dog 0.3, cat 0.4
    monkeypatch.setattr(mistakes, "EACH", 2)  # two labels have mistakes, so each is named once
    assert mistakes.most_confident_wrong(SCORES, TARGETS, 0.5) == [(0, 1)]
    assert mistakes.most_painful_missed(SCORES, TARGETS, 0.5) == [(1, 0), (3, 1)]


def test_photos_of_several_folders_are_named_with_their_folder():
    for paths, name in (
        (["photos/cat/1.png", "photos/dog/1.png"], "dog/1.png"),
        (["photos/0.png", "photos/a/b/1.png"], "a/b/1.png"),
        (["photos/0.png", "photos/1.png"], "1.png"),
        (["0.png", "1.png"], "1.png"),
    ):
        assert pictures.file_name(data.Split(paths, TARGETS[:2], CLASSES), 1).text == name


def test_a_sheet_of_mistakes_shows_the_photos_that_are_wrong(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (90, 60), colour).save(path)
    split = data.Split(paths, TARGETS, CLASSES)
    mistakes.save(split, SCORES, 0.5, tmp_path / "mistakes.jpg", "direct")
    sheet = np.asarray(Image.open(tmp_path / "mistakes.jpg"), int)
    there = [bool((np.abs(sheet - colour).max(2) < 9).sum() > 2000) for colour in colours]
    assert there == [True, True, False, True, False]
    mistakes.save(split, TARGETS * 0.9, 0.5, tmp_path / "none.jpg", "direct")
    assert Image.open(tmp_path / "none.jpg").height < 150  # two captions
