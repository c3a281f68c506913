"""People's own photos: every form of labels, which photo is meant, what is held out, whole runs.

Oracles: one truth in the exports of four labelling tools, small files and splits by hand, random
splits, photos drawn in both ways they may be stored.
"""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import drawn_photo, random_targets, refused, scores_of
from PIL import Image

import data
import run
from datasets import catalogue, label_files, own_photos

# Four photos, as the tools' own exports have them. In Label Studio's there are besides two people's
# labels of sub/e.jpg, a skipped annotation (of c d.jpg), and a photo nobody has looked at (h.jpg).
CLASSES = ["cat", "dog", "fire hydrant"]
SHOWN = {"b.jpg": {"cat", "dog"}, "c d.jpg": {"fire hydrant"}, "f.jpg": set()}
SHOWN["sub/e.jpg"] = {"dog", "fire hydrant"}


def task(image, *choices, cancelled=False):
    results = [[{"type": "choices", "value": {"choices": c}}] if c else [] for c in choices]
    marks = [{"id": 1, "result": result, "was_cancelled": cancelled} for result in results]
    return {"id": 1, "annotations": marks, "drafts": [], "data": {"image": image}, "meta": {}}


TASKS = [
    task("/data/upload/1/77aa00bb-b.jpg", ["cat", "dog"]),
    task("/data/local-files/?d=photos/c%20d.jpg", ["fire hydrant"]),
    task("/data/local-files/?d=photos/sub/e.jpg", ["dog", "fire hydrant"], ["dog"]),
    task("/data/upload/1/0c0c0c0c-c_d.jpg", ["cat"], cancelled=True),
    task("s3://bucket/f.jpg", []),
    task("https://example.com/h.jpg"),
]
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>7</id><name>mytask</name><labels>
  <label><name>cat</name><type>tag</type></label><label><name>dog</name><type>tag</type></label>
  <label><name>fire hydrant</name><type>tag</type></label></labels></task></meta>
<image id="1" name="b.jpg" width="64" height="48">
  <tag label="cat" source="manual"></tag><tag label="dog" source="manual"></tag></image>
<image id="2" name="c d.jpg"><tag label="fire hydrant" source="manual"></tag></image>
<image id="3" name="sub/e.jpg" width="64" height="48">
  <tag label="dog" source="manual"></tag><tag label="fire hydrant" source="manual"></tag></image>
<image id="4" name="f.jpg" width="64" height="48"></image></annotations>"""
MARKS = [(1, 1), (1, 2), (2, 3), (4, 2), (4, 3)]
COCO = {  # datumaro's "coco_labels"
    "categories": [{"id": i, "name": c, "supercategory": ""} for i, c in enumerate(CLASSES, 1)],
    "images": [{"id": i, "file_name": name, "license": 0} for i, name in enumerate(SHOWN, 1)],
    "annotations": [{"id": 10 * i + j, "image_id": i, "category_id": j} for i, j in MARKS],
}
EXPORTS = {
    "label-studio.json": json.dumps(TASKS, indent=1),
    "cvat.xml": CVAT,
    "datumaro.json": json.dumps(COCO),
    "fiftyone.csv": "file,labels\nb.jpg,cat; dog\nc d.jpg,fire hydrant\n"
    "sub/e.jpg,dog; fire hydrant\nf.jpg,\n",
}


def shown_in(path, inside):
    """Photo in a folder -> its labels, and the classes, that a file names."""
    split = label_files.read_labels(path, "")
    shown = [{c for c, one in zip(split.classes, row, strict=True) if one} for row in split.targets]
    return dict(zip(own_photos.found(split.paths, inside), shown, strict=True)), split.classes


@pytest.mark.parametrize("name", EXPORTS)
def test_every_tools_export_names_the_same_photos_and_labels(tmp_path, name):
    (tmp_path / name).write_text(EXPORTS[name])
    assert shown_in(tmp_path / name, [*SHOWN]) == (SHOWN, CLASSES)


TAGS = 'file,labels\na.jpg,"cat; fire hydrant"\nsub/b.jpg,dog\nc.jpg,\na.jpg, dog \n'
COLUMNS = "image,fire hydrant,cat,dog\na.jpg,1,1,1\nsub/b.jpg,0,,1\nc.jpg,0,0,0\n"


@pytest.mark.parametrize(
    ("text", "classes"),
    [  # by name, or in the header's order
        (TAGS, CLASSES),
        (COLUMNS, ["fire hydrant", "cat", "dog"]),
        (COLUMNS.replace(",", ";"), ["fire hydrant", "cat", "dog"]),
        ("a.jpg;cat, fire hydrant, dog\nsub/b.jpg;dog\nc.jpg;\n", CLASSES),
        ("a.jpg\tcat|fire hydrant|dog\nsub/b.jpg\tdog\nc.jpg\t\n", CLASSES),
        ("x,y\n/my/a.jpg,cat|fire hydrant|dog\nC:\\my\\sub\\b.jpg,dog\nc.jpg,\n", CLASSES),
    ],
)
def test_a_csv_of_tags_by_hand_in_every_form(tmp_path, text, classes):
    (tmp_path / "tags.csv").write_text("\ufeff" + text, encoding="utf-8")
    shown = {"a.jpg": set(CLASSES), "sub/b.jpg": {"dog"}, "c.jpg": set()}
    assert shown_in(tmp_path / "tags.csv", [*shown]) == (shown, classes)
    paths = label_files.read_labels(tmp_path / "tags.csv", "in").paths
    assert re.fullmatch("in/(my/)?a.jpg in/(my/)?sub/b.jpg in/c.jpg", " ".join(paths))


def arguments(out, photos, labels=None, more=""):
    fixed = "--recipe paper --backbone tresnet_tiny --image-size 32 --epochs 1 --workers 0"
    fixed += f" --device cpu --weights none --out {out} --photos {photos} {more}"
    return fixed.split() + (["--labels", f"{labels}"] if labels else [])


# Label Studio's other exports; a CSV's row has its labels as text, or where there are two as JSON.
MIN = '[\n{\n  "image": "\\/data\\/upload\\/1\\/a.jpg",\n  "tags": "cat",\n  "annotation_id": 1\n}]'
CHOICES = """"annotation_id","annotator","created_at","id","image","lead_time","tags","updated_at"
1,"1","2024-05-01T09:00:10.123456Z",1,"/data/upload/1/3f2a9c1b-a.jpg",3.5,"cat",""
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,cat,dog\nb.jpg,cat\n", "row 2 has 2 cells, expected 3"),
        ("../a.jpg,cat\n", "a path inside the image folder"),
        ("file,cat,cat\na.jpg,0,1\n", "label 'cat' is there twice"),
        ("", "it is empty"),
        ("a.jpg,\xff\n", "UTF-8"),
        (json.dumps(COCO | {"annotations": []}), "4 images and no annotation: tags"),  # CVAT's
        ("0 0.512 0.431 0.250 0.310\n", "looks like YOLO's, which"),
        ("path: ../mine\ntrain: images/train\nnc: 3\n", "looks like YOLO's list"),
        (MIN, "looks like Label Studio's CSV or JSON-MIN"),
        (CHOICES, "looks like Label Studio's CSV or JSON-MIN"),
        ("image," + CHOICES.replace(",", "\t"), "looks like Label Studio's CSV or JSON-MIN"),
        ('filepath,tags,labels\na.jpg,,"classifications,_cls"\n', "looks like FiftyOne's CSV"),
        ("file,labels\n", "has no labels"),
        ("file,cat,dog\na.jpg,WAHR,FALSCH\n", "the columns file, cat, dog; expected a photo and"),
        ("file,labels,by\na.jpg,cat,me\n", "the columns file, labels, by; expected a photo and"),
        ("PK\x03\x04\x14", "a zip; unpack it"),
        ('<?xml version="1.0" encoding="utf-9"?><annotations/>', "not valid XML (unknown encod"),
        ("<annotation><filename>a.jpg</filename></annotation>", "no images; of XML, CVAT's"),
    ],
)
def test_labels_that_are_wrong_or_foreign_are_one_sentence(tmp_path, capsys, text, words):
    (tmp_path / "labels").write_bytes(text.encode("latin-1"))
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path, tmp_path / "labels"))
    assert re.search(r"/labels\W.*" + re.escape(words), sentence)


def write_photos(folder, **seeds):
    """Files of these names, the same where the seeds are."""
    for name, seed in seeds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(folder / name)


def test_swapped_options_and_folders_of_splits_are_one_sentence(tmp_path, capsys):
    write_photos(tmp_path, **{"val/a.png": 0, "Training/c.png": 2, "b.png": 1})
    (tmp_path / "tags.csv").write_text("b.png,cat\n")
    swapped = arguments(tmp_path / "out", tmp_path / "tags.csv", tmp_path)
    assert "tags.csv is no folder of photos" in refused(capsys, swapped)
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path))
    assert "folders Training and val, which are no labels" in sentence
    (tmp_path / "Training").rename(tmp_path / "car")  # val may be a label where no train is
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path))
    assert "of 3 photos none with a label can be held out" in sentence
    assert not (tmp_path / "out/val-photos.json").exists()


def test_the_photo_that_is_meant_is_found_or_is_said_to_be_ambiguous():
    for name, inside, expected in [
        ("my/set/sub/a.jpg", ["a.jpg", "sub/a.jpg"], "sub/a.jpg"),  # the longest end of the path
        ("other/a.jpg", ["sub/a.jpg", "b.jpg"], "sub/a.jpg"),  # the only one of its name
        ("upload/1/3f2a9c1b-my_cat_1.jpg", ["my cat (1).jpg"], "my cat (1).jpg"),
        ("3f2a9c1b-a.jpg", ["a.jpg", "x/3f2a9c1b-a.jpg"], "x/3f2a9c1b-a.jpg"),  # its own digits
        ("gone.jpg", ["a.jpg"], "gone.jpg"),  # which is told later, with all that are missing
    ]:
        assert own_photos.found([name], inside) == [expected]
    for name, inside in {
        "x/a.jpg": ["y/a.jpg", "z/a.jpg"],
        "3f2a9c1b-a_b.jpg": ["a b.jpg", "y/a_b.jpg"],
    }.items():
        with pytest.raises(ValueError, match=f"{name} may be {inside[0]} or {inside[1]}; write"):
            own_photos.found([name], inside)


def test_folders_are_labels_and_one_photo_in_two_of_them_has_both(tmp_path, capsys):
    seeds = {"cat/a.png": 0, "dog/x/copy.png": 0, "dog/b.png": 1, "c.png": 2}
    write_photos(tmp_path, **seeds, **{".thumbs/a.png": 3, "cat/.hidden.png": 4})
    for name in ("phone.heic", "cat/phone.HEIC", "cat/.DS_Store", "notes.txt"):
        (tmp_path / name).write_text("no photo")
    split = own_photos.read(str(tmp_path), None)
    assert split.paths == [f"{tmp_path}/{name}" for name in ("c.png", "cat/a.png", "dog/b.png")]
    assert (split.classes, split.targets.tolist()) == (["cat", "dog"], [[0, 0], [1, 1], [0, 1]])
    note = "left out 2 .heic, 1 .txt (pip install pillow-heif to read HEIC)"
    assert note in capsys.readouterr().out


def test_val_has_a_fifth_of_every_label_where_no_two_are_in_one_photo():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 25, 12)  # of photos of a label; 40 have none
        label = rng.permutation(np.repeat(range(13), [*counts, 40]))  # of each photo; 12: none
        held = own_photos.stratified(np.eye(13, 12, dtype=np.uint8)[label], 0.2)
        found = np.bincount(label[held], minlength=13)[:12]
        assert np.abs(found - counts / 5).max() < 1
        assert ((found > 0) & (found < counts))[counts >= 5].all()
        assert abs(held.sum() - len(label) / 5) < 1


def test_val_lacks_fewer_rare_labels_than_photos_drawn_by_lot():
    lacking = np.zeros(2, int)  # labels, over all seeds: ours, random of the same size
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = random_targets(300, 60, rng.uniform(0.005, 0.05, 60), seed)  # about 1 to 15 each
        ours = own_photos.stratified(targets, 0.2)
        for k, held in enumerate((ours, rng.permutation(ours))):
            lacking[k] += (targets.any(0) & ~targets[held].any(0)).sum()
    assert lacking[0] < 0.6 * lacking[1]


@pytest.mark.parametrize("photos", [["cat dog", "cat", "dog", ""], ["cat dog", "cat dog", *"dd"]])
def test_halves_by_hand_the_same_at_every_call(photos):
    # Halves with half of each label: the first photo and the fourth, against the two between; and
    # one of the first two with one of the last two, whichever, which takes the rare cats first.
    targets = np.array([["c" in photo, "d" in photo] for photo in photos], np.uint8)
    for seed in range(10):
        half, again = (own_photos.stratified(targets, 0.5, seed) for _ in range(2))
        assert half.tolist() == again.tolist()
        assert [half.sum(), *targets[half].sum(0)] == [2, *targets.sum(0) / 2]


@pytest.mark.parametrize("augment", [False, True])
def test_photos_are_upright_in_training_and_in_evaluation(tmp_path, monkeypatch, augment):
    # Orientation 6: row 0 of the file is the right edge, its column 0 the top.
    photo, exif = drawn_photo(size=(64, 64)), Image.Exif()
    exif[0x112] = 6
    stored = photo.transpose(Image.Transpose.ROTATE_90)
    monkeypatch.setattr(data, "augment", lambda image, rng: image)
    for name, size, error in (("a.png", 64, 0), ("a.jpg", 32, 4)):  # of JPEG a draft of half size
        stored.save(tmp_path / name, exif=exif)
        (tmp_path / "tags.csv").write_text(f"{name},cat\n")
        split = own_photos.read(str(tmp_path), f"{tmp_path}/tags.csv")
        upright = data.MultiLabelImages(split, size, augment)[0, 0][0]
        as_stored = np.asarray(data.read_image(tmp_path / name, size, augment))
        for pixels, image in ((upright, photo), (as_stored, stored)):
            expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), int)
            assert np.abs(pixels - expected).mean() <= error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run on five photos each of a cat, a dog, a bird and nothing; and what it printed."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    write_photos(photos, **{f"{i}.png": i for i in range(20)})
    rows = [f"{i}.png,{['cat', 'dog', 'bird', ''][i % 4]}\n" for i in range(20)]
    (photos / "tags.csv").write_text("".join(rows))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run.main(arguments(out, photos, photos / "tags.csv")) == 0
    return photos, out, printed.getvalue()


def test_a_run_holds_out_one_photo_of_five_and_foretells_how_long_it_takes(whole):
    _, out, printed = whole
    held = json.loads((out / "val-photos.json").read_text())
    assert sorted(int(name.removesuffix(".png")) % 4 for name in held) == [0, 1, 2, 3]
    targets = scores_of(out, "gcn-pca")[1]  # one of each; the photo without a label is kept
    assert sorted(targets.tolist()) == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert "train: 16 images, 4 of them without a label; 3 labels" in printed
    assert 0 < printed.index("expected: about") < printed.index("epoch")


def test_val_is_the_same_in_another_run_and_a_photo_added_later_is_for_training(
    whole, tmp_path, capsys
):
    photos, out, _ = whole
    again, grown, more = tmp_path / "again", tmp_path / "grown", "--phase backbone"
    assert run.main(arguments(again, photos, photos / "tags.csv", more)) == 0
    kept = (out / "val-photos.json").read_text()
    assert (again / "val-photos.json").read_text() == kept
    shutil.copytree(photos, grown)
    write_photos(grown, **{"new.png": 20})
    (grown / "tags.csv").write_text("new.png,bird\n" + (photos / "tags.csv").read_text())
    capsys.readouterr()
    assert run.main(arguments(again, grown, grown / "tags.csv", more + " --fresh")) == 0
    assert re.search(r"val: 4 of the 21 .*\ntrain: 17 images", capsys.readouterr().out)
    assert (again / "val-photos.json").read_text() == kept


def test_a_photo_in_train_and_val_is_told(tmp_path, capsys):
    write_photos(tmp_path / "train", **{"cat/a.png": 0, "dog/b.png": 1})
    write_photos(tmp_path / "val", **{"cat/x.png": 0, "dog/y.png": 2})
    val = {"val_photos": f"{tmp_path}/val", "val_labels": None, "kept": tmp_path / "kept.json"}
    catalogue.load("own", f"{tmp_path}/train", True, labels=None, **val)
    told = f"1 val photos are training photos, byte for byte: {tmp_path}/val/cat/x.png"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("given", ["--photos x", "--train-json x", "--val-json x"])
def test_nobodys_photos_train_under_the_demos_preset(given):
    args = run.parse_args(given.split())
    assert args.dataset in ("own", "coco")
    assert (args.backbone != "tresnet_tiny", args.epochs) == (True, 40)
