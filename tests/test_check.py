"""run.py --check on a handful of photos with every kind of fault. Oracle: which photo got which."""

import pytest
from conftest import drawn_photo

import run
from datasets.doubtful_labels import almost_equal_names
from datasets.label_names import perhaps_several


@pytest.fixture
def faulty(tmp_path):
    """a and b are good; copy is a, with another label; broken is cut off; gone is not there."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(["a.jpg", "b.jpg", "broken.jpg"]):
        drawn_photo(seed).save(folder / name)
    (folder / "copy.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes((folder / "broken.jpg").read_bytes()[:400])
    rows = ["a.jpg,cat", "b.jpg,Cat;dog", "copy.jpg,dog", "broken.jpg,dog", "gone.jpg,cat"]
    (tmp_path / "labels.csv").write_text("".join(f"{row}\n" for row in rows))
    return tmp_path


def test_check_finds_missing_broken_twin_and_doubtful_ones_and_writes_nothing(faulty, capsys):
    before = sorted(faulty.rglob("*"))
    options = ["--check", "--photos", f"{faulty}/photos", "--labels", f"{faulty}/labels.csv"]
    assert run.main([*options, "--out", f"{faulty}/out"]) == 1
    lines = capsys.readouterr().out.splitlines()
    photos = faulty / "photos"
    assert "photos: 5 photos, 0 of them without a label; 3 labels" in lines
    assert "labels of almost the same name: 1: Cat 1 / cat 2" in lines
    assert "3 labels with fewer than 5 photos: Cat 1, cat 2, dog 3" in lines
    assert f"missing photos: 1: {photos}/gone.jpg" in lines
    assert "photos that cannot be read: 1" in lines
    assert any(f"cannot read photo {photos}/broken.jpg" in line for line in lines)
    assert "photos that have copies: 1" in lines
    assert lines.count(f"    {photos}/a.jpg and {photos}/copy.jpg") == 2
    assert "copies with different labels: 1" in lines
    assert any(line.startswith("2 photos cannot be used: correct the names") for line in lines)
    assert sorted(faulty.rglob("*")) == before


def test_check_of_train_and_val_names_the_photos_that_are_in_both(faulty, capsys):
    (faulty / "labels.csv").write_text("b.jpg,dog\na.jpg,cat\n")
    (faulty / "val.csv").write_text("copy.jpg,cat\n")
    options = ["--check", "--photos", f"{faulty}/photos", "--labels", f"{faulty}/labels.csv"]
    assert run.main([*options, "--val-labels", f"{faulty}/val.csv"]) == 0
    printed = capsys.readouterr().out
    assert f"photos with copies in both train and val: 1: {faulty}/photos/a.jpg" in printed
    assert "copies with different labels: 0\n" in printed
    assert "all photos can be used, but look at the labels in doubt above; leave" in printed


@pytest.mark.parametrize(
    ("photos", "pairs"),
    [
        ({"dog": 9, "dog ": 9}, ["dog 9 / dog  9"]),  # a blank too many
        ({"giraffe": 30, "girafe": 2, "zebra": 9}, ["girafe 2 / giraffe 30"]),  # a letter too few
        ({"giraffe": 30, "girrafe": 1}, ["girrafe 1 / giraffe 30"]),  # two letters swapped
        ({"giraffe": 30, "geraffe": 0}, ["geraffe 0 / giraffe 30"]),  # another letter
        ({"dog": 30, "dogs": 28, "boxes": 1, "box": 2}, ["dog 30 / dogs 28", "boxes 1 / box 2"]),
        ({"fire hydrant": 9, "Fire-Hydrant": 9}, ["fire hydrant 9 / Fire-Hydrant 9"]),
        (
            {"giraffes": 9, "girafe": 2, "Girafe": 9},
            ["girafe 2 / Girafe 9", "girafe 2 / giraffes 9"],
        ),
        ({"giraffe": 2, "girafe": 2}, ["girafe 2 / giraffe 2"]),  # both rare, and long
        ({"horse": 30, "house": 20}, []),  # both are frequent
        ({"horse": 4, "house": 6}, []),  # neither is
        ({"cat": 30, "cap": 1, "car": 2}, []),  # short
        ({"class A": 30, "class B": 1, "Type I": 30, "Type II": 1, "stage_a": 9, "stage_b": 1}, []),
        ({"+": 9, "-": 9, "😀": 9, "😡": 9}, []),
        ({"zone 1": 30, "zone 2": 1, "zone 3": 2}, []),  # numbers
        ({"cat": 9, "cat\u200b": 3}, ["cat 9 / cat\\u200b 3"]),
        ({"co\u00adop": 9, "coop": 9}, ["co\\xadop 9 / coop 9"]),
        ({"ss": 9, "s": 9, "glass": 9}, ["ss 9 / s 9"]),
    ],
)
def test_names_that_may_be_one_label(photos, pairs):
    assert almost_equal_names(photos) == pairs


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["猫、犬", "鳥；馬", "a،b", "x\ty"], ["猫、犬", "鳥；馬", "a،b", "x\ty"]),
        (["cat/dog", "dog/cow", "cow/cat", "cat"], ["cat/dog", "dog/cow", "cow/cat"]),
        (["cat & dog", "cat", "dog", "rock & roll", "rock"], ["cat & dog"]),
        (["cat, dog", "cat", "dog", "sofa, couch", "sofa"], ["cat, dog"]),
        (["#cat#dog", "#cat", "#dog"], ["#cat#dog"]),
        (["AC/DC", "C++", "C", "A+", "t-shirt", "hot dog", "dog", "テディ・ベア"], []),
    ],
)
def test_names_that_may_be_several_labels(names, expected):
    assert perhaps_several(names) == expected


def test_check_names_labels_that_may_be_several(faulty, capsys):
    (faulty / "labels.csv").write_text("file,labels\na.jpg,猫、犬\nb.jpg,鳥\ncopy.jpg,猫、犬\n")
    options = ["--check", "--photos", f"{faulty}/photos", "--labels", f"{faulty}/labels.csv"]
    assert run.main(options) == 0
    assert "labels that may be several in one: 1: 猫、犬 2\n" in capsys.readouterr().out


def test_check_names_labels_that_may_be_columns(faulty, capsys):
    table = "file,cat,train,fold,label,class 1\na.jpg,1,1,1,0,1\nb.jpg,1,0,1,1,1\n"
    (faulty / "labels.csv").write_text(table)
    options = ["--check", "--photos", f"{faulty}/photos", "--labels", f"{faulty}/labels.csv"]
    assert run.main(options) == 0
    sentence = "labels that may be the names of columns or parts: 2: fold 2, label 1\n"
    assert sentence in capsys.readouterr().out


def test_check_refuses_val_labels_that_training_lacks_as_a_run_does(faulty, capsys):
    (faulty / "labels.csv").write_text("b.jpg,dog\na.jpg,cat\n")
    (faulty / "val.csv").write_text("a.jpg,cow\nb.jpg,dog\n")
    options = ["--check", "--photos", f"{faulty}/photos", "--labels", f"{faulty}/labels.csv"]
    assert run.main([*options, "--val-labels", f"{faulty}/val.csv"]) == 2
    printed = capsys.readouterr()
    assert "1 of 2 val labels are not among those of the training photos: cow" in printed.err
    assert "copies with different labels: 0" in printed.out  # a.jpg is no copy of itself
