"""What the names and counts of labels tell: the most frequent, the rare, and those that may be one.

Symbols: n labels.
"""

import re
from collections import defaultdict

import numpy as np

import data
from runtime.terminal import listed, printable

FEW = 5  # photos of a label
SHORT, LONG = 5, 6  # letters of names: the fewer, the more words differ by a single letter
MOST = 20  # names in a list


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
        sentences.append(f"labels of almost the same name: {len(pairs)}{listed(pairs, MOST)}")
    few = [f"{split.classes[j]} {counts[j]}" for j in np.flatnonzero(counts < FEW)]
    if few:
        sentences.append(f"{len(few)} labels with fewer than {FEW} photos{listed(few, MOST)}")
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
        if count >= FEW or len(letters) < SHORT:
            continue
        least = max(count, 1) if len(letters) >= LONG else FEW * max(count, 1)
        others = set().union(*(names_by_part[part] for part in without_one_letter(letters)))
        likely = [
            other
            for other in others
            if (photos_of[other], other) > (count, name)  # a pair is named once
            and photos_of[other] >= least
            and digits(other) == digits(name)
            and letters_of[other] != letters
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
