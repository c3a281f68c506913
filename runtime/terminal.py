"""Text from outside made fit for a terminal, and the line that shows how far something is."""

import sys
import time


def printable(text: object, width: int = 80) -> str:
    """Text from a file for a terminal: one line of at most `width`, its middle left out if longer.

    Whatever moves the cursor, turns the direction or cannot be seen is escaped, as in a string's
    repr: names that differ only by such characters look different.
    """
    text = str(text)
    if len(text) > 2 * width:
        text = text[:width] + text[-width:]  # no time is spent on what is left out
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= width:
        return text
    tail = (width - 3) // 2
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def brief(value: object) -> str:
    """A value from a file as Python writes it, cut for a message."""
    return printable(repr(value))


def listed(names: list[str]) -> str:
    """ ": " and the first three of some names or paths, for the end of a sentence; "" of none."""
    first = ", ".join(printable(name, 120) for name in names[:3])
    return f": {first}{' ...' if len(names) > 3 else ''}" if names else ""


def counted(kinds: dict[str, int], most: int = 8) -> str:
    """Kinds and how many there are of each, the most frequent first, without those of 0."""
    there = [(kind, count) for kind, count in kinds.items() if count]
    there.sort(key=lambda item: -item[1])
    text = ", ".join(f"{printable(kind)}: {count:,}" for kind, count in there[:most])
    return text + ", ..." if len(there) > most else text


class Progress:
    """One line that rewrites itself on a terminal, with rate and time left; silent in a log."""

    def __init__(self, what: str, total: float, unit: str = "images"):
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.start = self.shown = time.monotonic()

    def due(self, count: float) -> bool:
        """Counts what was done; true at most every half second, when `show` is worth its cost."""
        self.done += count
        return time.monotonic() - self.shown > 0.5

    def show(self, text: str = "") -> None:
        self.shown = time.monotonic()
        if sys.stdout.isatty():
            rate = self.done / max(self.shown - self.start, 1e-9)
            line = f"{self.what}  {self.done:,.0f}/{self.total:,.0f} {self.unit}  {text}"
            if rate:  # none before the first image that can be read
                left = max(self.total - self.done, 0) / rate
                line += f"{rate:.1f} {self.unit}/s  {left:.0f} s left"
            print(f"\r{line}\033[K", end="", flush=True)

    def close(self) -> str:
        """Clears the line; returns rate and time for the log."""
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        seconds = time.monotonic() - self.start
        return f"{self.done / max(seconds, 1e-9):.1f} {self.unit}/s  {seconds:.1f} s"
