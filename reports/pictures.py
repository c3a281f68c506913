"""Photos with their labels written beneath, and where in them a label's score comes from: what
predict.py --save makes, and results.jpg."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import data
from iml_gcn import Model
from reports import fonts
from runtime import writing
from runtime.photo_files import OURS
from runtime.terminal import printable

DARK, WHITE, RING = (24, 24, 24), (255, 255, 255), (255, 60, 60)
GREY = (150, 150, 150)  # names of files
RIGHT, WRONG, MISSED = (130, 210, 255), (255, 150, 90), (235, 215, 80)  # told apart by signs too
SMALLEST = 14  # px, of type
HEAD = round(1.2 * SMALLEST)  # px, of headings
NARROWEST = 16  # width of a strip in sizes of its type: some 30 letters
LABELS = 60  # at most, shown for a photo
TILE = SMALLEST * NARROWEST  # px; of results.jpg
EXAMPLES, EXAMPLE_LABELS = 24, 12  # of results.jpg: photos, and labels for each
JPEG = {"quality": 92, "subsampling": 0, "comment": OURS}


class Caption(NamedTuple):
    """What is written in a picture: a label, with its score behind it, or another text."""

    text: str
    score: str = ""
    colour: tuple[int, int, int] = WHITE


def with_labels(photo: Image.Image, labels: list[Caption], font: str | None = None) -> Image.Image:
    """The photo as it is and, on a dark strip beneath, its labels.

    The strip is beneath the photo, not upon it: so it is legible whatever the photo shows, hides
    nothing and has room for any list. The type grows with the photo; a photo that is narrower than
    a line of type gets margins.
    """
    size = max(SMALLEST, round(math.sqrt(photo.width * photo.height) / 32))  # px
    width = max(photo.width, NARROWEST * size)
    beneath = strip(labels, width, size, font)
    picture = Image.new("RGB", (width, photo.height + beneath.height), DARK)
    picture.paste(photo, ((width - photo.width) // 2, 0))
    picture.paste(beneath, (0, photo.height))
    return picture


def strip(captions: list[Caption], width: int, size: int, font: str | None = None) -> Image.Image:
    """Captions in lines of `width` px on a dark ground. One longer than a line loses its middle."""
    gap, line = size // 2, round(1.4 * size)
    placed, x, baseline = [], gap, gap + size
    for caption in captions:
        ending = f" {caption.score}" if caption.score else ""
        text, typeface = fitting(caption.text, width - 2 * gap, size, font, ending=ending)
        length = typeface.getlength(text)
        if x > gap and x + length > width - gap:
            x, baseline = gap, baseline + line
        placed.append(((x, baseline), text, caption.colour, typeface))
        x += length + 2 * gap
    picture = Image.new("RGB", (width, baseline + line - size + gap), DARK)
    draw = ImageDraw.Draw(picture)
    for place, text, colour, typeface in placed:  # mixed fonts of a line share a baseline
        draw.text(place, text, colour, typeface, anchor="ls")
    return picture


def fitting(
    text: str,
    width: float,
    size: int,
    font: str | None = None,
    most: int = 80,
    ending: str = "",
) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text with its ending, as it can be drawn in `width` px, and its font.

    The text loses its middle where it has more than `most` letters or is too wide.
    """
    text, typeface = fonts.for_text(printable(text, most), size, font)
    letters = len(text)
    while letters > 9 and typeface.getlength(printable(text, letters) + ending) > width:
        letters -= 1
    return fonts.in_order(printable(text, letters) + ending), typeface


def shortened(labels: list[Caption], most: int) -> list[Caption]:
    if len(labels) <= most:
        return labels
    return [*labels[:most], Caption(f"and {len(labels) - most} more")]


def judged(
    scores: np.ndarray, targets: np.ndarray, classes: list[str], threshold: float
) -> list[Caption]:
    """A photo's labels, from its scores and targets (n,): + what is right, x what is wrong, highest
    first, and - what was missed."""
    labels = []
    for j in np.argsort(-scores, kind="stable"):
        if scores[j] > threshold:
            sign, colour = ("+", RIGHT) if targets[j] else ("x", WRONG)
            labels.append(Caption(f"{sign} {classes[j]}", f"{scores[j]:.2f}", colour))
        elif targets[j]:
            labels.append(Caption(f"- {classes[j]}", f"{scores[j]:.2f}", MISSED))
    return labels or [Caption("no label, correctly", colour=RIGHT)]


def save_judged(
    split: data.Split,
    scores: np.ndarray,
    threshold: float,
    path: Path,
    heading: str,
    font: str | None = None,
) -> None:
    """A sheet of EXAMPLES photos, evenly taken from a split with scores (M, n).

    Above them the heading, which says whose labels these are, and what signs and colours mean.
    """
    tiles = []
    for row in np.unique(np.linspace(0, len(split) - 1, EXAMPLES).astype(int)):
        labels = judged(scores[row], split.targets[row], split.classes, threshold)
        labels = [*shortened(labels, EXAMPLE_LABELS), file_name(split, row)]
        tiles.append(with_labels(thumbnail(split, row), labels, font))
    across = math.ceil(math.sqrt(len(tiles)))  # about as many as down
    photos = grid(tiles, across, gap=SMALLEST)
    signs = {"+ right": RIGHT, "x wrong": WRONG, "- missed": MISSED}
    legend = [Caption(text, colour=colour) for text, colour in signs.items()]
    head = strip([Caption(heading), *legend], photos.width, HEAD, font)
    save_sheet([head, photos], path)


def file_name(split: data.Split, row: int) -> Caption:
    """The name of a photo's file, so that it can be found and mended. If the photos of the split
    are in several folders, with its folder."""
    folders = {os.path.dirname(path) for path in split.paths}
    name = os.path.relpath(split.paths[row], os.path.commonpath(folders))
    return Caption(name, colour=GREY)


def thumbnail(split: data.Split, row: int) -> Image.Image:
    """A photo of a split, at most TILE px wide and high."""
    photo = data.read_photo(split.paths[row], split.upright)
    photo.thumbnail((TILE, TILE))
    return photo


def save_sheet(parts: list[Image.Image], path: Path) -> None:
    """Pictures of one width, one below the other, as a JPEG that is written whole."""
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), DARK)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    writing.save_image(path, sheet, "JPEG", **JPEG)


def maps_exist(model: Model) -> bool:
    """Whether a map's mean is the logit. It is with mean pooling and a linear head, calibrated or
    not. An IML-GCN's head is linear once its GCN is computed."""
    head = getattr(model.head, "head", model.head)
    return getattr(model.backbone, "pool", "") == "avg" and type(head) is nn.Linear


def activation_maps(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Class activation maps (Zhou et al., CVPR 2016): logits (B, n, h, w) of every place in the
    images (B, 3, H, W). The linear head comes before the mean over the places, not after it."""
    features = model.backbone.forward_features(images).float()  # (B, D, h, w)
    return model.head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, n, h, w)


def lit(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo, dark except where heat (h, w), its class activation map, is high.

    The highest value of the map is fully lit. Values of 0 and less are dark; if the map's mean is
    negative (a score below a half), so are values below that mean.
    """
    heat = heat - min(heat.mean(), 0)
    heat = np.clip(heat / max(heat.max(), 1e-12), 0, 1)
    small = Image.fromarray((255 * heat).astype(np.uint8))
    mask = small.resize(photo.size, Image.Resampling.BICUBIC)
    picture = Image.composite(photo, Image.eval(photo, lambda value: value // 5), mask)
    row, column = np.unravel_index(heat.argmax(), heat.shape)  # the highest place: a ring
    place = (column + 0.5) * photo.width / heat.shape[1], (row + 0.5) * photo.height / heat.shape[0]
    ImageDraw.Draw(picture).circle(place, max(sum(photo.size) // 60, 4), outline=RING, width=2)
    return picture


def grid(tiles: list[Image.Image], across: int, gap: int = 0) -> Image.Image:
    """Tiles of one width in rows."""
    rows = [tiles[i : i + across] for i in range(0, len(tiles), across)]
    step, heights = tiles[0].width + gap, [max(tile.height for tile in row) + gap for row in rows]
    picture = Image.new("RGB", (across * step + gap, sum(heights) + gap), DARK)
    y = gap  # the top of the next row
    for row, height in zip(rows, heights, strict=True):
        for j, tile in enumerate(row):
            picture.paste(tile, (gap + j * step, y))
        y += height
    return picture
