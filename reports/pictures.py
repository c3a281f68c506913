"""Photos with their labels written beneath, and where in them a label's score comes from: what
predict.py --save makes and results.jpg, with Pillow's own font."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import data
from iml_gcn import Model
from runtime import checkpoints
from runtime.terminal import printable

DARK, WHITE, RING = (24, 24, 24), (255, 255, 255), (255, 60, 60)
RIGHT, WRONG, MISSED = (130, 210, 255), (255, 150, 90), (235, 215, 80)  # told apart by signs too
SMALLEST = 14  # px, of type
NARROWEST = 16  # times the type's size, a strip of it: about 30 letters
LABELS = 60  # that are shown of a photo
TILE = SMALLEST * NARROWEST  # px; of results.jpg
EXAMPLES, EXAMPLE_LABELS = 24, 12  # photos of results.jpg, labels that are shown of each
OURS = b"labelled by IML-GCN"  # tells our pictures from others
JPEG = {"quality": 92, "subsampling": 0, "comment": OURS}


def ascii_only(text: str) -> str:
    """Pillow's own font has boxes for all other letters."""
    return text.encode("ascii", "backslashreplace").decode()


def font_of(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or one of a file."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def labelled(photo: Image.Image, labels: list[tuple], font: str | None = None) -> Image.Image:
    """The photo as it is and, on a dark strip beneath, its labels: name, score, perhaps a colour.

    Beneath and not upon it: legible whatever the photo shows, hides nothing, has room for any
    list. The type grows with the photo; a photo narrower than a line of it gets margins.
    """
    size = max(SMALLEST, round(math.sqrt(photo.width * photo.height) / 32))  # px
    width, gap, line = max(photo.width, NARROWEST * size), size // 2, round(1.4 * size)
    type_ = font_of(size, font)
    words, x, y = [], gap, photo.height + gap  # words: place, text, colour
    for name, score, *colour in labels:
        text, letters = f"{name} {score}" if font else ascii_only(f"{name} {score}"), 80
        while type_.getlength(printable(text, letters)) > width - 2 * gap and letters > 9:
            letters -= 1  # of the name's middle
        text = printable(text, letters)
        length = type_.getlength(text)
        if x > gap and x + length > width - gap:
            x, y = gap, y + line
        words.append((x, y, text, *(colour or [WHITE])))
        x += length + 2 * gap
    picture = Image.new("RGB", (width, y + line + gap), DARK)
    picture.paste(photo, ((width - photo.width) // 2, 0))
    draw = ImageDraw.Draw(picture)
    for x, y, text, colour in words:
        draw.text((x, y), text, colour, type_)
    return picture


def shortened(labels: list[tuple], most: int) -> list[tuple]:
    return [*labels[:most], (f"and {len(labels) - most} more", "")] if labels[most:] else labels


def judged(
    scores: np.ndarray, targets: np.ndarray, classes: list[str], threshold: float
) -> list[tuple]:
    """Of a photo's scores and targets (n,), for `labelled`: + what is right, x what is wrong,
    highest first, and - what was missed."""
    labels = []
    for j in np.argsort(-scores, kind="stable"):
        if scores[j] > threshold:
            sign, colour = ("+", RIGHT) if targets[j] else ("x", WRONG)
            labels.append((f"{sign} {classes[j]}", f"{scores[j]:.2f}", colour))
        elif targets[j]:
            labels.append((f"- {classes[j]}", f"{scores[j]:.2f}", MISSED))
    return labels or [("nothing, rightly", "", RIGHT)]


def save_judged(split: data.Split, scores: np.ndarray, threshold: float, path: Path) -> None:
    """A sheet of EXAMPLES photos, evenly taken from a split with scores (M, n)."""
    tiles = []
    for row in np.unique(np.linspace(0, len(split) - 1, EXAMPLES).astype(int)):
        photo = data.read_photo(split.paths[row], split.upright)
        photo.thumbnail((TILE, TILE))
        about = judged(scores[row], split.targets[row], split.classes, threshold)
        tiles.append(labelled(photo, shortened(about, EXAMPLE_LABELS)))
    with checkpoints.replacing(path) as file:
        across = math.ceil(math.sqrt(len(tiles)))  # about as many as down
        grid(tiles, across, gap=SMALLEST).save(file, "JPEG", **JPEG)
    print(f"{len(tiles)} val photos, + right, x wrong, - missed: {path}")


def maps_exist(model: Model) -> bool:
    """Whether a map's mean is the logit: of mean pooling and a linear head, calibrated or not. An
    IML-GCN's head is linear once its GCN is computed."""
    head = getattr(model.head, "head", model.head)
    return getattr(model.backbone, "pool", "") == "avg" and type(head) is nn.Linear


def activation_maps(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Class activation maps (Zhou et al., CVPR 2016): logits (B, n, h, w) of every place in the
    images (B, 3, H, W). The linear head and the mean over the places change their order."""
    features = model.backbone.forward_features(images).float()  # (B, D, h, w)
    return model.head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, n, h, w)


def lit(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo, dark but where heat (h, w), its class activation map, is high.

    Full light is the highest value of the map; none is 0 and less, or what is below the map's mean
    where that is negative (a score below a half).
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
    picture, y = Image.new("RGB", (across * step + gap, sum(heights) + gap), DARK), gap
    for row, height in zip(rows, heights, strict=True):
        for j, tile in enumerate(row):
            picture.paste(tile, (gap + j * step, y))
        y += height
    return picture
