"""A picture of the label graph (Eq. 3) and of the label embeddings beside it, drawn with Pillow.

Two heat maps of the same labels in the same order, alike ones next to each other: on the left the
conditional probabilities P(column | row), edges in colour; on the right the cosine similarities of
the embeddings. Of more than `NAMED` labels the best connected are shown. All of it is ours.

Symbols: n labels, P (n, n) as in Eq. 3 with the row as the condition, d embedding size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from extras.pictures import ascii_only, font_of
from runtime import checkpoints, ranks
from runtime.text import printable

NAMED, FEWER = 100, 60  # labels that fit with their names; of more, so many are shown
NAME_WIDTH, FONT_SIZE, LINE, MARGIN, BAR = 22, 12, 16, 24, 12  # in characters, then in pixels
# Colours at equal distances, light to dark (viridis) and blue over white to orange: both keep their
# order in grey and for every kind of colour blindness.
EDGE = [(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)]  # P from 0 to 1
COSINE = [(5, 48, 97), (67, 147, 195), (247, 247, 247), (230, 140, 50), (127, 59, 8)]  # -1 to 1
WEAK = [(255, 255, 255), (200, 200, 200)]  # P from 0 to tau: no edge
NONE = (110, 110, 110)  # the diagonal, labels that no image shows


def interpolate(values: np.ndarray, anchors: list[tuple]) -> np.ndarray:
    """Colours (..., 3) uint8 of values in 0 .. 1 between equidistant anchors."""
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, at, channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def order(similarity: np.ndarray) -> np.ndarray:
    """A permutation (n,) that puts alike labels side by side; similarity (n, n) is symmetric.

    A chain: it begins at the label most like all others, and goes on, at the end that has it, with
    the one most like an end of it. Ties go to the lower numbers.
    """
    chain = [int(similarity.sum(1).argmax())]
    left = sorted(set(range(len(similarity))) - set(chain))
    while left:
        ends = similarity[[chain[0], chain[-1]]][:, left]  # (2, left)
        end, at = divmod(int(ends.argmax()), len(left))
        chain.insert(len(chain) if end else 0, left.pop(at))
    return np.array(chain)


@dataclass
class Panel:
    """Where an n x n heat map lies: its upper left corner, n, and the side of a cell in pixels."""

    x: int
    y: int
    n: int
    cell: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The cell's left, upper, right and lower pixel, the last two not in it."""
        x, y = self.x + column * self.cell, self.y + row * self.cell
        return x, y, x + self.cell, y + self.cell


def place(n: int, x: int, y: int, names: list[str], font) -> Panel:
    """The panel of n labels whose title begins at (x, y), its names between the two."""
    width = max(int(font.getlength(name)) + 8 for name in names)
    return Panel(x + width, y + 3 * LINE + width, n, min(max(1040 // n, FONT_SIZE + 1), 40))


def write(image: Image.Image, x: int, y: int, lines: list[str], font) -> None:
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((x, y + i * LINE), line, fill="black", font=font)


def heat_map(image: Image.Image, panel: Panel, colours: np.ndarray, names: list[str], font) -> None:
    """colours (n, n, 3) as cells, with the names at the left and, turned, above."""
    cell = panel.cell
    pixels = colours.repeat(cell, 0).repeat(cell, 1)  # (n * cell, n * cell, 3)
    pixels[cell - 1 :: cell], pixels[:, cell - 1 :: cell] = 235, 235  # lines between cells
    image.paste(Image.fromarray(pixels), (panel.x, panel.y))
    right, bottom = panel.box(panel.n - 1, panel.n - 1)[2:]
    ImageDraw.Draw(image).rectangle((panel.x - 1, panel.y - 1, right, bottom), outline=NONE)
    for i, name in enumerate(names):
        text = Image.new("L", (int(font.getlength(name)) + 1, FONT_SIZE + 3))
        ImageDraw.Draw(text).text((0, 0), name, fill=255, font=font)
        middle = panel.box(i, i)[0] - panel.x + cell // 2
        left, top = panel.x - 5 - text.width, panel.y + middle - text.height // 2
        image.paste("black", (left, top), text)
        text = text.rotate(90, expand=True)
        left, top = panel.x + middle - text.width // 2, panel.y - 5 - text.height
        image.paste("black", (left, top), text)


def colour_bar(
    image: Image.Image, x: int, y: int, colours: np.ndarray, ticks: list[str], font
) -> None:
    """colours (w, 3) from (x, y) to the right, ticks at equal distances below it."""
    x += 8  # half a number sticks out
    bar = np.tile(colours, (BAR, 1, 1))  # (BAR, w, 3)
    image.paste(Image.fromarray(bar), (x, y))
    for at, tick in zip(np.linspace(0, len(colours), len(ticks)), ticks, strict=True):
        write(image, x + int(at - font.getlength(tick) / 2), y + BAR + 2, [tick], font)


def probability_colours(P: np.ndarray, edges: np.ndarray, tau: float) -> np.ndarray:
    """Edges from light to dark, what is below tau in greys."""
    weak = interpolate(P / max(tau, 1e-6), WEAK)
    return np.where(edges[..., None], interpolate(P, EDGE), weak)


def graph(
    pairs: torch.Tensor,
    counts: torch.Tensor,
    A: torch.Tensor,
    embeddings: torch.Tensor,
    classes: list[str],
    tau: float,
    reading: str,
) -> Image.Image:
    """The picture. pairs (n, n), counts (n,) and A (n, n) as `iml_gcn` has them, tau and reading
    as A was made with; embeddings (n, d), F_PCA. Its `info` tells the order of the labels and the
    two panels."""
    pairs, counts, A, embeddings = (x.numpy() for x in (pairs, counts, A, embeddings))
    font, n = font_of(FONT_SIZE), len(classes)
    names = [ascii_only(printable(name, NAME_WIDTH)) for name in classes]
    P = pairs / np.maximum(counts, 1)[:, None]  # (n, n)
    edges = (A > 0) & ~np.eye(n, dtype=bool)  # (n, n)
    length = np.linalg.norm(embeddings, axis=1)  # (n,)
    unit = embeddings / np.where(length > 0, length, 1)[:, None]
    cosine = (unit @ unit.T).clip(-1, 1)  # (n, n)

    left = probability_colours(P, edges, tau)  # (n, n, 3)
    left[counts == 0] = left[np.diag_indices(n)] = NONE
    right = interpolate((cosine + 1) / 2, COSINE)  # (n, n, 3)
    unknown = (length == 0) | (counts == 0)  # (n,)
    right[unknown] = right[:, unknown] = NONE

    degree = edges.sum(0) + edges.sum(1)  # (n,)
    best = np.lexsort((np.arange(n), -counts, -degree))  # best connected first
    labels = np.sort(best[: n if n <= NAMED else FEWER])
    shown = labels[order((P + P.T)[np.ix_(labels, labels)])]
    few = f"the {len(shown)} best connected of " if len(shown) < n else ""
    gathers = {"paper": "a row gathers from its columns", "mlgcn": "a column from its rows"}
    gathers = gathers.get(reading, "no label gathers from another")
    titles = [
        f"P(column | row), {few}{n} labels: of the images of the row's label, those of both",
        f"Edges, P >= {tau:g}, in colour: {edges.sum():,} of {n * (n - 1):,} in all. "
        f"Reading {reading}: {gathers}",
        "Cosine similarity of the label embeddings F_PCA (F_I about its mean)",
        "The order is that of the left: labels that are shown together are side by side",
    ]
    row_names = [names[i] for i in shown]
    first = place(len(shown), MARGIN, MARGIN, row_names, font)
    text_width = max(int(font.getlength(title)) for title in titles)
    middle = max(first.x + first.n * first.cell, MARGIN + text_width) + MARGIN  # second one's left
    second = place(len(shown), middle, MARGIN, row_names, font)
    under = first.y + first.n * first.cell + 10
    image = Image.new("RGB", (2 * middle - MARGIN, under + 3 * LINE + MARGIN), "white")
    image.info = {"order": shown, "panels": (first, second)}

    write(image, MARGIN, MARGIN, titles[:2], font)
    heat_map(image, first, left[np.ix_(shown, shown)], row_names, font)
    steps = np.linspace(0, 1, 300)
    bar = probability_colours(steps, steps >= tau, tau)  # (300, 3)
    colour_bar(image, MARGIN, under, bar, ["0", "0.2", "0.4", "0.6", "0.8", "1"], font)
    note = "light grey: no edge; dark grey: the label itself, or in no image"
    write(image, MARGIN, under + 2 * LINE, [note], font)

    write(image, middle, MARGIN, titles[2:], font)
    heat_map(image, second, right[np.ix_(shown, shown)], row_names, font)
    bar = interpolate(steps, COSINE)
    colour_bar(image, middle, under, bar, ["-1", "-0.5", "0", "0.5", "1"], font)
    write(image, middle, under + 2 * LINE, ["dark grey: in no image"], font)

    return image


def save(image: Image.Image, path: Path) -> None:
    if ranks.rank() == 0:
        with checkpoints.replacing(path) as file:
            image.save(file, "PNG")
        print(f"the label graph is drawn in {path}")
