"""TODO"""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import argv, demo_split
from PIL import Image

import iml_gcn
import run
from extras import tensorboard


def events(folder):
    """What TensorBoard's own reader finds: {tag: [(step, value), ...]} of scalars, and the rest."""
    from tensortensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0, "images": 0}).Reload()
    scalars = {
        tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    return scalars, found


def test_tensorboard_shows_the_logs_and_the_metrics_numbers_also_after_a_resume(
    demo, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    epoch, options = tensorboard.Board.epoch, "--phase backbone eval --threshold 0.25 --tensorboard"

    def break_off(self, entry, speed):
        epoch(self, entry, speed)
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.Board, "epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, options, "--epochs 2"))
    assert run.main(argv(demo, tmp_path, options, "--epochs 2")) == 0  # does epoch 2 again
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scalars, found = events(tmp_path / "tensorboard" / "backbone")
    for tag, key in [("train/loss", "loss"), ("train/lr", "lr"), ("val/mAP", "mAP")]:
        assert [step for step, _ in scalars[tag]] == [1, 2]
        assert [v for _, v in scalars[tag]] == pytest.approx([entry[key] for entry in log])
    assert [step for step, _ in scalars["train/images per second"]] == [1]  # 2 had none left
    report = json.loads((tmp_path / "metrics-backbone.json").read_text())
    assert scalars["val/mAP"][-1][1] == pytest.approx(report["mAP"])
    for p in ("0.25", "0.5", "0.8"):
        last = {key: scalars[f"val at p over {p}/{key}"][-1] for key in report["thresholds"][p]}
        assert last == {k: (2, pytest.approx(v)) for k, v in report["thresholds"][p].items()}
    split = demo_split(demo, "val2014")
    with np.load(tmp_path / "scores-backbone.npz") as file:
        logits, targets = file["logits"], file["targets"]
    for j in tensorboard.curve_labels(targets):
        tag = f"PR/{split.classes[j]}, {sum(targets[:, j])} photos"
        assert [event.step for event in found.Tensors(tag)] == [1, 2]
        curve = torch.tensor(found.Tensors(tag)[-1].tensor_proto.float_val).view(6, 127)
        pairs = [(y, x >= 0) for x, y in zip(logits[:, j], targets[:, j], strict=True)]
        counts = [pairs.count(pair) for pair in [(1, True), (0, True), (0, False), (1, False)]]
        assert curve[:4, 63].tolist() == counts  # tp, fp, tn, fn at 63 / 126
    assert len([tag for tag in found.Tags()["tensors"] if tag.startswith("PR")]) == 9
    images = found.Images("val photos")
    assert [image.step for image in images] == [1, 2]
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as picture:
        photo = np.asarray(picture)[:200, :200]
    with Image.open(split.paths[0]) as image:
        expected = np.asarray(image.resize((200, 200), Image.Resampling.BILINEAR))
    assert (photo == expected).all()
    assert run.main(argv(demo, tmp_path, options, "--epochs 1 --fresh")) == 0
    scalars, _ = events(tmp_path / "tensorboard" / "backbone")
    assert [step for step, _ in scalars["train/loss"]] == [1]


def test_tensorboard_shows_the_graph_and_the_nodes_by_name(demo, finished, tmp_path):
    pytest.importorskip("tensorboard")
    out = shutil.copytree(finished, tmp_path / "out")
    for _ in range(2):  # what is there is replaced, though no model is trained
        assert run.main(argv(demo, out, "--phase gcn --tensorboard")) == 0
    folder = out / "tensorboard" / "labels"
    assert (folder / "projector_config.pbtxt").read_text().count("tensor_name") == 2
    for kind in ("image", "pca"):
        state = torch.load(out / f"gcn-{kind}.pt", weights_only=True)["state_dict"]
        shown = np.loadtxt(folder / "00000" / kind / "tensors.tsv", delimiter="\t")
        np.testing.assert_allclose(shown, state["head.nodes"].numpy(), rtol=1e-6)
        names = (folder / "00000" / kind / "metadata.tsv").read_text().splitlines()
        assert names == demo_split(demo, "train2014").classes
    (image,) = events(folder)[1].Images("adjacency")
    split = demo_split(demo, "train2014").select(np.arange(24))
    split = split.select(np.flatnonzero(split.targets.any(1)))
    A = iml_gcn.adjacency(*iml_gcn.cooccurrence(torch.from_numpy(split.targets)))
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        cells = np.asarray(picture)[-16 * 14 + 7 :: 14, -16 * 14 + 7 :: 14, 0]  # their middles
    assert ((cells < 255) == (A > 0).numpy()).all()


def test_adjacency_image_by_hand():
    A = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.8, 0.1], [0.0, 0.0, 0.8]])
    expected = [[0, 0, 255], [255, 0, 127], [255, 255, 0]]  # 0.2 is black, 0.1 half of it
    picture = np.asarray(tensorboard.matrix(A, ["a", "long name", "c"]))
    assert picture[-42 + 7 :: 14, -42 + 7 :: 14, 0].tolist() == expected
    rows, columns = picture[-42:, :-42], picture[:-42, -42:]  # names, dark on white
    assert (rows[14:28] < 128).sum() > (rows[:14] < 128).sum() > 0
    assert (columns[:, 14:28] < 128).sum() > (columns[:, :14] < 128).sum() > 0
    many = tensorboard.matrix(torch.eye(500), [f"label {j}" for j in range(500)])
    assert (np.asarray(many)[:, :, 0] == 255 - 255 * np.eye(500).repeat(2, 0).repeat(2, 1)).all()


def test_pr_curves_are_of_the_same_few_labels_from_frequent_to_rare():
    counts = [0, 9, 3, 8, 0, 7, 1, 6, 5, 4, 2]  # 9 of the 11 labels are shown, 8 are taken
    targets = np.array([[int(count > row) for count in counts] for row in range(9)], np.uint8)
    labels = tensorboard.curve_labels(targets).tolist()
    assert [counts[j] for j in labels] == [9, 8, 7, 6, 4, 3, 2, 1]  # of 0, 8/7, ... 8: 4 is 4.57
    assert tensorboard.curve_labels(targets[:1]).tolist() == [1, 2, 3, 5, 7, 8, 9, 10]
    assert tensorboard.curve_labels(targets[:0]).tolist() == []


def test_the_sheet_tells_right_from_wrong_and_missed(demo):
    split = demo_split(demo, "val2014").select(np.arange(4))
    split.targets[:], scores = 0, np.full((4, 16), 0.1)
    scores[0, 3] = scores[1, 3] = 0.81
    split.targets[0, 3] = split.targets[2, 3] = 1  # right, wrong, missed, nothing
    picture = np.asarray(tensorboard.sheet(scores, split))
    cells = [picture[200:334, :200], picture[200:334, 208:408]]
    cells += [picture[200:334, 416:616], picture[534:668, :200]]
    colours = [tensorboard.GREEN, tensorboard.RED, tensorboard.GREY]
    found = [[int((cell == colour).all(-1).any()) for colour in colours] for cell in cells]
    assert found == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_without_its_package_tensorboard_is_refused_before_anything_begins(
    demo, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        run.main(argv(demo, tmp_path / "out", "--tensorboard"))
    assert stop.value.code == 2
    assert "needs the package tensorboard" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
