"""How long training will take, told before it begins, from a few photos that are read and timed."""

import time
from datetime import timedelta

import torch

from data import MultiLabelImages
from runtime.loading import FeatureLoader, Loader
from runtime.terminal import tell

PIXELS = 2**20  # of the photos that are timed; small ones in a larger batch
FEW_STEPS = {"random": 5000, "pretrained": 500}  # of training a whole network; ours


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
        tell("few steps: expect low mAP; --freeze and pretrained weights give more: docs/data.md")
