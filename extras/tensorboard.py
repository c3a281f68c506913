"""What --tensorboard shows: `tensorboard --logdir <out>/tensorboard`, a run a model.

By epoch: loss, learning rate, images/s; mAP and CP .. OF1; the PR curve of all labels together.

Needs the package tensorboard. Without a folder all of it does nothing.
Symbols: M images in the evaluated split, n labels.
"""

import math
import shutil
from pathlib import Path

import numpy as np
import torch

import data
import metrics


def writer_class():
    """torch's SummaryWriter; a ValueError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--tensorboard needs the package tensorboard ({error})") from None
    return SummaryWriter


class Board:
    """The event files of one model, one an epoch. Steps are epochs, from 1.

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
        scores = torch.from_numpy(logits).sigmoid().flatten()  # (M n,)
        writer.add_pr_curve("PR of all labels", split.targets.ravel(), scores, epoch)

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
