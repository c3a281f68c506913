"""A picture of the label graph (Eq. 3), drawn with Pillow.

A heat map of the conditional probabilities P(column | row), edges in colour, alike labels next to
each other. Of more than `NAMED` labels the best connected are shown. All of it is ours.

Symbols: n labels, P (n, n) as in Eq. 3 with the row as the condition.
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
# Colours at equal distances, light to dark (viridis): they keep their order in grey and for every
# kind of colour blindness.
EDGE = [(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)]  # P from 0 to 1
WEAK = [(255, 255, 255), (200, 200, 200)]  # P from 0 to tau: no edge
NONE = (110, 110, 110)  # the diagonal, labels that no image shows
GATHERS = {"paper": "a row gathers from its columns", "mlgcn": "a column from its rows"}


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


def colours_of(P: np.ndarray, edges: np.ndarray, tau: float) -> np.ndarray:
    """Edges from light to dark, what is below tau in greys."""
    weak = interpolate(P / max(tau, 1e-6), WEAK)
    return np.where(edges[..., None], interpolate(P, EDGE), weak)


def graph(
    pairs: torch.Tensor,
    counts: torch.Tensor,
    A: torch.Tensor,
    classes: list[str],
    tau: float,
    reading: str,
) -> Image.Image:
    """The picture. pairs (n, n), counts (n,) and A (n, n) as `iml_gcn` has them, tau and reading
    as A was made with. Its `info` tells the order of the labels, and of the cells where the first
    one begins and their side: x, y, side in pixels."""
    pairs, counts, A = (x.numpy() for x in (pairs, counts, A))
    n = len(classes)
    P = pairs / np.maximum(counts, 1)[:, None]  # (n, n)
    edges = (A > 0) & ~np.eye(n, dtype=bool)  # (n, n)
    colours = colours_of(P, edges, tau)  # (n, n, 3)
    colours[counts == 0] = colours[np.diag_indices(n)] = NONE

    degree = edges.sum(0) + edges.sum(1)  # (n,)
    best = np.lexsort((np.arange(n), -counts, -degree))  # best connected first
    labels = np.sort(best[: n if n <= NAMED else FEWER])
    shown = labels[order((P + P.T)[np.ix_(labels, labels)])]
    names = [printable(ascii_only(classes[i]), NAME_WIDTH) for i in shown]
    few = f"the {len(shown)} best connected of " if len(shown) < n else ""
    lines = [
        f"P(column | row), {few}{n} labels: of the images of the row's label, those of both",
        f"Edges, P >= {tau:g}, in colour: {edges.sum():,} of {n * (n - 1):,} in all",
        f"Reading {reading}: {GATHERS.get(reading, 'no label gathers from another')}",
    ]
    font = font_of(FONT_SIZE)
    side = min(max(1040 // len(names), FONT_SIZE + 1), 40)
    x = MARGIN + max(int(font.getlength(name)) for name in names) + 8
    y = x + 4 * LINE  # names are as long above as at the left
    under = y + len(names) * side + 10
    width = max([x + len(names) * side, *(int(font.getlength(line)) + MARGIN for line in lines)])
    image = Image.new("RGB", (width + MARGIN, under + 3 * LINE + MARGIN), "white")
    draw, image.info = ImageDraw.Draw(image), {"order": shown, "cells": (x, y, side)}
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + i * LINE), line, "black", font)
    pixels = colours[np.ix_(shown, shown)].repeat(side, 0).repeat(side, 1)
    pixels[side - 1 :: side], pixels[:, side - 1 :: side] = 235, 235  # lines between cells
    image.paste(Image.fromarray(pixels), (x, y))
    for i, name in enumerate(names):
        text = Image.new("L", (int(font.getlength(name)) + 1, FONT_SIZE + 3))
        ImageDraw.Draw(text).text((0, 0), name, 255, font)
        at = i * side + (side - text.height) // 2
        image.paste("black", (x - 5 - text.width, y + at), text)
        image.paste("black", (x + at, y - 5 - text.width), text.rotate(90, expand=True))
    steps = np.linspace(0, 1, 300)
    bar = np.tile(colours_of(steps, steps >= tau, tau), (BAR, 1, 1))  # (BAR, 300, 3)
    image.paste(Image.fromarray(bar), (MARGIN, under))
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        draw.text((MARGIN + 300 * tick - 6, under + BAR + 2), f"{tick:g}", "black", font)
    note = "light grey: no edge; dark grey: the label itself, or in no image"
    draw.text((MARGIN, under + 2 * LINE), note, "black", font)
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
