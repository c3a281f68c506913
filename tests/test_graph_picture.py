"""graph.png: the label graph as a heat map.

Oracles: colours worked out by hand, read from the middle of each cell; groups that are planted.
"""

import numpy as np
import pytest
import torch
from conftest import argv, random_targets
from PIL import Image

import iml_gcn
import run
from reports import graph_picture


def graph_of(targets):
    pairs, counts = iml_gcn.cooccurrence(torch.as_tensor(targets))
    return pairs, counts, iml_gcn.adjacency(pairs, counts, 0.1)


def drawn(targets, folder):
    """The picture of a label graph as pixels."""
    names = [f"name {j}" for j in range(targets.shape[1])]
    graph_picture.save(folder / "graph.png", graph_of(targets), names, 0.1)
    return np.asarray(Image.open(folder / "graph.png"))


def middle_colours(pixels, n):
    """The pixel in the middle of every cell, (n, n, 3), rows and columns as they are drawn."""
    side = graph_picture.CELL
    y = len(pixels) - graph_picture.GAP - n * side
    x = y - graph_picture.HEAD  # names take as much room above as at the left
    at = np.arange(n) * side + side // 2
    return pixels[np.ix_(y + at, x + at)]


def test_graph_picture_has_the_colours_of_the_values_by_hand(tmp_path, monkeypatch):
    # Label 0 in 20 images, label 1 in 10 of these and alone in 10 more, label 2 in one of label
    # 0's: P(1|0) = 10/20, P(0|1) = 10/20, P(2|0) = 1/20 < tau, P(0|2) = 1. Label 3 in none.
    targets = np.zeros((30, 4), np.uint8)
    targets[:20, 0], targets[10:, 1], targets[0, 2] = 1, 1, 1
    monkeypatch.setattr(graph_picture, "in_groups", lambda likeness: np.arange(len(likeness)))
    colours = middle_colours(drawn(targets, tmp_path), 4).tolist()
    half, one, none = [115, 142, 177], [8, 48, 107], [255, 255, 255]
    assert colours == [
        [none, half, none, none],
        [half] + [none] * 3,
        [one] + [none] * 3,
        [none] * 4,
    ]


def test_labels_that_go_together_are_neighbours_whatever_their_numbers():
    # Nine labels in three groups: photos show two of a group's three labels, and noise.
    generator = np.random.default_rng(0)
    group = generator.permutation(np.arange(9) % 3)  # of each label
    targets = generator.random((300, 9)) < 0.02
    for photo in range(300):
        members = np.flatnonzero(group == photo % 3)
        targets[photo, generator.choice(members, 2, replace=False)] = True
    pairs, counts, _ = graph_of(targets.astype(np.uint8))
    order = graph_picture.in_groups(graph_picture.likeness(pairs.numpy(), counts.numpy()))
    assert sorted(order) == list(range(9))
    in_order = group[order]
    assert (np.diff(in_order) != 0).sum() == 2  # three blocks


def test_neighbours_meet_at_their_likest_ends():
    # A chain 2 - 0 - 3 - 1: each label is like the next alone.
    likeness = np.eye(4)
    for a, b, value in ((2, 0, 0.9), (0, 3, 0.5), (3, 1, 0.8)):
        likeness[a, b] = likeness[b, a] = value
    assert graph_picture.in_groups(likeness).tolist() in ([2, 0, 3, 1], [1, 3, 0, 2])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_labels_that_are_all_alike_or_all_apart_keep_a_place_each(n):
    for likeness in (np.ones((n, n)), np.zeros((n, n))):
        assert sorted(graph_picture.in_groups(likeness).tolist()) == list(range(n))


def test_graph_picture_of_500_labels_shows_the_best_connected_and_stays_small(tmp_path):
    targets = random_targets(300, 500, 0.01)
    targets[:, 499] = 1  # every other label's images show it too: 499 edges lead to it
    pixels = drawn(targets, tmp_path)
    dark = (middle_colours(pixels, 100) == [8, 48, 107]).all(2).sum(0)  # (100,) rows of a column
    assert dark.max() == 99
    assert (tmp_path / "graph.png").stat().st_size < 1e6


def test_the_scale_has_the_colours_of_the_cells(tmp_path):
    pixels = drawn(random_targets(30, 4), tmp_path)
    left = graph_picture.GAP + graph_picture.FONT_SIZE
    y = 2 * graph_picture.CELL + graph_picture.GAP + graph_picture.SCALE_HEIGHT // 2
    middle = pixels[y, left + graph_picture.SCALE_WIDTH // 2].tolist()
    assert pixels[y, left].tolist() == [222, 235, 247]
    assert np.abs(np.subtract(middle, [115, 142, 177])).max() <= 1  # P = 0.5
    assert pixels[y, left + graph_picture.SCALE_WIDTH - 1].tolist() == [8, 48, 107]


def test_a_run_draws_the_graph_and_draws_it_again_for_another_threshold(demo, out):
    first = np.asarray(Image.open(out / "graph.png"))
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    assert np.array_equal(first, Image.open(out / "graph.png"))  # of the models that are there
    for path in out.glob("gcn-*.pt"):
        path.unlink()
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    second = np.asarray(Image.open(out / "graph.png"))
    below = graph_picture.HEAD  # the scale above has all colours
    for pixels, expected in ((first, True), (second, False)):  # the colour of P = 0.5
        cells = pixels[below:].astype(int)
        assert (np.abs(cells - [115, 142, 177]).max(2) < 1).any() == expected
