"""The table of predict.py --csv, as a spreadsheet and as a file of labels.

Oracles: OWASP's list of how a formula begins; Python's csv; the labels that went in.
"""

import csv

import pytest

from datasets import own_photos
from datasets.label_files import read_labels
from datasets.predicted_labels import header_of, is_table_of_ours, row_of, row_of_scores
from runtime.csv_table import as_cell, csv_table, from_cell

PLAIN = ["cat", "traffic light", "5 o'clock", "a=b", "it's", "", "人", "c++", "'quoted'", "3-4"]
FORMULAS = ["=1+1", "+1", "-none", "@home", "\t=x", "\r=x", " =x", "＝x", "'=x", "''@x", "-"]


def test_no_cell_begins_as_a_formula_and_every_name_comes_back():
    for name in PLAIN:
        assert as_cell(name) == name
    for name in FORMULAS:
        assert not as_cell(name).lstrip(" ").startswith(tuple("=+-@\t\r＝＋－＠"))
    cells = [as_cell(name) for name in PLAIN + FORMULAS]
    assert [from_cell(cell) for cell in cells] == PLAIN + FORMULAS
    assert as_cell("half \ud800") == "half \\ud800"  # UTF-8 has no such letter


def write(path, rows, header=("photo", "labels", "scores")):
    with csv_table(path, list(header)) as add:
        for row in rows:
            add(row)


LABELS = {  # photo -> labels, as they must come back
    "a.jpg": ["cat", "salt, pepper"],
    "sub/b.jpg": [],
    "=cmd.jpg": ["=1+1", "-none", "x|y"],
    'quo"te, and;semi.jpg': ["'=x"],
    "人 Stühle.jpg": ["café", "人"],
    "-sub/new\nline.jpg": ["cat", "1", "a=b"],
}


def test_labels_come_back_from_the_table_as_run_reads_them(tmp_path):
    table, photos = tmp_path / "t.csv", tmp_path / "photos"
    for name in LABELS:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"")
    pairs = {name: [(label, 0.5) for label in labels] for name, labels in LABELS.items()}
    for root in ("", f"{photos}/"):  # as named on the command line
        write(table, [row_of(root + name, labels) for name, labels in pairs.items()])
        split = own_photos.read(str(photos), str(table))
        names = [path.removeprefix(f"{photos}/") for path in split.paths]
        assert names == list(LABELS)
        for row, labels in zip(split.targets, LABELS.values(), strict=True):
            assert {split.classes[j] for j in row.nonzero()[0]} == set(labels)
    with open(table, encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r"))]


def test_a_table_that_a_spreadsheet_saved_with_semicolons_is_read(tmp_path):
    (tmp_path / "t.csv").write_text('photo;labels;scores\r\na.jpg;"cat; dog";"0,9; 0,8"\r\n')
    split = read_labels(tmp_path / "t.csv", "photos")
    assert (split.paths, split.classes, split.targets.tolist()) == (
        ["photos/a.jpg"],
        ["cat", "dog"],
        [[1, 1]],
    )


@pytest.mark.parametrize("cell", ["cat, dog", "dog | cat"])
def test_a_table_that_was_corrected_with_another_separator_is_refused(tmp_path, cell):
    rows = [["a.jpg", "cat; dog", "0.9; 0.8"], ["b.jpg", cell, "0.9"]]
    write(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match=r"row 3, column 2 .* may be 2 labels"):
        read_labels(tmp_path / "t.csv", "photos")


@pytest.mark.parametrize("scores", [[0.25, 0.5], [0.0, 1.0], [1.0, 1.0]])
@pytest.mark.parametrize("classes", [["cat"], ["cat", "dog"], ["labels", "scores"]])
def test_a_table_of_scores_is_not_read_as_labels(tmp_path, classes, scores):
    rows = [row_of_scores(name, [s] * len(classes)) for name, s in zip("ab", scores, strict=True)]
    write(tmp_path / "t.csv", rows, header_of(classes, columns=True))
    with pytest.raises(ValueError, match=r"holds the scores that .* no labels"):
        read_labels(tmp_path / "t.csv", "photos")


@pytest.mark.parametrize("scores", [[], [[0.25, 0.5]], [[0.0, 1.0]], [[0.0, 0.0], [0.5, 0.5]]])
@pytest.mark.parametrize("names", [["cat", "dog"], ["x" * 1000 + "1", "x" * 1000 + "2"]])
def test_a_table_of_ours_is_known_whatever_it_holds(tmp_path, scores, names):
    classes = names * 60  # 120 kB of header, of the long names
    rows = [row_of_scores("a,\nb.jpg", row * 60) for row in scores]
    write(tmp_path / "t.csv", rows, header_of(classes, columns=True))
    assert is_table_of_ours(tmp_path / "t.csv")
    write(tmp_path / "t.csv", [row_of("a.jpg", [("cat", 1.0)])] if scores else [])
    assert is_table_of_ours(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text",
    [
        "photo,cat,dog\r\na.jpg,0,1\r\n",
        "photo,cat,dog\r\na.jpg,0.0,1.0\r\n",
        "file,cat\r\na.jpg,0.123456\r\n",
        "photo,labels\r\na.jpg,cat\r\n",
        "photo\r\na.jpg\r\n",
        "photo\r\n",
        "a note\r\n",
        '"',
    ],
)
def test_a_table_of_somebody_else_is_not_taken_for_ours(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8-sig"))
    assert not is_table_of_ours(tmp_path / "t.csv")


def test_the_apostrophes_of_a_table_whose_scores_were_deleted_are_no_part_of_names(tmp_path):
    rows = [row_of("=a.jpg", [("+1", 1), ("red", 1)]), row_of("b.jpg", [("'-x", 1)])]
    write(tmp_path / "t.csv", [row[:2] for row in rows], ["photo", "labels"])
    split = read_labels(tmp_path / "t.csv", "photos")
    assert split.paths == ["photos/=a.jpg", "photos/b.jpg"]
    assert split.classes == ["'-x", "+1", "red"]
    write(tmp_path / "t.csv", [row[:2] for row in rows], ["file", "labels"])  # not ours
    assert read_labels(tmp_path / "t.csv", "photos").classes == ["''-x", "'+1", "red"]
