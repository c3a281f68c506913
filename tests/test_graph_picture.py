"""graph.png: the label graph as a heat map.

Oracles: colours worked out by hand, read from the middle of each cell.
"""

import numpy as np
import torch
from conftest import argv, random_targets
from PIL import Image

import iml_gcn
import run
from extras import graph_picture


def drawn(targets):
    """The picture of a label graph, as an image and as pixels."""
    pairs, counts = iml_gcn.cooccurrence(torch.as_tensor(targets))
    A, names = iml_gcn.adjacency(pairs, counts, 0.1), [f"name {j}" for j in range(len(counts))]
    image = graph_picture.graph(pairs, counts, A, names, 0.1, "paper")
    return image, np.asarray(image)


def middle_colours(image, pixels):
    """The pixel in the middle of every cell, (n, n, 3), rows and columns by label number."""
    (x, y, side), order = image.info["cells"], image.info["order"]
    n = len(order)
    at = np.arange(n) * side + side // 2
    colours = np.zeros((n, n, 3), int)
    colours[np.ix_(order, order)] = pixels[np.ix_(y + at, x + at)]
    return colours.tolist()


def test_graph_picture_has_the_colours_of_the_values_by_hand():
    # Label 0 in 20 images, label 1 in 10 of these and alone in 10 more, label 2 in one of label
    # 0's: P(1|0) = 10/20, P(0|1) = 10/20, P(2|0) = 1/20 < tau, P(0|2) = 1. Label 3 in none.
    targets = np.zeros((30, 4), np.uint8)
    targets[:20, 0], targets[10:, 1], targets[0, 2] = 1, 1, 1
    probabilities = middle_colours(*drawn(targets))
    half, one, white, none = [33, 145, 140], [68, 1, 84], [255, 255, 255], [110, 110, 110]
    assert probabilities[0] == [none, half, [228, 228, 228], white]  # half the way to grey 200
    assert probabilities[1] == [half, none, white, white]
    assert probabilities[2] == [one, white, none, white]
    assert probabilities[3] == [none] * 4


def test_graph_picture_of_500_labels_shows_the_best_connected_and_stays_small():
    targets = random_targets(300, 500, 0.01)
    targets[:, 7] = 1  # every other label's images show it too: 499 edges lead to it
    image, _ = drawn(targets)
    assert 7 in image.info["order"]
    assert len(set(image.info["order"].tolist())) == graph_picture.FEWER
    assert image.width * image.height < 8e6


def test_a_run_draws_the_graph_and_draws_it_again_for_another_threshold(demo, out):
    first = np.asarray(Image.open(out / "graph.png"))
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    second = np.asarray(Image.open(out / "graph.png"))
    for pixels, found in ((first, True), (second, False)):  # the colour of P = 0.5
        assert (np.abs(pixels.astype(int) - [33, 145, 140]).max(2) < 3).any() == found
