"""graph.png: the label graph as a heat map.

Oracles: colours worked out by hand, read from the middle of each cell.
"""

import numpy as np
import torch
from conftest import argv, random_targets
from PIL import Image

import iml_gcn
import run
from reports import graph_picture


def drawn(targets, folder):
    """The picture of a label graph as pixels."""
    pairs, counts = iml_gcn.cooccurrence(torch.as_tensor(targets))
    A, names = iml_gcn.adjacency(pairs, counts, 0.1), [f"name {j}" for j in range(len(counts))]
    graph_picture.save(folder / "graph.png", (pairs, counts, A), names, 0.1)
    return np.asarray(Image.open(folder / "graph.png"))


def middle_colours(pixels, n):
    """The pixel in the middle of every cell, (n, n, 3), rows and columns by label number."""
    side = graph_picture.CELL
    y = len(pixels) - n * side  # names are as long above as at the left
    at = np.arange(n) * side + side // 2
    return pixels[np.ix_(y + at, y - graph_picture.LINE + at)].tolist()


def test_graph_picture_has_the_colours_of_the_values_by_hand(tmp_path):
    # Label 0 in 20 images, label 1 in 10 of these and alone in 10 more, label 2 in one of label
    # 0's: P(1|0) = 10/20, P(0|1) = 10/20, P(2|0) = 1/20 < tau, P(0|2) = 1. Label 3 in none.
    targets = np.zeros((30, 4), np.uint8)
    targets[:20, 0], targets[10:, 1], targets[0, 2] = 1, 1, 1
    colours = middle_colours(drawn(targets, tmp_path), 4)
    half, one, none = [115, 142, 177], [8, 48, 107], [255, 255, 255]
    assert colours == [
        [none, half, none, none],
        [half] + [none] * 3,
        [one] + [none] * 3,
        [none] * 4,
    ]


def test_graph_picture_of_500_labels_shows_the_best_connected_and_stays_small(tmp_path):
    targets = random_targets(300, 500, 0.01)
    targets[:, 499] = 1  # every other label's images show it too: 499 edges lead to it
    pixels = drawn(targets, tmp_path)
    colours = middle_colours(pixels, 100)
    assert [row[-1] for row in colours[:-1]] == [[8, 48, 107]] * 99
    assert pixels.size < 3 * 8e6


def test_a_run_draws_the_graph_and_draws_it_again_for_another_threshold(demo, out):
    first = np.asarray(Image.open(out / "graph.png"))
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    second = np.asarray(Image.open(out / "graph.png"))
    for pixels, found in ((first, True), (second, False)):  # the colour of P = 0.5
        assert (np.abs(pixels.astype(int) - [115, 142, 177]).max(2) < 1).any() == found
