"""Which model to use, and whether it is ahead by more than luck.

Oracles: `metrics.average_precision` on the photos of each draw, copies included; scipy's bootstrap;
all orders of a few photos; two models that are equal by construction.
"""

import itertools

import numpy as np
import pytest
from conftest import random_targets

import metrics
from reports import verdict


def drawn_scores(targets, gap=1.5, seed=0):
    """Logits (M, n) that are higher where a label is."""
    noise = np.random.default_rng(seed).standard_normal(targets.shape)
    return (targets * gap + noise).astype(np.float32)


def judged(targets, *logits):
    """The verdict on models a, b, c, ... and labels 0, 1, 2, ..."""
    keys = [f"{name}.pt" for name in "abcdef"[: len(logits)]]
    names = {key: key.removesuffix(".pt") for key in keys}
    classes = [f"label {j}" for j in range(targets.shape[1])]
    return verdict.judge(targets, dict(zip(keys, logits, strict=True)), names, classes)


@pytest.mark.parametrize("decimals", [0, 5])  # 0: most scores are tied
def test_mAP_of_a_draw_is_that_of_its_photos_one_by_one(decimals):
    targets = random_targets(30, 6, 0.1)
    targets[:, 5] = 0
    logits = drawn_scores(targets).round(decimals)
    counts = verdict.photo_counts(30, draws=50)
    assert (counts.sum(0) == 30).all()
    expected = []
    for draw in counts.T:
        rows = np.repeat(np.arange(30), draw)  # every photo as often as it was drawn
        ap = metrics.average_precision(logits[rows], targets[rows])
        expected.append(metrics.mean_average_precision(ap))
    found = verdict.mAP_of_draws(logits, targets, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch):
    targets = random_targets(30, 1, 0.3)
    scores, counts = drawn_scores(targets)[:, 0], verdict.photo_counts(30, draws=50)
    at_once = verdict.average_precision_of_draws(scores, targets[:, 0], counts)
    monkeypatch.setattr(verdict, "BLOCK", 30 * 7)  # 7 draws at a time
    in_blocks = verdict.average_precision_of_draws(scores, targets[:, 0], counts)
    np.testing.assert_array_equal(in_blocks, at_once)


def test_intervals_are_those_of_scipys_bootstrap_less_its_bias():
    stats = pytest.importorskip("scipy.stats")
    targets = random_targets(200, 5, 0.2)
    first, second = drawn_scores(targets, 1.0, seed=1), drawn_scores(targets, 1.5, seed=2)

    def mAP_of(logits):
        def statistic(rows):
            rows = rows.astype(int)
            return metrics.mean_average_precision(
                metrics.average_precision(logits[rows], targets[rows])
            )

        return statistic

    def scipys(statistic, level):
        return stats.bootstrap(
            (np.arange(200),),
            statistic,
            vectorized=False,
            n_resamples=800,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(1),
        )

    ours = judged(targets, first, second)
    theirs, model = scipys(mAP_of(first), 0.95), ours["models"]["a.pt"]
    assert model["bias"] == pytest.approx(
        theirs.bootstrap_distribution.mean() - model["mAP"], abs=0.6
    )
    raw = [end + model["bias"] for end in model["interval"]]
    assert raw == pytest.approx(theirs.confidence_interval, abs=1.5)
    (difference,) = ours["differences"]
    theirs = scipys(lambda rows: mAP_of(second)(rows) - mAP_of(first)(rows), 0.98)
    assert difference["interval"] == pytest.approx(theirs.confidence_interval, abs=2)


def test_a_verdict_is_the_same_each_time():
    targets = random_targets(40, 4)
    logits = drawn_scores(targets), drawn_scores(targets, seed=1)
    assert judged(targets, *logits) == judged(targets, *logits)


@pytest.mark.parametrize("positives", [1, 2, 5])
def test_chance_is_the_mean_AP_of_all_orders_of_five_photos(positives):
    column = np.arange(5) < positives
    orders = list(itertools.permutations(range(5)))
    scores = np.array(orders).T  # (5, 120), each order as the scores of a label of its own
    targets = np.repeat(column[:, None], len(orders), axis=1)
    expected = 100 * metrics.average_precision(scores, targets).mean()
    none = np.zeros((5, 1), bool)  # a label without positives does not count
    assert verdict.chance(np.hstack([column[:, None], none])) == pytest.approx(expected)


def test_equal_models_are_told_apart_in_at_most_5_of_100_draws(monkeypatch):
    monkeypatch.setattr(verdict, "DRAWS", 200)
    wrong = 0
    for seed in range(100):
        targets = random_targets(40, 4, 0.2, seed)
        logits = [drawn_scores(targets, seed=10 * seed + k) for k in range(3)]
        wrong += any(pair["better"] for pair in judged(targets, *logits)["differences"])
    assert wrong <= 5


def test_a_clearly_better_model_is_named_and_equal_ones_leave_the_simplest():
    targets = random_targets(100, 5, 0.2)
    poor, good = drawn_scores(targets, 0.5), drawn_scores(targets, 3, seed=1)
    verdict_of_three = judged(targets, poor, good, good)
    assert verdict_of_three["use"] == "b.pt"  # c is as good, b is simpler
    assert (
        "b is ahead of a by more than luck, and about level with c; use b (b.pt)"
        in verdict_of_three["sentence"]
    )
    level = judged(targets, good, drawn_scores(targets, 3, seed=2))
    assert level["use"] == "a.pt"
    assert level["sentence"].endswith("no difference beyond luck; use the simplest, a (a.pt)")
    assert judged(targets, good, poor)["use"] == "a.pt"


@pytest.mark.parametrize(
    ("better", "use", "words"),
    [
        # c is ahead of a, and b of nobody: a is the simplest, but not as good as c.
        (
            {("a", "c"): "c"},
            "c",
            "c is ahead of a by more than luck, and about level with b; use c",
        ),
        ({("b", "c"): "c"}, "a", "no model is ahead of the simplest by more than luck; use that"),
        ({("a", "b"): "b", ("b", "c"): "c"}, "c", "c is ahead of b by more than luck, and about"),
    ],
)
def test_the_model_to_use_is_ahead_of_the_simplest_or_is_it(monkeypatch, better, use, words):
    # Percentiles of each pair's differences, in the order of the pairs, as if they had been drawn.
    ends = []
    for first, second in itertools.combinations("abc", 2):
        winner = better.get((first, second))
        ends.append({second: (1, 2), first: (-2, -1)}.get(winner, (-1, 1)))
    monkeypatch.setattr(verdict, "interval", lambda draws, mAP: ([mAP, mAP], 0.0))
    monkeypatch.setattr(verdict, "percentiles", lambda draws, part: ends.pop(0))
    targets = random_targets(40, 4, 0.3)
    found = judged(targets, *(drawn_scores(targets, seed=k) for k in range(3)))
    assert found["use"] == f"{use}.pt"
    assert words in found["sentence"]


def test_a_change_is_better_or_worse_only_beyond_luck():
    targets = random_targets(100, 5, 0.2)
    poor, good = drawn_scores(targets, 0.5), drawn_scores(targets, 3, seed=1)
    mAPs = [
        metrics.mean_average_precision(metrics.average_precision(logits, targets))
        for logits in (poor, good)
    ]
    better = verdict.change_in_words(targets, poor, good)
    assert better.endswith(
        f"now {mAPs[1]:.1f} ({mAPs[1] - mAPs[0]:+.1f}): better by more than luck"
    )
    worse = verdict.change_in_words(targets, good, poor)
    assert worse.endswith(f"now {mAPs[0]:.1f} ({mAPs[0] - mAPs[1]:+.1f}): worse by more than luck")
    level = verdict.change_in_words(targets, good, drawn_scores(targets, 3, seed=2))
    assert level.endswith("no difference beyond luck")
    assert verdict.change_in_words(targets[:9], poor[:9], good[:9]).endswith("beyond luck")


def test_a_few_photos_or_labels_tell_no_model_from_another():
    targets = np.zeros((50, 1), np.uint8)
    for positives, use in ((9, "a.pt"), (10, "b.pt")):
        targets[:positives] = 1
        worst, best = -1.0 * targets, 1.0 * targets
        assert judged(targets, worst, best)["use"] == use


def test_an_interval_holds_its_mAP_where_many_labels_are_rare():
    targets = random_targets(60, 60, 0.03)
    (model,) = judged(targets, drawn_scores(targets))["models"].values()
    assert model["bias"] > 2  # draws are well above the mAP ...
    low, high = model["interval"]
    assert low < model["mAP"] < high  # ... and the interval is not


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda targets: targets[:20], "only 20 val photos"),
        (lambda targets: targets[:1], "only 1 val photo:"),
        (lambda targets: targets * [0, 1, 1], "1 of 3 labels is on no val photo"),
        (lambda targets: targets * [1, 0, 0], "the mAP is the AP of one label, label 0"),
        (lambda targets: targets | np.array([0, 1, 0]), "have AP 100 for any model: label 1"),
    ],
)
def test_what_makes_an_mAP_say_little_is_said(change, words):
    targets = random_targets(100, 3)
    assert judged(targets, drawn_scores(targets))["warnings"] == []
    targets = change(targets).astype(np.uint8)
    assert any(words in text for text in judged(targets, drawn_scores(targets))["warnings"])


def test_a_random_model_and_one_of_equal_scores_are_no_better_than_chance():
    targets = random_targets(100, 20, 0.05)
    models = drawn_scores(targets, 0), np.zeros(targets.shape), drawn_scores(targets, 2)
    (warning,) = judged(targets, *models)["warnings"]
    assert warning.startswith("no better than chance (a random ranking has mAP ")
    assert warning.endswith("): a, b")


def test_without_any_positive_there_is_a_sentence_and_no_number():
    targets = np.zeros((60, 2), np.uint8)
    nothing = judged(targets, drawn_scores(targets), drawn_scores(targets, seed=1))
    assert nothing["use"] == "a.pt"
    assert "nothing to measure" in nothing["sentence"]
    assert np.isnan(nothing["models"]["a.pt"]["mAP"])
