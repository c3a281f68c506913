"""The data sets by name: where their files are, and how they are downloaded, generated, described.

A data set is a function of its root folder and of `Sources`; it returns train and val. `data.py`
and `label_files.py` read the files, `own_photos.py` those of people's own photos.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data
from datasets import coco_download, demo, own_photos
from datasets.doubtful_labels import doubtful_labels, most_frequent
from datasets.label_files import read_labels
from runtime import ranks
from runtime.terminal import listed, tell


class Splits(NamedTuple):
    train: data.Split
    val: data.Split


@dataclass(frozen=True)
class Sources:
    """The options that say where the files of a data set are, beside its root folder. Each data set
    uses some of them."""

    year: str = "2014"  # of COCO
    download: bool = False  # fetch what is not there
    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None
    labels: str | None = None  # of own photos
    val_photos: str | None = None
    val_labels: str | None = None
    val_list: Path | None = None  # val-photos.json, which names the photos that are held out

    @property
    def val_is_drawn(self) -> bool:
        """Whether some of one's own photos are held out for val, as val has no files of its own."""
        return not (self.val_photos or self.val_labels)


def load_demo(root: str, sources: Sources) -> Splits:
    with ranks.in_turn():
        demo.make_demo(root, seed=0)
    return load_coco(root, sources)


def load_coco(root: str, sources: Sources) -> Splits:
    """Train and val of the COCO tree of a year. train_json, train_images, val_json and val_images
    are used in place of parts of it."""
    year = sources.year
    if sources.download:
        with ranks.in_turn():
            coco_download.coco(Path(root), year)
    given = {
        "train": (sources.train_json, sources.train_images),
        "val": (sources.val_json, sources.val_images),
    }
    splits = []
    for split, (labels, images) in given.items():
        labels = labels or f"{root}/annotations/instances_{split}{year}.json"
        images = images or f"{root}/{split}{year}"
        missing = [path for path in (labels, images) if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]} is not there; expected under --data {root}, unless --{split}-json "
                f"and --{split}-images say where it is:\n"
                f"  annotations/instances_train{year}.json  train{year}/*.jpg\n"
                f"  annotations/instances_val{year}.json    val{year}/*.jpg"
            )
        splits.append(read_labels(labels, images))
    return Splits(*splits)


def load_vg500(root: str, sources: Sources) -> Splits:
    return Splits(*data.load_vg500(root))


def load_own(root: str, sources: Sources) -> Splits:
    return Splits(
        *own_photos.load(
            root, sources.labels, sources.val_photos, sources.val_labels, sources.val_list
        )
    )


DATASETS: dict[str, Callable[[str, Sources], Splits]] = {
    "demo": load_demo,
    "coco": load_coco,
    "vg500": load_vg500,
    "own": load_own,
}


def load(
    name: str,
    root: str,
    sources: Sources,
    keep_unlabelled: bool = False,
    limit: int | None = None,
    skip_missing: bool = False,
) -> Splits:
    """Both splits, checked and described, so that an error comes now and not hours later.

    `limit`: the number of photos to keep of each split, evenly spaced. `skip_missing`: leave out
    photos that are missing, instead of raising an error.
    """
    train, val = DATASETS[name](root, sources)
    train = used_part("train", train, keep_unlabelled, limit)
    if name == "own":
        tell(f"labels: {most_frequent(train)}")  # shows whether a table was misread
        for sentence in doubtful_labels(train):
            tell(sentence)
    val = used_part("val", val, keep_unlabelled, limit)
    train = all_there("train", train, skip_missing)
    val = all_there("val", val, skip_missing)
    if name == "own":
        own_photos.warn_of_copies(train, val, root, sources.val_photos or root)
    return Splits(train, aligned(val, train.classes))


def to_check(name: str, root: str, sources: Sources) -> dict[str, tuple[data.Split, str]]:
    """What `check` is to look at: the splits before any photo is left out, and their folders.
    Nothing is downloaded, and own photos are not divided, because that would write
    val-photos.json."""
    if name == "own" and sources.val_is_drawn:
        return {"photos": (own_photos.read(root, sources.labels), root)}
    train, val = DATASETS[name](root, replace(sources, download=False))
    return {"train": (train, root), "val": (val, sources.val_photos or root)}


def used_part(part: str, split: data.Split, keep_unlabelled: bool, limit: int | None) -> data.Split:
    """The part of a split that is used; prints a line that says what the split holds."""
    labelled = split.targets.any(1)  # (M,)
    note = f"{len(split):,} photos, {(~labelled).sum():,} of them without a label"
    if not keep_unlabelled:
        split = split.select(np.flatnonzero(labelled))  # difference 7
        note += " dropped"
    if limit and limit < len(split):
        of_all = "all" if keep_unlabelled else "the others"
        rows = np.linspace(0, len(split) - 1, limit).round().astype(int)
        split = split.select(rows)
        note += f", {limit:,} of {of_all} used, evenly spaced"
    absent = [split.classes[j] for j in np.flatnonzero(split.targets.sum(0) == 0)]
    note += f"; {len(split.classes)} labels"
    if absent:
        note += f", {len(absent)} of them on no photo"
    tell(f"{part}: {note}{listed(absent)}")
    if not len(split) and len(labelled):
        raise ValueError(
            f"none of the {len(labelled):,} {part} photos has a label; correct the labels, or keep "
            "photos without a label with --keep-unlabelled"
        )
    if not len(split):
        raise ValueError(f"there are no {part} photos; check the file of their labels")
    return split


def all_there(part: str, split: data.Split, skip_missing: bool) -> data.Split:
    """The split without its missing photos, which are named. An error if they are not to be
    skipped, or if no photo is there."""
    present = np.array([os.path.isfile(path) for path in split.paths], bool)  # (M,)
    missing = [split.paths[row] for row in np.flatnonzero(~present)]
    if not missing:
        return split
    note = f"{len(missing):,} of {len(split):,} {part} photos are missing{listed(missing)}"
    if not skip_missing or not present.any():
        raise FileNotFoundError(
            f"{note}; correct the names, choose the folder that the photos are in, or leave them "
            "out with --skip-bad-images"
        )
    tell(f"{note}; they are left out")
    return split.select_readable(np.flatnonzero(present))


def aligned(split: data.Split, classes: list[str]) -> data.Split:
    """The split with its labels in the order of these classes: the same names are the same labels.

    A label that is not among the classes is left out if no photo of the split shows it, and is an
    error otherwise. A class that the split lacks is on none of its photos, and is named.
    """
    unknown, unused = [], []
    for j, name in enumerate(split.classes):
        if name not in classes and split.targets[:, j].any():
            unknown.append(name)
        elif name not in classes:
            unused.append(name)
    if unknown:
        raise ValueError(
            f"{len(unknown):,} of {len(split.classes):,} val labels are not among those of the "
            f"training photos{listed(unknown)}; "
            "correct the names, or add training photos that show them"
        )
    if unused:
        tell(
            f"val: left out {len(unused):,} of {len(split.classes):,} labels, which no val photo "
            f"shows and the training photos do not have{listed(unused)}"
        )
    lacking = [name for name in classes if name not in split.classes]
    if lacking:
        tell(
            f"val: {len(lacking):,} of {len(classes):,} labels of the training photos are not "
            f"among those of val, and count as absent from every val photo{listed(lacking)}"
        )
    targets = np.zeros((len(split), len(classes)), np.uint8)  # (M, n)
    for j, name in enumerate(split.classes):
        if name not in unused:
            targets[:, classes.index(name)] = split.targets[:, j]
    return replace(split, targets=targets, classes=classes)
