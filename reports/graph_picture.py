"""The label graph (Eq. 3) as a line of text and as a heat map. All of it is ours.

Symbols: n labels, P (n, n) as in Eq. 3 with the row as the condition.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from reports import fonts, pictures
from runtime import writing
from runtime.terminal import tell

MOST, NAME_LETTERS, NAME_WIDTH = 100, 30, 240  # labels drawn; letters and px of their names
CELL, FONT_SIZE, GAP = 28, 20, 8  # px
LIGHT, DARK = np.array([222, 235, 247]), np.array([8, 48, 107])  # of an edge of P = 0, of P = 1
SCALE_WIDTH, SCALE_HEIGHT = 400, 24  # px, of the colour scale
HEAD = 4 * CELL + SCALE_HEIGHT  # px, two lines of text and the scale with its numbers


def save(
    path: Path,
    graph: tuple[torch.Tensor, ...],
    classes: list[str],
    tau: float,
    font: str | None = None,
) -> None:
    """Draw a graph of pairs (n, n), counts (n,) and A (n, n), as `iml_gcn` has them, made with tau.

    Labels that go together are neighbours; of more than MOST the best connected are drawn.
    """
    pairs, counts, A = graph
    P = (pairs / counts.clamp(min=1)[:, None]).numpy()  # (n, n)
    edges = (A > 0).fill_diagonal_(False).numpy()  # (n, n)
    best = np.argsort(-edges.sum(0) - edges.sum(1), kind="stable")[:MOST]
    labels = best[in_groups(likeness(pairs.numpy(), counts.numpy())[np.ix_(best, best)])]
    at = np.ix_(labels, labels)
    colours = np.where(edges[at][..., None], colour_of(P[at]), 255).astype(np.uint8)
    cells = Image.fromarray(colours.repeat(CELL, 0).repeat(CELL, 1))
    names = [classes[i] for i in labels]
    rows, columns = name_strip(names, "right", font), name_strip(names, "left", font)
    head = heading(len(classes), len(labels), tau, font)
    margin, top = rows.width, head.height
    width = max(margin + cells.width + GAP, head.width)
    image = Image.new("RGB", (width, top + margin + cells.height + GAP), "white")
    image.paste(head, (0, 0))
    image.paste(rows, (0, top + margin))
    image.paste(columns.rotate(90, expand=True), (margin, top))
    image.paste(cells, (margin, top + margin))
    draw_lines(image, (margin, top + margin), len(labels))
    writing.save_image(path, image, "PNG")
    tell(f"the label graph is drawn in {path}")


def colour_of(P: np.ndarray) -> np.ndarray:
    """(..., 3), from LIGHT to DARK."""
    return (LIGHT + P[..., None] * (DARK - LIGHT)).round()


def likeness(pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(n, n): of the images that show at least one of two labels, the share that shows both, 0 to 1
    (Jaccard)."""
    either = counts[:, None] + counts[None, :] - pairs
    return pairs / np.maximum(either, 1)


def in_groups(likeness: np.ndarray) -> np.ndarray:
    """An order of the labels, (n,), in which those that go together are neighbours.

    Groups, at first of one label each, are joined two by two, those of the highest mean likeness
    (n, n) first (average linkage); of the four ways to join two rows, take the one whose
    adjoining labels are most alike. Of equal values the first counts, so the order is always the
    same.
    """
    n = len(likeness)
    between = likeness.astype(float)  # (n, n), mean likeness of groups, by their lowest label
    np.fill_diagonal(between, -1)
    groups = {i: [i] for i in range(n)}
    for _ in range(n - 1):
        first, second = sorted(int(i) for i in np.unravel_index(between.argmax(), (n, n)))
        sizes = len(groups[first]), len(groups[second])
        groups[first] = joined(groups[first], groups.pop(second), likeness)
        mean = (sizes[0] * between[first] + sizes[1] * between[second]) / sum(sizes)  # (n,)
        for group in range(n):
            value = -1.0
            if group in groups and group != first:
                value = mean[group]
            between[first, group] = between[group, first] = value
        between[second, :] = between[:, second] = -1
    return np.array(groups[0])


def joined(left: list[int], right: list[int], likeness: np.ndarray) -> list[int]:
    """Two rows of labels as one, each turned so that the labels that meet are most alike."""
    ways = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
    a, b = max(ways, key=lambda way: likeness[way[0][-1], way[1][0]])
    return a + b


def name_strip(names: list[str], side: str, font: str | None) -> Image.Image:
    """One name per row, aligned to the side, left or right, at which the cells begin."""
    texts = []
    for name in names:
        texts.append(pictures.fitting(name, NAME_WIDTH, FONT_SIZE, font, NAME_LETTERS))
    width = max(int(typeface.getlength(text)) for text, typeface in texts) + 2 * GAP
    strip = Image.new("RGB", (width, len(names) * CELL), "white")
    draw = ImageDraw.Draw(strip)
    for i, (text, typeface) in enumerate(texts):
        x, anchor = (GAP, "ls") if side == "left" else (width - GAP, "rs")
        draw.text((x, (i + 1) * CELL - GAP), text, "black", typeface, anchor=anchor)
    return strip


def heading(labels: int, drawn: int, tau: float, font: str | None) -> Image.Image:
    """What is drawn, and the scale of its colours."""
    typeface = fonts.font_of(FONT_SIZE, font)
    what = "P(column | row): share of the row's photos that show the column's label"
    if drawn < labels:
        what += f"; the {drawn} of {labels} labels with the most edges"
    texts = [what, f"white: no edge (tau = {tau:g})"]
    left, top = GAP + FONT_SIZE, 2 * CELL + GAP  # of the scale
    width = max(left + SCALE_WIDTH + FONT_SIZE, *(int(typeface.getlength(text)) for text in texts))
    image = Image.new("RGB", (width + 2 * GAP, HEAD), "white")
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(texts):
        draw.text((GAP, (i + 1) * CELL), text, "black", typeface, anchor="ls")
    scale = colour_of(np.linspace(0, 1, SCALE_WIDTH))[None].astype(np.uint8)  # (1, w, 3)
    image.paste(Image.fromarray(scale.repeat(SCALE_HEIGHT, 0)), (left, top))
    bottom = top + SCALE_HEIGHT
    for value in (0, 0.25, 0.5, 0.75, 1):
        x = left + value * (SCALE_WIDTH - 1)
        draw.line([(x, bottom), (x, bottom + 4)], "black")
        draw.text((x, bottom + 4), f"{value:g}", "black", typeface, anchor="ma")
    return image


def draw_lines(image: Image.Image, corner: tuple[int, int], n: int) -> None:
    """Thin lines between the cells, along which the eye finds the row of a name."""
    draw = ImageDraw.Draw(image)
    (x, y), side = corner, n * CELL
    for i in range(n + 1):
        draw.line([(x, y + i * CELL), (x + side, y + i * CELL)], (225, 225, 225))
        draw.line([(x + i * CELL, y), (x + i * CELL, y + side)], (225, 225, 225))


def describe(A: torch.Tensor, tau: float, reading: str) -> None:
    """Print how many edges A (n, n) has."""
    edges, n = (A > 0).fill_diagonal_(False), len(A)  # (n, n)
    alone = n - (edges.any(0) | edges.any(1)).sum()
    count = f"{edges.sum():,} edges of {n * (n - 1):,}, {alone} isolated labels"
    tell(f"label graph ({reading}, tau {tau}): {count}")
