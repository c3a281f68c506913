"""TODO"""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import argv, brute_force_ap, brute_force_metrics, demo_split, vg_photos, write_vg
from PIL import Image
from torch import nn

import backbones
import data
import iml_gcn
import metrics
import run
import tresnet
from runtime import loading


def test_embeddings_are_those_of_the_training_photos_as_they_are(demo, finished):
    model, _ = backbones.load_model(finished / "backbone.pt")
    split = demo_split(demo, "train2014")
    expected, counts = np.zeros((16, 512)), np.zeros(16)
    for path, target in zip(split.paths, split.targets, strict=True):
        with Image.open(path) as image:
            pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255
        with torch.no_grad():
            feature = model.backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        for j in np.flatnonzero(target):
            expected[j] += feature[0].numpy()
            counts[j] += 1
    expected /= np.maximum(counts, 1)[:, None]
    stored = torch.load(finished / "embeddings.pt", weights_only=True)
    np.testing.assert_allclose(stored["image"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert stored["counts"].tolist() == counts.tolist()


@pytest.mark.parametrize("kind", ["image", "pca"])
def test_nodes_reach_the_gcn_at_unit_length_or_as_they_come(demo, finished, tmp_path, kind):
    raw = torch.load(finished / "embeddings.pt", weights_only=True)[kind]
    length = sum(math.sqrt(sum(x * x for x in row)) for row in raw.tolist()) / 16
    out = shutil.copytree(finished, tmp_path / "out")
    for norm, factor in [(1, 1 / length), (0, 1), (3, 3 / length)]:
        more = f"--phase gcn --nodes {kind} --epochs 1 --eval-every 0 --fresh --node-norm {norm}"
        assert run.main(argv(demo, out, more)) == 0
        nodes = torch.load(out / f"gcn-{kind}.pt", weights_only=True)["state_dict"]["head.nodes"]
        torch.testing.assert_close(nodes, raw * factor)


def test_random_nodes_have_the_shape_and_scale_of_f_pca_and_nothing_else(demo, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    found = []
    for seed in (5, 5, 6):
        more = f"--phase gcn --nodes random --epochs 1 --eval-every 0 --fresh --seed {seed}"
        assert run.main(argv(demo, out, more)) == 0
        state = torch.load(out / "gcn-random.pt", weights_only=True)["state_dict"]
        found.append(state["head.nodes"])
    assert found[0].shape == (16, 16)
    assert torch.equal(found[0], found[1])
    assert float(found[0].norm(dim=1).mean()) == pytest.approx(1)
    # 256 numbers each, of deviation 1/4: correlations of independent ones stay within 4 / 16.
    for other in (found[2], torch.load(out / "embeddings.pt", weights_only=True)["pca"]):
        assert abs(np.corrcoef(found[0].flatten(), other.flatten())[0, 1]) < 0.25


@pytest.mark.parametrize("part", [1, 0.1, 0])
def test_the_backbone_learns_at_its_part_of_the_rate_or_not_at_all(demo, finished, tmp_path, part):
    out = shutil.copytree(finished, tmp_path / "out")
    more = f"--phase gcn --nodes pca --epochs 1 --limit 8 --fresh --lr 1e-3 --backbone-lr {part}"
    assert run.main(argv(demo, out, more)) == 0
    before, after = (
        torch.load(out / f"{name}.pt", weights_only=True)["state_dict"]
        for name in ("backbone", "gcn-pca")
    )
    moved = {
        key: float((after[key] - before[key]).abs().max())
        for key in before
        if key.startswith("backbone.") and before[key].is_floating_point()
    }
    if part == 0:  # weights and running statistics
        assert max(moved.values()) == 0
        return
    # One step: Adam's first has the length of the rate in every entry that has a gradient at all.
    weights = [value for key, value in moved.items() if key.endswith("conv.weight")]
    assert max(weights) == pytest.approx(1e-3 * part, rel=0.02)
    assert min(weights) == pytest.approx(1e-3 * part, rel=0.02)
    assert max(v for k, v in moved.items() if k.endswith("running_mean")) > 0


def test_the_label_graph_may_be_that_of_other_images(demo, finished, tmp_path, capsys):
    classes = torch.load(finished / "backbone.pt", weights_only=True)["classes"]
    # In other category order. Labels 2 and 5 share one image of the 3 with label 5, the 1 with 2.
    categories = [{"id": 100 - j, "name": name} for j, name in enumerate(classes)]
    marks = [(0, 2), (0, 5), (1, 5), (2, 5)]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"image_id": i, "category_id": 100 - j} for i, j in marks],
        "categories": categories,
    }
    (tmp_path / "graph.json").write_text(json.dumps(coco))
    out = shutil.copytree(finished, tmp_path / "out")
    more = f"--phase gcn --nodes pca --epochs 1 --limit 8 --fresh --tau 0.5 --graph-json {tmp_path}"
    assert run.main(argv(demo, out, f"{more}/graph.json")) == 0
    A_hat = torch.load(out / "gcn-pca.pt", weights_only=True)["state_dict"]["head.A_hat"]
    # P(5|2) = 1 is an edge, P(2|5) = 1/3 is none. Rows sum to 1 (label 2) or 0.8 (the others).
    expected = torch.eye(16)
    expected[2, 2], expected[2, 5] = 0.8, 0.2 / math.sqrt(0.8)
    torch.testing.assert_close(A_hat, expected)
    coco["categories"][3]["name"] = "cloud"
    (tmp_path / "graph.json").write_text(json.dumps(coco))
    assert run.main(argv(demo, out, f"{more}/graph.json")) == 2
    assert "their names differ" in capsys.readouterr().err


def test_phases_run_apart_with_workers_give_the_numbers_of_one_run_without(
    demo, finished, tmp_path
):
    for phase in ("backbone", "embed", "gcn", "eval"):
        assert run.main(argv(demo, tmp_path, "--workers 2 --phase", phase)) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in finished.iterdir()}
    for name in ("backbone", "gcn-image", "gcn-pca"):
        file = f"metrics-{name}.json"
        assert (tmp_path / file).read_text() == (finished / file).read_text()
        ours, other = (np.load(out / f"scores-{name}.npz") for out in (tmp_path, finished))
        assert (ours["logits"] == other["logits"]).all()


@pytest.mark.parametrize("name", ["backbone", "gcn-image", "gcn-pca"])
def test_stored_metrics_are_those_of_the_stored_scores(demo, finished, name):
    report = json.loads((finished / f"metrics-{name}.json").read_text())
    with np.load(finished / f"scores-{name}.npz", allow_pickle=False) as file:
        logits, targets = file["logits"].tolist(), file["targets"].tolist()
    assert targets == demo_split(demo, "val2014").targets.tolist()
    columns = list(zip(zip(*logits, strict=True), zip(*targets, strict=True), strict=True))
    AP = [100 * brute_force_ap(s, t) if any(t) else None for s, t in columns]
    assert list(report["AP"].values()) == pytest.approx(AP)
    defined = [ap for ap in AP if ap is not None]
    assert report["mAP"] == pytest.approx(sum(defined) / len(defined))
    assert report["left_out"] == AP.count(None)
    for p in ("0.5", "0.8"):
        # The sigmoid is (1 + tanh(s / 2)) / 2, which does not overflow.
        predicted = [[int(math.tanh(s / 2) > 2 * float(p) - 1) for s in row] for row in logits]
        assert report["thresholds"][p] == pytest.approx(brute_force_metrics(predicted, targets))
    top3 = [[int(s in sorted(row)[-3:]) for s in row] for row in logits]
    assert report["top3"] == pytest.approx(brute_force_metrics(top3, targets))


def test_a_model_remembers_the_threshold_of_its_highest_of1(demo, finished):
    for name in ("backbone", "gcn-pca"):
        with np.load(finished / f"scores-{name}.npz") as scores:
            probabilities, targets = 1 / (1 + np.exp(-scores["logits"])), scores["targets"]
        found = {}
        for p in range(5, 100, 5):
            hits = misses = alarms = 0
            for row, truth in zip(probabilities.flatten(), targets.flatten(), strict=True):
                hits += row > p / 100 and truth
                misses += row <= p / 100 and truth
                alarms += row > p / 100 and not truth
            found[p / 100] = 2 * hits / max(2 * hits + misses + alarms, 1)
        stored = torch.load(finished / f"{name}.pt", weights_only=True)["threshold"]
        assert found[stored] == max(found.values()) > found[0.8]


def test_evaluation_does_not_depend_on_the_batch_size(demo, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert run.main(argv(demo, tmp_path, "--phase eval --batch-size 5")) == 0
    for name in ("backbone", "gcn-pca"):
        ours, other = (np.load(out / f"scores-{name}.npz") for out in (tmp_path, finished))
        np.testing.assert_allclose(ours["logits"], other["logits"], rtol=1e-4, atol=1e-4)


def test_the_learning_rate_falls_tenfold_after_each_quarter_of_the_epochs(demo, tmp_path):
    assert run.main(argv(demo, tmp_path, "--phase backbone --epochs 8 --limit 8")) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # 40 epochs, x0.1 at 10, 20 and 30: 8 epochs, x0.1 at 2, 4 and 6
    expected = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert [entry["lr"] for entry in log] == pytest.approx(expected)


def test_images_without_a_label_are_dropped_unless_they_are_wanted(demo, tmp_path):
    root = shutil.copytree(demo, tmp_path / "data")
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    first = document["images"][0]["id"]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != first]
    path.write_text(json.dumps(document))
    _, dropped = run.load_data(run.parse_args(argv(root, tmp_path)))
    _, kept = run.load_data(run.parse_args(argv(root, tmp_path, "--keep-unlabelled")))
    assert kept.paths[1:] == dropped.paths
    assert (kept.targets.any(1).tolist(), len(kept)) == ([False] + [True] * 11, 12)


def test_one_batch_can_be_overfitted(demo):
    split = demo_split(demo, "train2014").select(np.arange(8))
    images, targets, *_ = loading.collate(
        [data.MultiLabelImages(split, 32)[0, row] for row in range(8)]
    )
    torch.manual_seed(0)
    A_hat = iml_gcn.normalise(iml_gcn.adjacency(*iml_gcn.cooccurrence(targets)))
    head = iml_gcn.LabelGCN(torch.randn(16, 16), A_hat, 512)
    model = iml_gcn.Model(tresnet.tresnet_tiny(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        logits = model(images.float() / 255)
        loss = iml_gcn.asymmetric_loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    ap = metrics.average_precision(logits.detach().numpy(), targets.numpy())
    assert metrics.mean_average_precision(ap) > 99


def test_logits_keep_float32s_precision_under_mixed_precision(demo, tmp_path):
    assert run.main(argv(demo, tmp_path, "--amp --epochs 1 --nodes pca")) == 0
    for name in ("backbone", "gcn-pca"):
        with np.load(tmp_path / f"scores-{name}.npz") as file:
            logits = torch.from_numpy(file["logits"])
        assert (logits.bfloat16().float() != logits).float().mean() > 0.9
        assert len(logits.unique()) > 0.95 * logits.numel()


def test_a_released_file_is_evaluated_as_it_stands(demo, finished, tmp_path):
    state = torch.load(finished / "backbone.pt", weights_only=True)["state_dict"]
    names = {"backbone.": "body.", "head.": "head.fc."}
    renamed = {re.sub(r"^\w+\.", lambda m: names[m[0]], k): v for k, v in state.items()}
    torch.save({"state_dict": renamed}, tmp_path / "released.pth")
    more = f"--phase eval --weights {tmp_path}/released.pth"
    assert run.main(argv(demo, tmp_path / "out", more)) == 0
    ours, theirs = finished / "scores-backbone.npz", tmp_path / "out/scores-weights.npz"
    with np.load(ours) as a, np.load(theirs) as b:
        assert np.array_equal(a["logits"], b["logits"])


def test_asls_recipe_warms_up_and_anneals_along_two_cosines(demo, tmp_path):
    more = "--recipe asl --epochs 10 --phase backbone --limit 8 --batch-size 4 --eval-every 0"
    assert run.main(argv(demo, tmp_path, more)) == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lrs = [json.loads(line)["lr"] for line in lines]
    # One cycle over 20 epochs of 2 steps, 40 steps, left after 20: from 1e-4 / 25 up to 1e-4 at
    # step 0.2 * 40 - 1 = 7, then down to 1e-4 / 25 / 1e4 at step 39, both along half a cosine.
    low, high, end, expected = 4e-6, 1e-4, 4e-10, []
    for step in range(0, 20, 2):  # the first of every epoch
        if step <= 7:
            expected.append(high + (low - high) * (1 + math.cos(math.pi * step / 7)) / 2)
        else:
            rest = (step - 7) / (39 - 7)
            expected.append(end + (high - end) * (1 + math.cos(math.pi * rest)) / 2)
    assert lrs == pytest.approx(expected, rel=1e-6)


def test_a_moving_average_that_forgets_nothing_stays_at_the_first_step(demo, tmp_path):
    states = []
    for more in ("--epochs 2 --ema 1", "--epochs 1"):
        more += " --phase backbone --limit 8 --batch-size 8 --eval-every 0 --fresh"
        assert run.main(argv(demo, tmp_path, more)) == 0
        states.append(torch.load(tmp_path / "backbone.pt", weights_only=True)["state_dict"])
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert a.equal(b)


def test_pooling_is_trained_kept_and_evaluated_as_asked(demo, tmp_path):
    states = []
    for pool in ("avg", "max"):
        more = f"--phase backbone eval --epochs 1 --limit 8 --image-size 64 --pool {pool}"
        assert run.main(argv(demo, tmp_path / pool, more)) == 0
        states.append(torch.load(tmp_path / pool / "backbone.pt", weights_only=True)["state_dict"])
    assert not states[0]["head.weight"].equal(states[1]["head.weight"])
    model = iml_gcn.Model(tresnet.tresnet_tiny(), nn.Linear(512, 16)).eval()
    model.load_state_dict(states[1])
    photo = data.MultiLabelImages(demo_split(demo, "val2014"), 64)[(0, 0)][0]
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model.head(model.backbone.forward_features(image).amax((2, 3)))[0]
    with np.load(tmp_path / "max/scores-backbone.npz") as file:
        assert file["logits"][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_ml_gcns_row_trains_without_a_backbone_phase(demo, tmp_path):
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\nlight 0 0 1\n")
    more = "--backbone resnet101 --pool max --nodes word --adjacency mlgcn --tau 0.4 --epochs 1"
    more += f" --init imagenet --weights none --glove {tmp_path}/glove.txt --limit 4"
    assert run.main(argv(demo, tmp_path, more, "--phase gcn eval")) == 0
    checkpoint = torch.load(tmp_path / "gcn-word.pt", weights_only=True)
    nodes = dict(
        zip(checkpoint["classes"], checkpoint["state_dict"]["head.nodes"].tolist(), strict=True)
    )
    assert nodes["car"] == [2, 1, 0]
    assert nodes["traffic light"] == [0, 0, 1]
    assert nodes["tree"] == [0, 0, 0]
    report = json.loads((tmp_path / "metrics-gcn-word.json").read_text())
    # ResNet-101's published 44,549,160 less its 1000-way classifier, 3 -> 1024 -> 2048, 16 x 16
    assert report["parameters"] == 44_549_160 - 2_049_000 + 3 * 1024 + 1024 * 2048 + 256


def test_vg500_runs_all_its_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    shown = write_vg(tmp_path)
    vg_photos(tmp_path, [f"{image_id}.jpg" for image_id in shown])
    more = "--dataset vg500 --epochs 1 --weights none --keep-unlabelled"
    assert run.main(argv(tmp_path, tmp_path / "out", more)) == 0
    with np.load(tmp_path / "out/scores-gcn-pca.npz") as file:
        assert file["targets"].shape == (6, 4)
    assert "34.5" in (tmp_path / "out/results.md").read_text()  # Table 2's last row
