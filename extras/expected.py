"""How long a run will take, told before it begins, from one small batch that is read and timed.

How long it did take is the journal's affair.
"""

import time

import torch

import data
import iml_gcn
from runtime import ranks
from runtime.loading import collate

PHOTOS = 8  # that are timed


def expected(
    model: iml_gcn.Model,
    split: data.Split,
    size: int,
    workers: int,
    passes: float,
    train: bool,
    autocast: torch.autocast,
) -> str:
    """How long `passes` photos take, each of them a step of training, or in eval: as text."""
    images = data.MultiLabelImages(split, size, augment=train)
    start = time.perf_counter()
    items = [images[0, row] for row in range(min(PHOTOS, len(split)))]
    reading = (time.perf_counter() - start) / len(items) / max(workers, 1)
    pixels, _, rows, _ = collate(items)
    if not len(rows):
        return "no telling, the first photos cannot be read"
    pixels = pixels.to(next(model.parameters()).device).float().div_(255)
    model = model.train() if train else model.fold()
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(train):
            loss = model(pixels).sum()  # as long as any
        if train:
            loss.backward()
        loss.item()  # waits for the device
        computing = (time.perf_counter() - start) / len(rows)
    seconds = passes * (reading + computing) / ranks.size()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(seconds, 1):.0f} seconds"
