"""TODO"""

import csv
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import data
import run
from experiments import evidence
from extras import table
from runtime import reading


def test_evidence_scores_labels_of_ten_photos_and_not_the_most_frequent_one():
    # 30 photos. Label 0 shows in 20, 1 and 2 in 10, 3 in 9. The logits of 1 put its positives
    # first (AP 1); 2's put them last, at ranks 21 to 30: AP is the mean of k / (20 + k).
    targets = np.zeros((30, 4), dtype=np.uint8)
    targets[:20, 0] = targets[:10, 1] = targets[:10, 2] = targets[:9, 3] = 1
    falling = -np.arange(30.0)
    logits = np.stack([falling, falling, -falling, falling], axis=1)
    last = sum(k / (20 + k) for k in range(1, 11)) / 10
    figures = evidence.figures(logits, targets)
    assert figures["labels_10"] == 2
    assert figures["mAP_10"] == pytest.approx(50 * (1 + last), abs=1e-3)
    assert figures["mAP_without"] == pytest.approx(100 * (2 + last) / 3, abs=1e-3)
    assert figures["mAP"] == pytest.approx(100 * (3 + last) / 4, abs=1e-3)


def test_evidence_pairs_the_seeds(capsys):
    rows = [("a", 1, 10.0), ("a", 2, 12.0), ("b", 1, 11.0), ("b", 2, 14.0)]
    rows = [dict(zip(("setting", "seed", "mAP_10"), row, strict=True)) for row in rows]
    evidence.show("table", rows, "a")
    # b - a is 1 and 2: mean 1.5, deviation 0.71; b itself 12.5 and 2.12.
    lines = capsys.readouterr().out.splitlines()
    assert "| b | 12.50 +- 2.12 | 1.50 +- 0.71 |" in lines


def test_evidence_trains_every_row_and_goes_on_where_it_was(demo, tmp_path, monkeypatch):
    ran = []

    def here(command, **_):  # a process of its own takes two seconds to start
        ran.append(command[2:])
        code = run.main([*command[2:], "--workers", "0"])
        return SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(evidence.subprocess, "Popen", here)
    monkeypatch.setattr(evidence, "JOINT", {"as in the table": "--nodes pca"})
    monkeypatch.setattr(evidence, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    few = ("F_PCA", "F_PCA, no graph", "F_W")
    monkeypatch.setattr(evidence, "FROZEN", {name: evidence.FROZEN[name] for name in few})
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\n")
    command = ["--data", demo, "--glove", tmp_path / "glove.txt", "--out", tmp_path / "out"]
    command += ["--csv", tmp_path, "--seeds", "3", "--jobs", "1", "--epochs", "2", "1", "--"]
    command += "--backbone tresnet_tiny --image-size 32 --batch-size 4 --device cpu".split()
    for _ in range(2):
        assert evidence.main(list(map(str, command))) == 0
    assert len(ran) == 3 + 3  # three runs a seed, three of the part joint; none twice
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    epochs = ["2", "1", "1", "1", "1"]  # direct; F_I, F_PCA, F_W and direct again, each from it
    assert [(row["seed"], row["epochs"]) for row in rows] == [("3", number) for number in epochs]
    for row in rows:
        folder = tmp_path / "out" / f"seed{row['seed']}{row['setting'] and '-longer'}"
        names = {label: name for name, label in table.MODELS.items()}
        stored = json.loads((folder / f"metrics-{names[row['model']]}.json").read_text())
        assert float(row["mAP"]) == pytest.approx(stored["mAP"], abs=1e-3)
        (without,) = stored["mAP_without"].values()
        assert float(row["mAP_without"]) == pytest.approx(without, abs=1e-3)
    with open(tmp_path / "frozen.csv") as file:
        frozen = list(csv.DictReader(file))
    assert [row["setting"] for row in frozen][-4:] == ["linear head, learning rate 0.01", *few]
    with open(tmp_path / "joint.csv") as file:
        joint = [row["setting"] for row in csv.DictReader(file)]
    assert joint == ["as in the table", "longer"]
    held_out = [
        json.loads((tmp_path / f"out/held-out-{name}.json").read_text())
        for name in ("train", "val")
    ]
    ids = [{photo["id"] for photo in part["images"]} for part in held_out]
    assert (len(ids[0]), len(ids[1]), len(ids[0] & ids[1])) == (20, 4, 0)


def test_evidence_stops_everything_at_the_first_error(tmp_path, monkeypatch, capsys):
    began, ended, both, stopped = [], [], threading.Barrier(2), threading.Event()

    def start(command, stdout, **_):
        began.append(command[command.index("--seed") + 1])
        seed = began[-1]
        stdout.write(f"epoch 1\nerror: disk {seed} is full\n")

        def wait():
            both.wait(timeout=60)
            if seed != "1":  # it goes on until it is stopped
                ended.append(stopped.wait(timeout=20))
            return 2

        return SimpleNamespace(wait=wait, terminate=stopped.set)

    monkeypatch.setattr(evidence.subprocess, "Popen", start)
    command = f"--data d --glove g --part table --csv {tmp_path}/csv --out {tmp_path}/out"
    assert evidence.main(command.split()) == 2
    assert sorted(began) == ["1", "2"]  # 3 never began
    assert ended == [True]
    assert "error: disk 1 is full" in capsys.readouterr().err
    assert not (tmp_path / "csv").exists()


def test_the_evidences_photos_are_taken_from_both_parts_of_coco_by_their_ids(tmp_path):
    source = Path(__file__).parent / "results"
    with open(source / "photos.csv") as file:
        rows = [(row["split"], int(row["id"])) for row in csv.DictReader(file)]
    ours = {name: {i for split, i in rows if split == name} for name in ("train", "val")}
    assert (len(ours["train"]), len(ours["val"]), len(rows)) == (2118, 705, 2823)
    ids = {name: sorted(ours[name]) for name in ours}
    photos = {  # of either official part: one of our train, one of our val, one of neither photos
        "train": [ids["train"][0], ids["val"][0], 10**7],
        "val": [ids["train"][1], ids["val"][1], 10**7 + 1],
    }
    (tmp_path / "annotations").mkdir()
    for name, part in photos.items():
        (tmp_path / f"{name}2014").mkdir()
        images = [{"id": i, "file_name": f"COCO_{name}2014_{i:012d}.jpg"} for i in part]
        for image in images:
            (tmp_path / f"{name}2014" / image["file_name"]).write_text(str(image["id"]))
        marks = [{"image_id": i, "category_id": 1} for i in part]
        document = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / f"annotations/instances_{name}2014.json").write_text(json.dumps(document))
    command = [sys.executable, source / "subset.py", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    for name, number in (("train", 0), ("val", 1)):
        json_path = tmp_path / f"subset/annotations/instances_{name}2014.json"
        split = data.load_coco(json_path, tmp_path / f"subset/{name}2014")
        reading.check_links(split.paths, tmp_path / f"subset/{name}2014")
        read = [int(Path(path).read_text()) for path in split.paths]
        assert sorted(read) == sorted([photos["train"][number], photos["val"][number]])
        assert split.targets.tolist() == [[1], [1]]
    graph = json.loads((tmp_path / "subset/graph.json").read_text())
    assert [image["id"] for image in graph["images"]] == [ids["train"][0], 10**7]
    assert [mark["image_id"] for mark in graph["annotations"]] == [ids["train"][0], 10**7]
