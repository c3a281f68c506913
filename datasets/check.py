"""run.py --check: what is wrong with photos and their labels, before anything is trained.

Nothing is written. What `catalogue.load` refuses is only counted here.

Symbols: M photos in a split, n labels.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import data
from datasets.own_photos import groups_of_copies
from runtime.signals import stop_if_asked
from runtime.terminal import Progress, listed, printable, tell

FEW = 5  # photos of a label
LONG = 5  # letters of a name; among shorter ones many words differ by a single letter


def check(splits: dict[str, data.Split]) -> int:
    """Print what is wrong in these splits, by name; returns how many photos cannot be used."""
    bad = 0
    for name, split in splits.items():
        labelled = split.targets.any(1).sum()
        tell(
            f"{name}: {len(split):,} photos, {len(split) - labelled:,} of them without a label; "
            f"{len(split.classes)} labels"
        )
        tell(f"labels: {most_frequent(split)}")
        for sentence in doubtful_labels(split):
            tell(sentence)
        missing, broken = unusable(name, split)
        bad += len(missing) + len(broken)
        tell(f"missing photos: {len(missing):,}{listed(missing)}")
        tell(f"photos that cannot be read: {len(broken):,}")
        for error in broken[:3]:
            tell(f"    {error}")
    for sentence in copies(splits):
        tell(sentence)
    if bad:
        tell(f"{bad:,} photos cannot be used: mend them, or train with --skip-bad-images")
    else:
        tell("all photos can be used; leave out --check to train")
    return bad


def most_frequent(split: data.Split, most: int = 20) -> str:
    """The labels that most photos show, and how many photos."""
    counts = split.targets.sum(0)  # (n,)
    order = np.argsort(-counts.astype(int), kind="stable")[:most]
    text = ", ".join(f"{printable(split.classes[j])} {counts[j]:,}" for j in order)
    return text + ", ..." if len(split.classes) > most else text


def doubtful_labels(split: data.Split) -> list[str]:
    """Sentences about labels that may be one and the same, and about labels with few photos."""
    counts = split.targets.sum(0)  # (n,)
    pairs = almost_equal_names(dict(zip(split.classes, counts.tolist(), strict=True)))
    sentences = []
    if pairs:
        sentences.append(f"labels of almost the same name: {len(pairs)}{listed(pairs)}")
    few = [f"{split.classes[j]} {counts[j]}" for j in np.flatnonzero(counts < FEW)]
    if few:
        sentences.append(f"{len(few)} labels with fewer than {FEW} photos{listed(few)}")
    return sentences


def almost_equal_names(photos_of: dict[str, int]) -> list[str]:
    """Labels, with their photos, that differ only by case, signs, blanks or an s at the end; and
    labels of few photos that differ from another by one letter, so that they may be misspelt."""
    names_by_letters, names_by_part = defaultdict(list), defaultdict(set)
    letters_of = {}
    for name in photos_of:
        letters = re.sub(r"[\W_]+", "", name).casefold()
        letters_of[name] = re.sub("e?s$", "", letters) or letters
        names_by_letters[letters_of[name]].append(name)
    groups = [names for names in names_by_letters.values() if len(names) > 1]

    for name, letters in letters_of.items():
        for part in without_one_letter(letters):
            names_by_part[part].add(name)
    for name, count in photos_of.items():
        letters = letters_of[name]
        if count >= FEW or len(letters) < LONG or len(names_by_letters[letters]) > 1:
            continue
        others = set().union(*(names_by_part[part] for part in without_one_letter(letters)))
        likely = [
            other
            for other in others
            if photos_of[other] >= FEW * max(count, 1) and digits(other) == digits(name)
        ]
        if likely:
            groups.append([name, max(likely, key=lambda other: (photos_of[other], other))])
    return [
        " / ".join(f"{printable(name, 40)} {photos_of[name]:,}" for name in names)
        for names in groups
    ]


def without_one_letter(text: str) -> set[str]:
    """The text, and what is left of it when a letter is taken away. Two words that differ by one
    letter, or by two that were swapped, have one of these in common."""
    return {text} | {text[:i] + text[i + 1 :] for i in range(len(text))}


def digits(text: str) -> str:
    return re.sub(r"\D", "", text)  # "zone 1" and "zone 2" are two labels


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
            if progress.due(1):
                progress.show()
            stop_if_asked(f"the check of {name}")
    progress.close()
    return missing, broken


def copies(splits: dict[str, data.Split]) -> Iterable[str]:
    """Sentences about photos that are there twice, byte for byte or as copies by Roboflow, in all
    splits together."""
    paths, labels, parts = [], [], []  # of each photo: its path, its labels, the name of its split
    for name, split in splits.items():
        for row, path in enumerate(split.paths):
            paths.append(path)
            labels.append(labels_of(split, row))
            parts.append(name)
    rows_of = defaultdict(list)  # group -> rows
    for row, group in enumerate(groups_of_copies(paths)):
        rows_of[group].append(row)

    copied, in_both, differ = [], [], []
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        copied.append(paths[rows[0]])
        if len({parts[row] for row in rows}) > 1:
            in_both.append(paths[rows[0]])
        if len({labels[row] for row in rows}) > 1:
            differ.append(f"{paths[rows[0]]} and {paths[rows[1]]}")
    yield f"photos that have copies: {len(copied):,}{listed(copied)}"
    if len(splits) > 1:
        yield f"photos with copies in both train and val: {len(in_both):,}{listed(in_both)}"
    yield f"copies with different labels: {len(differ):,}"
    yield from (f"    {printable(pair, 400)}" for pair in differ[:3])


def labels_of(split: data.Split, row: int) -> frozenset[str]:
    return frozenset(split.classes[j] for j in np.flatnonzero(split.targets[row]))
