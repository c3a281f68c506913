"""docs/python.md: its examples run in their order, as they stand there.

Oracles: the run's own stored logits; NumPy; the graph of three labels by hand.
"""

import contextlib
import copy
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, scores_of
from torch import nn

from reports import calibration

PAGE = (ROOT / "docs/python.md").read_text()
EXAMPLES = re.findall("```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def spaces(demo, finished, tmp_path_factory):
    """The names that are known after each example, and what they print."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(demo / "val2014", folder / "photos")
    shutil.copytree(finished, folder / "runs/mine")
    space, spaces, printed = {}, [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        for example in EXAMPLES:
            exec(example, space)
            modules = {key: value for key, value in space.items() if isinstance(value, nn.Module)}
            spaces.append(space | copy.deepcopy(modules))  # later examples train them
    return spaces, printed.getvalue()


def after(spaces, words):
    """The names after the example that has these words."""
    (i,) = [i for i, example in enumerate(EXAMPLES) if words in example]
    return spaces[0][i]


def test_three_lines_give_the_scores_that_the_run_has_stored(spaces, finished):
    page = after(spaces, "Predictor(")
    logits, _ = scores_of(finished, "backbone")  # of the same photos, in order of name
    report = json.loads((finished / "metrics-backbone.json").read_text())
    expected = calibration.scores(logits, *report["calibration"])
    np.testing.assert_allclose(page["scores"], expected, atol=1e-5)
    names = np.load(finished / "scores-backbone.npz")["classes"].tolist()
    for path, row in zip(page["paths"], expected, strict=True):
        labels = [name for name, p in zip(names, row, strict=True) if p > report["threshold"]]
        assert f"{path} {labels}\n" in spaces[1]


def test_features_are_what_the_head_makes_the_scores_of(spaces):
    page, first = after(spaces, "photos_in_batches"), after(spaces, "Predictor(")
    with torch.no_grad():
        features = page["features"].to(page["predictor"].device)
        scores = page["predictor"].model.head(features).sigmoid().cpu().numpy()
    np.testing.assert_allclose(scores, first["scores"], atol=1e-5)


def test_the_graph_network_has_a_classifier_for_each_label_of_its_own(spaces):
    page = after(spaces, "LabelMeans(")
    features = page["backbone"](page["images"]).detach().double()
    targets = page["targets"].double()
    means = (targets.T @ features) / targets.sum(0)[:, None]  # (n, D)
    centred = means - means.mean(0)
    inner, nodes = centred @ centred.T, page["nodes"].double()
    scale = inner.trace() / (nodes @ nodes.T).trace()
    torch.testing.assert_close(scale * nodes @ nodes.T, inner, rtol=1e-3, atol=1e-7)
    assert page["nodes"].norm(dim=1).mean() == pytest.approx(1, rel=1e-5)
    assert page["logits"].shape == page["targets"].shape


def test_the_loop_learns_and_the_metrics_are_those_of_its_scores(spaces):
    before, losses = after(spaces, "LabelMeans("), after(spaces, "asymmetric_loss(")["losses"]
    p = 1 / (1 + np.exp(-before["logits"].detach().double().numpy()))
    shifted, shown = np.maximum(p - 0.05, 0), before["targets"].numpy() > 0
    expected = np.where(shown, np.log(p), shifted**4 * np.log(1 - shifted))
    assert losses[0] == pytest.approx(-expected.sum(), rel=1e-5)
    assert losses[-1] < 0.97 * losses[0]
    page = after(spaces, "import metrics")
    scores, targets = page["scores"], page["targets"].numpy()
    precisions = []
    for score, target in zip(scores.T, targets.T, strict=True):
        hits = [target[score >= s].mean() for s in score[target > 0]]
        precisions.append(np.mean(hits))
    assert page["mAP"] == pytest.approx(100 * np.mean(precisions))
    predicted = scores > 0
    both = 2 * (predicted & (targets > 0)).sum() / (predicted.sum() + targets.sum())
    assert page["report"]["OF1"] == pytest.approx(100 * both)


def test_the_graph_of_other_counts_by_hand(spaces):
    page = after(spaces, "torch.tensor([100, 40, 10])")
    # P(dog | person) 0.3, P(kite | person) 0.02, P(person | dog) 0.75, P(person | kite) 0.2
    expected = torch.tensor([[0.8, 0.2, 0], [0.2, 0.8, 0], [0.2, 0, 0.8]])
    torch.testing.assert_close(page["A"], expected)
    torch.testing.assert_close(page["A_hat"], expected)  # every row sums to 1
