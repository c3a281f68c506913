"""The data sets by name: where their files lie, what is fetched or drawn, what is told of them.

A data set is a function of its root folder, and of what `load_coco` takes besides, that returns
train and val; the readers are `data.py`'s, and for people's own photos `own_photos.py`'s.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data
from datasets import coco_download, demo, own_photos
from datasets.label_files import read_labels
from runtime import ranks
from runtime.terminal import listed, printable


class Splits(NamedTuple):
    train: data.Split
    val: data.Split


def load_demo(root: str, **where) -> Splits:
    with ranks.in_turn():
        demo.make_demo(root, seed=0)
    return load_coco(root, **where)


def load_coco(root: str, year: str = "2014", fetch: bool = False, **where) -> Splits:
    """Train and val of the COCO tree of a year, or of train_json, train_images and the same of val,
    where these are given."""
    if fetch:
        with ranks.in_turn():
            coco_download.coco(Path(root), year)
    splits = []
    for split in ("train", "val"):
        labels = where.get(f"{split}_json") or f"{root}/annotations/instances_{split}{year}.json"
        images = where.get(f"{split}_images") or f"{root}/{split}{year}"
        missing = [path for path in (labels, images) if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]} is not there; expected under --data {root} (or given by "
                f"--{split}-json and --{split}-images):\n"
                f"  annotations/instances_train{year}.json  train{year}/*.jpg\n"
                f"  annotations/instances_val{year}.json    val{year}/*.jpg"
            )
        splits.append(read_labels(labels, images))
    return Splits(*splits)


DATASETS: dict[str, Callable[..., tuple[data.Split, data.Split]]] = {
    "demo": load_demo,
    "coco": load_coco,
    "vg500": lambda root, **_: data.load_vg500(root),
    "own": own_photos.load,
}


def load(
    name: str, root: str, keep_unlabelled: bool = False, limit: int | None = None, **where
) -> Splits:
    """Both splits, checked and described; what would go wrong hours later goes wrong here."""
    splits = []
    for part, split in zip(("train", "val"), DATASETS[name](root, **where), strict=True):
        labelled = split.targets.any(1)  # (M,)
        note = f"{len(split):,} images, {(~labelled).sum():,} of them without a label"
        if not keep_unlabelled:
            split = split.select(np.flatnonzero(labelled))  # difference 7
            note += " dropped"
        if limit:
            split = split.select(np.arange(min(limit, len(split))))
            note += f", first {len(split):,} taken"
        absent = [split.classes[j] for j in np.flatnonzero(split.targets.sum(0) == 0)]
        note += f"; {len(split.classes)} labels, {len(absent)} of them in no image"
        print(f"{part}: {note}{listed(absent)}")
        if name == "own" and part == "train":
            counts = zip(split.classes, split.targets.sum(0).tolist(), strict=True)
            most = Counter(dict(counts)).most_common(20)  # a table that was misread shows here
            shown = [f"{printable(name)} {count:,}" for name, count in most]
            print(f"labels: {', '.join(shown)}{', ...' * (len(split.classes) > 20)}")
        if not len(split):
            raise ValueError(f"no {part} image is left; check --limit and the annotations")
        missing = [path for path in split.paths if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {len(split):,} {part} photos are missing"
                f"{listed(missing)}; correct the names, or give the folder they are in"
            )
        splits.append(split)
    if name == "own":
        own_photos.warn_of_twins(*splits)
    return Splits(splits[0], aligned(splits[1], splits[0].classes))


def aligned(split: data.Split, classes: list[str]) -> data.Split:
    """The split with its labels in the order of these classes: the same names are the same labels.

    A label that only the split has is an error, one that it lacks shows in none of its photos.
    """
    unknown = [name for name in split.classes if name not in classes]
    if unknown:
        raise ValueError(
            f"{len(unknown)} labels are not among those of the training photos{listed(unknown)}; "
            "correct the names, or give training photos that show them"
        )
    targets = np.zeros((len(split), len(classes)), np.uint8)  # (M, n)
    targets[:, [classes.index(name) for name in split.classes]] = split.targets
    return replace(split, targets=targets, classes=classes)
