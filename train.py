"""The training loop, and the pass over a split that evaluates.

A step: uint8 photos to the device, forward, asymmetric loss, backward, Adam, schedule, moving
average; nothing in it waits for the device. Under torchrun each rank takes its part of every batch.

Symbols: B images in a batch, M images in a split, n labels, S image side.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import data
import files
import iml_gcn
import metrics
import process
import tresnet
from board import Board

THRESHOLD = 0.8  # of a model that was not evaluated: ASL's; difference 6


def make_loader(args, split: data.Split, train: bool) -> DataLoader:
    """A rank's part of every batch of --batch-size images."""
    return DataLoader(
        data.MultiLabelImages(split, args.image_size, augment=train, seed=args.seed),
        batch_sampler=data.Batches(
            len(split), args.batch_size, train, args.seed, process.rank(), process.size()
        ),
        collate_fn=data.collate,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=args.device.startswith("cuda"),
        worker_init_fn=process.ignore_signals,
    )


def batches(args, loader: DataLoader):
    """images (B, 3, S, S) in [0, 1], targets (B, n), rows (B,), and a sentence for every photo that
    could not be read and is not among them. Bytes travel, floats do not."""
    for images, targets, rows, errors in loader:
        images = images.to(args.device, non_blocking=True)  # (B, 3, S, S) uint8
        targets = targets.to(args.device, non_blocking=True)  # (B, n) uint8
        yield images.float().div_(255), targets, rows, errors


def whole_pass(args, loader: DataLoader, what: str, use: Callable) -> torch.Tensor:
    """Call use(images, targets, rows) on every batch of a split's photos, not augmented.

    Returns which photos could be read, (M,) bool: all of them, unless --skip-bad-images.
    """
    read = torch.zeros(len(loader.dataset))  # (M,)
    progress = Progress(what, len(read))
    for images, targets, rows, errors in batches(args, loader):
        if errors and not args.skip_bad_images:
            raise ValueError(f"{errors[0]}, or leave such photos out with --skip-bad-images")
        if len(rows):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=args.amp):
                use(images, targets, rows)
            read[rows] = 1
        if progress.due(len(rows) * process.size()):
            progress.show()
        if process.received:
            raise process.Stopped(f"{what}, which begins again")
    read = process.total(read) > 0  # (M,)
    if not read.all():
        print(f"{what}: {int((~read).sum()):,} of {len(read):,} photos cannot be read, left out")
    if not read.any():
        raise ValueError(f"{what}: no photo can be read; check the image folder")
    progress.close()
    return read


@torch.inference_mode()
def predict_logits(args, model: torch.nn.Module, loader: DataLoader, what: str):
    """Logits (M, n) float32 of the loader's split in its order, and which photos were read, (M,)
    bool; the other rows are 0."""
    model = tresnet.fold(model)
    logits = torch.zeros(loader.dataset.split.targets.shape)  # (M, n)

    def keep(images, targets, rows):
        logits[rows] = model(images).float().cpu()

    read = whole_pass(args, loader, what, keep)
    return process.total(logits).numpy(), read.numpy()


def train(args, name: str, model: iml_gcn.Classifier, splits, current: dict) -> None:
    """Train `model` on splits[0] to the last epoch and write <name>.pt (differences 9 to 14).

    last.pt holds all that the rest depends on, written after every epoch, every --save-every
    minutes and when the run is asked to stop; from there it goes on to the same numbers.
    """
    model = model.to(args.device, memory_format=torch.channels_last)
    loader, val_loader = make_loader(args, splits[0], True), make_loader(args, splits[1], False)
    part = 1.0 if name == "backbone" else args.backbone_lr
    frozen = part == 0
    model.backbone.requires_grad_(not frozen)
    groups = []
    for module, lr in ((model.head, args.lr), (model.backbone, args.lr * part)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim >= 2]  # difference 12
        groups.append({"params": decay, "weight_decay": args.weight_decay, "lr": lr})
        groups.append({"params": [p for p in parameters if p.ndim < 2], "lr": lr})
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(groups, fused=args.device.startswith(("cuda", "cpu")))
    per_epoch = len(loader)
    steps = per_epoch * args.epochs
    if args.recipe == "asl":  # a cycle of twice the epochs, 80, left after the first half, 40 [ASL]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in groups], total_steps=2 * steps, pct_start=0.2
        )
    else:
        quarters = [math.ceil(steps * k / 4) for k in (1, 2, 3)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, quarters, gamma=0.1)
    average = None
    if args.ema:
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(args.ema), use_buffers=True
        )
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    parts |= {"average": average} if average else {}

    last = args.out / "last.pt"
    epoch, step = 0, 0  # whole epochs done, and steps of the next
    lr = scheduler.get_last_lr()[0]
    losses = torch.zeros(per_epoch, device=args.device)  # each the sum over a rank's images
    seen, bad = 0, []  # a rank's images in this epoch; sentences on photos that cannot be read
    checkpoint = None
    if files.unfinished(args, name):
        checkpoint = files.begun(args, last, current, splits[0].classes)
    if checkpoint:
        try:
            for key, part in parts.items():
                part.load_state_dict(checkpoint[key])
            epoch, step = int(checkpoint["epochs"]), int(checkpoint["step"])
            lr = float(checkpoint["lr"])
            if process.rank() == 0:  # it holds the sums over all ranks
                losses.copy_(checkpoint["losses"])
                seen, bad = int(checkpoint["seen"]), list(checkpoint["bad"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{last} is not from this version of the program, or damaged "
                f"({type(error).__name__}); --fresh starts over"
            ) from error
        print(f"{name}: goes on after epoch {epoch} and {step} of {per_epoch} steps ({last})")
    if process.rank() == 0:
        files.forget(args.out / "log.jsonl", name, epoch)
    board = Board(args, name, epoch)

    forward = model
    if process.size() > 1:
        devices = [args.device] if args.device.startswith("cuda") else None
        forward = DistributedDataParallel(model, device_ids=devices)
    forward = torch.compile(forward) if args.compile else forward

    def save() -> None:
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError(diverged(where, step, last))  # rather than replace what did not
        sums = process.total(torch.cat([losses.cpu(), torch.tensor([float(seen)])]).double())
        state = {"epochs": epoch, "step": step, "lr": lr, "bad": process.gather(bad)}
        state |= {"losses": sums[:-1].float(), "seen": int(sums[-1])}
        if process.rank() == 0:
            about = {"name": name, "classes": splits[0].classes, "settings": current}
            about |= {key: part.state_dict() for key, part in parts.items()}
            files.save(last, about | state)

    saved, threshold = time.monotonic(), THRESHOLD
    while epoch < args.epochs:
        model.train()
        model.backbone.train(not frozen)
        loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, step
        where = f"{name}  epoch {epoch + 1}/{args.epochs}"
        progress = Progress(where, (per_epoch - step) * loader.batch_sampler.batch_size)
        for images, targets, rows, errors in batches(args, loader):
            step += 1
            bad += errors
            if not len(rows):
                raise ValueError(f"{where}, step {step}: not one photo of it; {errors[0]}")
            with torch.autocast(images.device.type, torch.bfloat16, enabled=args.amp):
                logits = forward(images)  # (B, n)
            loss = iml_gcn.asymmetric_loss(
                logits, targets, args.gamma_neg, args.gamma_pos, args.clip
            )
            optimizer.zero_grad()
            (loss * process.size()).backward()  # of ranks, gradients are averaged, losses summed
            optimizer.step()
            scheduler.step()
            if average:
                average.update_parameters(model)
            losses[step - 1] = loss.detach()  # read only now and then: no waiting for the device
            seen += len(rows)
            if progress.due(len(rows) * process.size()) or step == per_epoch:
                finite = losses[:step].isfinite()
                if not finite.all():
                    raise ValueError(diverged(where, int(finite.int().argmin()) + 1, last))
                progress.show(f"loss {losses[step - 1] / len(rows):.2f} an image  ")
            stop, due = process.any_rank(
                process.received is not None, time.monotonic() - saved > 60 * args.save_every
            )
            if stop or due or step == per_epoch:
                save()
                saved = time.monotonic()
            if stop:
                raise process.Stopped(f"{where}, step {step} of {per_epoch}, saved in {last}")
        speed = progress.close()
        process.share_buffers(*(module for module in (model, average) if module))

        sums = process.total(torch.tensor([losses.sum().item(), seen], dtype=torch.float64))
        entry = {"model": name, "epoch": epoch + 1, "loss": float(sums[0] / sums[1]), "lr": lr}
        line = f"{where}  loss {entry['loss']:.2f} an image  lr {lr:.1e}"
        if args.eval_every and (epoch + 1) % args.eval_every == 0:
            evaluated = average.module if average else model
            logits, read = predict_logits(args, evaluated, val_loader, f"{name}  val")
            ap = metrics.average_precision(logits[read], splits[1].targets[read])  # (n,)
            entry["mAP"] = metrics.mean_average_precision(ap)
            board.evaluated(logits[read], splits[1].select(np.flatnonzero(read)), epoch + 1)
            line += f"  val mAP {entry['mAP']:.2f}"
            if epoch + 1 == args.epochs:
                threshold = best_threshold(logits[read], splits[1].targets[read])
        print(f"{line}  {speed}", flush=True)
        if bad := process.gather(bad):
            names = "\n    ".join(bad[:3])
            print(f"    {len(bad):,} photos left out of this epoch:\n    {names}", flush=True)
        if process.rank() == 0:
            with open(args.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        board.epoch(entry, progress.rate)
        epoch, step, seen, bad = epoch + 1, 0, 0, []
        losses.zero_()
        lr = scheduler.get_last_lr()[0]

    if process.rank() == 0:
        final = average.module if average else model
        files.save(
            args.out / f"{name}.pt",
            {
                "name": name,
                "classes": splits[0].classes,
                "backbone": args.backbone,
                "pool": args.pool,
                "image_size": args.image_size,
                "epochs": args.epochs,
                "threshold": threshold,
                "backbone_id": files.weights_id(final.backbone),
                "settings": current,
                "state_dict": final.state_dict(),
            },
        )
        last.unlink(missing_ok=True)
    process.wait()


def best_threshold(logits: np.ndarray, targets: np.ndarray) -> float:
    """The probability, in steps of 0.05, above which labels have the highest OF1: what predict.py
    goes by. No figure of a table does (difference 6)."""

    def OF1(p: float) -> float:
        return metrics.precision_recall_f1(logits, targets, math.log(p / (1 - p)))["OF1"]

    return max((k / 100 for k in range(5, 100, 5)), key=OF1)


def diverged(where: str, step: int, last: Path) -> str:
    saved = f"{last} holds a state before that" if last.is_file() else "nothing was saved yet"
    return f"training diverged: {where}, step {step}; {saved}; try --fresh and a smaller --lr"


class Progress:
    """One line that rewrites itself on a terminal, with rate and time left; silent in a log."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done, self.start = what, total, 0, time.monotonic()
        self.shown = self.start

    def due(self, images: int) -> bool:
        """Counts images; true at most every half second, when `show` is worth its cost."""
        self.done += images
        return time.monotonic() - self.shown > 0.5

    def show(self, text: str = "") -> None:
        self.shown = time.monotonic()
        if sys.stdout.isatty():
            rate = self.done / (self.shown - self.start)
            left = max(self.total - self.done, 0) / rate
            line = f"{self.what}  {self.done}/{self.total} images  {text}{rate:.1f} images/s"
            print(f"\r{line}  {left:.0f} s left\033[K", end="", flush=True)

    def close(self) -> str:
        """Clears the line; returns rate, also kept, and time for the log."""
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        seconds = time.monotonic() - self.start
        self.rate = self.done / seconds
        return f"{self.rate:.1f} images/s  {seconds:.1f} s"
