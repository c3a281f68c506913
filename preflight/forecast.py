"""How long training will take, told before it begins, from a few photos that are read and timed."""

import math
import time
from datetime import timedelta

import torch

import iml_gcn
from backbones import build
from backbones.features import FeatureStore
from data import MultiLabelImages
from datasets.catalogue import Splits
from preflight.plan import trained_models
from runtime import ranks
from runtime.folder import Folder
from runtime.journal import read_log
from runtime.loading import FeatureLoader, Loader, Rows
from runtime.terminal import clock, tell

PIXELS = 2**20  # of the photos that are timed; small ones in a larger batch
FEW_STEPS = {"random": 5000, "pretrained": 500}  # of training a whole network; ours


def announce(
    args, splits: Splits, folder: Folder, store: FeatureStore | None, autocast: torch.autocast
) -> None:
    """Say how long training will take, and whether it is likely to be too short."""
    clock.begin(0)
    left = [name for name in trained_models(args) if not (folder / f"{name}.pt").is_file()]
    if not left:
        return
    num_train, num_val, models = len(splits.train), len(splits.val), len(left)
    done = 0.0  # by an earlier run that was interrupted
    if store:
        unseen = sum(len(store.missing(split)) for split in splits)
        work = frozen_work(unseen, num_train, models, args.epochs)
        cost = Loader.pass_cost
        backbone = iml_gcn.Model(store.backbone, torch.nn.Identity()).fold().backbone
    else:
        measured = math.ceil(args.epochs / args.eval_every) if args.eval_every else 1
        work = whole_work(num_train, num_val, models, args.epochs, measured)
        cost = Loader.step_cost
        begun = [name for name in left if (folder / f"last-{name}.pt").is_file()]
        log = read_log(folder / "log.jsonl")
        done = sum(entry["model"] in begun for entry in log) * num_train * cost
        backbone = build(args.backbone, args.pool)
        steps = len(Rows(num_train, args.batch_size, shuffle=True)) * args.epochs
        if "backbone" in left and args.dataset != "demo":
            advise(steps, random_weights=args.weights == "none")
    clock.begin(work)
    if store and not unseen:
        return  # heads take seconds
    backbone = backbone.to(args.device, memory_format=torch.channels_last)
    images = MultiLabelImages(splits.train, args.image_size, augment=store is None)
    seconds = seconds_per_photo(backbone, images, args.workers, autocast)
    say((work - done) * seconds / cost / ranks.size())


def seconds_per_photo(
    backbone: torch.nn.Module, images: MultiLabelImages, workers: int, autocast: torch.autocast
) -> float:
    """Seconds per photo: of a training step if the images are augmented, else of evaluation."""
    S, train = images.size, images.augment
    photos = min(max(PIXELS // S**2, 4), 32)
    start = time.perf_counter()
    for row in range(photos):
        images[0, row % len(images)]
    reading = (time.perf_counter() - start) / max(workers, 1)
    pixels = torch.zeros(photos, 3, S, S, device=next(backbone.parameters()).device)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(train):
            loss = backbone.train(train)(pixels).sum()  # takes as long as any loss
        if train:
            loss.backward()
        loss.item()  # waits for the device
    return (reading + time.perf_counter() - start) / photos


def whole_work(train: int, val: int, models: int, epochs: int, measured: int) -> float:
    """The work of training and evaluating `models` models on these numbers of photos. A photo in a
    training step of the whole network is 1. Each training measures val `measured` times."""
    training = epochs * train * Loader.step_cost + measured * val * Loader.pass_cost
    embed_and_eval = (train + models * val) * Loader.pass_cost
    return models * training + embed_and_eval


def frozen_work(unseen: int, train: int, models: int, epochs: int) -> float:
    """The same with a frozen backbone: a pass over the photos that have no features, then heads."""
    return unseen * Loader.pass_cost + models * epochs * train * FeatureLoader.step_cost


def say(seconds: float) -> None:
    tell(f"expected: about {timedelta(seconds=round(seconds))} (h:mm:ss)")


def advise(steps: int, random_weights: bool) -> None:
    """Say, before hours are spent, if a whole network has so few steps that it learns little."""
    if steps < FEW_STEPS["random" if random_weights else "pretrained"]:
        tell(
            "few steps: expect low mAP; --freeze and pretrained weights usually reach a higher "
            "one: docs/data.md"
        )
