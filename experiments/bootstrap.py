r"""Is one head ahead of another, whichever val photos and seeds were drawn?

    python -m experiments.frozen --scores DIR --csv FILE.csv -- OPTIONS-OF-RUN
    python -m experiments.bootstrap --csv FILE.csv --scores DIR --data NAME \
        --minus "linear head, lr 0.001, epochs 6" "F_PCA, lr 0.001, epochs 6"

A draw has as many photos as val, with replacement, and as many seeds; both heads have the same ones
in each (the paired bootstrap). The interval holds the middle 95% of the draws' differences in mAP,
less their bias. A row of the CSV is a pair of heads. Nothing is trained here, and the training
photos are always the same: their choice is in no interval.

Symbols: S seeds, M val photos, n labels, R draws.
"""

import argparse
import functools
from pathlib import Path

import numpy as np

import metrics
from experiments import evidence
from reports import verdict
from runtime import signals


def difference(
    first: list[np.ndarray], second: list[np.ndarray], targets: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """The mean mAP of `first` minus that of `second`, and the ends of its 95% interval, in percent.

    `first` and `second` are S logits (M, n) each, of the same seeds; targets (M, n). Copies of a
    photo in a draw pull differences towards 0 where labels are rare. So the draws' bias is
    subtracted, as in `verdict.interval`.
    """

    def mAP(logits: np.ndarray) -> float:
        return metrics.mean_average_precision(metrics.average_precision(logits, targets))

    counts = verdict.photo_counts(len(targets), seed=seed)  # (M, R)
    differences, drawn = [], []
    for ours, theirs in zip(first, second, strict=True):
        differences.append(mAP(ours) - mAP(theirs))
        of_ours, of_theirs = (
            verdict.mAP_of_draws(logits, targets, counts) for logits in (ours, theirs)
        )
        drawn.append(of_ours - of_theirs)  # (R,)
    S, R = len(drawn), counts.shape[1]
    seeds = np.random.default_rng(seed).integers(S, size=(S, R))  # of each draw
    of_draws = np.take_along_axis(np.stack(drawn), seeds, axis=0).mean(0)  # (R,)
    measured = float(np.mean(differences))
    bias = of_draws.mean() - measured
    low, high = verdict.percentiles(of_draws, 95)
    return measured, low - bias, high - bias


def stored(folder: Path, head: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Logits (M, n) of a head by seed, and the targets (M, n), from the files of --scores."""
    logits, targets = {}, None
    for path in sorted(folder.glob("*.npz")):
        name, _, seed = path.stem.rpartition(", seed ")
        if name == head:
            with np.load(path) as file:
                logits[seed], targets = file["logits"], file["targets"]
    if not logits:
        heads = sorted({path.stem.rpartition(", seed ")[0] for path in folder.glob("*.npz")})
        raise ValueError(f"{folder} has no scores of {head}; choose one of {'; '.join(heads)}")
    return logits, targets


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="where the intervals are added")
    add("--scores", type=Path, required=True, metavar="DIR", help="what --scores wrote")
    add("--data", required=True, metavar="NAME", help="what the CSV calls these photos")
    add("--minus", required=True, metavar="HEAD", help="the head that the others are compared with")
    add("heads", nargs="+", metavar="HEAD", help="with its rate and epochs, as its files have it")
    return parser.parse_args(argv)


def work(args) -> None:
    theirs, targets = stored(args.scores, args.minus)
    for head in args.heads:
        ours, of_ours = stored(args.scores, head)
        if not np.array_equal(of_ours, targets):
            raise ValueError(f"{args.scores}: {head} and {args.minus} have scores of other photos")
        common = [seed for seed in ours if seed in theirs]
        pair = [[logits[seed] for seed in common] for logits in (ours, theirs)]
        measured = functools.partial(row_of, pair, targets)
        columns = {"data": [args.data], "head": [head], "minus": [args.minus]}
        evidence.fill(args.csv, measured, [], **columns, seeds=[len(common)])


def row_of(pair: list[list[np.ndarray]], targets: np.ndarray, **columns) -> dict:
    """The figures of a pair of heads, each with S logits (M, n)."""
    mean, low, high = difference(*pair, targets)
    row = {"photos": len(targets), "difference": round(mean, 3)}
    return row | {"low": round(low, 3), "high": round(high, 3)}


if __name__ == "__main__":
    signals.run(lambda: signals.code_of(lambda: work(parse_args())))
