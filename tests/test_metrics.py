"""Metrics against a published row and at their edges; test_iml_gcn.py has them by hand and by brute
force, test_run.py those of a whole run."""

import numpy as np
import pytest

import metrics


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


def test_a_label_without_positives_has_no_ap_and_is_left_out_of_the_mean():
    ap = metrics.average_precision(np.array([[3.0, 1], [2, 5]]), np.array([[0, 0], [1, 0]]))
    assert ap == pytest.approx([1 / 2, np.nan], nan_ok=True)  # the first's positive is second
    assert metrics.mean_average_precision(ap) == 50
    assert np.isnan(metrics.mean_average_precision(ap[1:]))


@pytest.mark.parametrize("metric", [metrics.average_precision, metrics.precision_recall_f1])
def test_scores_without_a_rank_and_of_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="NaN"):
        metric(np.array([[0.1], [np.nan]]), np.array([[1], [0]]))
    for scores, targets in (([0.1, 0.2], [1, 0]), ([[0.1], [0.2]], [1, 0])):
        with pytest.raises(ValueError, match=r"expected two of \(M, n\)"):
            metric(np.array(scores), np.array(targets))


def test_of_thresholds_that_are_equally_good_the_middle_one_is_used():
    right, wrong = np.log(0.93 / 0.07), np.log(0.005 / 0.995)
    logits, targets = np.array([[right, wrong], [wrong, right]]), np.eye(2)
    assert metrics.best_threshold(logits, targets) == 0.47  # of 0.01 to 0.92


def test_operating_points_count_what_is_above_each_threshold():
    logits = np.log(np.array([[0.9, 0.3], [0.6, 0.8]]) / np.array([[0.1, 0.7], [0.4, 0.2]]))
    points = metrics.operating_points(logits, np.array([[1, 1], [0, 1]]))
    at = {round(p, 2): rest for p, *rest in points.tolist()}
    assert at[0.25] == pytest.approx([3 / 4, 1, 2])  # all four predicted, three of them right
    assert at[0.65] == pytest.approx([1, 2 / 3, 1])  # 0.9 and 0.8, of three that are there
    assert at[0.95] == [0, 0, 0]
