"""run.py --check: what is wrong with photos and their labels, before anything is trained.

Nothing is written, except the demo's scenes. What `catalogue.load` refuses is only counted here,
except labels that only val has.

Symbols: M photos in a split, n labels.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import data
from datasets.catalogue import aligned
from datasets.doubtful_labels import doubtful_labels, most_frequent
from datasets.own_photos import groups_of_copies, names_of
from runtime.signals import stop_if_asked
from runtime.terminal import Progress, listed, printable, tell

MOST = 20  # names in a list
MOST_LABELS = 1000  # which --check lists with their counts: a misread one may be anywhere


def check(parts: dict[str, tuple[data.Split, str]]) -> int:
    """Print what is wrong in these splits, each with its folder, by name; returns how many photos
    cannot be used. Labels that only val has are a ValueError, as in a run."""
    bad, is_in_doubt, is_missing = 0, False, False
    for name, (split, _) in parts.items():
        labelled = split.targets.any(1).sum()
        tell(
            f"{name}: {len(split):,} photos, {len(split) - labelled:,} of them without a label; "
            f"{len(split.classes)} labels"
        )
        tell(f"labels: {most_frequent(split, MOST_LABELS)}")
        for sentence in doubtful_labels(split):
            tell(sentence)
            is_in_doubt = True
        missing, broken = unusable(name, split)
        bad += len(missing) + len(broken)
        is_missing |= bool(missing)
        tell(f"missing photos: {len(missing):,}{listed(missing, MOST)}")
        tell(f"photos that cannot be read: {len(broken):,}")
        for line in first_lines(broken):
            tell(line)
    for sentence in copies(parts):
        tell(sentence)
    if bad:
        photos = "1 photo" if bad == 1 else f"{bad:,} photos"
        advice = "replace them, or train with --skip-bad-images"
        if is_missing:
            advice = (
                "correct the names that are missing, or choose the folder that the photos are in"
            )
            advice += "; replace those that cannot be read"
        tell(f"{photos} cannot be used: {advice}")
    if "val" in parts:
        aligned(parts["val"][0], parts["train"][0].classes)
    if not bad:
        doubts = ", but look at the labels in doubt above" if is_in_doubt else ""
        tell(f"all photos can be used{doubts}; leave out --check to train")
    return bad


def unusable(name: str, split: data.Split) -> tuple[list[str], list[str]]:
    """The paths of missing photos, and a sentence for each photo that cannot be read."""
    missing = [path for path in split.paths if not os.path.isfile(path)]
    present = [path for path in split.paths if os.path.isfile(path)]
    progress = Progress(f"opening {name}", len(present))

    def error_of(path: str) -> str:
        try:
            data.read_photo(path, split.upright)
        except ValueError as error:
            return str(error)
        return ""

    broken = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for error in pool.map(error_of, present):
            if error:
                broken.append(error)
            if progress.advance(1):
                progress.show()
            stop_if_asked(f"in the check of {name}")
    progress.close()
    return missing, broken


def copies(parts: dict[str, tuple[data.Split, str]]) -> Iterable[str]:
    """Sentences about photos that are there twice, byte for byte or as copies by Roboflow, in all
    splits together."""
    paths, names, labels, part_of = [], [], [], []  # of each photo
    for name, (split, folder) in parts.items():
        names += names_of(split, folder)
        for row, path in enumerate(split.paths):
            paths.append(path)
            labels.append(labels_of(split, row))
            part_of.append(name)
    rows_of = defaultdict(list)  # group -> rows
    for row, group in enumerate(groups_of_copies(paths, names)):
        rows_of[group].append(row)

    copied, in_both, differ = [], [], []
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        different = list(dict.fromkeys(paths[row] for row in rows))
        if len(different) > 1:
            copied.append(" and ".join(different))
        if len({part_of[row] for row in rows}) > 1:
            in_both.append(paths[rows[0]])
        first = rows[0]
        for row in rows[1:]:
            if labels[row] != labels[first] and paths[row] != paths[first]:
                differ.append(f"{paths[first]} and {paths[row]}")
                break
    yield f"photos that have copies: {len(copied):,}"
    yield from first_lines(copied)
    if len(parts) > 1:
        yield f"photos with copies in both train and val: {len(in_both):,}{listed(in_both)}"
    yield f"copies with different labels: {len(differ):,}"
    yield from first_lines(differ)


def first_lines(texts: list[str]) -> list[str]:
    """The first texts, indented, and how many more there are."""
    lines = [f"    {printable(text, 400)}" for text in texts[:MOST]]
    if len(texts) > MOST:
        lines.append(f"    and {len(texts) - MOST:,} more")
    return lines


def labels_of(split: data.Split, row: int) -> frozenset[str]:
    return frozenset(split.classes[j] for j in np.flatnonzero(split.targets[row]))
