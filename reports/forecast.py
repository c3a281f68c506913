"""How long training will take, told before it begins, from a few photos that are read and timed."""

import time

import torch

from data import MultiLabelImages

PIXELS = 2**20  # of the photos that are timed; small ones in a larger batch


def seconds_a_photo(
    backbone: torch.nn.Module, images: MultiLabelImages, workers: int, autocast: torch.autocast
) -> float:
    """Of a training step where the images are augmented, else of evaluation."""
    S, train, start = images.size, images.augment, time.perf_counter()
    photos = min(max(PIXELS // S**2, 4), 32)
    for row in range(photos):
        images[0, row % len(images)]
    reading = (time.perf_counter() - start) / max(workers, 1)
    pixels = torch.zeros(photos, 3, S, S, device=next(backbone.parameters()).device)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(train):
            loss = backbone.train(train)(pixels).sum()  # as long as any
        if train:
            loss.backward()
        loss.item()  # waits for the device
    return (reading + time.perf_counter() - start) / photos
