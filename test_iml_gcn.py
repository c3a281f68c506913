"""The smoke tests, in the paper's order, to be read beside it; tests/ has the rest.

Expected values are worked out by hand, counted by loops, another library's, or published.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
import data
import iml_gcn
import metrics
import run
from datasets.demo import make_demo


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss


@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "clip"),
    [(4, 0, 0.05), (2, 1, 0), (1.5, 0.5, 0.2), (0, 3, 0.1), (0.5, 2.5, 0.05)],
)
def test_asymmetric_loss_and_gradient_follow_the_definition(gamma_neg, gamma_pos, clip):
    points = [-30.0, -6.0, -3.1, -0.5, 0.0, 0.7, 2.0, 9.0, 30.0]
    total, gradient = 0.0, []
    for x, y in itertools.product(points, [0, 1]):
        p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(x))  # q = 1 - p, exact for large x
        if y:
            total += q**gamma_pos * -math.log(p)
            gradient.append(-(q**gamma_pos) * q)  # the weight is a constant, d log p / dx = q
        else:
            p_m = max(p - clip, 0)
            total += p_m**gamma_neg * -math.log(min(q + clip, 1))  # 1 - p_m
            # d -log(1 - p_m) / dx = dp/dx / (1 - p_m) where the shift leaves something of p
            gradient.append(p_m**gamma_neg * p * q / (q + clip) if p > clip else 0)
    logits = torch.tensor(points, dtype=torch.float64).repeat_interleave(2).requires_grad_()
    targets = torch.tensor([0, 1] * len(points))
    loss = iml_gcn.asymmetric_loss(logits, targets, gamma_neg, gamma_pos, clip)
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert logits.grad.tolist() == pytest.approx(gradient, rel=1e-4, abs=1e-12)


# The label graph: P and A, Eq. 3 and 4; A_hat, Eq. 2


def test_cooccurrence_counts_what_loops_over_the_images_count():
    targets = random(9000, 4) > 0.5  # more than one block of the accumulation
    pairs, counts = iml_gcn.cooccurrence(targets)
    rows = targets.tolist()
    assert counts.tolist() == [sum(row[i] for row in rows) for i in range(4)]
    for i, j in itertools.product(range(4), repeat=2):
        assert pairs[i, j] == sum(i != j and row[i] and row[j] for row in rows)


def test_adjacency_by_hand():
    # Labels a, b, c and d, which never occurs, in 10, 4, 20 and 0 images; a and b share 1, a and c
    # 1, b and c 2. P(b|a) = P(c|a) = 1/10, P(a|b) = 1/4, P(c|b) = 2/4, P(a|c) = 1/20 and P(b|c) =
    # 2/20. With tau 0.1, inclusive, that makes the edges a-b, a-c, b-a, b-c and c-b, but not c-a.
    counts = torch.tensor([10, 4, 20, 0])
    pairs = torch.tensor([[0, 1, 1, 0], [1, 0, 2, 0], [1, 2, 0, 0], [0, 0, 0, 0]])
    # A row's neighbours share p = 0.2, what is left stays; d without neighbours keeps 0.8.
    expected = [[0.8, 0.1, 0.1, 0], [0.1, 0.8, 0.1, 0], [0, 0.2, 0.8, 0], [0, 0, 0, 0.8]]
    A = iml_gcn.adjacency(pairs, counts, tau=0.1, p=0.2)
    torch.testing.assert_close(A, torch.tensor(expected))


def test_normalise_scales_by_the_row_sums_by_hand():
    # Row sums 4 and 1: entry (i, j) is divided by sqrt(r_i r_j), that is 4, 2, 2 and 1.
    A = torch.tensor([[1.0, 3.0], [0.0, 1.0]])
    assert iml_gcn.normalise(A).tolist() == [[0.25, 1.5], [0, 1]]
    # An empty row (an isolated label with p = 1) has no degree to divide by and stays empty.
    assert iml_gcn.normalise(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).tolist() == [[1, 0], [0, 0]]


# Label embeddings: F_I, Eq. 5; F_PCA, Eq. 6


def test_label_means_equal_a_loop_whatever_the_batches_and_their_order():
    features, targets = random(30, 6).float(), random(30, 5, seed=1) > 0.5
    targets[:, 2] = 0
    expected = np.zeros((5, 6))  # zero for label 2, which no image shows
    for j in (0, 1, 3, 4):
        expected[j] = np.mean([features[i].numpy() for i in range(30) if targets[i, j]], axis=0)
    order = np.random.default_rng(1).permutation(30)
    for rows in (np.split(np.arange(30), [1, 8]), [order], np.split(order, [29])):
        means = iml_gcn.LabelMeans(5, 6)
        for batch in rows:
            means.update(features[batch], targets[batch])
        np.testing.assert_allclose(means.mean().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "D", "k"), [(6, 10, 5), (10, 4, 4)])
def test_pca_equals_the_eigenvectors_of_the_covariance_with_signs_fixed(n, D, k):
    features = random(n, D)
    centred = features.numpy() - features.numpy().mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending eigenvalues
    expected = centred @ vectors[:, ::-1][:, :k]  # (n, k), up to sign
    ours = iml_gcn.pca(features, k).double().numpy()
    for j in range(k):
        sign = np.sign(ours[:, j] @ expected[:, j])
        np.testing.assert_allclose(ours[:, j], sign * expected[:, j], atol=1e-5)
        direction = centred.T @ ours[:, j]  # a positive multiple of the component's direction
        assert direction[np.abs(direction).argmax()] > 0


# The GCN, Eq. 2 and Figure 2; the model and its backbone


def test_label_gcn_gathers_from_the_rows_of_the_graph_in_both_layers():
    A_hat = random(5, 5, seed=2).abs()
    head = iml_gcn.LabelGCN(random(5, 7, seed=1), A_hat, num_features=6, hidden=9).double()
    A, nodes, W0, W1 = (t.detach().numpy() for t in (head.A_hat, head.nodes, head.W0, head.W1))
    H, out = np.zeros((5, 9)), np.zeros((5, 6))
    for i, j in itertools.product(range(5), repeat=2):
        H[i] += A[i, j] * (nodes[j] @ W0)  # Eq. 2: node i sums its neighbours j, weighted
    H = np.where(H > 0, H, 0.2 * H)
    for i, j in itertools.product(range(5), repeat=2):
        out[i] += A[i, j] * (H[j] @ W1)
    features = random(4, 6)
    np.testing.assert_allclose(head(features).detach(), features.numpy() @ out.T, rtol=1e-6)


# Data


def test_coco_reader_by_hand(tmp_path):
    marks = [(7, 9, 1), (40, 2, 0), (40, 9, 0), (40, 2, 0)]  # image, category, crowd
    annotations = [{"image_id": i, "category_id": j, "iscrowd": crowd} for i, j, crowd in marks]
    categories = [{"id": 9, "name": "zebra"}, {"id": 2, "name": "apple"}]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (40, 3, 7)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    split = data.load_coco(tmp_path / "instances.json", "photos")
    assert split.classes == ["apple", "zebra"]  # ids 2 and 9
    assert split.paths == ["photos/40.jpg", "photos/3.jpg", "photos/7.jpg"]  # the file's order
    # 40: zebra once, apple twice; 3: nothing; 7: a crowd of zebras
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_glove_nodes_are_the_means_of_their_words(tmp_path):
    # GloVe's own files hold words that are a no-break space, or have blanks in them.
    text = "light 1 2 3\ntraffic 3 0 -1\n\u00a0 7 7 7\n. . 8 8 8\nunused a b c\ntv 5 5 5.5\n"
    (tmp_path / "glove.txt").write_text(text, encoding="utf-8")
    nodes, unknown = data.load_glove(tmp_path / "glove.txt", ["Traffic light", "tv-set", "zebra"])
    assert nodes.tolist() == [[2, 1, 1], [5, 5, 5.5], [0, 0, 0]]  # ((3 0 -1) + (1 2 3)) / 2
    assert unknown == ["set", "zebra"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A COCO tree of a dozen drawn scenes for training and six for validation."""
    root = tmp_path_factory.mktemp("scenes")
    make_demo(root, seed=0, train=12, val=6)
    return root


# Metrics


def brute_force_ap(scores, targets):
    """Area under the precision-recall steps, one for every distinct threshold, high to low."""
    area, recall = 0, 0
    for threshold in sorted(set(scores), reverse=True):
        found = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
        area += (sum(found) / sum(targets) - recall) * sum(found) / len(found)
        recall = sum(found) / sum(targets)
    return area


def test_average_precision_is_brute_force_with_ties_and_without_whatever_the_order():
    rng = np.random.default_rng(0)
    for levels in [4] * 50 + [1000] * 50:
        scores, targets = rng.integers(levels, size=(12, 3)) / levels, rng.random((12, 3)) < 0.4
        targets[0] = True
        ap, order = metrics.average_precision(scores, targets), rng.permutation(12)
        assert ap.tolist() == metrics.average_precision(scores[order], targets[order]).tolist()
        expected = [brute_force_ap(scores[:, j], targets[:, j].tolist()) for j in range(3)]
        assert ap.tolist() == pytest.approx(expected)


def test_all_metrics_by_hand():
    # Labels A and B; C, never predicted; D, without positives. The threshold is 0.5.
    targets = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]])
    scores = np.array(
        [[0.9, 0.6, 0.1, 0.7], [0.8, 0.1, 0.2, 0.1], [0.2, 0.5, 0.3, 0.1], [0.7, 0.3, 0.4, 0.1]]
    )
    # Predicted A 3, B 1 (0.5 is not above 0.5), C 0, D 1; right A 2, B 1; positives 3, 2, 1, 0.
    # CP = (2/3 + 1/1 + 0 + 0/1) / 4 = 5/12. CR = (2/3 + 1/2 + 0) / 3 = 7/18.
    # F1 of A 2/3, of B 2/3, of C 0: CF1 = 4/9. CF1_h = 2 (5/12) (7/18) / (5/12 + 7/18) = 35/87.
    # OP = 3/5, OR = 3/6, OF1 = 2 * 3 / (5 + 6).
    expected = {"CP": 5 / 12, "CR": 7 / 18, "CF1": 4 / 9, "CF1_h": 35 / 87}
    expected |= {"OP": 3 / 5, "OR": 3 / 6, "OF1": 6 / 11}
    ours = metrics.precision_recall_f1(scores, targets, 0.5)
    expected = {name: 100 * value for name, value in expected.items()} | {"N+": 2}  # A and B
    assert ours == pytest.approx(expected)


# Whole runs


def start(scenes, out, more=""):
    options = "--dataset coco --backbone tresnet_tiny --image-size 32 --batch-size 4 --epochs 2 "
    options += "--keep-unlabelled --nodes pca --workers 0 --device cpu " + more
    return run.main([*options.split(), "--data", str(scenes), "--out", str(out)])


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert start(scenes, out) == 0
    return out


@pytest.mark.parametrize("name", ["backbone", "gcn-pca"])
def test_the_three_phases_report_what_their_models_say_of_the_val_photos(scenes, finished, name):
    split = data.load_coco(scenes / "annotations/instances_val2014.json", scenes / "val2014")
    model, _ = backbones.load_model(finished / f"{name}.pt")
    photos = [Image.open(path).resize((32, 32), 2) for path in split.paths]  # 2: bilinear
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    logits = model(images).detach().numpy()  # (M, n)
    with np.load(finished / f"scores-{name}.npz") as stored:
        np.testing.assert_allclose(stored["logits"], logits, rtol=1e-3, atol=1e-4)
        logits, targets = stored["logits"], stored["targets"]
    assert targets.tolist() == split.targets.tolist()
    columns = zip(logits.T.tolist(), targets.T.tolist(), strict=True)
    AP = [brute_force_ap(*column) for column in columns if any(column[1])]  # else it has none
    mAP = 100 * sum(AP) / len(AP)
    assert json.loads((finished / f"metrics-{name}.json").read_text())["mAP"] == pytest.approx(mAP)
    assert f" {mAP:.2f} " in (finished / "results.md").read_text()


def test_a_run_cut_off_twice_ends_as_an_unbroken_one(scenes, finished, tmp_path, monkeypatch):
    loss, calls = iml_gcn.asymmetric_loss, itertools.count(1)

    def cut_off(*arguments):  # of 3 steps an epoch: the second epoch's, then the GCN's first's
        if next(calls) in (5, 9):
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(iml_gcn, "asymmetric_loss", cut_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(scenes, tmp_path, "--save-every 0")
    assert start(scenes, tmp_path, "--save-every 0") == 0
    assert next(calls) == 15  # 12 steps and the two that were cut off: none was taken again
    assert (tmp_path / "log.jsonl").read_text() == (finished / "log.jsonl").read_text()
    for name in ("backbone.pt", "gcn-pca.pt"):
        ours, theirs = (torch.load(out / name, weights_only=True) for out in (tmp_path, finished))
        for key, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][key], value), f"{name}: {key}"
