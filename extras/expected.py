"""How long training will take, told before it begins, from a few photos that are read and timed."""

import time

import torch

from data import MultiLabelImages

PHOTOS = 8  # that are timed


def seconds_a_photo(
    backbone: torch.nn.Module, images: MultiLabelImages, workers: int, autocast: torch.autocast
) -> float:
    """Of a training step where the images are augmented, else of evaluation."""
    start, train = time.perf_counter(), images.augment
    for row in range(PHOTOS):
        images[0, row % len(images)]
    reading = (time.perf_counter() - start) / max(workers, 1)
    device = next(backbone.parameters()).device
    pixels = torch.zeros(PHOTOS, 3, images.size, images.size, device=device)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(train):
            loss = backbone.train(train)(pixels).sum()  # as long as any
        if train:
            loss.backward()
        loss.item()  # waits for the device
    return (reading + time.perf_counter() - start) / PHOTOS
