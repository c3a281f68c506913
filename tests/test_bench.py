"""TODO"""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
from experiments import bench


def test_bench_takes_turns_and_its_medians_leave_the_first_call_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def lasting(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds.pop(0)

        return call

    ours, theirs = lasting("ours", [99, 3, 1, 2]), lasting("peer", [99, 8, 5, 50])
    medians = bench.alternate(3, ours=bench.timed(ours), peer=bench.timed(theirs))
    assert medians == {"ours": 2, "peer": 8}
    assert calls == ["ours", "peer"] * 4  # the first of each is not counted
    assert bench.alternate(3, both=iter([[1, 9], [3, 7], [2, 8]]).__next__)["both"].tolist() == [
        2,
        8,
    ]


def test_bench_table_has_ratios_to_the_first_and_empty_cells_for_an_absent_peer(capsys):
    rows = [("time", "{:.1f}", {"ours": 2, "b": 5}), ("size", "{:,}", {"ours": 4000, "a": 1000})]
    bench.table("what", ["ours", "a", "b"], rows)
    assert capsys.readouterr().out.strip().splitlines() == [
        "| what | ours | a | a / ours | b | b / ours |",
        "| --- | --- | --- | --- | --- | --- |",
        "| time | 2.0 |  |  | 5.0 | 2.50 |",
        "| size | 4,000 | 1,000 | 0.25 |  |  |",
    ]


def test_bench_says_which_peers_are_missing_and_measures_without_them(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SCORES", [(50, 3)])
    monkeypatch.setattr(bench, "convolution_ceiling", lambda dtype: 100.0)
    for name in ("sklearn", "sklearn.metrics", "torchmetrics"):
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    assert bench.main(["metrics", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not installed: pip install scikit-learn" in lines
    assert "not installed: pip install torchmetrics" in lines
    measured = next(line for line in lines if line.startswith("| 50 x 3"))
    assert re.fullmatch(r"\| 50 x 3, s \| 0\.\d+ \|  \|  \|  \|  \|", measured)


def test_a_measurement_that_fails_in_its_own_process_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"bench.read_ours gave no figures: .*no file .*nope"):
        bench.child("read_ours", str(tmp_path / "nope"), str(tmp_path / "cache.npz"))


def test_saved_bytes_are_those_of_each_stored_activation_once():
    weight = torch.ones(5, requires_grad=True)
    x = torch.ones(4, 5)

    def forward():  # (4, 5) float32 is 80 bytes
        y = (x * weight).exp()  # keeps x, the weight (left out), the result of exp
        y = y.view(20).sin()  # keeps its argument, exp's result once more: not counted again
        return (y.double() * 2).square().sum()  # keeps square's argument in float64: 160 bytes

    assert bench.saved_bytes(forward, [weight]) == 80 + 80 + 160
    assert bench.saved_bytes(forward, [weight, x]) == 80 + 160


def test_the_drawn_coco_file_holds_what_the_reader_finds_in_it(tmp_path):
    path = bench.write_coco(tmp_path / "drawn.json", 7, 50)
    document = json.loads(path.read_text())
    assert (len(document["images"]), len(document["annotations"])) == (7, 50)
    assert path.read_bytes() == bench.write_coco(tmp_path / "again.json", 7, 50).read_bytes()
    pairs = {(a["image_id"], a["category_id"]) for a in document["annotations"]}
    split = data.load_coco(path, tmp_path)
    assert set(zip(*(k.tolist() for k in split.targets.nonzero()), strict=True)) == pairs


def test_the_rebuilt_asl_pipeline_does_the_same_to_a_photo_as_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PHOTOS", 8)
    paths = sorted(bench.draw_photos(tmp_path).iterdir())
    images = data.MultiLabelImages(data.Split(paths, np.zeros((8, 1)), []), 64, augment=True)
    for row, path in enumerate(paths):
        ours = torch.from_numpy(images[0, row][0].copy()).permute(2, 0, 1) / 255  # (3, S, S)
        assert (bench.asl_image(path, 64, row) - ours).abs().mean() < 0.02
