"""The label graph (Eq. 3) as a line of text and as a heat map. All of it is ours.

Symbols: n labels, P (n, n) as in Eq. 3 with the row as the condition.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from reports.pictures import ascii_only, font_of
from runtime import checkpoints
from runtime.terminal import printable

MOST, NAME_WIDTH = 100, 22  # labels that are shown, characters of their names
CELL, LINE, FONT_SIZE = 14, 20, 11  # px
LIGHT, DARK = np.array([222, 235, 247]), np.array([8, 48, 107])  # of an edge of P = 0, of P = 1


def save(path: Path, graph: tuple[torch.Tensor, ...], classes: list[str], tau: float) -> None:
    """Draw a graph of pairs (n, n), counts (n,) and A (n, n), as `iml_gcn` has them, made with tau.

    Labels are in their own order; of more than MOST the best connected are shown.
    """
    pairs, counts, A = graph
    P = (pairs / counts.clamp(min=1)[:, None]).numpy()  # (n, n)
    edges = (A > 0).fill_diagonal_(False).numpy()  # (n, n)
    colours = np.where(edges[..., None], LIGHT + P[..., None] * (DARK - LIGHT), 255)  # (n, n, 3)
    best = np.argsort(-edges.sum(0) - edges.sum(1), kind="stable")  # (n,)
    shown = np.sort(best[:MOST])
    cells = colours[np.ix_(shown, shown)].round().astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    few = f", the {MOST} best connected of {len(classes)} labels" if len(classes) > MOST else ""
    caption = f"P(column | row){few}: light 0.0, dark 1.0, white: no edge (tau {tau:g})"
    names = [printable(ascii_only(classes[i]), NAME_WIDTH) for i in shown]
    font = font_of(FONT_SIZE)
    margin = max(int(font.getlength(name)) for name in names) + 8
    strip = Image.new("RGB", (margin, len(cells)), "white")
    for i, name in enumerate(names):
        ImageDraw.Draw(strip).text((4, i * CELL), name, "black", font)
    width = max(margin + len(cells), int(font.getlength(caption)) + 8)
    image = Image.new("RGB", (width, LINE + margin + len(cells)), "white")
    ImageDraw.Draw(image).text((4, 4), caption, "black", font)
    image.paste(strip, (0, LINE + margin))
    image.paste(strip.rotate(90, expand=True), (margin, LINE))
    image.paste(Image.fromarray(cells), (margin, LINE + margin))
    with checkpoints.replacing(path) as file:
        image.save(file, "PNG")
    print(f"the label graph is drawn in {path}")


def describe(A: torch.Tensor, tau: float, reading: str) -> None:
    """Print how many edges A (n, n) has."""
    edges, n = (A > 0).fill_diagonal_(False), len(A)  # (n, n)
    alone = n - (edges.any(0) | edges.any(1)).sum()
    found = f"{edges.sum():,} edges of {n * (n - 1):,}, {alone} isolated labels"
    print(f"label graph ({reading}, tau {tau}): {found}")
