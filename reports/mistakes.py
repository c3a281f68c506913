"""mistakes.jpg: the val photos whose labels a model gets most wrong, and how sure it was.

The most confident wrong labels come first: often they are missing in the label file. Then the most
painful missed ones: labels that are there, with the lowest scores.

Symbols: M val photos, n labels.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import data
from reports import pictures
from reports.pictures import HEAD, MISSED, SMALLEST, TILE, WRONG, Caption

EACH, ACROSS = 12, 6  # photos of each kind, photos in a row
CONTEXT = 3  # other labels that are named beneath a photo


def save(
    split: data.Split,
    scores: np.ndarray,
    threshold: float,
    path: Path,
    model: str,
    font: str | None = None,
) -> None:
    """A sheet of both kinds, of the scores (M, n) that `model` gives the photos of a split."""
    wrong, missed = [], []
    for row, column in most_confident_wrong(scores, split.targets, threshold):
        name, score = split.classes[column], f"{scores[row, column]:.2f}"
        labels = [Caption(f"x {name}", score, WRONG), *truth(split, row)]
        labels.append(pictures.file_name(split, row))
        wrong.append(pictures.with_labels(pictures.thumbnail(split, row), labels, font))
    for row, column in most_painful_missed(scores, split.targets, threshold):
        name, score = split.classes[column], f"{scores[row, column]:.2f}"
        labels = [Caption(f"- {name}", score, MISSED), *highest(split, scores, row)]
        labels.append(pictures.file_name(split, row))
        missed.append(pictures.with_labels(pictures.thumbnail(split, row), labels, font))
    above = f"{model}: wrong labels with the highest scores (above {threshold:.2f}), a few of each"
    below = f"{model}: missed labels with the lowest scores, a few of each"
    parts = [*section(above, WRONG, wrong, font), *section(below, MISSED, missed, font)]
    pictures.save_sheet(parts, path)


def most_confident_wrong(
    scores: np.ndarray, targets: np.ndarray, threshold: float
) -> list[tuple[int, int]]:
    """Photo and label of the highest scores above the threshold that are wrong, highest first."""
    wrong = (scores > threshold) & (targets == 0)  # (M, n)
    return worst(np.where(wrong, scores, -np.inf))


def most_painful_missed(
    scores: np.ndarray, targets: np.ndarray, threshold: float
) -> list[tuple[int, int]]:
    """Photo and label of the lowest scores of labels that are there, lowest first."""
    missed = (scores <= threshold) & (targets > 0)  # (M, n)
    return worst(np.where(missed, -scores, -np.inf))


def worst(badness: np.ndarray) -> list[tuple[int, int]]:
    """Row and column of the highest values of badness (M, n), at most EACH; -inf is no mistake.

    Each photo at most once; labels share the places evenly. So neither an odd photo nor a label
    that the model does not know fills the sheet.
    """
    labels_with_mistakes = np.isfinite(badness).any(0).sum()
    most = math.ceil(EACH / max(labels_with_mistakes, 1))  # places of a label
    places, photos, labels = [], set(), Counter()
    for place in np.argsort(-badness, axis=None, kind="stable")[: np.isfinite(badness).sum()]:
        row, column = (int(index) for index in np.unravel_index(place, badness.shape))
        if row not in photos and labels[column] < most:
            places.append((row, column))
            photos.add(row)
            labels[column] += 1
        if len(places) == EACH:
            break
    return places


def truth(split: data.Split, row: int) -> list[Caption]:
    """The labels that a photo has in the label file."""
    labels = [Caption(split.classes[j]) for j in np.flatnonzero(split.targets[row])]
    labels = pictures.shortened(labels, CONTEXT) or [Caption("no label")]
    return [Caption("in truth:"), *labels]


def highest(split: data.Split, scores: np.ndarray, row: int) -> list[Caption]:
    """The labels of a photo with the highest scores."""
    first = np.argsort(-scores[row], kind="stable")[:CONTEXT]
    labels = [Caption(split.classes[j], f"{scores[row, j]:.2f}") for j in first]
    return [Caption("highest:"), *labels]


def section(
    heading: str, colour: tuple, tiles: list[Image.Image], font: str | None
) -> list[Image.Image]:
    """A heading, and below it photos in rows, or "none"."""
    width = ACROSS * (TILE + SMALLEST) + SMALLEST
    captions = [Caption(heading, colour=colour)]
    if not tiles:
        captions.append(Caption("none"))
    parts = [pictures.strip(captions, width, HEAD, font)]
    if tiles:
        parts.append(pictures.grid(tiles, ACROSS, gap=SMALLEST))
    return parts
