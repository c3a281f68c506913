"""Do scores mean what they say?  docs/scores.md has the figures.

    python -m experiments.scores --csv FILE.csv -- --glove FILE OPTIONS-OF-RUN

Heads are trained on frozen features of the training photos. Calibration and thresholds are fitted
on one half of the val photos and measured on the other, and the other way round.

Symbols: M images, n labels.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import metrics
import run
from experiments import evidence, frozen
from extras import calibration
from extras.own_data import stratified
from runtime import signals

HEADS = ["linear head", "F_PCA"]
SHRINK = 10  # positives: a label's own threshold counts half where it has as many
FIELDS = ["head", "seed", "fold", "slope", "offset", "ece_raw", "ece", "above_raw", "above", "true"]
FIELDS += ["OF1", "OF1_each", "OF1_shrunk"]


def expected_error(scores: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017): over bins of the score of all (M, n)
    labels, the mean distance between the mean score and the share of labels that are right."""
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)  # (M, n)
    gaps = [
        abs((scores[bin_of == b] - targets[bin_of == b]).sum()) for b in range(bins)
    ]  # each times its number of labels
    return sum(gaps) / scores.size


def best_each(scores: np.ndarray, targets: np.ndarray, shared: float) -> np.ndarray:
    """(n,): the threshold of each label's highest F1; `shared` where it has no positive."""
    found = np.full(scores.shape[1], shared)
    for j in np.flatnonzero(targets.sum(0)):
        order = np.sort(scores[:, j])
        middle = (order[1:] + order[:-1]) / 2  # (M - 1,)
        right = ((scores[:, j] > middle[:, None]) & (targets[:, j] > 0)).sum(1)
        f1 = 2 * right / ((scores[:, j] > middle[:, None]).sum(1) + targets[:, j].sum())
        found[j] = middle[f1.argmax()]
    return found


def measured(logits: np.ndarray, targets: np.ndarray, fit: np.ndarray) -> dict:
    """Fitted on the photos `fit` (M,), measured on the others."""
    slope, offset = calibration.fit(logits[fit], targets[fit])
    scores, rest = calibration.scores(logits, slope, offset), ~fit
    shared = metrics.best_threshold(slope * logits[fit] + offset, targets[fit])
    own = best_each(scores[fit], targets[fit], shared)  # (n,)
    weight = targets[fit].sum(0) / (targets[fit].sum(0) + SHRINK)  # (n,)
    raw, right = calibration.scores(logits[rest], 1, 0), targets[rest]

    def OF1(thresholds) -> float:
        return metrics.precision_recall_f1(scores[rest] - thresholds, right, 0)["OF1"]

    values = {"slope": slope, "offset": offset}
    values |= {"ece_raw": expected_error(raw, right), "ece": expected_error(scores[rest], right)}
    values |= {"above_raw": (raw > 0.5).sum(1).mean(), "above": (scores[rest] > 0.5).sum(1).mean()}
    values |= {"true": right.sum(1).mean(), "OF1": OF1(shared), "OF1_each": OF1(own)}
    values["OF1_shrunk"] = OF1(weight * own + (1 - weight) * shared)
    return {name: round(float(value), 4) for name, value in values.items()}


def reliability(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """A picture: the share of labels that are right over the score, of scores and targets each."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ValueError("--picture needs matplotlib; pip install matplotlib") from None
    pyplot.figure(figsize=(4, 4))
    pyplot.plot([0, 1], [0, 1], "lightgray")
    for name, (scores, targets) in curves.items():
        bins = np.minimum((scores * 10).astype(int), 9)  # (M, n)
        shown = [bins == b for b in range(10) if (bins == b).sum() >= 20]
        means = [(scores[these].mean(), targets[these].mean()) for these in shown]
        pyplot.plot(*zip(*means, strict=True), "o-", label=name)
    pyplot.xlabel("score")
    pyplot.ylabel("right")
    pyplot.legend()
    pyplot.savefig(path, bbox_inches="tight")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="where the figures are added")
    add("--picture", type=Path, metavar="FILE", help="of the first head and seed: reliability")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    add("--epochs", type=int, default=12, help="(%(default)s)")
    add("more", nargs="+", metavar="-- ...", help="run.py's options, --glove FILE among them")
    return parser.parse_args(argv)


def work(args) -> None:
    options = run.parse_args([*args.more, "--freeze"])
    task = frozen.features(options)
    for seed in args.seeds:
        for name in HEADS:
            torch.manual_seed(seed)
            head = frozen.SETTINGS[name](task)
            frozen.fit(head, task.train, options, args.epochs, seed)
            with torch.inference_mode():
                logits = head(task.val.features).numpy()
            half = stratified(task.val.targets, 0.5, seed)  # (M,)
            for fold, fit in enumerate((half, ~half)):
                row = {"head": name, "seed": seed, "fold": fold}
                row |= measured(logits, task.val.targets, fit)
                evidence.add_row(args.csv, FIELDS, row)
            if args.picture and (name, seed) == (HEADS[0], args.seeds[0]):
                line = calibration.fit(logits[half], task.val.targets[half])
                lines = {"raw": (1, 0), "calibrated": line}
                curves = {k: calibration.scores(logits[~half], *v) for k, v in lines.items()}
                right = task.val.targets[~half]
                reliability({k: (v, right) for k, v in curves.items()}, args.picture)


if __name__ == "__main__":
    arguments = parse_args()
    sys.exit(signals.code_of(lambda: work(arguments)))
