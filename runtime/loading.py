"""Batches of a data set on the device: each rank has its part of them, starting at any step.

The order of the rows depends only on seed and epoch, so that a run resumes where it stopped,
whatever the number of workers. `data.py` says what images and targets hold.

Symbols: B images in a batch, n labels, S image side.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from runtime import ranks, signals


def collate(items: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """images (B, 3, S, S) uint8 in channels_last order, targets (B, n), rows (B,), errors."""
    errors = [error for *_, error in items if error]
    good = [item for item in items if item[3] is None]
    if not good:
        return torch.empty(0), torch.empty(0), torch.empty(0), errors
    images = torch.empty(len(good), *good[0][0].shape, dtype=torch.uint8)  # (B, S, S, 3)
    if torch.utils.data.get_worker_info():  # so that the run gets it without a second copy
        images = images.share_memory_()
    np.stack([item[0] for item in good], out=images.numpy())
    targets = torch.from_numpy(np.stack([item[1] for item in good]))  # (B, n)
    rows = torch.tensor([item[2] for item in good])  # (B,)
    return images.permute(0, 3, 1, 2), targets, rows, errors


class Rows:
    """Lists of (epoch, row) keys, one list per batch. Before each pass set `epoch`, and `start`,
    the index of its first batch. Each rank gets its share of every batch; no row goes to two ranks.

    Shuffled: the order depends only on (seed, epoch), and the last, incomplete batch is dropped
    unless it is the only one, so that all steps weigh the same. In order: every image once.
    """

    def __init__(self, num_images: int, batch_size: int, shuffle: bool = False, seed: int = 0):
        self.num_images, self.batch_size = num_images, min(batch_size, num_images)
        self.shuffle, self.seed, self.epoch, self.start = shuffle, seed, 0, 0
        if shuffle and self.batch_size < ranks.size():
            raise ValueError(
                f"a batch has {self.batch_size} photos, fewer than the {ranks.size()} processes; "
                "use a larger --batch-size, or start fewer processes"
            )

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole if self.shuffle else whole + (rest > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_images)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for i in range(self.start, len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in rows[ranks.rank() :: ranks.size()]]


class Loader(DataLoader):
    """Yields a rank's part of every batch, on the device: images (B, 3, S, S) in [0, 1], targets
    (B, n), rows (B,), and a sentence for each photo that is left out since it cannot be read.

    The dataset's items are (image, target, row, error). `rows` says where the next pass begins.
    Images travel to the device as bytes, a quarter of their size as floats.
    """

    # The work of one photo in a training step, and in a pass without gradients: a backward pass
    # takes about twice as long as a forward one [a rule of thumb]. The time left follows from them.
    step_cost, pass_cost = 1.0, 1 / 3

    def __init__(self, dataset: Dataset, rows: Rows, device: str, workers: int = 0):
        self.rows, self.device = rows, device
        super().__init__(
            dataset,
            batch_sampler=rows,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.startswith("cuda"),
            worker_init_fn=signals.ignore,
        )

    def __iter__(self):
        for images, targets, rows, errors in super().__iter__():
            images = images.to(self.device, non_blocking=True)  # (B, 3, S, S) uint8
            targets = targets.to(self.device, non_blocking=True)  # (B, n) uint8
            yield images.float().div_(255), targets, rows, errors


class FeatureLoader:
    """Like a Loader, with features (M, D) from memory in place of images, and without errors."""

    step_cost, pass_cost = 1 / 900, 0.0  # measured with EfficientNet-Lite2 at 384 px on a CPU

    def __init__(self, features: torch.Tensor, targets: np.ndarray, rows: Rows, device: str):
        self.features, self.targets = features, torch.from_numpy(targets)
        self.rows, self.device = rows, device

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        for keys in self.rows:
            rows = torch.tensor([row for _, row in keys], dtype=torch.long)
            features = self.features[rows].to(self.device, non_blocking=True)  # (B, D)
            yield features, self.targets[rows].to(self.device, non_blocking=True), rows, []
