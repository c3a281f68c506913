"""Calibrated scores. Oracles: data drawn from a known line; the conditions of a maximum; predict.py
beside results.md."""

import json

import numpy as np
import pytest
import torch
from conftest import predicted, scores_of

import iml_gcn
from reports import calibration


def drawn(slope, offset, images=20_000):
    """Logits of three labels, and targets that are right as often as the line says."""
    rng = np.random.default_rng(0)
    logits = rng.normal(1, 2, size=(images, 3)).astype(np.float32)
    return logits, (rng.random((images, 3)) < 1 / (1 + np.exp(-slope * logits - offset))) * 1


def test_calibration_finds_the_line_that_targets_were_drawn_from():
    line = calibration.fit(*drawn(2.1, -3.0))
    assert line == pytest.approx((2.1, -3.0), rel=0.02)


def test_calibrated_scores_have_the_sums_of_the_targets():
    # Where the likelihood is highest its gradient is 0: sum(p - y) = 0 and sum((p - y) logit) = 0.
    logits, targets = drawn(0.4, 1.0, images=50)
    slope, offset = calibration.fit(logits, targets)
    rest = 1 / (1 + np.exp(-slope * logits.astype(float) - offset)) - targets
    assert rest.sum() == pytest.approx(0, abs=1e-3)
    assert (rest * logits).sum() == pytest.approx(0, abs=1e-3)


def test_scores_that_are_no_better_than_chance_are_left_as_they_are():
    logits, targets = drawn(-1.0, 0.0)
    assert calibration.fit(logits, targets) == (1.0, 0.0)
    slope, offset = calibration.fit(np.array([[-1.0, 2.0]]), np.array([[0, 1]]))  # no mistake
    assert np.isfinite([slope, offset]).all()
    assert slope > 0


@pytest.mark.parametrize("logits", [np.full((9, 1), 0.3), 0.3 + 1e-12 * np.arange(9.0)[:, None]])
@pytest.mark.parametrize("targets", [np.ones((9, 1)), np.arange(9)[:, None] > 4])
def test_logits_that_are_all_equal_are_left_as_they_are(logits, targets):
    assert calibration.fit(logits, targets) == (1.0, 0.0)


@pytest.mark.parametrize(("centre", "spread"), [(300, 1), (3000, 100), (0, 1e-3)])
def test_calibration_finds_the_line_whatever_the_scale_of_the_logits(centre, spread):
    logits, targets = drawn(2.1, -3.0)
    slope, offset = calibration.fit(centre + spread * logits.astype(float), targets)
    assert slope * spread == pytest.approx(2.1, rel=0.02)
    assert offset + slope * centre == pytest.approx(-3.0, rel=0.02)


@pytest.mark.parametrize("head", ["linear", "gcn"])
def test_a_calibrated_models_logits_are_on_the_line(head):
    torch.manual_seed(0)
    nodes = torch.randn(4, 3)
    heads = {"linear": torch.nn.Linear(6, 4), "gcn": iml_gcn.LabelGCN(nodes, torch.eye(4), 6)}
    model, x = iml_gcn.Model(torch.nn.Identity(), heads[head]), torch.randn(5, 6)
    expected = 2 * model(x) - 3
    model.head = calibration.Calibrated(model.head, 2.0, -3.0)
    torch.testing.assert_close(model.fold()(x), expected)


def test_the_row_of_predict_in_a_table_is_what_predict_does(demo, finished, capsys):
    photos = sorted((demo / "val2014").iterdir())
    lines, _ = predicted(capsys, finished / "gcn-pca.pt", *photos, "--json")
    _, targets = scores_of(finished, "gcn-pca")
    classes = np.load(finished / "scores-gcn-pca.npz")["classes"].tolist()
    labels_of_photo = [{item["label"] for item in json.loads(line)["labels"]} for line in lines]
    ours = np.array([[name in labels for name in classes] for labels in labels_of_photo])  # (M, n)
    right = (ours & (targets > 0)).sum()
    row = json.loads((finished / "metrics-gcn-pca.json").read_text())["predict"]
    assert row["OP"] == pytest.approx(100 * right / max(ours.sum(), 1))
    assert row["OR"] == pytest.approx(100 * right / targets.sum())
