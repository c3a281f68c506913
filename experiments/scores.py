"""Do scores mean what they say?  docs/scores.md has the figures.

    python -m experiments.scores --csv FILE.csv -- --glove FILE OPTIONS-OF-RUN

Heads are trained on frozen features of the training photos. Calibration and threshold are fitted
on one half of the val photos and measured on the other, and the other way round.

Symbols: M images, n labels.
"""

import numpy as np

import metrics
import run
from datasets.own_photos import stratified
from experiments import evidence, frozen
from reports import calibration
from runtime import signals

HEADS, EPOCHS = ["linear head", "F_PCA"], 12
parse_args = evidence.parser_of(HEADS, range(3)).parse_args


def expected_error(scores: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017): all (M, n) labels are sorted into bins by
    score; it is the mean distance, weighted by the labels in a bin, between the bin's mean score
    and its share of right labels."""
    # (bins,): this distance, with its sign, times the number of labels in the bin.
    gaps, _ = np.histogram(scores, bins, (0, 1), weights=scores - targets)
    return np.abs(gaps).sum() / scores.size


def measured(logits: np.ndarray, targets: np.ndarray, fitted_on: np.ndarray) -> dict:
    """Figures of a calibration fitted on the photos `fitted_on`, (M,) bool, measured on the others;
    logits and targets (M, n)."""
    slope, offset = calibration.fit(logits[fitted_on], targets[fitted_on])
    threshold = metrics.best_threshold(slope * logits[fitted_on] + offset, targets[fitted_on])
    logits, targets = logits[~fitted_on], targets[~fitted_on]  # the other photos
    raw = calibration.scores(logits, 1, 0)
    scores = calibration.scores(logits, slope, offset)
    values = {
        "slope": slope,
        "offset": offset,
        "ece_raw": expected_error(raw, targets),
        "ece": expected_error(scores, targets),
        "above_raw": (raw > 0.5).sum(1).mean(),  # labels per photo
        "above": (scores > 0.5).sum(1).mean(),
        "true": targets.sum(1).mean(),
        "OF1": metrics.precision_recall_f1(scores, targets, threshold)["OF1"],
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def work(args) -> None:
    options = run.parse_args([*args.run_options, "--freeze"])
    task = frozen.features(options)

    def trained(head: str, seed: int, fold: int) -> dict:
        logits = frozen.logits_of(task, options, head, EPOCHS, seed)
        half = stratified(task.val.targets, 0.5, seed)  # (M,)
        return measured(logits, task.val.targets, ~half if fold else half)

    inputs = [*args.run_options, task.train.id(), task.val.id()]
    evidence.fill(args.csv, trained, inputs, head=args.settings, seed=args.seeds, fold=(0, 1))


if __name__ == "__main__":
    signals.run(lambda: signals.code_of(lambda: work(parse_args())))
