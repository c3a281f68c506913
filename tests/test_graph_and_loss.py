"""The loss at its edges, ML-GCN's label graph, PCA's rows of zeros.

The oracle of the graph is ML-GCN's released code in NumPy. The equations themselves are in
test_iml_gcn.py.
"""

import numpy as np
import pytest
import torch
from conftest import random, random_targets

import iml_gcn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_asymmetric_loss_and_gradient_are_finite_for_extreme_logits(dtype):
    values = torch.tensor([-1e4, -1e3, -90, -20, 0, 20, 90, 1e3, 1e4]).repeat(10)
    for y in (0, 1):  # the sum of 90 losses is beyond float16's 65,504
        logits = values.to(dtype).requires_grad_()
        loss = iml_gcn.asymmetric_loss(logits, torch.full_like(logits, y), 0.5, 2.5, 0.05)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        # (1 - p)^gamma_pos (1 - p) is 1 where p underflows: a hopeless positive still learns.
        assert logits.grad[:3].tolist() == ([-1, -1, -1] if y else [0, 0, 0])


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
    alone = iml_gcn.adjacency(pairs, counts, 0.3, reading="none")
    assert torch.equal(iml_gcn.normalise(alone, "none"), torch.eye(7))


def test_pca_leaves_out_the_rows_of_zeros_of_labels_that_no_image_shows():
    features, shown = random(7, 12) + 3, [0, 2, 3, 6]
    features[[1, 4, 5]] = 0
    for k in (3, 7):  # four rows have three components; the other columns are zero
        ours = iml_gcn.pca(features, k)
        torch.testing.assert_close(ours[shown, :3], iml_gcn.pca(features[shown], 3))
        assert not ours[:, 3:].any()
        assert not ours[[1, 4, 5]].any()  # not 1e-16 either: such a node had a length


@pytest.mark.parametrize("k", [0, 6])
def test_pca_refuses_more_components_than_rows_or_columns(k):
    with pytest.raises(ValueError, match=f"at most 5 components, not {k}"):
        iml_gcn.pca(random(5, 8), k)
