"""People's own photos and labels: the forms in which they come, and the photos held out for val.

Labels are COCO JSON, tags of whole photos (a CSV, Label Studio's JSON, CVAT's XML), or the folders
that the photos lie in. The trees of COCO and Visual Genome are `data.py`'s affair.

Symbols: M photos, n labels.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import data
from datasets.label_files import read_labels, tagged
from runtime import checkpoints, ranks, reading
from runtime.reading import PHOTO
from runtime.terminal import listed

HELD_OUT = 0.2  # of the photos, where no val labels are given [ours]
PARTS = re.compile(r"(train|val|test)(ing|id|idation|\d*)", re.I)  # folders that are no labels


def load(
    photos: str, labels: str | None, val_photos: str | None, val_labels: str | None, kept: Path, **_
) -> tuple[data.Split, data.Split]:
    """Train and val, upright by EXIF. Without val's own files a fifth of the photos is held out,
    and named in `kept`; where that file is there, the photos it names are val, all others train."""
    train = read(photos, labels)
    if val_photos or val_labels:
        return train, read(val_photos or photos, val_labels)
    names = [Path(path).relative_to(photos).as_posix() for path in train.paths]
    with ranks.in_turn():
        held = stratified(train.targets, HELD_OUT)  # (M,)
        if kept.is_file():
            named = set(reading.read_json(kept, [PHOTO]))
            held = np.array([name in named for name in names], bool)
        if not train.targets[held].any() or held.all():
            raise ValueError(
                f"{photos}: of {len(held):,} photos none with a label can be held out; add more, "
                f"or give --val-labels{' and remove ' + str(kept) if kept.is_file() else ''}"
            )
        if not kept.is_file():
            checkpoints.save_json(kept, [names[row] for row in np.flatnonzero(held)])
    print(f"val: {held.sum():,} of the {len(held):,} photos, named in {kept}")
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def stratified(targets: np.ndarray, part: float, seed: int = 0) -> np.ndarray:
    """(M,) bool: this part of the photos, with this part of every label's, the rarest first.

    Iterative stratification of targets (M, n): Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011,
    Algorithm 1. A label of three photos or more, alone in them, is in both parts.
    """
    rng, shares = np.random.default_rng(seed), np.array([1 - part, part])
    wanted, of_label = shares * len(targets), np.outer(shares, targets.sum(0))  # (2,), (2, n)
    left, order = targets.sum(0).astype(int), rng.permutation(len(targets))  # left (n,)
    side = np.full(len(targets), -1)  # of each photo: 0, 1, or -1, which is none yet
    while left.any():
        label = np.where(left > 0, left, len(targets) + 1).argmin()
        for row in order[(targets[order, label] > 0) & (side[order] < 0)]:
            k = max((0, 1), key=lambda k: (of_label[k, label], wanted[k], rng.random()))
            side[row] = k
            wanted[k] -= 1
            of_label[k] -= targets[row]
            left -= targets[row]
    rest = order[side[order] < 0]  # without a label
    side[rest[: max(round(wanted[1]), 0)]] = 1
    return side == 1


def read(photos: str, labels: str | None) -> data.Split:
    """The photos of a folder that a file of labels names; without one, all, and their folders."""
    inside, left_out = reading.walk(photos)
    if left_out:
        print(f"{photos}: left out {left_out}, which are not read as photos")
    split = read_labels(labels, "") if labels else from_folders(photos, inside)
    names = found(split.paths, inside)
    unnamed = sorted(set(inside) - set(names)) if labels else []
    if unnamed:
        print(f"{photos}: {len(unnamed):,} photos that {labels} does not name{listed(unnamed)}")
    paths = [os.path.join(photos, name) for name in names]
    return data.Split(paths, split.targets, split.classes, upright=True)


def found(names: list[str], inside: list[str]) -> list[str]:
    """The photos of a folder that are meant: of the same path, or of its end; else the only one of
    that file name, in upper or lower case; Label Studio changes it, and writes eight digits before.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^-\w.]", "", os.path.basename(name).replace(" ", "_")).lower()

    known, by_name, paths = set(inside), defaultdict(list), []
    for path in inside:
        by_name[plain(path)].append(path)
    for name in names:
        parts = name.split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        same = [end for end in ends if end in known][:1] or by_name.get(plain(name))
        same = same or by_name.get(re.sub("^[0-9a-f]{8}-", "", plain(name)), [name])
        if len(same) > 1:
            raise ValueError(f"{name} may be {same[0]} or {same[1]}; write its path in the folder")
        paths += same
    reading.check_once(paths, "the labels", "photo")
    return paths


def from_folders(photos: str, inside: list[str]) -> data.Split:
    """A photo's label is the first folder on the way to it; in none, it has none. Photos of the
    same bytes in several folders are one photo with all their labels."""
    shown = {}  # content -> the first path, labels
    for path, content in zip(inside, contents(f"{photos}/{path}" for path in inside), strict=True):
        shown.setdefault(content, (path, set()))[1].update(path.split("/")[:-1][:1])
    split = tagged(photos, dict(shown.values()))
    parts = [name for name in split.classes if PARTS.fullmatch(name)]
    if len(parts) > 1:
        raise ValueError(
            f"{photos} holds folders {' and '.join(parts)}, which are no labels; give the folder "
            "of the training photos as --photos, the other as --val-photos"
        )
    return split


def contents(paths: Iterable[str]) -> list[str]:
    """The same text for files of the same bytes. Only those of a size that others have are read."""
    paths = list(paths)
    sizes = [os.path.getsize(path) for path in paths]
    count = Counter(sizes)
    return [
        hashlib.sha256(Path(path).read_bytes()).hexdigest() if count[size] > 1 else str(size)
        for path, size in zip(paths, sizes, strict=True)
    ]


def warn_of_twins(train: data.Split, val: data.Split) -> None:
    """Say which photos are in both: on them val measures what was learnt by heart."""
    content = contents([*train.paths, *val.paths])
    known, pairs = set(content[: len(train)]), zip(val.paths, content[len(train) :], strict=True)
    if twins := [path for path, each in pairs if each in known]:
        print(f"{len(twins):,} val photos are training photos, byte for byte{listed(twins)}")
