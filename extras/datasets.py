"""The data sets by name: where their files lie, what is fetched or drawn, what is told of them.

A data set is a function of `Places` that returns `Splits`; the readers themselves are `data.py`'s.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data
from extras import demo, download
from runtime import ranks
from runtime.text import listed


class Splits(NamedTuple):
    train: data.Split
    val: data.Split


@dataclass
class Places:
    """Where a data set is: a root folder, COCO's year, and paths that are given one by one."""

    root: str
    year: str = "2014"
    fetch: bool = False  # what of COCO is not there
    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None


def load_demo(places: Places) -> Splits:
    with ranks.in_turn():
        demo.make_demo(places.root, seed=0)
    return load_coco(places)


def load_coco(places: Places) -> Splits:
    """Train and val of the COCO tree of a year, or of any four paths given."""
    if places.fetch:
        with ranks.in_turn():
            download.coco(Path(places.root), places.year)
    splits = []
    for split in ("train", "val"):
        name = f"{split}{places.year}"
        json_path = getattr(places, f"{split}_json")
        images = getattr(places, f"{split}_images")
        json_path = Path(json_path or f"{places.root}/annotations/instances_{name}.json")
        images = Path(images or f"{places.root}/{name}")
        if not json_path.is_file() or not images.is_dir():
            raise FileNotFoundError(
                f"{images if json_path.is_file() else json_path} is not there; expected under "
                f"--data {places.root} (or given by --{split}-json and --{split}-images):\n"
                f"  annotations/instances_train{places.year}.json  train{places.year}/*.jpg\n"
                f"  annotations/instances_val{places.year}.json    val{places.year}/*.jpg"
            )
        splits.append(data.load_coco(json_path, images))
    return Splits(*splits)


def load_vg500(places: Places) -> Splits:
    return Splits(*data.load_vg500(places.root))


DATASETS: dict[str, Callable[[Places], Splits]] = {
    "demo": load_demo,
    "coco": load_coco,
    "vg500": load_vg500,
}


def load(
    name: str, places: Places, keep_unlabelled: bool = False, limit: int | None = None
) -> Splits:
    """Both splits, checked and described; what would go wrong hours later goes wrong here."""
    splits = []
    for part, split in zip(("train", "val"), DATASETS[name](places), strict=True):
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
        if not len(split):
            raise ValueError(f"no {part} image is left; check --limit and the annotations")
        missing = [path for path in split.paths if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {len(split):,} {part} photos are missing"
                f"{listed(missing)}; unpack them there, or give the folder they are in"
            )
        splits.append(split)
    if splits[0].classes != splits[1].classes:
        raise ValueError("the train and val JSON name different categories; they must be the same")
    return Splits(*splits)
