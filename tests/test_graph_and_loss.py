"""TODO"""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import label_gcn, random, random_targets
from torch import nn

import iml_gcn

LOGITS = [-30.0, -6.0, -3.1, -0.5, 0.0, 0.7, 2.0, 9.0, 30.0]
POWERS = [(4, 0, 0.05), (2, 1, 0), (1.5, 0.5, 0.2), (0, 3, 0.1), (0.5, 2.5, 0.05)]  # -, +, clip


def test_asymmetric_loss_without_powers_and_clip_is_binary_cross_entropy():
    logits, targets = 5 * random(7, 5), torch.from_numpy(random_targets(7, 5))
    expected = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="sum")
    ours = iml_gcn.asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), POWERS)
def test_asymmetric_loss_and_gradient_follow_the_definition(gamma_neg, gamma_pos, clip):
    total, gradient = 0.0, []
    for x, y in itertools.product(LOGITS, [0, 1]):
        p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(x))  # q = 1 - p, exact for large x
        if y:
            total += q**gamma_pos * -math.log(p)
            gradient.append(-(q**gamma_pos) * q)  # the weight is a constant, d log p / dx = q
        else:
            p_m = max(p - clip, 0)
            total += p_m**gamma_neg * -math.log(min(q + clip, 1))  # 1 - p_m
            # d -log(1 - p_m) / dx = dp/dx / (1 - p_m) where the shift leaves something of p
            gradient.append(p_m**gamma_neg * p * q / (q + clip) if p > clip else 0)
    logits = torch.tensor(LOGITS, dtype=torch.float64).repeat_interleave(2).requires_grad_()
    targets = torch.tensor([0, 1] * len(LOGITS))
    loss = iml_gcn.asymmetric_loss(logits, targets, gamma_neg, gamma_pos, clip)
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert logits.grad.tolist() == pytest.approx(gradient, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), POWERS)
def test_asymmetric_loss_and_gradient_are_finite_for_extreme_logits(
    dtype, gamma_neg, gamma_pos, clip
):
    values = torch.tensor([-1e4, -1e3, -90, -20, 0, 20, 90, 1e3, 1e4]).repeat(10)
    for y in (0, 1):  # the sum of 90 losses is beyond float16's 65,504
        logits = values.to(dtype).requires_grad_()
        targets = torch.full_like(logits, y)
        loss = iml_gcn.asymmetric_loss(logits, targets, gamma_neg, gamma_pos, clip)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        # (1 - p)^gamma_pos (1 - p) is 1 where p underflows: a hopeless positive still learns.
        assert logits.grad[:3].tolist() == ([-1, -1, -1] if y else [0, 0, 0])


def test_asymmetric_loss_leaves_the_gradient_mode_alone():
    logits, targets = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    with torch.no_grad():
        assert not iml_gcn.asymmetric_loss(logits, targets).requires_grad
        assert not torch.is_grad_enabled()
    assert iml_gcn.asymmetric_loss(logits, targets).requires_grad
    assert torch.is_grad_enabled()


def test_cooccurrence_counts_what_loops_over_the_images_count():
    targets = random_targets(9000, 4)  # more than one block of the accumulation
    pairs, counts = np.zeros((4, 4)), np.zeros(4)
    for row in targets.tolist():
        present = [j for j in range(4) if row[j]]
        for j in present:
            counts[j] += 1
        for i, j in itertools.permutations(present, 2):
            pairs[i, j] += 1
    ours = iml_gcn.cooccurrence(torch.from_numpy(targets))
    assert ours[0].tolist() == pairs.tolist()
    assert ours[1].tolist() == counts.tolist()


# Labels a, b, c and d, which never occurs, in 10, 4, 20 and 0 images; a and b share 1, a and c 1, b
# and c 2. P(b|a) = P(c|a) = 1/10, P(a|b) = 1/4, P(c|b) = 2/4, P(a|c) = 1/20 and P(b|c) = 2/20.
# With tau 0.1, inclusive, that makes the edges a-b, a-c, b-a, b-c and c-b, but not c-a.
COUNTS = torch.tensor([10, 4, 20, 0])
PAIRS = torch.tensor([[0, 1, 1, 0], [1, 0, 2, 0], [1, 2, 0, 0], [0, 0, 0, 0]])
# Paper: a row's neighbours share p = 0.2, what is left stays; d without neighbours keeps 0.8.
PAPER = [[0.8, 0.1, 0.1, 0], [0.1, 0.8, 0.1, 0], [0, 0.2, 0.8, 0], [0, 0, 0, 0.8]]
# ML-GCN's code: a column's edges share 0.25: a has one (from b), b two (a, c), c two (a, b).
MLGCN = [[1, 0.125, 0.125, 0], [0.25, 1, 0.125, 0], [0, 0.125, 1, 0], [0, 0, 0, 1]]


ALONE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
READINGS = [("paper", PAPER), ("mlgcn", MLGCN), ("none", ALONE)]


@pytest.mark.parametrize(("reading", "expected"), READINGS)
def test_adjacency_by_hand_in_all_readings(reading, expected):
    A = iml_gcn.adjacency(PAIRS, COUNTS, tau=0.1, p=0.2, reading=reading)
    torch.testing.assert_close(A, torch.tensor(expected, dtype=torch.float32))


def test_normalise_scales_by_the_row_sums_by_hand():
    # Row sums 4 and 1: entry (i, j) is divided by sqrt(r_i r_j), that is 4, 2, 2 and 1.
    A = torch.tensor([[1.0, 3.0], [0.0, 1.0]])
    assert iml_gcn.normalise(A).tolist() == [[0.25, 1.5], [0, 1]]
    assert iml_gcn.normalise(A, "mlgcn").tolist() == [[0.25, 0], [1.5, 1]]
    # An empty row (an isolated label with p = 1) has no degree to divide by and stays empty.
    assert iml_gcn.normalise(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).tolist() == [[1, 0], [0, 0]]


def test_label_graph_equals_ml_gcn_released_code_in_numpy():
    targets = random_targets(60, 7, seed=3)
    targets[:, 5] = 0  # its P is 0 / 0
    pairs, counts = iml_gcn.cooccurrence(torch.from_numpy(targets))
    P = pairs.numpy() / np.where(counts == 0, 1, counts)[:, None]
    A = np.where(P < 0.3, 0.0, 1.0)  # ML-GCN's util.py: gen_A, then gen_adj
    A = A * 0.25 / (A.sum(0, keepdims=True) + 1e-6) + np.identity(7)
    D = np.diag(np.power(A.sum(1), -0.5))
    expected = (A @ D).T @ D
    A_hat = iml_gcn.normalise(iml_gcn.adjacency(pairs, counts, 0.3, reading="mlgcn"), "mlgcn")
    assert not np.allclose(expected, expected.T, atol=1e-3)  # or the transposition would not show
    np.testing.assert_allclose(A_hat.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_label_means_equal_a_loop_whatever_the_batches_and_their_order():
    features, targets = random(30, 6).float(), random_targets(30, 5)
    targets[:, 2] = 0
    expected = np.zeros((5, 6))  # zero for label 2, which no image shows
    for j in (0, 1, 3, 4):
        expected[j] = np.mean([features[i].numpy() for i in range(30) if targets[i, j]], axis=0)
    order = np.random.default_rng(1).permutation(30)
    for rows in (np.split(np.arange(30), [1, 8]), [order], np.split(order, [29])):
        means = iml_gcn.LabelMeans(5, 6)
        for batch in rows:
            means.update(features[batch], torch.from_numpy(targets[batch]))
        np.testing.assert_allclose(means.mean().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "D", "k"), [(6, 10, 6), (6, 10, 3), (10, 4, 4)])
def test_pca_equals_the_eigenvectors_of_the_covariance_with_signs_fixed(n, D, k):
    features = random(n, D)
    centred = features.numpy() - features.numpy().mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending eigenvalues
    expected = centred @ vectors[:, ::-1][:, :k]  # (n, k), up to sign
    ours = iml_gcn.pca(features, k).double().numpy()
    for j in range(k):
        if n == k and j == k - 1:  # n centred rows have rank n - 1
            assert (ours[:, j] == 0).all()
            continue
        sign = np.sign(ours[:, j] @ expected[:, j])
        np.testing.assert_allclose(ours[:, j], sign * expected[:, j], atol=1e-5)
        direction = centred.T @ ours[:, j]  # a positive multiple of the component's direction
        assert direction[np.abs(direction).argmax()] > 0


@pytest.mark.parametrize("k", [0, 6])
def test_pca_refuses_more_components_than_rows_or_columns(k):
    with pytest.raises(ValueError, match=rf"{k} components"):
        iml_gcn.pca(random(5, 8), k)


def test_label_gcn_gathers_from_the_rows_of_the_graph_in_both_layers():
    head = label_gcn()
    A, nodes, W0, W1 = (t.detach().numpy() for t in (head.A_hat, head.nodes, head.W0, head.W1))
    H, out = np.zeros((5, 9)), np.zeros((5, 6))
    for i, j in itertools.product(range(5), repeat=2):
        H[i] += A[i, j] * (nodes[j] @ W0)  # Eq. 2: node i sums its neighbours j, weighted
    H = np.where(H > 0, H, 0.2 * H)
    for i, j in itertools.product(range(5), repeat=2):
        out[i] += A[i, j] * (H[j] @ W1)
    features = random(4, 6).numpy()
    logits = head(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(logits, features @ out.T, rtol=1e-6)


def test_label_gcn_with_an_identity_graph_is_a_plain_mlp_on_every_node():
    head = label_gcn(A_hat=torch.eye(5))
    layers = nn.Linear(7, 9, bias=False), nn.LeakyReLU(0.2), nn.Linear(9, 6, bias=False)
    mlp = nn.Sequential(*layers).double()
    mlp.load_state_dict({"0.weight": head.W0.T, "2.weight": head.W1.T})
    torch.testing.assert_close(head.classifiers(), mlp(head.nodes))


def test_relabelling_permutes_the_logits_and_nothing_else():
    head, order, features = label_gcn(), torch.tensor([3, 0, 4, 1, 2]), random(4, 6)
    relabelled = label_gcn(A_hat=head.A_hat[order][:, order], nodes=head.nodes[order])
    torch.testing.assert_close(relabelled(features), head(features)[:, order])


def test_label_gcn_as_a_linear_layer_gives_the_same_logits():
    head, features = label_gcn().float(), random(4, 6).float()
    linear = head.to_linear()
    torch.testing.assert_close(linear(features), head(features))
    assert sum(p.numel() for p in linear.parameters()) == 5 * 6  # no bias, no graph
