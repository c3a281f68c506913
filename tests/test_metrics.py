"""TODO"""

import itertools

import numpy as np
import pytest
from conftest import brute_force_ap

import metrics


def test_average_precision_matches_its_definition_for_every_labelling_of_five_images():
    scores = np.array([0.9, 0.1, 0.8, 0.3, 0.5])
    ranking = [0, 2, 4, 3, 1]
    for labels in list(itertools.product([0, 1], repeat=5))[1:]:  # [0] has no positive
        ranked = [labels[i] for i in ranking]
        precisions = [sum(ranked[: k + 1]) / (k + 1) for k in range(5) if ranked[k]]
        ap = metrics.average_precision(scores, np.array(labels))
        assert ap == pytest.approx(sum(precisions) / len(precisions))


def test_average_precision_with_ties_is_brute_force_and_does_not_see_the_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, targets = rng.integers(0, 4, size=(12, 3)) / 4, rng.random((12, 3)) < 0.4
        targets[0] = True
        ap = metrics.average_precision(scores, targets)
        order = rng.permutation(12)
        assert ap.tolist() == metrics.average_precision(scores[order], targets[order]).tolist()
        expected = [brute_force_ap(scores[:, j], targets[:, j].tolist()) for j in range(3)]
        assert ap.tolist() == pytest.approx(expected)


def test_all_metrics_by_hand():
    # Labels A and B; C, never predicted; D, without positives. The threshold is 0.5.
    targets = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]])
    scores = np.array(
        [[0.9, 0.6, 0.1, 0.7], [0.8, 0.1, 0.2, 0.1], [0.2, 0.5, 0.3, 0.1], [0.7, 0.3, 0.4, 0.1]]
    )
    # AP: A ranks 1 1 0 1: (1 + 1 + 3/4) / 3 = 11/12. B ranks 1 0 1 0: (1 + 2/3) / 2 = 10/12.
    #   C ranks 0 1 0 0: 6/12. D is left out. mAP = 27/36.
    # Predicted A 3, B 1 (0.5 is not above 0.5), C 0, D 1; right A 2, B 1; positives 3, 2, 1, 0.
    # CP = (2/3 + 1/1 + 0 + 0/1) / 4 = 5/12. CR = (2/3 + 1/2 + 0) / 3 = 7/18.
    # F1 of A 2/3, of B 2/3, of C 0: CF1 = 4/9. CF1_h = 2 (5/12) (7/18) / (5/12 + 7/18) = 35/87.
    # OP = 3/5, OR = 3/6, OF1 = 2 * 3 / (5 + 6).
    expected = {"mAP": 27 / 36, "CP": 5 / 12, "CR": 7 / 18, "CF1": 4 / 9, "CF1_h": 35 / 87}
    expected |= {"OP": 3 / 5, "OR": 3 / 6, "OF1": 6 / 11}
    ours = metrics.evaluate(scores, targets, 0.5)
    assert ours.pop("left_out") == 1
    assert ours == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_harmonic_cf1_of_ml_gcns_row_in_table_1_is_78():
    # Label 1: 44 of 100 positives found, nothing else. Label 2: 500 found, 351 of them right, all
    # there are. CP = (1 + 0.702) / 2 = 85.1 and CR = (0.44 + 1) / 2 = 72.0, as in the table.
    predicted, targets = np.zeros((500, 2)), np.zeros((500, 2))
    predicted[:44, 0] = targets[:100, 0] = predicted[:, 1] = targets[:351, 1] = 1
    ours = metrics.precision_recall_f1(predicted, targets, 0.5)
    assert (ours["CP"], ours["CR"]) == pytest.approx((85.1, 72.0))
    assert round(ours["CF1_h"], 1) == 78.0
    # The mean of F1 is another number: (0.88 / 1.44 + 1.404 / 1.702) / 2
    assert ours["CF1"] == pytest.approx(71.80, abs=0.005)


def test_scores_without_a_rank_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        metrics.average_precision(np.array([0.1, np.nan]), np.array([1, 0]))
