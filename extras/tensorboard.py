"""What --tensorboard shows: `tensorboard --logdir <out>/tensorboard`, a run a model and `labels`.

    backbone, gcn-<nodes>   by epoch: loss, learning rate, images/s; mAP and CP .. OF1; PR curves;
                            a sheet of val photos with true and predicted labels
    labels                  the label graph's picture; node features in the projector, by name

Needs the package tensorboard. Without a folder all of it does nothing.
Symbols: M images in the evaluated split, n labels, D node feature size.
"""

import math
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
import metrics
from extras.pictures import TILE, contact_sheet, labelled

CURVES = 8  # labels with a PR curve, besides that of all labels
PHOTOS = 12  # on the sheet


def writer_class():
    """torch's SummaryWriter; a ValueError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--tensorboard needs the package tensorboard ({error})") from None
    return SummaryWriter


class Board:
    """The event files of one model, one an epoch, or of the labels. Steps are epochs, from 1.

    A training that goes on after `epochs` removes the files of later ones, which it does again; one
    that starts over, at 0, removes all. (SummaryWriter's purge_step would leave PR curves double.)
    """

    def __init__(self, folder: Path | None, name: str, thresholds: list, epochs: int = 0):
        self.folder = self.writer = None
        if folder:
            self.folder = folder / name
            self.thresholds = sorted({0.5, 0.8, *thresholds})  # as in results.md
            if not epochs:
                shutil.rmtree(self.folder, ignore_errors=True)
            for path in self.folder.glob("events.*"):
                if int(path.suffix[1:]) > epochs:
                    path.unlink()

    def at(self, epoch: int):
        """Where to write what is of this epoch; None where nothing is to be written."""
        if self.folder and not self.writer:
            self.writer = writer_class()(str(self.folder), filename_suffix=f".{epoch}")
        return self.writer

    def close(self) -> None:
        if self.writer:
            self.writer.close()
            self.writer = None

    def evaluated(self, logits: np.ndarray, split: data.Split, epoch: int) -> None:
        """Of the evaluated split's photos, logits (M, n)."""
        if not (writer := self.at(epoch)):
            return
        for p in self.thresholds:
            values = metrics.precision_recall_f1(logits, split.targets, math.log(p / (1 - p)))
            for key, value in values.items():
                writer.add_scalar(f"val at p over {p:g}/{key}", value, epoch)
        scores = torch.from_numpy(logits).sigmoid().numpy()  # (M, n)
        writer.add_pr_curve("PR/all labels", split.targets.ravel(), scores.ravel(), epoch)
        for j in curve_labels(split.targets):
            targets = split.targets[:, j]
            name = f"PR/{split.classes[j]}, {targets.sum()} photos"
            writer.add_pr_curve(name, targets, scores[:, j], epoch)
        writer.add_image("val photos", np.asarray(sheet(scores, split)), epoch, dataformats="HWC")

    def epoch(self, entry: dict, images_per_second: float) -> None:
        """A line of log.jsonl, the last of an epoch."""
        if writer := self.at(entry["epoch"]):
            values = {"train/loss": entry["loss"], "train/lr": entry["lr"]}
            if images_per_second:  # none where a resumed epoch had only its evaluation left
                values["train/images per second"] = images_per_second
            if "mAP" in entry:
                values["val/mAP"] = entry["mAP"]
            for name, value in values.items():
                writer.add_scalar(name, value, entry["epoch"])
            self.close()


def labels(folder: Path, image: Image.Image, nodes: dict, classes: list[str]) -> None:
    """The label graph's picture, and node features (n, D) of each kind as the GCN gets them."""
    board = Board(folder, "labels", [])
    writer = board.at(1)
    writer.add_image("label graph", np.asarray(image), 1, dataformats="HWC")
    for kind, matrix in nodes.items():
        writer.add_embedding(matrix, [" ".join(c.split()) for c in classes], tag=kind)
        writer.flush()
    board.close()


def curve_labels(targets: np.ndarray) -> np.ndarray:
    """The labels with a PR curve: from the most frequent to the rarest with a photo, evenly spread.

    By the val targets (M, n) alone, so that curves of all epochs and models are of the same labels.
    """
    counts = targets.sum(0, dtype=np.int64)  # (n,)
    order = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]
    picks = np.linspace(0, len(order) - 1, min(CURVES, len(order)))
    return order[picks.round().astype(int)]


def sheet(scores: np.ndarray, split: data.Split) -> Image.Image:
    """Photos evenly spread over the split, the same each time; below, what p > 0.8 says of them:
    a label that is not there is "no ...", one that is and was not said "missed ..."."""
    tiles = []
    for row in np.linspace(0, len(split) - 1, min(PHOTOS, len(split))).round().astype(int):
        labels = []
        for j in np.argsort(-scores[row], kind="stable"):
            said, true = scores[row, j] > 0.8, split.targets[row, j]
            if said or true:
                kind = "" if said and true else "no " if said else "missed "
                labels.append((kind + split.classes[j], f"{scores[row, j]:.2f}"))
        tiles.append(labelled(data.read_image(split.paths[row], TILE), labels))
    return contact_sheet(tiles)
