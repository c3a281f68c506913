"""What surrounds training: where it resumes, what it saves, logs and shows, and how it stops.

    for epoch in journal.epochs(40):                       # from where an earlier run stopped
        for images, targets in journal.steps(loader, epoch):
            ...                                            # a step; journal.loss = its loss
        journal.close_epoch(mAP=...)                       # a line on the terminal and in log.jsonl
    journal.finish({...})                                  # <name>.pt; last-<name>.pt is removed

`last-<name>.pt` holds everything that the rest of training depends on. It is written after every
epoch, every `save_every` minutes and when the run is asked to stop; a run that resumes from it
computes the same numbers. A loader yields images, targets, rows and errors, and has `rows` with
`epoch`, `start` and `batch_size`. The caller computes the step.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from runtime import ranks, signals, writing
from runtime.folder import Folder
from runtime.options import LARGEST_COUNT
from runtime.terminal import Progress, clock, printable, tell


class Journal:
    """The training of one model. `parts` have a state_dict each: "model", "optimizer", "scheduler"
    and perhaps "average". `steps` is the number of steps in an epoch. Both files that are written
    also hold `photos_seen`, the entries that say which photos the model has seen."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        parts: dict,
        settings: dict,
        steps: int,
        save_every: float,
        photos_seen: dict,
    ):
        self.folder, self.name, self.settings = folder, name, settings
        self.photos_seen = photos_seen
        self.parts = {key: part for key, part in parts.items() if part}
        self.networks = [self.parts[key] for key in ("model", "average") if key in self.parts]
        self.steps_per_epoch = steps
        self.save_every = save_every  # minutes
        self.saved_at = time.monotonic()
        self.last = folder / f"last-{name}.pt"
        read_log(folder / "log.jsonl")  # a damaged one is a ValueError now, not after an epoch
        self.epoch = 0  # how many epochs are complete
        self.step = 0  # how many steps of the next one
        self.lr = parts["scheduler"].get_last_lr()[0]  # at the epoch's first step
        self.resumed = False
        self.where = name  # for messages: the model and the epoch
        self.loss = None  # the last step's, summed over this rank's images
        device = next(parts["model"].parameters()).device
        self.losses = torch.zeros(steps, device=device)  # of each step of the epoch
        self.seen = 0  # images of the epoch that this rank has seen
        self.bad = []  # sentences about the epoch's photos that cannot be read
        self.speed = ""  # the epoch's, for the log
        if checkpoint := folder.begun(self.last.name, settings):
            self.resume(checkpoint)

    def resume(self, checkpoint: dict) -> None:
        """Go on from what last-<name>.pt holds."""
        for key, part in self.parts.items():
            part.load_state_dict(checkpoint[key])
        self.epoch, self.step = checkpoint["epochs"], checkpoint["step"]
        self.lr = checkpoint["lr"]
        if ranks.rank() == 0:  # it holds the sums over all ranks
            self.losses.copy_(checkpoint["losses"])
            self.seen, self.bad = checkpoint["seen"], checkpoint["bad"]
        self.resumed = True
        where = f"epoch {self.epoch} and {self.step} of {self.steps_per_epoch} steps"
        tell(f"{self.name}: resumes after {where} ({self.last})")

    def epochs(self, count: int) -> Iterator[int]:
        """Yields the epochs that are left, counted from 0; the loop's body ends with
        `close_epoch`. The last epoch is always among them: if a run stopped after its last step,
        that epoch has no steps left."""
        while self.epoch < count:
            self.where = f"{self.name}  epoch {self.epoch + 1}/{count}"
            yield self.epoch

    def steps(self, loader, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images and targets of each step that is left of an epoch; the loop's body sets
        `loss`."""
        loader.rows.epoch = epoch
        loader.rows.start = self.step
        photos = (self.steps_per_epoch - self.step) * loader.rows.batch_size
        progress = Progress(self.where, photos, cost=loader.step_cost)
        done_before = (epoch * self.steps_per_epoch + self.step) * loader.rows.batch_size
        if self.resumed:
            clock.skip(done_before * loader.step_cost)
            self.resumed = False
        for images, targets, rows, errors in loader:
            self.bad += errors
            if not len(rows):
                raise ValueError(
                    f"{self.where}, step {self.step + 1}: no photo of it can be read: {errors[0]}"
                )
            yield images, targets
            self.losses[self.step] = self.loss.detach()  # read rarely: no synchronisation
            self.step += 1
            self.seen += len(rows)
            time_to_show = progress.advance(len(rows) * ranks.size())
            if time_to_show or self.step == self.steps_per_epoch:
                self.check_finite([self.losses[: self.step]])
            if time_to_show:
                progress.show(f"loss {self.losses[self.step - 1] / len(rows):.2f}")
            is_time = time.monotonic() - self.saved_at > 60 * self.save_every
            stop, time_to_save = ranks.any_rank(signals.received is not None, is_time)
            if stop or time_to_save or self.step == self.steps_per_epoch:
                self.save()
            if stop:
                where = f"{self.where}, step {self.step} of {self.steps_per_epoch}"
                raise signals.Stopped(f"in {where}, saved in {self.last}")
        self.speed = progress.close()
        ranks.share_buffers(*self.networks)

    def check_finite(self, tensors: Iterable[torch.Tensor]) -> None:
        """A ValueError if one of these numbers is infinite or NaN."""
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError(
                f"training diverged in {self.where}, at or before step {self.step}; use a smaller "
                "--lr, with --fresh"
            )

    def save(self) -> None:
        """Write last-<name>.pt; a model that has diverged is a ValueError and replaces nothing."""
        for network in self.networks:
            self.check_finite(network.state_dict().values())
        sums = torch.cat([self.losses.cpu(), torch.tensor([float(self.seen)])]).double()
        sums = ranks.total(sums)
        state = {"epochs": self.epoch, "step": self.step, "lr": self.lr}
        state |= {"losses": sums[:-1].float(), "seen": int(sums[-1]), "bad": ranks.gather(self.bad)}
        state |= {key: part.state_dict() for key, part in self.parts.items()} | self.photos_seen
        self.folder.save(self.last.name, state, self.settings)
        self.saved_at = time.monotonic()

    def close_epoch(self, mAP: float | None) -> None:
        """A line on the terminal and in log.jsonl; mAP where it was measured."""
        sums = ranks.total(torch.tensor([self.losses.sum().item(), self.seen], dtype=torch.float64))
        loss = float(sums[0] / sums[1])
        entry = {"model": self.name, "epoch": self.epoch + 1, "loss": loss, "lr": self.lr}
        line = f"{self.where}  loss {loss:.2f}  lr {self.lr:.1e}"
        if mAP is not None:
            entry["mAP"] = mAP
            line += f"  val mAP {mAP:.2f}"
        print(f"{line}  {self.speed}", flush=True)
        if bad := ranks.gather(self.bad):
            names = "\n    ".join(bad[:3])
            tell(f"    {len(bad):,} photos left out of this epoch:\n    {names}")
        if ranks.rank() == 0:
            log(self.folder / "log.jsonl", entry)
        self.epoch += 1
        self.step = 0
        self.seen = 0
        self.bad = []
        self.losses.zero_()
        self.lr = self.parts["scheduler"].get_last_lr()[0]

    def finish(self, content: dict) -> None:
        """Write <name>.pt, with this content, and remove last-<name>.pt."""
        self.folder.save(f"{self.name}.pt", content | self.photos_seen, self.settings)
        if ranks.rank() == 0:
            self.last.unlink(missing_ok=True)
        ranks.wait()


def log(path: Path, entry: dict) -> None:
    """Write an epoch into log.jsonl. Older lines for this epoch and later ones of the same model
    are removed, since these are trained again: no epoch is there twice."""
    kept = [
        each
        for each in read_log(path)
        if each["model"] != entry["model"] or each["epoch"] < entry["epoch"]
    ]
    write_log(path, [*kept, entry])


def forget(path: Path, models: list[str]) -> None:
    """Remove the epochs of these models from log.jsonl: the models will be trained again."""
    if entries := read_log(path):
        write_log(path, [entry for entry in entries if entry["model"] not in models])


def write_log(path: Path, entries: list[dict]) -> None:
    lines = [json.dumps(writing.plain(entry)) + "\n" for entry in entries]
    writing.save_text(path, "".join(lines))


def read_log(path: Path) -> list[dict]:
    """The epochs in log.jsonl; a line that is not an epoch is a ValueError."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if type(entry["model"]) is not str or type(entry["epoch"]) is not int:
                raise TypeError
            if not 1 <= entry["epoch"] <= LARGEST_COUNT:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(
                f"{path}, line {number} is damaged: {printable(line)}; remove this line, or move "
                "the file away"
            ) from None
        entries.append(entry)
    return entries


class Pass:
    """One pass over all photos of a loader: images, targets and rows of every batch.

    Afterwards `read`, (M,) bool, says which photos could be read. Unless `skip_bad` is set, a photo
    that cannot be read is a ValueError. A pass that is stopped begins again, unless `batches` is
    given a function that keeps what was computed.
    """

    def __init__(self, loader, what: str, skip_bad: bool, save_every: float = math.inf):
        self.loader, self.what, self.skip_bad = loader, what, skip_bad
        self.save_every = save_every  # minutes
        self.read = torch.zeros(loader.rows.num_images, dtype=torch.bool)  # (M,)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return self.batches()

    def batches(
        self, save: Callable[[torch.Tensor], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The same with `save`, which keeps what was computed: save(read) is called with the photos
        read so far every `save_every` minutes, when a signal or a photo that cannot be read stops
        the pass, and at its end."""
        read = torch.zeros(len(self.read))  # (M,), 1 for each photo that this rank has read
        progress = Progress(self.what, len(read), cost=self.loader.pass_cost)
        unreadable = []
        saved_at = time.monotonic()
        for images, targets, rows, errors in self.loader:
            if len(rows):
                yield images, targets, rows
                read[rows] = 1
            unreadable += errors
            if progress.advance(len(rows) * ranks.size()):
                progress.show()
            failed = bool(errors) and not self.skip_bad
            asked_to_stop = signals.received is not None  # this rank
            stop = asked_to_stop  # with `save`, if any rank was asked
            if save:
                is_time = time.monotonic() - saved_at > 60 * self.save_every
                some_failed, stop, time_to_save = ranks.any_rank(failed, asked_to_stop, is_time)
                if some_failed or stop or time_to_save:
                    save(ranks.total(read.clone()) > 0)
                    saved_at = time.monotonic()
            if failed:
                raise ValueError(
                    f"{errors[0]}, or leave such photos out with --skip-bad-images; only the "
                    "latter keeps the models that are trained already"
                )
            if stop:
                raise signals.Stopped(f"in {self.what}", resumes=save is not None)
        self.read = ranks.total(read) > 0  # (M,)
        progress.close()
        count = int((~self.read).sum())
        if count:
            names = "\n    ".join(ranks.gather(unreadable)[:3])
            note = f"{count:,} of {len(read):,} photos cannot be read and are left out"
            tell(f"{self.what}: {note}:\n    {names}")
        if save:
            save(self.read)
        elif count == len(read):
            raise ValueError(f"{self.what}: no photo can be read; check the image folder")
