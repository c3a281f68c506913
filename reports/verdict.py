"""Which model of a run to use, and whether it is ahead of the others by more than luck.

Luck is which photos happened to be in val. Photos are drawn again from val, with replacement and
as many as there are (the bootstrap, Efron 1979), the same ones for every model, and each draw has
its mAP. All of it is ours; nothing here reads or draws a picture.

Symbols: M val photos, n labels, R draws.
"""

import itertools

import numpy as np

import metrics
from reports.labels_table import FEW
from runtime.terminal import Progress, listed, printable

DRAWS = 1000
# Level, in percent, of the intervals of differences. 98 instead of 95: with few labels a 95%
# interval separates equal models more than 5% of the time.
SURE = 98
ENOUGH = 10  # photos, and labels in photos, below which no difference is claimed: too often wrong
BLOCK = 1_000_000  # counts that are computed at once; more would not fit a processor's cache
FEW_PHOTOS = 50  # [ours] below it the 95% interval of an mAP is 10 points wide or more


def photo_counts(M: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(M, R): how often each draw has each photo. The same for the same numbers."""
    generator = np.random.default_rng(seed)
    counts = np.empty((M, draws), np.uint8)  # the chance of more copies than 255 is below 1 / 255!
    for draw in range(draws):
        counts[:, draw] = np.bincount(generator.integers(M, size=M), minlength=M)
    return counts


def average_precision_of_draws(
    scores: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """AP (R,) of one label in each draw of counts (M, R), from scores and targets (M,).

    The same as `metrics.average_precision` of a draw's photos, copies included, but the scores are
    sorted once for all draws. NaN in a draw that has no positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]  # ascending
    positions = np.flatnonzero(targets[order])  # (K,) of the positives, highest score first
    last = np.searchsorted(ranked, ranked[positions], side="right") - 1  # (K,) end of their score
    ends, firsts = np.unique(last, return_index=True)  # (G,), for each score that positives have
    starts = np.concatenate([[0], ends[:-1] + 1])
    rows = order[: ends[-1] + 1]  # none is of interest below the last positive
    ap = np.empty(counts.shape[1])  # (R,)
    step = max(BLOCK // len(scores), 1)  # draws at a time
    for start in range(0, len(ap), step):
        ranked_counts = counts[rows, start : start + step]  # (m, r)
        positives = sums(ranked_counts[positions], firsts)  # (G, r), positives of each score
        hits = positives.cumsum(0, np.int32)  # (G, r), positives that score at least as high
        retrieved = sums(ranked_counts, starts).cumsum(0, np.int32)  # (G, r), photos
        total = (positives * (hits / np.maximum(retrieved, 1))).sum(0)  # (r,)
        ap[start : start + step] = np.where(hits[-1], total / np.maximum(hits[-1], 1), np.nan)
    return ap


def sums(counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums (G, r) of the rows of counts (m, r), from each of the rows `starts` (G,) to the next."""
    return np.add.reduceat(counts, starts, axis=0, dtype=np.int32)


def mAP_of_draws(logits: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """mAP (R,) in percent of each draw of counts (M, R), from logits and targets (M, n).

    Over the labels that a draw shows; NaN in a draw that shows none.
    """
    totals, labels = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])  # (R,)
    labels_of_val = np.flatnonzero(targets.any(0))
    progress = Progress("intervals of mAP", len(labels_of_val), "labels")  # 10 s for COCO's val
    for j in labels_of_val:
        ap = average_precision_of_draws(logits[:, j], targets[:, j], counts)  # (R,)
        totals += np.nan_to_num(ap)
        labels += ~np.isnan(ap)
        if progress.advance(1):
            progress.show()
    progress.close()
    return np.where(labels, 100 * totals / np.maximum(labels, 1), np.nan)


def percentiles(draws: np.ndarray, level: float) -> list[float]:
    """Lower and upper end of the middle `level` percent of draws (R,), NaN left out."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return [np.nan, np.nan]
    return np.percentile(draws, [50 - level / 2, 50 + level / 2]).tolist()


def interval(draws: np.ndarray, mAP: float) -> tuple[list[float], float]:
    """The 95% interval of an mAP with the draws (R,), and their bias, both in percent.

    Copies of a photo in a draw raise the AP of a rare label, so draws are above the mAP on average,
    by several points where most labels are rare. We subtract this bias; otherwise the interval
    often excludes the measured mAP. The interval says where the mAP of other val sets of this size
    lies.
    """
    if np.isnan(mAP):
        return [np.nan, np.nan], np.nan
    bias = float(np.nanmean(draws)) - mAP
    low, high = percentiles(draws, 95)
    return [max(low - bias, 0.0), min(high - bias, 100.0)], bias


def chance(targets: np.ndarray) -> float:
    """The mAP in percent that ranking at random has on average, NaN without any positive.

    AP of a label with K positives among M photos: (H + (K - 1) / (M - 1) * (M - H)) / M, where
    H = 1 + 1/2 + ... + 1/M. That is above the prevalence K / M, far above for rare labels.
    """
    M, K = len(targets), (targets > 0).sum(0)
    K = K[K > 0]
    if not len(K):
        return np.nan
    H = (1 / np.arange(1, M + 1)).sum()
    return float(100 * np.mean((H + (K - 1) / max(M - 1, 1) * (M - H)) / M))


def judge(
    targets: np.ndarray,
    logits: dict[str, np.ndarray],
    names: dict[str, str],
    classes: list[str],
    more_photos: str = "label more",
) -> dict:
    """What verdict.json holds: "use", the key of the model to use; a sentence; warnings; numbers.

    `logits` (M, n) and short `names` are by model, the simplest model first. A model beats another
    if the interval of their difference in the same draws is above 0, at a level that allows for the
    number of pairs. The model to use is the simplest, unless others beat it; then the simplest of
    those, unless others beat that one, and so on. `more_photos` is the advice where val is small.
    """
    counts = photo_counts(len(targets))
    models, draws = {}, {}
    for key, scores in logits.items():
        draws[key] = mAP_of_draws(scores, targets, counts)
        mAP = metrics.mean_average_precision(metrics.average_precision(scores, targets))
        ends, bias = interval(draws[key], mAP)
        models[key] = {"name": names[key], "mAP": mAP, "interval": ends, "bias": bias}

    pairs = list(itertools.combinations(models, 2))
    enough = is_enough(targets)
    differences = []
    for first, second in pairs:
        ends = percentiles(draws[second] - draws[first], 100 - (100 - SURE) / len(pairs))
        better = None
        if enough and ends[0] > 0:
            better = second
        if enough and ends[1] < 0:
            better = first
        difference = models[second]["mAP"] - models[first]["mAP"]
        pair = {"first": first, "second": second, "better": better}
        differences.append(pair | {"second minus first": difference, "interval": ends})

    use = next(iter(models))
    while ahead_of_it := [key for key in models if is_ahead(key, use, differences)]:
        use = ahead_of_it[0]
    random_mAP = chance(targets)
    verdict = {"use": use, "photos": len(targets), "chance": random_mAP, "draws": DRAWS}
    verdict["sentence"] = sentence(use, models, differences, len(targets))
    verdict["warnings"] = warnings(targets, classes, models, random_mAP, more_photos)
    return verdict | {"models": models, "differences": differences}


def change_in_words(targets: np.ndarray, then: np.ndarray, now: np.ndarray) -> str:
    """Whether logits `now` (M, n) are better than `then` on the same photos by more than luck."""
    counts = photo_counts(len(targets))
    draws = mAP_of_draws(now, targets, counts) - mAP_of_draws(then, targets, counts)  # (R,)
    low, high = percentiles(draws, SURE)
    now_mAP, then_mAP = (
        metrics.mean_average_precision(metrics.average_precision(logits, targets))
        for logits in (now, then)
    )
    text = f"on the same val photos it is now {now_mAP:.1f} ({now_mAP - then_mAP:+.1f})"
    if is_enough(targets) and low > 0:
        return f"{text}: better by more than luck"
    if is_enough(targets) and high < 0:
        return f"{text}: worse by more than luck"
    return f"{text}: no difference beyond luck"


def is_enough(targets: np.ndarray) -> bool:
    """Whether there are so many val photos and labels on them that a difference may be claimed."""
    return len(targets) >= ENOUGH and (targets > 0).sum() >= ENOUGH


def is_ahead(key: str, other: str, differences: list[dict]) -> bool:
    """Whether a model beats another one, by the pairs of `judge`."""
    pairs = [pair for pair in differences if {pair["first"], pair["second"]} == {key, other}]
    return any(pair["better"] == key for pair in pairs)


def in_words(number: float) -> str:
    """One decimal, or nothing where there is no number."""
    return "" if np.isnan(number) else f"{number:.1f}"


def in_photos(count: int) -> str:
    return "1 val photo" if count == 1 else f"{count:,} val photos"


def interval_in_words(model: dict) -> str:
    low, high = model["interval"]
    return "" if np.isnan(low) else f"{low:.1f} to {high:.1f}"


def sentence(use: str, models: dict, differences: list[dict], photos: int) -> str:
    """The mAP of every model and which of them to use, in one sentence."""
    if np.isnan(models[use]["mAP"]):
        return "no label is on any val photo, so there is nothing to measure"
    measured = []
    for model in models.values():
        measured.append(f"{model['name']} {in_words(model['mAP'])} ({interval_in_words(model)})")
    text = f"mAP on {in_photos(photos)}: {', '.join(measured)}"
    if len(models) == 1:
        return text
    behind = [key for key in models if is_ahead(use, key, differences)]
    behind_names = [models[key]["name"] for key in behind]
    equal_names = [models[key]["name"] for key in models if key not in (use, *behind)]
    named = f"{models[use]['name']} ({use})"
    if not any(pair["better"] for pair in differences):
        return f"{text}: no difference beyond luck; use the simplest, {named}"
    if not behind:
        judgement = "no model is ahead of the simplest by more than luck"
        return f"{text}: {judgement}; use that one, {named}"
    judgement = f"{models[use]['name']} is ahead of {' and '.join(behind_names)} by more than luck"
    if equal_names:
        judgement += f", and about level with {' and '.join(equal_names)}"
    return f"{text}: {judgement}; use {named}"


def warnings(
    targets: np.ndarray, classes: list[str], models: dict, random_mAP: float, more_photos: str
) -> list[str]:
    """What makes these numbers say less than they seem to, a sentence each."""
    M, K = len(targets), (targets > 0).sum(0)  # K (n,)
    absent = [name for name, count in zip(classes, K, strict=True) if count == 0]
    measured = [name for name, count in zip(classes, K, strict=True) if count > 0]
    everywhere = [name for name, count in zip(classes, K, strict=True) if count == M]
    sentences = []
    if M < FEW_PHOTOS:
        sentences.append(
            f"only {in_photos(M)}: another set would give quite different numbers; {more_photos}"
        )
    if absent:
        are = "is" if len(absent) == 1 else "are"
        sentences.append(
            f"{len(absent)} of {len(classes)} labels {are} on no val photo, and not in the mAP"
            f"{listed(absent)}"
        )
    few = int(((K > 0) & (K < FEW)).sum())
    if few > 1 and few >= len(measured) / 2:
        sentences.append(
            f"{few} of the {len(measured)} labels in the mAP are on fewer than {FEW} val photos: "
            "their AP is mostly luck"
        )
    if len(measured) == 1 and len(classes) > 1:
        sentences.append(f"the mAP is the AP of one label, {printable(measured[0], 40)}")
    if everywhere:
        sentences.append(
            f"labels that are on every val photo have AP 100 for any model{listed(everywhere)}"
        )
    lost = [model["name"] for model in models.values() if model["interval"][0] <= random_mAP]
    if lost:
        ranking = f"a random ranking has mAP {in_words(random_mAP)}"
        sentences.append(f"no better than chance ({ranking}): {', '.join(lost)}")
    return sentences
