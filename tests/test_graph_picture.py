"""TODO"""

import itertools
import shutil

import numpy as np
import pytest
import torch
from conftest import argv, random_targets
from PIL import Image

import iml_gcn
import run
from extras import graph_picture


def drawn(targets, names=None, tau=0.1, embeddings=None):
    """The picture of a label graph, as an image and as pixels."""
    pairs, counts = (array.numpy() for array in iml_gcn.cooccurrence(torch.as_tensor(targets)))
    A = iml_gcn.adjacency(torch.as_tensor(pairs), torch.as_tensor(counts), tau).numpy()
    n = len(A)
    embeddings = np.eye(n) if embeddings is None else np.array(embeddings, np.float32)
    names = names or [f"name {j}" for j in range(n)]
    image = graph_picture.graph(pairs, counts, A, embeddings, names, tau, "paper")
    return image, np.asarray(image)


def middle_colours(image, pixels, panel):
    """The pixel in the middle of every cell, (n, n, 3), rows and columns by label number."""
    colours = np.zeros((panel.n, panel.n, 3), int)
    for row, column in itertools.product(range(panel.n), repeat=2):
        left, top, right, bottom = panel.box(row, column)
        i, j = image.info["order"][[row, column]]
        colours[i, j] = pixels[(top + bottom) // 2, (left + right) // 2]
    return colours.tolist()


def test_graph_picture_has_the_colours_of_the_values_by_hand():
    # Label 0 in 20 images, label 1 in 10 of these and alone in 10 more, label 2 in one of label
    # 0's: P(1|0) = 10/20, P(0|1) = 10/20, P(2|0) = 1/20 < tau, P(0|2) = 1. Label 3 in none.
    targets = np.zeros((30, 4), np.uint8)
    targets[:20, 0], targets[10:, 1], targets[0, 2] = 1, 1, 1
    # Directions: 0 and 1 opposite, 2 at a right angle to both.
    image, pixels = drawn(targets, embeddings=[[2, 0], [-3, 0], [0, 1], [1, 1]])
    probabilities = middle_colours(image, pixels, image.info["panels"][0])
    half, one, white, none = [33, 145, 140], [68, 1, 84], [255, 255, 255], [110, 110, 110]
    assert probabilities[0] == [none, half, [228, 228, 228], white]  # half the way to grey 200
    assert probabilities[1] == [half, none, white, white]
    assert probabilities[2] == [one, white, none, white]
    assert probabilities[3] == [none] * 4
    cosines = middle_colours(image, pixels, image.info["panels"][1])
    same, opposite, right_angle = [127, 59, 8], [5, 48, 97], [247, 247, 247]
    assert cosines[0] == [same, opposite, right_angle, none]
    assert cosines[2] == [right_angle, right_angle, same, none]
    assert cosines[3] == [none] * 4


def test_graph_picture_orders_planted_blocks_side_by_side():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(4), 6))  # (24,), the labels' groups in disorder
    scene = rng.integers(0, 4, (400, 1))
    targets = (rng.random((400, 24)) < np.where(groups == scene, 0.5, 0.02)).astype(np.uint8)
    shown = drawn(targets)[0].info["order"]
    assert sorted(shown) == list(range(24))
    assert len(list(itertools.groupby(groups[shown]))) == 4  # every group in one piece


def test_graph_picture_writes_a_name_at_every_row_and_column_and_cells_do_not_meet():
    names = ["dog", "x" * 300, "日本", "café", "two\nlines", "", "cat", "i"]
    image, pixels = drawn(random_targets(50, 8), names)
    for panel in image.info["panels"]:
        assert panel.cell >= graph_picture.FONT_SIZE
        seen = np.zeros(pixels.shape[:2], int)
        for k, label in enumerate(image.info["order"]):
            for m in range(8):
                left, top, right, bottom = panel.box(k, m)
                seen[top:bottom, left:right] += 1
            before = pixels[top:bottom, panel.x - 30 : panel.x - 4]
            left, _, right, _ = panel.box(0, k)
            above = pixels[panel.y - 30 : panel.y - 4, left:right]
            assert (before < 128).any() == (above < 128).any() == (names[label] != "")
        assert seen.max() == 1
        assert seen.sum() == (8 * panel.cell) ** 2


@pytest.mark.parametrize("targets", [np.ones((3, 1)), np.eye(2), np.zeros((2, 3)), np.eye(100)])
def test_graph_picture_of_few_labels_without_edges_is_grey_white_and_whole(targets):
    image, pixels = drawn(targets.astype(np.uint8))
    n = targets.shape[1]
    assert image.info["panels"][0].n == n
    colours = np.array(middle_colours(image, pixels, image.info["panels"][0]))
    shows = np.zeros((n, n, 3), int) + 255  # white: never together
    shows[targets.sum(0) == 0] = shows[np.diag_indices(n)] = 110
    assert (colours == shows).all()


def test_graph_picture_of_500_labels_shows_the_best_connected_and_stays_small():
    targets = random_targets(300, 500, 0.01)
    targets[:, 7] = 1  # every other label's images show it too: 499 edges lead to it
    image, _ = drawn(targets)
    assert 7 in image.info["order"]
    assert (
        len(set(image.info["order"].tolist())) == image.info["panels"][0].n == graph_picture.FEWER
    )
    assert image.width * image.height < 8e6


def test_embed_draws_the_graph_and_draws_it_again_for_another_threshold(demo, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    first = np.asarray(Image.open(out / "graph.png"))
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    second = np.asarray(Image.open(out / "graph.png"))
    for pixels, found in ((first, True), (second, False)):  # the colour of P = 0.5
        assert (np.abs(pixels.astype(int) - [33, 145, 140]).max(2) < 3).any() == found
