"""Text from outside made fit for a terminal, and lines that show progress.

The caller decides what is told, and when.
"""

import shutil
import sys
import textwrap
import time
from datetime import timedelta
from typing import TextIO


def printable(text: object, width: int = 80) -> str:
    """Text from outside as one line of at most `width` characters; a longer one loses its middle.

    Characters that move the cursor, change the direction of writing or cannot be seen are escaped,
    as in a string's repr. So names that differ only by such characters look different.
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


def listed(names: list[str], most: int = 3) -> str:
    """For the end of a sentence: ": " and the first of some names or paths; "" for none."""
    if not names:
        return ""
    text = ": " + ", ".join(printable(name, 120) for name in names[:most])
    return text + " ..." if len(names) > most else text


def counted(kinds: dict[str, int], most: int = 8) -> str:
    """Kinds and how many there are of each, the most frequent first; kinds with 0 are left out."""
    present = [(kind, count) for kind, count in kinds.items() if count]
    present.sort(key=lambda item: -item[1])
    text = ", ".join(f"{printable(kind)}: {count:,}" for kind, count in present[:most])
    return text + ", ..." if len(present) > most else text


def fitted(text: str, width: int) -> str:
    """The text in lines of at most `width` characters. A line that is too long goes on in others,
    indented by two more blanks; a longer word, such as a path, stays whole, so it can be copied."""
    lines = []
    for line in text.split("\n"):
        words = line.lstrip(" ")
        indent = line[: len(line) - len(words)]
        lines.append(
            textwrap.fill(
                words,
                width,
                initial_indent=indent,
                subsequent_indent=indent + "  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print text to stdout or another stream; on a terminal in lines that fit the window."""
    stream = stream or sys.stdout
    if stream.isatty():
        text = fitted(text, max(shutil.get_terminal_size().columns - 1, 20))
    print(text, file=stream, flush=True)


def end_progress() -> None:
    """Clear a line of progress that was interrupted, so that a sentence begins a line."""
    if sys.stdout is not None and sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


class Clock:
    """The time left of the whole run, from the work that is done so far.

    Work is counted in any unit that all parts have in common.
    """

    def __init__(self):
        self.begin(0.0)

    def begin(self, expected: float) -> None:
        """Count from now on; `expected` is all the work."""
        self.start, self.expected, self.done = time.monotonic(), expected, 0.0

    def skip(self, work: float) -> None:
        """An earlier run did that much of what was expected."""
        self.expected -= work

    def left(self) -> str:
        """As "1:02:03"; "" where nothing is expected, or too little is done."""
        if not self.expected / 50 < self.done < self.expected:
            return ""
        seconds = (time.monotonic() - self.start) * (self.expected / self.done - 1)
        return str(timedelta(seconds=round(seconds)))


clock = Clock()  # of this process


class Progress:
    """How far something is, with its rate and the time left: on a terminal one line that rewrites
    itself and fits the window, elsewhere a line per minute. `cost` is the work of one item."""

    def __init__(self, what: str, total: float, unit: str = "images", cost: float = 0.0):
        self.what, self.total, self.unit, self.cost, self.done = what, total, unit, cost, 0.0
        self.start = self.last_line = time.monotonic()
        self.live = sys.stdout.isatty()
        self.pause = 0.5 if self.live else 60.0  # seconds between two lines

    def advance(self, count: float) -> bool:
        """Count what was done; returns whether it is time to `show` it."""
        self.done += count
        clock.done += count * self.cost
        return time.monotonic() - self.last_line > self.pause

    def show(self, text: str = "") -> None:
        self.last_line = time.monotonic()
        parts = [self.what, f"{self.done:,.0f}/{self.total:,.0f} {self.unit}"]
        if text:
            parts.append(text)
        if rate := self.done / max(self.last_line - self.start, 1e-9):  # 0 before the first item
            parts.append(f"{rate:.1f}/s")
            parts.append(f"{max(self.total - self.done, 0) / rate:.0f} s left")
        left = f"  whole run {clock.left()}" if clock.left() else ""
        line = "  ".join(parts)
        if not self.live:
            print(line + left, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        if len(line + left) > width:  # a number that is cut off would be another number
            left = ""
        print(f"\r{(line + left)[:width]}\033[K", end="", flush=True)

    def close(self) -> str:
        """Clears the line; returns rate and time for the log."""
        if self.live:
            print("\r\033[K", end="")
        seconds = time.monotonic() - self.start
        rate = self.done / max(seconds, 1e-9)
        digits = 1 if rate < 10 else 0
        return f"{rate:.{digits}f} {self.unit}/s  {seconds:.0f} s"
