"""A picture of the label graph (Eq. 3) and of the label embeddings beside it, drawn with Pillow.

Two heat maps of the same labels in the same order, alike ones next to each other: on the left the
conditional probabilities P(column | row), edges in colour; on the right the cosine similarities of
the embeddings. Of more than `NAMED` labels the best connected are shown. All of it is ours.

Symbols: n labels, P (n, n) as in Eq. 3 with the row as the condition, d embedding size.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from extras.pictures import ascii_only, font_of
from runtime import checkpoints
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


def panel(lines: list[str], colours: np.ndarray, names: list[str], legend: tuple) -> Image.Image:
    """A heat map with text above and below it: colours (n, n, 3), names at the left and, turned,
    above. legend: colours (w, 3) of a bar, ticks at equal distances below it, a note.

    Its `info` tells where cell (0, 0) begins, and a cell's side: x, y, side in pixels.
    """
    font, n = font_of(FONT_SIZE), len(names)
    side = min(max(1040 // n, FONT_SIZE + 1), 40)
    margin = max(int(font.getlength(name)) for name in names) + 8
    x, y, under = margin, 3 * LINE + margin, 3 * LINE + margin + n * side + 10
    width = max([x + n * side + 1, 340, *(int(font.getlength(line)) for line in lines)])
    image = Image.new("RGB", (width, under + 3 * LINE), "white")
    draw, image.info = ImageDraw.Draw(image), {"cells": (x, y, side)}
    for i, line in enumerate(lines):
        draw.text((0, i * LINE), line, "black", font)
    pixels = colours.repeat(side, 0).repeat(side, 1)  # (n * side, n * side, 3)
    pixels[side - 1 :: side], pixels[:, side - 1 :: side] = 235, 235  # lines between cells
    image.paste(Image.fromarray(pixels), (x, y))
    for i, name in enumerate(names):
        text = Image.new("L", (int(font.getlength(name)) + 1, FONT_SIZE + 3))
        ImageDraw.Draw(text).text((0, 0), name, 255, font)
        at = i * side + (side - text.height) // 2
        image.paste("black", (x - 5 - text.width, y + at), text)
        image.paste("black", (x + at, y - 5 - text.width), text.rotate(90, expand=True))
    bar, ticks, note = legend
    image.paste(Image.fromarray(np.tile(bar, (BAR, 1, 1))), (8, under))  # half a tick sticks out
    for at, tick in zip(np.linspace(8, 8 + len(bar), len(ticks)), ticks, strict=True):
        draw.text((int(at - font.getlength(tick) / 2), under + BAR + 2), tick, "black", font)
    draw.text((0, under + 2 * LINE), note, "black", font)
    return image


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
    as A was made with; embeddings (n, d), F_PCA. Its `info` tells the order of the labels, and of
    each panel what `panel` tells."""
    pairs, counts, A, embeddings = (x.numpy() for x in (pairs, counts, A, embeddings))
    n = len(classes)
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
    names, cells = [names[i] for i in shown], np.ix_(shown, shown)
    few = f"the {len(shown)} best connected of " if len(shown) < n else ""
    gathers = {"paper": "a row gathers from its columns", "mlgcn": "a column from its rows"}
    gathers = gathers.get(reading, "no label gathers from another")
    steps = np.linspace(0, 1, 300)
    first = panel(
        [
            f"P(column | row), {few}{n} labels: of the images of the row's label, those of both",
            f"Edges, P >= {tau:g}, in colour: {edges.sum():,} of {n * (n - 1):,} in all. "
            f"Reading {reading}: {gathers}",
        ],
        left[cells],
        names,
        (
            probability_colours(steps, steps >= tau, tau),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"],
            "light grey: no edge; dark grey: the label itself, or in no image",
        ),
    )
    second = panel(
        [
            "Cosine similarity of the label embeddings F_PCA (F_I about its mean)",
            "The order is that of the left: labels that are shown together are side by side",
        ],
        right[cells],
        names,
        (interpolate(steps, COSINE), ["-1", "-0.5", "0", "0.5", "1"], "dark grey: in no image"),
    )
    size = first.width + second.width + 3 * MARGIN, first.height + 2 * MARGIN
    image = Image.new("RGB", size, "white")
    places = (MARGIN, MARGIN), (first.width + 2 * MARGIN, MARGIN)
    image.info = {"order": shown, "panels": []}
    for (x, y), each in zip(places, (first, second), strict=True):
        image.paste(each, (x, y))
        dx, dy, side = each.info["cells"]
        image.info["panels"].append((x + dx, y + dy, side))
    return image


def save(image: Image.Image, path: Path) -> None:
    with checkpoints.replacing(path) as file:
        image.save(file, "PNG")
    print(f"the label graph is drawn in {path}")


def describe(A: torch.Tensor, tau: float, reading: str) -> None:
    """Print how many edges A (n, n) has."""
    edges, n = (A > 0).fill_diagonal_(False), len(A)  # (n, n)
    isolated = int((~(edges.any(0) | edges.any(1))).sum())
    found = f"{int(edges.sum()):,} edges of {n * (n - 1):,}, {isolated} isolated labels"
    print(f"label graph ({reading}, tau {tau}): {found}")
