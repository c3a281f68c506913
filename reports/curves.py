"""curves.png: training loss and val mAP of the models in a run's folder, over epochs.

Drawn from log.jsonl by Pillow alone, fast enough to be drawn again after every epoch.
"""

import math
import time
from pathlib import Path

from PIL import Image, ImageDraw

from reports import pictures
from reports.models_of_run import MODELS
from runtime import ranks, writing
from runtime.journal import read_log

# All sizes are px of the drawing, which is twice as large as the picture so that lines are smooth.
FINER = 2
WIDTH, HEIGHT = 1200, 800  # of one chart
LEFT, RIGHT, TOP, BOTTOM = 130, 50, 90, 120  # around its axes
SIZE, DOT = 28, 5  # of type, radius of a point
LEGEND_WIDTH, LEGEND_HEIGHT, DASH = 600, 60, 50  # of a model's name, and of the line before it
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17a2b8", "#7f7f7f"]
GREY, PALE = (90, 90, 90), (225, 225, 225)
WIDE = 10  # an axis is logarithmic where highest / lowest value is above this
PAUSE = 10  # seconds between two drawings
LARGEST = 1e12  # a number above this is damage

Points = list[tuple[int, float]]  # epoch, value


def save_curves(folder: Path, final: bool = True, font: str | None = None) -> None:
    """Draw log.jsonl of a run's folder as curves.png in it, unless it has no epoch yet.

    While more epochs follow (not `final`), a picture younger than PAUSE stays: an epoch of a head
    alone takes less time than the drawing. Only the first rank draws.
    """
    log, picture = folder / "log.jsonl", folder / "curves.png"
    young = picture.is_file() and 0 <= time.time() - picture.stat().st_mtime < PAUSE
    if ranks.rank() or not log.is_file() or (young and not final):
        return
    entries = by_model(read_log(log))
    if not entries:
        return
    names = [MODELS.get(model, model) for model in entries]
    head = legend(names, font)
    loss = chart("training loss per image", points(entries, "loss"), font)
    mAP = chart("val mAP, percent", points(entries, "mAP"), font)
    image = Image.new("RGB", (2 * WIDTH, head.height + HEIGHT), "white")
    image.paste(head, (0, 0))
    image.paste(loss, (0, head.height))
    image.paste(mAP, (WIDTH, head.height))
    writing.save_image(picture, image.reduce(FINER), "PNG")


def by_model(entries: list[dict]) -> dict[str, dict[int, dict]]:
    """Model -> epoch -> entry of log.jsonl, the models in the order of the tables, as many as there
    are colours."""
    grouped = {}
    for entry in entries:
        grouped.setdefault(entry["model"], {})[entry["epoch"]] = entry
    ours = [model for model in MODELS if model in grouped]
    others = [model for model in grouped if model not in MODELS]
    return {model: grouped[model] for model in [*ours, *others][: len(COLOURS)]}


def points(entries: dict[str, dict[int, dict]], key: str) -> list[Points]:
    """The epochs of each model and its values of `key`, without those that are no numbers."""
    lines = []
    for epochs in entries.values():
        values = [(epoch, epochs[epoch].get(key)) for epoch in sorted(epochs)]
        lines.append([(epoch, float(value)) for epoch, value in values if is_number(value)])
    return lines


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # NaN is not


def legend(names: list[str], font: str | None) -> Image.Image:
    """The models' names, each after a line in its colour."""
    across = 2 * WIDTH // LEGEND_WIDTH
    image = Image.new("RGB", (2 * WIDTH, math.ceil(len(names) / across) * LEGEND_HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i, name in enumerate(names):
        row, column = divmod(i, across)
        x, y = column * LEGEND_WIDTH + SIZE, row * LEGEND_HEIGHT + LEGEND_HEIGHT // 2
        draw.line([(x, y), (x + DASH, y)], COLOURS[i], 2 * FINER)
        draw.circle((x + DASH / 2, y), DOT, COLOURS[i])
        room = LEGEND_WIDTH - DASH - 2 * SIZE
        text, typeface = pictures.fitting(name, room, SIZE, font)
        draw.text((x + DASH + SIZE // 2, y), text, "black", typeface, anchor="lm")
    return image


def chart(title: str, lines: list[Points], font: str | None) -> Image.Image:
    """A line for each model over its epochs."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    values = [value for line in lines for _, value in line]
    last = max((epoch for line in lines for epoch, _ in line), default=1)

    def write(place: tuple[float, float], text: str, anchor: str, colour=GREY) -> None:
        text, typeface = pictures.fitting(text, WIDTH, SIZE, font)
        draw.text(place, text, colour, typeface, anchor=anchor)

    write(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - SIZE), "epoch", "ms", "black")
    if not values:
        write((LEFT, TOP - SIZE), f"{title}: not measured yet", "ls", "black")
        return image
    across, down = Axis.of_epochs(last), Axis.of_values(min(values), max(values))
    scale = ", logarithmic scale" if down.logarithmic else ""
    write((LEFT, TOP - SIZE), title + scale, "ls", "black")
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x_of(epoch: float) -> float:
        return LEFT + across.fraction(epoch) * (right - LEFT)

    def y_of(value: float) -> float:
        return bottom - down.fraction(value) * (bottom - TOP)

    for tick in down.ticks:
        draw.line([(LEFT, y_of(tick)), (right, y_of(tick))], PALE, FINER)
        write((LEFT - SIZE / 2, y_of(tick)), f"{tick:g}", "rm")
    for tick in across.ticks:
        draw.line([(x_of(tick), bottom), (x_of(tick), bottom + SIZE / 3)], GREY, FINER)
        write((x_of(tick), bottom + SIZE / 2), f"{tick:g}", "ma")
    draw.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY, FINER)
    for line, colour in zip(lines, COLOURS, strict=False):
        places = [(x_of(epoch), y_of(value)) for epoch, value in line]
        draw.line(places, colour, 2 * FINER, joint="curve")
        for place in places:
            draw.circle(place, DOT, colour)
    return image


class Axis:
    """From `low` to `high`, with numbers at `ticks`."""

    def __init__(self, low: float, high: float, ticks: list[float], logarithmic: bool = False):
        self.low, self.high, self.ticks, self.logarithmic = low, high, ticks, logarithmic

    @classmethod
    def of_epochs(cls, last: int) -> "Axis":
        """Whole numbers from 1."""
        step = max(round_step(last / 6), 1)
        ticks = [1.0, *(tick for tick in multiples(step, 1, last) if tick >= 1 + step / 2)]
        return cls(1, max(last, 2), ticks)

    @classmethod
    def of_values(cls, low: float, high: float) -> "Axis":
        """A little more than the values; logarithmic where they differ by an order of magnitude."""
        if low > 0 and high / low > WIDE:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            step = math.ceil((last - first) / 6)
            digits = (1, 2, 5) if last - first < 4 else (1,)
            powers = range(first, last + 1, step)
            ticks = [digit * 10.0**power for power in powers for digit in digits]
            return cls(low, high, [tick for tick in ticks if low <= tick <= high], True)
        step = round_step(max(high - low, abs(high) / 100, 1e-9) / 5)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        if low == high:
            low, high = low - step, high + step
        return cls(low, high, multiples(step, low, high))

    def fraction(self, value: float) -> float:
        """Where a value is, from 0 at `low` to 1 at `high`."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def round_step(step: float) -> float:
    """The smallest of ... 0.1, 0.2, 0.5, 1, 2, 5, 10, ... that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def multiples(step: float, low: float, high: float) -> list[float]:
    """The multiples of a step from low to high."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
