"""What --tensorboard shows: `tensorboard --logdir <out>/tensorboard`, the curves of log.jsonl.

Needs the package tensorboard. Without a folder it does nothing.
"""

from pathlib import Path

from runtime import ranks


def writer_class():
    """torch's SummaryWriter; a ValueError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--tensorboard needs the package tensorboard ({error})") from None
    return SummaryWriter


class Board:
    """The curves of one model, by epoch from 1. What is there of epochs after `epochs`, which a
    training that goes on does again, is no longer shown."""

    def __init__(self, out: Path | None, name: str, epochs: int):
        self.writer = None
        if out and ranks.rank() == 0:
            folder = out / "tensorboard" / name
            self.writer = writer_class()(str(folder), purge_step=epochs + 1)

    def epoch(self, entry: dict, images_per_second: float) -> None:
        """A line of log.jsonl, and the speed; 0 where a resumed epoch had only val left."""
        for name in ("loss", "lr", "mAP") if self.writer else ():
            if name in entry:
                self.writer.add_scalar(name, entry[name], entry["epoch"])
        if self.writer:
            if images_per_second:
                self.writer.add_scalar("images per second", images_per_second, entry["epoch"])
            self.writer.flush()
