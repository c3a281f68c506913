"""What the names and counts of labels tell: the most frequent, the rare, and those that may be one
label or several.

Nothing is refused here, and no photo is opened.

Symbols: n labels.
"""

import re
from collections import defaultdict

import numpy as np

import data
from datasets.label_names import is_of_no_label, is_thing, perhaps_several, visible
from runtime.terminal import listed, printable

FEW = 5  # photos of a label
# A rare name of at least LONG letters may be a misspelt other one. A shorter one only if the other
# has many times its photos; one below SHORT never: too many short words differ by a letter.
SHORT, LONG = 5, 6
MOST = 20  # names in a list
# With more labels, or in longer names, misspelt ones are not looked for: it would take seconds.
MANY, LONGEST = 2000, 60


def most_frequent(split: data.Split, most: int = MOST) -> str:
    """The labels that most photos show, and how many photos."""
    counts = split.targets.sum(0)  # (n,)
    order = np.argsort(-counts.astype(int), kind="stable")[:most]
    text = ", ".join(f"{printable(split.classes[j])} {counts[j]:,}" for j in order)
    return text + ", ..." if len(split.classes) > most else text


def doubtful_labels(split: data.Split) -> list[str]:
    """Sentences about labels that may be one and the same, labels that may be several, names
    that may be no labels, and labels with few photos."""
    counts = split.targets.sum(0)  # (n,)
    photos_of = dict(zip(split.classes, counts.tolist(), strict=True))
    pairs = almost_equal_names(photos_of)
    sentences = []
    if pairs:
        sentences.append(f"labels of almost the same name: {len(pairs)}{listed(pairs, MOST)}")
    several = perhaps_several(split.classes)
    several = [f"{printable(name, 40)} {photos_of[name]:,}" for name in several]
    if several:
        sentences.append(
            f"labels that may be several in one: {len(several)}{listed(several, MOST)}"
        )
    columns = [
        f"{printable(name, 40)} {count:,}"
        for name, count in photos_of.items()
        if is_of_no_label(name) and not is_thing(name)
    ]
    if columns:
        shown = listed(columns, MOST)
        sentences.append(f"labels that may be the names of columns or parts: {len(columns)}{shown}")
    few = [f"{split.classes[j]} {counts[j]}" for j in np.flatnonzero(counts < FEW)]
    if few:
        labels = "1 label" if len(few) == 1 else f"{len(few)} labels"
        sentences.append(f"{labels} with fewer than {FEW} photos{listed(few, MOST)}")
    return sentences


def almost_equal_names(photos_of: dict[str, int]) -> list[str]:
    """Labels, with their photos, that differ only by case, blanks, hyphens, invisible characters
    or an s at the end; and labels of few photos that may be misspelt."""
    letters_of, names_of = {}, defaultdict(list)
    for name in photos_of:
        letters = re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", visible(name).strip()).casefold()
        letters_of[name] = re.sub("e?s$", "", letters) or letters
        names_of[letters_of[name]].append(name)
    groups = [names for names in names_of.values() if len(names) > 1]
    if len(photos_of) <= MANY:
        groups += misspelt(photos_of, letters_of)
    return [
        " / ".join(f"{printable(name, 40)} {photos_of[name]:,}" for name in names)
        for names in groups
    ]


def misspelt(photos_of: dict[str, int], letters_of: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of a rare label and the most frequent one that differs from it by a letter. The last
    word counts only if it is longer than two letters, since "type I" and "type II" are two labels,
    and so do numbers."""
    names_by_part = defaultdict(set)
    for name, letters in letters_of.items():
        if len(letters) <= LONGEST:
            for part in without_one_letter(letters):
                names_by_part[part].add(name)
    pairs = []
    for name, count in photos_of.items():
        letters = letters_of[name]
        if count >= FEW or not SHORT <= len(letters) <= LONGEST:
            continue
        least = max(count, 1) if len(letters) >= LONG else FEW * max(count, 1)
        likely = []
        for other in set().union(*(names_by_part[part] for part in without_one_letter(letters))):
            comes_later = (photos_of[other], other) > (count, name)  # a pair is named once
            differs = letters_of[other] != letters and mark(other) == mark(name)
            if comes_later and differs and photos_of[other] >= least:
                likely.append(other)
        if likely:
            pairs.append((name, max(likely, key=lambda other: (photos_of[other], other))))
    return pairs


def without_one_letter(text: str) -> set[str]:
    """The text, and what is left of it when a letter is taken away. Two words that differ by one
    letter, or by two that were swapped, have one of these in common."""
    return {text} | {text[:i] + text[i + 1 :] for i in range(len(text))}


def mark(name: str) -> tuple[str, str]:
    """What numbers a label: its digits, and its last word if that has one or two letters."""
    short = re.search(r"[\W_](\w{1,2})$", name)
    return re.sub(r"\D", "", name), short[1] if short else ""
