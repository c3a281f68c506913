"""All tests: seconds on a CPU, no network, nothing written outside pytest's temporary folder.

Every expected value comes from outside the code under test: brute force from the definition, hand
calculation (in a comment), another library, a published number or an invariant.
"""

import contextlib
import copy
import csv
import functools
import http.server
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import bench
import board
import data
import download
import evidence
import export
import files
import heatmap
import iml_gcn
import metrics
import pictures
import predict
import process
import report
import resnet
import run
import tresnet


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_targets(images, labels, rate=0.3, seed=0):
    return (np.random.default_rng(seed).random((images, labels)) < rate).astype(np.uint8)


# iml_gcn

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


def label_gcn(n=5, d=7, D=6, A_hat=None, nodes=None):
    torch.manual_seed(0)
    A_hat = random(n, n, seed=2).abs() if A_hat is None else A_hat
    nodes = random(n, d, seed=1) if nodes is None else nodes
    return iml_gcn.LabelGCN(nodes, A_hat, D, hidden=9).double()


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


# tresnet


def gcn_head(n, d):
    return iml_gcn.LabelGCN(torch.zeros(n, d), torch.zeros(n, n), 2048)


@pytest.mark.parametrize(
    ("make_head", "expected"),
    [  # TResNet's published numbers, then the paper's: body, two matrices, graph (README, 16)
        (nn.Identity, 29_340_032),
        (lambda: iml_gcn.linear_head(2048, 1000), 31_389_032),
        (lambda: iml_gcn.linear_head(2048, 80), 29_503_952),
        (lambda: gcn_head(80, 80), 31_525_504),  # F_PCA: + 80 * 1024 + 1024 * 2048 + 80 * 80
        (lambda: gcn_head(80, 2048), 33_540_736),  # F_I: + 2048 * 1024 + 1024 * 2048 + 80 * 80
        (lambda: gcn_head(500, 500), 32_199_184),  # VG-500, F_PCA: the same with n = d = 500
    ],
)
def test_models_have_the_published_number_of_parameters(make_head, expected):
    with torch.device("meta"):
        model = iml_gcn.Classifier(tresnet.tresnet_m(), make_head())
    assert run.count_parameters(model) == expected


@pytest.mark.parametrize(
    ("make", "labels", "printed"),
    [  # Table 1's other rows; "44.5 M" counts ImageNet's 1000 classes
        (tresnet.tresnet_l, 80, 53.8),
        (resnet.resnet101, 1000, 44.5),
        (tresnet.tresnet_m, 80, 29.5),
    ],
)
def test_direct_models_have_the_parameters_that_table_1_prints(make, labels, printed):
    with torch.device("meta"):
        backbone = make()
        model = iml_gcn.Classifier(backbone, iml_gcn.linear_head(backbone.num_features, labels))
    assert round(run.count_parameters(model) / 1e6, 1) == printed


def test_ml_gcn_has_the_parameters_that_table_1_prints():
    with torch.device("meta"):
        model = iml_gcn.Classifier(resnet.resnet101("max"), gcn_head(80, 300))
    assert round(run.count_parameters(model) / 1e6, 1) == 44.9


def test_tresnet_m_maps_224_pixels_to_2048_channels_of_7_by_7():
    with torch.device("meta"):
        features = tresnet.tresnet_m().forward_features(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 2048, 7, 7)


def test_stem_stacks_pixels_by_row_then_column_then_colour():
    # Each pixel is worth the number of the channel it belongs in: 12 a row, 3 a column, 1 a colour.
    y, x, colour = np.meshgrid(np.arange(32), np.arange(36), np.arange(3), indexing="ij")
    values = 12 * (y % 4) + 3 * (x % 4) + colour  # (H, W, 3)
    images = torch.from_numpy(values).permute(2, 0, 1)[None].float()
    seen = []
    backbone = tresnet.tresnet_tiny()
    backbone.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for layout in (torch.contiguous_format, torch.channels_last):
        backbone(images.contiguous(memory_format=layout))
        expected = torch.arange(48.0)[None, :, None, None].expand(1, 48, 8, 9)
        assert torch.equal(seen.pop(), expected)


def test_blur_keeps_a_constant_and_spreads_an_impulse_by_1_2_1():
    constant = torch.full((1, 2, 6, 5), 3.0)
    assert torch.equal(tresnet.Blur()(constant), torch.full((1, 2, 3, 3), 3.0))
    impulse = torch.zeros(1, 2, 6, 6)
    impulse[0, 1, 2, 3] = 16
    # Centres are rows and columns 0, 2, 4. Row 2 meets a centre (weight 2); column 3 lies between
    # columns 2 and 4 (weight 1 each). Only channel 1 sees it.
    expected = torch.zeros(1, 2, 3, 3)
    expected[0, 1, 1, 1] = expected[0, 1, 1, 2] = 2
    assert torch.equal(tresnet.Blur()(impulse), expected)
    corner = torch.zeros(1, 1, 4, 4)
    corner[0, 0, 1, 1] = 16  # reflected, it stands at -1, too: 4 times in the window of (0, 0)
    assert torch.equal(tresnet.Blur()(corner), torch.tensor([[[[4.0, 2.0], [2.0, 1.0]]]]))


@pytest.mark.parametrize(("C", "H", "W"), [(3, 102, 64), (3, 64, 102), (3, 64, 28), (4, 64, 64)])
def test_tresnet_refuses_images_it_cannot_halve_five_times(C, H, W):
    with pytest.raises(ValueError, match=f"{C}, {H}, {W}"):
        tresnet.tresnet_tiny()(torch.zeros(1, C, H, W))


M, TINY = ((3, 4, 11, 3), 64), ((1, 1, 2, 1), 16)  # blocks of the four stages, planes of the first


def released_network(layers, planes, images):
    """The released TResNet a second time, in torch's functions: random weights under their released
    names (in-place ABN: <conv>.0 and <conv>.1, one deeper where a blur follows), the same under
    timm's, and the features (B, D) of `images` in double precision."""
    torch.manual_seed(1)
    state, timm = {}, {}

    def weight(name, timm_name, value):
        state[f"body.{name}"] = timm[f"body.{timm_name}"] = value
        return value.double()

    def conv(x, name, c_out, kernel, slope, blur=False):
        path, fan_in = f"{name}.0" if blur else name, x.shape[1] * kernel**2
        w = torch.randn(c_out, x.shape[1], kernel, kernel) * math.sqrt(2 / fan_in)
        x = F.conv2d(x, weight(f"{path}.0.weight", f"{name}.conv.weight", w), padding=kernel // 2)
        norm = {"weight": (torch.rand(c_out) + 0.5) * torch.randn(c_out).sign()}  # either sign
        norm |= {"bias": torch.randn(c_out) / 10, "running_mean": torch.randn(c_out) / 10}
        norm |= {"running_var": torch.rand(c_out) + 0.5, "num_batches_tracked": torch.tensor(7)}
        norm = {k: weight(f"{path}.1.{k}", f"{name}.bn.{k}", v) for k, v in norm.items()}
        mean, var = norm["running_mean"], norm["running_var"]
        x = F.batch_norm(x, mean, var, norm["weight"].abs() + 1e-5, norm["bias"])
        x = F.leaky_relu(x, slope)
        if blur:  # [1 2 1] is [1 1] twice: two average pools
            x = F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 2, 1), 2, 2)
        return x

    def se(x, name, hidden):
        gate, c = x.mean((2, 3)), x.shape[1]
        for fc, size in (("fc1", (hidden, c)), ("fc2", (c, hidden))):
            w, bias = torch.randn(*size, 1, 1) / size[1] ** 0.5, torch.randn(size[0])
            w = weight(f"{name}.{fc}.weight", f"{name}.{fc}.weight", w).flatten(1)
            gate = F.linear(gate, w, weight(f"{name}.{fc}.bias", f"{name}.{fc}.bias", bias))
            gate = gate.relu() if fc == "fc1" else gate.sigmoid()
        return x * gate[..., None, None]

    x = F.pixel_unshuffle(images.double(), 4)  # channels by colour, row, column
    x = x.unflatten(1, (3, 16)).transpose(1, 2).flatten(1, 2)
    x = conv(x, "conv1", planes, 3, 1e-2)
    for stage, blocks in enumerate(layers):
        c = planes * 2**stage
        for i in range(blocks):
            name, blur, residual = f"layer{stage + 1}.{i}", stage > 0 and i == 0, x
            if blur:
                residual = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
            if stage < 2:
                x = conv(x, f"{name}.conv1", c, 3, 1e-3, blur)
                x = se(conv(x, f"{name}.conv2", c, 3, 1), f"{name}.se", max(c // 4, 64))
            else:
                x = conv(x, f"{name}.conv1", c, 1, 1e-3)
                x = conv(x, f"{name}.conv2", c, 3, 1e-3, blur)
                x = se(x, f"{name}.se", max(4 * c // 8, 64)) if stage < 3 else x
                x = conv(x, f"{name}.conv3", 4 * c, 1, 1)
            if residual.shape[1] != x.shape[1]:
                residual = conv(residual, f"{name}.downsample.1", x.shape[1], 1, 1)
            x = F.relu(x + residual)
    head = {"head.fc.weight": torch.randn(80, x.shape[1]), "head.fc.bias": torch.randn(80)}
    return state | head, timm | head, x.mean((2, 3))


IMAGES = torch.rand(2, 3, 68, 96, generator=torch.Generator().manual_seed(5))


def assert_computes(backbone, expected):
    with torch.no_grad():
        ours = backbone.double().eval()(IMAGES.double())
    assert expected.std() > 0.1  # else everything were close to everything
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_released_tresnet_m_weights_load_and_compute_what_the_released_network_does(tmp_path):
    state, _, features = released_network(*M, IMAGES)
    torch.save({"model": state}, tmp_path / "m.pth")
    backbone = tresnet.tresnet_m()
    head = tresnet.load_weights(backbone, tmp_path / "m.pth")
    assert torch.equal(head["weight"], state["head.fc.weight"])
    assert len(state) == 434  # as many as the released files have
    assert_computes(backbone, features)


def test_released_weights_load_with_module_prefix_other_top_key_and_blur_filters(tmp_path):
    state, _, features = released_network(*TINY, IMAGES)
    entries = {f"module.{name}": value for name, value in state.items()}
    entries["module.body.layer2.0.conv1.1.filt"] = torch.rand(16, 1, 3, 3)
    torch.save({"epoch": 3, "state_dict": entries}, tmp_path / "tiny.pth")
    backbone = tresnet.tresnet_tiny()
    tresnet.load_weights(backbone, tmp_path / "tiny.pth")
    norm = state["body.layer3.0.conv2.0.1.weight"]  # under the nested names, too
    assert (norm < 0).any()
    assert torch.equal(backbone.layer3[0].conv2.bn.weight, norm.abs() + 1e-5)
    assert_computes(backbone, features)


def test_timm_names_load_with_the_norm_weights_untouched(tmp_path):
    _, state, _ = released_network(*TINY, IMAGES)
    torch.save(state, tmp_path / "timm.pth")
    backbone = tresnet.tresnet_tiny()
    tresnet.load_weights(backbone, tmp_path / "timm.pth")
    for name, value in backbone.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, state[f"body.{name}"]), name


@pytest.mark.parametrize(
    ("name", "value", "culprit"),
    [
        ("body.layer3.1.conv2.0.weight", None, "layer3.1.conv2"),  # missing
        ("body.layer2.0.se.fc1.bias", None, "layer2.0.se.fc1.bias"),
        ("body.layer1.1.conv1.0.weight", torch.zeros(16, 16, 3, 3), "layer1.1.conv1"),  # extra
        ("body.layer1.0.conv1.1.bias", torch.zeros(3), "layer1.0.conv1"),  # wrong shape
        ("body.conv1.1.weight", "text", "conv1.1.weight"),  # no tensor
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    tmp_path, name, value, culprit
):
    state = released_network(*TINY, IMAGES)[0] | {name: value}
    torch.save({"model": {k: v for k, v in state.items() if v is not None}}, tmp_path / "bad.pth")
    backbone = tresnet.tresnet_tiny()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=culprit):
        tresnet.load_weights(backbone, tmp_path / "bad.pth")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


class Bomb:
    """Unpickled, it makes an empty file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path, write):
    write({"model": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        tresnet.load_weights(tresnet.tresnet_tiny(), tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


RESNET_101 = (3, 4, 23, 3)


def torchvision_names():
    """torchvision's 624 key names of ResNet-101 and the shapes He et al.'s Table 1 gives them."""

    def norm(name, channels):
        return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean")} | {
            f"{name}.running_var": (channels,),
            f"{name}.num_batches_tracked": (),
        }

    shapes = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    c_in = 64
    for stage, blocks in enumerate(RESNET_101, 1):
        planes = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convs = [(planes, c_in, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            for k, shape in enumerate(convs, 1):
                shapes |= {f"{name}.conv{k}.weight": shape} | norm(f"{name}.bn{k}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, c_in, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * planes)
            c_in = 4 * planes
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_torchvisions_resnet101_file_loads_strictly_and_returns_its_classifier(tmp_path):
    names = torchvision_names()
    state = {k: torch.randn(s) if s else torch.tensor(0) for k, s in names.items()}
    torch.save(state, tmp_path / "resnet101.pth")
    backbone = resnet.resnet101()
    head = tresnet.load_weights(backbone, tmp_path / "resnet101.pth")
    assert head["weight"].equal(state["fc.weight"])
    assert head["bias"].equal(state["fc.bias"])
    ours = backbone.state_dict()
    assert set(ours) == {k for k in names if not k.startswith("fc.")}
    assert all(ours[k].equal(state[k]) for k in ours if "num_batches" not in k)
    del state["layer3.22.conv2.weight"]
    torch.save(state, tmp_path / "resnet101.pth")
    with pytest.raises(ValueError, match=r"missing layer3\.22\.conv2\.weight"):
        tresnet.load_weights(backbone, tmp_path / "resnet101.pth")


def test_resnet_normalises_with_imagenets_mean_and_deviation():
    backbone = resnet.ResNet((1, 1, 1, 1)).eval()
    seen = []
    backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone(
        torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    )
    assert seen[0][0, :, 5, 7].tolist() == pytest.approx([0, 1, -1], abs=1e-6)


@pytest.mark.parametrize("make", [tresnet.tresnet_tiny, lambda pool: resnet.ResNet((1,) * 4, pool)])
def test_max_pooling_keeps_the_largest_activation_of_every_channel(make):
    backbone = make(pool="max").eval()
    images = torch.rand(2, 3, 64, 64)
    features, maps = backbone(images).tolist(), backbone.forward_features(images).tolist()
    for b, c in itertools.product(range(2), (0, 7, 100)):
        assert features[b][c] == max(max(row) for row in maps[b][c])


@pytest.fixture
def server(tmp_path):
    """A web server on this machine for the files in tmp_path/www, and what it is asked for."""
    requests, folder = [], tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder, requests
        httpd.shutdown()


def test_weights_are_downloaded_once_and_a_failure_says_where_to_put_them(
    server, tmp_path, monkeypatch
):
    url, folder, requests = server
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    there, here = tresnet.tresnet_tiny(), tresnet.tresnet_tiny()
    torch.save({"model": there.state_dict()}, folder / "tiny.pth")
    for _ in range(2):
        assert tresnet.load_weights(here, f"{url}/tiny.pth") == {}
    assert all(a.equal(b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
    assert requests == ["/tiny.pth"]
    with pytest.raises(FileNotFoundError) as error:
        tresnet.load_weights(here, f"{url}/absent.pth")
    assert f"{url}/absent.pth" in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)


def plain_abn(x, weight, bias, slope):
    """Batch norm by the batch's own statistics and leaky ReLU, as autograd differentiates them."""
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, training=True), slope)


def gradients(function, *inputs):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape).cos()
    return output.detach(), torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slope", [1e-2, 1e-3])
def test_in_place_abn_has_the_gradients_of_batch_norm_and_leaky_relu(slope, layout):
    norm = tresnet.ABN(5, slope).double()
    x = random(4, 5, 6, 3).to(memory_format=layout)
    weight, bias = torch.tensor([1.3, -0.4, 0.1, 2, 1e-3]).double(), random(5, seed=1)

    def in_place(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(norm, parameters, x)

    expected = gradients(lambda *inputs: plain_abn(*inputs, slope), x, weight, bias)
    torch.testing.assert_close(gradients(in_place, x, weight, bias), expected, rtol=0, atol=1e-10)
    twin = nn.BatchNorm2d(5).double()
    twin(x)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), twin.buffers(), strict=True))
    inputs = [t.clone().requires_grad_() for t in (x[:2, :, :2, :2], weight, bias)]
    assert torch.autograd.gradcheck(in_place, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_abn_is_stable_where_a_weight_is_next_to_nothing(dtype):
    # Below the rounding of the bias, x is lost in the output: what is left of it, at most 1/2 off
    # once normalised, must not blow up any gradient. float64 knows what they are.
    x, bias = random(16, 6, 8, 8), torch.tensor([0.0, 0.51, -0.51, 0.3, 1.7, -2.3]).double()
    weight = torch.tensor([0.0, 0.0, 1e-8, -1e-6, 1e-5, -1e-4]).double()
    floor = torch.finfo(dtype).eps * bias.abs() + 1e-5
    raised = weight.abs().maximum(floor).copysign(weight)
    _, expected = gradients(lambda *inputs: plain_abn(*inputs, 1e-2), x, raised, bias)
    norm = tresnet.ABN(6, 1e-2)
    x, weight, bias = x.to(dtype), weight.float(), bias.float()

    def in_place(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    _, found = gradients(in_place, x, weight, bias)
    # What rounding of the output does to x, normalised: a bound on every channel's error.
    worst = torch.finfo(dtype).eps * bias.abs() / raised.abs() + 1e-3
    grad_x, grad_weight, grad_bias = (tensor.double() for tensor in found)
    assert ((grad_x - expected[0]).abs().amax((0, 2, 3)) < 2 * raised.abs() * worst + 1e-3).all()
    assert ((grad_weight - expected[1]).abs() < worst * 16 * 64).all()
    torch.testing.assert_close(grad_bias, expected[2], rtol=0.02, atol=0.5)


def steps(backbone, images, lean, monkeypatch):
    """Two SGD steps from the same weights: losses, gradients and the state after them."""
    model = copy.deepcopy(backbone).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(tresnet, "lean", lambda module: False)
        for _ in range(2):
            loss = (model(images) * torch.linspace(-1, 1, model.num_features)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses, [p.grad for p in model.parameters()], model.state_dict()


def test_training_that_keeps_less_takes_the_same_steps(monkeypatch):
    # Ours by hand and by recomputation, against autograd through the plain layers.
    torch.manual_seed(0)
    backbone = tresnet.tresnet_tiny().double().to(memory_format=torch.channels_last)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    images = random(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    expected = steps(backbone, images, False, monkeypatch)
    found = steps(backbone, images, True, monkeypatch)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert found[2]["layer4.0.conv3.bn.num_batches_tracked"] == 2


def saved_bytes(model, images):
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so no pointer comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return sum(size for pointer, (size, _) in kept.items() if pointer not in own)


def test_training_keeps_what_its_parts_need_and_no_more():
    # A block keeps the inputs of its two convolutions, the second's output, and its own output, the
    # next block's input: four maps and some vectors. Not the norm's output, nor the gated one.
    images = random(2, 16, 8, 8).float()
    block = tresnet.BasicBlock(16, 16, stride=1, se=True)
    maps = images.nbytes * 4
    assert maps <= saved_bytes(block, images) < maps + 1024
    conv = tresnet.ConvABN(16, 16, 3, stride=2)
    maps = images.nbytes * 2  # the convolution's input, its activated norm's output
    assert maps <= saved_bytes(conv, images) < maps + 2048


def test_compiled_training_takes_the_steps_of_uncompiled(monkeypatch):
    torch.manual_seed(0)
    backbone = tresnet.tresnet_tiny().double()
    images = random(2, 3, 32, 32).repeat(1, 1, 2, 2)
    expected = steps(backbone, images, True, monkeypatch)[1]
    backbone.compile(backend="aot_eager")  # torch's tracing without its C++ compiler
    torch.testing.assert_close(steps(backbone, images, True, monkeypatch)[1], expected)


@pytest.mark.parametrize(
    "make", [tresnet.tresnet_tiny, functools.partial(resnet.ResNet, (1, 1, 2, 1))]
)
def test_the_deploy_form_computes_the_same_logits_with_no_norm_and_no_graph(make):
    torch.manual_seed(0)
    backbone = make()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    head = iml_gcn.LabelGCN(random(7, 5), torch.rand(7, 7), backbone.num_features)
    model = iml_gcn.Classifier(backbone, head).eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        folded = tresnet.fold(model)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)  # it is a copy
        rounded = tresnet.fold(model, torch.bfloat16)(images)
    assert rounded.dtype == torch.float32
    scale = expected.std(0).mean()
    assert 0 < (rounded - expected).abs().max() < 0.05 * expected.abs().max() + scale
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    direct = iml_gcn.Classifier(backbone, nn.Linear(backbone.num_features, 7, bias=False))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (folded, tresnet.fold(direct))]
    assert sizes[0] == sizes[1]


# data


def coco_document():
    """Two labels in an order other than their ids', three images; image 3 has no annotation."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (40, 3, 7)],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 2, "name": "apple"}],
        "annotations": [
            {"image_id": 7, "category_id": 9, "iscrowd": 1, "segmentation": {"counts": [4, 2]}},
            {"image_id": 40, "category_id": 2, "iscrowd": 0, "segmentation": [[1, 2, 3, 4]]},
            {"image_id": 40, "category_id": 9, "iscrowd": 0},
            {"image_id": 40, "category_id": 2, "iscrowd": 0},
        ],
    }


def write_coco(folder, document):
    path = folder / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_coco_reader_by_hand(tmp_path):
    split = data.load_coco(write_coco(tmp_path, coco_document()), "photos")
    assert split.classes == ["apple", "zebra"]  # ids 2 and 9
    assert split.paths == ["photos/40.jpg", "photos/3.jpg", "photos/7.jpg"]  # the file's order
    # 40: zebra once, apple twice; 3: nothing; 7: a crowd of zebras
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


IMAGE, CATEGORY = {"id": 7, "file_name": "7.jpg"}, {"id": 9, "name": "horse"}


@pytest.mark.parametrize(
    ("key", "entry", "culprit"),
    [
        ("annotations", [{"image_id": 8, "category_id": 2}], "image id 8"),
        ("annotations", [{"image_id": 7, "category_id": 5}], "category id 5"),
        ("annotations", [{"image_id": [7], "category_id": 2}], r"image id \[7\]"),
        ("annotations", [{"image_id": 7, "category_id": {}}], r"category id \{\}"),
        ("annotations", [{"image_id": 7, "caption": "a horse"}], "a horse"),
        ("annotations", [{"category_id": 2}], "category_id"),
        ("images", [IMAGE], "image id 7"),
        ("images", [IMAGE | {"id": "seven"}], "seven"),
        ("images", [IMAGE | {"id": [7]}], r"image id \[7\]"),
        ("images", [{"id": 11}], "11"),
        ("images", [{"file_name": "11.jpg"}], "'id'"),
        ("categories", [CATEGORY], "category id 9"),
        ("categories", [{"id": 11, "name": "zebra"}], "id 11, 'zebra'"),
        ("categories", [CATEGORY | {"id": [1]}], r"category id \[1\]"),
        ("categories", [{"id": 11}], "11"),
        ("categories", [{"name": "horse"}], "'id'"),
        ("images", None, "'images'"),  # no list of them
        ("annotations", {}, "'annotations'"),
        ("categories", "text", "'categories'"),
        (None, json.dumps(coco_document())[:-40], "not valid JSON"),
        (None, '{"info": ' + "[" * 100_000, "not valid JSON"),
        (None, json.dumps(coco_document()).replace("}]", "},]"), "not valid JSON"),
        (None, json.dumps(coco_document()) + "]", "not valid JSON"),
        (None, "[]", "'images'"),
    ],
)
def test_coco_reader_names_what_is_wrong(tmp_path, key, entry, culprit):
    document = coco_document() if key else entry
    if key:
        document[key] = [*document[key], *entry] if isinstance(entry, list) else entry
    with pytest.raises(ValueError, match=rf"instances\.json.*{culprit}"):
        data.load_coco(write_coco(tmp_path, document), tmp_path)


# What labelling tools write as COCO JSON, short of fields that are as in COCO's own: CVAT (by
# datumaro's exporter), Label Studio (by label_studio_sdk's converter, on Windows), Roboflow and
# FiftyOne (fiftyone.utils.coco). In each, photo a shows a dog and a cat, photo b two dogs, c none.
BOX = {"bbox": [1.5, 2, 3, 4], "area": 12.0, "iscrowd": 0}
EXPORTS = {
    "cvat": {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "year": ""},
        "categories": [
            {"id": 1, "name": "cat", "supercategory": ""},
            {"id": 2, "name": "dog", "supercategory": ""},
        ],
        "images": [
            {"id": i, "width": 8, "height": 6, "file_name": name, "license": 0, "date_captured": 0}
            for i, name in ((1, "day 1/a.png"), (2, "day 1/b.png"), (3, "c.png"))
        ],
        "annotations": [
            BOX | {"id": 1, "image_id": 1, "category_id": 2, "segmentation": []},
            BOX
            | {"id": 2, "image_id": 1, "category_id": 1, "attributes": {"occluded": False}}
            | {"segmentation": {"counts": [3, 4, 41], "size": [6, 8]}, "iscrowd": 1},
            BOX | {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [[1.0, 2.0, 4.0]]},
            BOX | {"id": 4, "image_id": 2, "category_id": 2, "segmentation": []},
        ],
    },
    "label studio": {
        "images": [
            {"width": None, "height": None, "id": i, "file_name": f"images\\{name}.png"}
            for i, name in enumerate("abc")
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "segmentation": [], "ignore": 0}
            for k, (i, j) in enumerate([(0, 1), (0, 0), (1, 1), (1, 1)])
        ],
        "info": {"year": 2025, "version": "1.0", "contributor": "Label Studio"},
    },
    "roboflow": {
        "info": {"year": "2025", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "pets-Xy1z", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets-Xy1z"},
            {"id": 2, "name": "dog", "supercategory": "pets-Xy1z"},
        ],
        "images": [
            {"id": i, "license": 1, "file_name": f"{name}_png.rf.0f9.png", "date_captured": ""}
            | {"extra": {"name": f"{name}.png"}}
            for i, name in enumerate("abc")
        ],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "segmentation": []}
            for k, (i, j) in enumerate([(0, 2), (0, 1), (1, 2), (1, 2)])
        ],
    },
    "fiftyone": {
        "info": {"year": "", "description": "Exported from FiftyOne"},
        "categories": [
            {"id": 0, "name": "cat", "supercategory": None},
            {"id": 1, "name": "dog", "supercategory": None},
        ],
        "images": [
            {"id": i, "file_name": f"{name}.png", "license": None, "coco_url": None}
            for i, name in enumerate("abc", 1)
        ],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "score": 0.9, "mood": "calm"}
            for k, (i, j) in enumerate([(1, 1), (1, 0), (2, 1), (2, 1)], 1)
        ],
    },
}
EXPORTED = {  # the photos, and their folder from the one that is given
    "cvat": ["day 1/a.png", "day 1/b.png", "c.png"],
    "label studio": ["images/a.png", "images/b.png", "images/c.png"],
    "roboflow": ["a_png.rf.0f9.png", "b_png.rf.0f9.png", "c_png.rf.0f9.png"],
    "fiftyone": ["a.png", "b.png", "c.png"],
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_what_labelling_tools_write_as_coco_is_read_and_trained_on(tmp_path, capsys, tool):
    path = write_coco(tmp_path, EXPORTS[tool])
    split = data.load_coco(path, tmp_path)
    root = ["pets-Xy1z"] if tool == "roboflow" else []
    assert split.classes == [*root, "cat", "dog"]
    assert split.targets[:, len(root) :].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert not split.targets[:, : len(root)].any()
    assert split.paths == [f"{tmp_path}/{name}" for name in EXPORTED[tool]]
    for i, name in enumerate(EXPORTED[tool]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (100 * i, 0, 0)).save(tmp_path / name)
    own = ["--dataset", "coco", "--out", str(tmp_path / "out"), "--epochs", "1", "--workers", "0"]
    for name in ("train", "val"):
        own += [f"--{name}-json", str(path), f"--{name}-images", str(tmp_path)]
    own += ["--backbone", "tresnet_tiny", "--image-size", "32", "--device", "cpu"]
    own += ["--nodes", "pca", "--phase", *(["all"] if root else ["backbone", "eval"])]
    assert run.main(own) == 0
    name = "gcn-pca" if root else "backbone"
    summary = f"{2 + len(root)} labels, {len(root)} of them in no image"
    assert summary + (": pets-Xy1z" if root else "") in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / f"metrics-{name}.json").read_text())
    # a and b show a dog, the root is in no photo: its AP is none, the mean is of cat and dog
    assert metrics["left_out"] == len(root)
    assert metrics["AP"]["dog"] == 100


def test_roboflows_root_of_the_name_of_its_only_class_is_one_label_with_it(tmp_path):
    document = coco_document()
    document["categories"] += [
        {"id": 1, "name": "rabbit", "supercategory": "none"},
        {"id": 5, "name": "rabbit", "supercategory": "rabbit"},
    ]
    document["annotations"].append({"image_id": 3, "category_id": 5})
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.classes == ["rabbit", "apple", "zebra"]  # ids 1 and 5, 2, 9
    assert split.targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 1]]
    for third in ("rabbit", "none", "pets"):
        more = [{"id": 6, "name": "rabbit", "supercategory": third}]
        with pytest.raises(ValueError, match="id 6, 'rabbit'"):
            data.load_coco(
                write_coco(tmp_path, document | {"categories": document["categories"] + more}), ""
            )


def test_the_readme_splits_one_coco_json_and_shortens_names_as_it_says(tmp_path):
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    split, shorten, *_ = re.findall("```python\n(.*?)```", text, re.DOTALL)
    above = "..\\..\\label-studio/media"
    images = [{"id": i, "file_name": f"{above}\\{i}.png"} for i in range(11)]
    annotations = [{"image_id": i, "category_id": i % 2} for i in range(11)]
    categories = [{"id": 0, "name": "even"}, {"id": 1, "name": "odd"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(whole))
    (tmp_path / "split.py").write_text(split.replace("fifth =", shorten + "fifth =", 1))
    subprocess.run([sys.executable, "split.py"], cwd=tmp_path, check=True)
    parts = [data.load_coco(tmp_path / f"{name}.json", "photos") for name in ("val", "train")]
    assert [len(part) for part in parts] == [2, 9]
    photos = [path for part in parts for path in part.paths]
    assert sorted(photos) == sorted(f"photos/{i}.png" for i in range(11))
    for part in parts:
        assert part.classes == ["even", "odd"]
        for path, target in zip(part.paths, part.targets.tolist(), strict=True):
            assert target == ([0, 1] if int(Path(path).stem) % 2 else [1, 0])


def vg_photos(root, names):
    """Small photos, every second one in the second folder."""
    for i, name in enumerate(names):
        folder = root / ("VG_100K_2" if i % 2 else "VG_100K")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * i % 255, 50, 99)).save(folder / name)


def test_released_vg500_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    vg_photos(tmp_path, ["7.jpg", "8.jpg", "12.jpg"])
    (tmp_path / "train_list_500.txt").write_bytes(b"12.jpg\r\n7.jpg\r\n")
    (tmp_path / "test_list_500.txt").write_bytes(b"8.jpg")  # no newline at the end
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text('{"7.jpg": [2], "8.jpg": [0, 2, 2], "12.jpg": [], "99.jpg": [1]}')
    train, test = data.load_vg500(tmp_path)
    assert train.paths == [f"{tmp_path}/VG_100K/12.jpg", f"{tmp_path}/VG_100K/7.jpg"]
    assert test.paths == [f"{tmp_path}/VG_100K_2/8.jpg"]
    assert train.targets.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert test.targets.tolist() == [[1, 0, 1]]
    assert len(train.classes) == 3
    for wrong, culprit in [
        ('{"7.jpg": [3], "8.jpg": [], "12.jpg": []}', "7.jpg"),
        ("{}", "12.jpg"),
    ]:
        index.write_text(wrong)
        with pytest.raises(ValueError, match=culprit):
            data.load_vg500(tmp_path)


NAMES = [
    "man",
    "Tree",
    "tree ",
    "traffic  light",
    "TRAFFIC light",
    "cup",
    "sky",
    "sign",
    "a b",
    " ",
]


def write_vg(root, images=60, seed=0):
    """objects.json with names that normalise to one another; returns each image's names."""
    rng, shown, document = np.random.default_rng(seed), {}, []
    for i in range(images):
        drawn = [[NAMES[k] for k in rng.integers(10, size=2)] for _ in range(rng.integers(4))]
        objects = [{"object_id": 9, "names": names, "synsets": [], "x": 1} for names in drawn]
        document.append({"image_id": 100 - i, "objects": objects})
        shown[100 - i] = {re.sub(" +", " ", n).strip().lower() for names in drawn for n in names}
    (root / "objects.json").write_text(json.dumps(document))
    (root / "image_data.json").write_text(json.dumps([{"image_id": i, "url": "u"} for i in shown]))
    return {image_id: names - {""} for image_id, names in shown.items()}


@pytest.mark.parametrize("listed", [True, False])
def test_vg500_from_visual_genomes_files_is_what_brute_force_counts(tmp_path, monkeypatch, listed):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    shown = write_vg(tmp_path)
    if listed:
        (tmp_path / "test_list_500.txt").write_text("".join(f"{i}.jpg\n" for i in range(41, 81)))
    train, test = data.load_vg500(tmp_path, tmp_path / "cache.npz")
    rows = {"train": train, "test": test}
    ids = {k: [int(re.findall(r"(\d+)\.jpg", p)[0]) for p in s.paths] for k, s in rows.items()}
    assert sorted(ids["train"] + ids["test"]) == list(range(41, 101))
    if listed:
        assert ids["test"] == list(range(41, 81))
    else:
        assert len(ids["test"]) == 6  # a tenth
    counts = {}
    for image_id in ids["train"]:
        for name in shown[image_id]:
            counts[name] = counts.get(name, 0) + 1
    expected = sorted(counts, key=lambda name: (-counts[name], name))[:4]
    assert train.classes == test.classes == expected
    for k, split in rows.items():
        for image_id, row in zip(ids[k], split.targets.tolist(), strict=True):
            assert row == [int(name in shown[image_id]) for name in expected]


def test_a_parsed_data_set_is_kept_until_its_files_change(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    write_vg(tmp_path)
    cache, parsed, read_lists = tmp_path / "cache.npz", [], data.read_lists
    monkeypatch.setattr(data, "read_lists", lambda *a, **k: parsed.append(a) or read_lists(*a, **k))
    first, second = data.load_vg500(tmp_path, cache), data.load_vg500(tmp_path, cache)
    assert len(parsed) == 2  # objects and images, once
    for a, b in zip(first, second, strict=True):
        assert (a.paths, a.classes, a.targets.tolist()) == (b.paths, b.classes, b.targets.tolist())
    truncate(cache)  # a damaged cache is made anew
    assert data.load_vg500(tmp_path, cache)[0].targets.tolist() == first[0].targets.tolist()
    assert len(parsed) == 4
    write_vg(tmp_path, images=50, seed=1)
    assert len(data.load_vg500(tmp_path, cache)[0]) == 45
    assert len(parsed) == 6


def walk(text, piece):
    """The top object of a JSON text, its lists item by item."""
    window, found = data.JSONWindow(io.StringIO(text), piece), {}
    for name in window.members("{}"):
        found[name] = list(window.members("[]")) if window.peek() == "[" else window.value()
    assert window.peek() == ""
    return found


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1000])
def test_json_walked_through_a_window_is_what_json_reads_whatever_the_window(piece):
    text = '{"a": {"b": [1, 2.5e3, "\\u00e9 \\"]"]}, "list" : [ {"id": 12}, 345 ,"x,]", [], {}], '
    text += '"n": null}\n'
    assert walk(text, piece) == json.loads(text)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("sort_keys", [False, True])  # sorted, the polygons end their object
def test_polygons_are_taken_out_and_nothing_else(piece, indent, sort_keys):
    polygons = [[[1, 2.5, -3, 4e-05]], [[1, 2], [3, 4]], [[5], []]]
    others = [[], {"counts": [4, 2], "size": [2, 3]}, {"counts": "a]b["}, None]
    quoted = '"segmentation": [[1, 2]], "id": 3 } ]'
    items = [
        {"segmentation": value, "id": i, "bbox": [1, 2, 3], "name": quoted}
        for i, value in enumerate(polygons + others + polygons)
    ]
    document = {"annotations": items, "more": {"segmentation": [7], "x": [1]}, "categories": [8]}
    found = walk(json.dumps(document, indent=indent, sort_keys=sort_keys), piece)
    if piece == 10_000:  # else, many a list is parsed before the window shows that it is whole
        cut = [item["segmentation"] for item in found["annotations"]]
        assert cut == [0, 0, 0, *others, 0, 0, 0]
    for one in (document, found):
        for item in [*one["annotations"], one["more"]]:
            if isinstance(item["segmentation"], list):
                item["segmentation"] = 0
    assert found == document


def test_glove_nodes_are_the_means_of_their_words(tmp_path):
    # GloVe's own files hold words that are a no-break space, or have blanks in them.
    text = "light 1 2 3\ntraffic 3 0 -1\n\u00a0 7 7 7\n. . 8 8 8\nunused a b c\ntv 5 5 5.5\n"
    (tmp_path / "glove.txt").write_text(text, encoding="utf-8")
    nodes, unknown = data.load_glove(tmp_path / "glove.txt", ["Traffic light", "tv-set", "zebra"])
    assert nodes.tolist() == [[2, 1, 1], [5, 5, 5.5], [0, 0, 0]]  # ((3 0 -1) + (1 2 3)) / 2
    assert unknown == ["set", "zebra"]


@pytest.mark.parametrize("third", ["cat 1 2", "cat 1 2 many", "cat 1 2 nan"])
def test_glove_reader_names_the_line_that_is_wrong(tmp_path, third):
    (tmp_path / "glove.txt").write_text(f"a 1 2 3\nb 1 2 3\n{third}\n")
    with pytest.raises(ValueError, match=r"glove\.txt, line 3"):
        data.load_glove(tmp_path / "glove.txt", ["cat"])


def palette_image():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("L", (4, 4), 100), {}, (100, 100, 100)),
        (Image.new("1", (4, 4), 1), {}, (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 51)), {}, (204, 204, 204)),  # a fifth black, the rest white
        (Image.new("RGBA", (4, 4), (200, 0, 50, 51)), {}, (244, 204, 214)),  # v / 5 + 204
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (palette_image(), {}, (10, 20, 30)),
        (palette_image(), {"transparency": 0}, (10, 20, 30)),
        (palette_image(), {"transparency": 1}, (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), {"format": "TIFF"}, (255, 0, 0)),
        # 100 * 256 + 200: the upper byte counts
        (Image.fromarray(np.full((4, 4), 25800, np.uint16)), {}, (100, 100, 100)),
    ],
)
def test_images_of_every_mode_become_the_right_rgb(tmp_path, image, options, expected):
    image.save(tmp_path / "photo", **{"format": "PNG"} | options)
    for draft in (False, True):
        photo = data.read_image(tmp_path / "photo", 4, draft)
        assert photo.mode == "RGB"
        assert photo.getcolors() == [(16, expected)]


def test_photos_are_squashed_bilinearly(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 3] = 240
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    # 8 columns to 4: output column c has its centre at 2c + 1 and a triangle of half-width 2 and
    # area 2; the pixel at 3.5 weighs (1 - 0.5 / 2) / 2 = 3/8 in column 1 and 1/8 in column 2.
    squashed = np.asarray(data.read_image(tmp_path / "photo.png", 4))
    assert squashed[..., 0].tolist() == [[0, 90, 30, 0]] * 4


def grey_blocks(path):
    """A JPEG of 8 x 8 blocks of 8 x 8 equal pixels, in which every scale of it is exact."""
    blocks = np.random.default_rng(0).integers(40, 210, size=(8, 8), dtype=np.uint8)
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path, "JPEG", quality=100)
    return blocks.astype(int)


def test_drafts_of_large_jpegs_are_decoded_small(tmp_path):
    blocks = grey_blocks(tmp_path / "photo.jpg")
    for size, repeats in [(8, 1), (16, 2), (32, 4)]:  # the bilinear filter would blend the blocks
        draft = np.asarray(data.read_image(tmp_path / "photo.jpg", size, draft=True))[..., 0]
        assert np.abs(draft - blocks.repeat(repeats, 0).repeat(repeats, 1)).max() <= 2


@pytest.mark.parametrize(("width", "height", "size"), [(64, 64, 33), (64, 63, 32), (63, 64, 32)])
def test_drafts_of_smaller_photos_are_a_grey_level_at_most_from_pillows(
    tmp_path, width, height, size
):
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as image:
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    draft = np.asarray(data.read_image(tmp_path / "photo.jpg", size, draft=True))
    assert np.abs(draft - expected).max() == 1  # 0 would be Pillow itself


def test_photos_are_drafts_for_training_and_whole_for_evaluation_unless_asked(
    tmp_path, monkeypatch
):
    path = str(tmp_path / "photo.jpg")
    blocks = grey_blocks(path)
    with Image.open(path) as image:
        whole = image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    monkeypatch.setattr(data, "augment", lambda image, rng: image)
    split = data.Split([path], np.zeros((1, 1), np.uint8), ["label"])
    for options, is_draft in [
        ({}, False),
        ({"augment": True}, True),
        ({"draft": True}, True),
        ({"augment": True, "draft": False}, False),
    ]:
        pixels = data.MultiLabelImages(split, 8, **options)[0, 0][0]
        assert (np.abs(pixels[..., 0] - blocks).max() <= 2) == is_draft
        assert (pixels.tobytes() == whole.tobytes()) == (not is_draft)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    data.make_demo(root, seed=0, train=24, val=12)
    return root


def demo_split(demo, name):
    return data.load_coco(demo / f"annotations/instances_{name}.json", demo / name)


def test_a_photo_that_pillow_refuses_is_an_error_that_names_it(demo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 160 x 120 is a "decompression bomb" now
    split = demo_split(demo, "val2014")
    image, _, _, error = data.MultiLabelImages(split, 32)[0, 3]
    assert image is None
    assert split.paths[3] in error


def test_augmentation_depends_on_seed_epoch_and_row_alone(demo):
    def pixels(seed, keys):
        images = data.MultiLabelImages(demo_split(demo, "train2014"), 32, augment=True, seed=seed)
        return [images[key][0].tobytes() for key in keys]

    keys = [(epoch, row) for epoch in range(3) for row in range(4)]
    assert pixels(5, keys) == pixels(5, keys[::-1])[::-1]
    assert len({*pixels(5, keys), *pixels(6, keys)}) == 2 * len(keys)


def test_augmentation_at_its_strongest_by_hand():
    rng = np.random.default_rng(0)
    strongest = {name: (f, high) for name, (f, _, high, _) in data.OPERATIONS.items()}

    def apply(name, image):
        operation, magnitude = strongest[name]
        return np.asarray(operation(image, magnitude, rng))

    # Translations, by 150 / 331 of 330, are of 149.55 pixels: the nearest is 150 away, the last
    # 150 are grey.
    pixels = np.random.default_rng(0).integers(256, size=(330, 4, 3), dtype=np.uint8)
    expected = np.concatenate([pixels[150:], np.full((150, 4, 3), 128, np.uint8)])
    assert (apply("TranslateY", Image.fromarray(pixels)) == expected).all()
    across = Image.fromarray(pixels.swapaxes(0, 1).copy())
    assert (apply("TranslateX", across) == expected.swapaxes(0, 1)).all()
    # Half a pixel of shear, bicubic with Pillow's a = -1: -1/8, 5/8, 5/8, -1/8 of a line of 100.
    line = np.full((1, 9, 3), 100, np.uint8)
    line[:, 4] = 200
    for name, turn in [("ShearX", (0, 1)), ("ShearY", (1, 0))]:
        image = Image.fromarray(line.transpose(*turn, 2).copy())
        sheared = np.asarray(strongest[name][0](image, 1, rng)).reshape(9, 3)
        assert sheared[2:6, 0] == pytest.approx([87.5, 162.5, 162.5, 87.5], abs=1)
    colour = Image.new("RGB", (8, 8), (200, 7, 31))
    assert apply("Posterize", colour)[0, 0].tolist() == [192, 0, 16]  # the upper 4 bits
    assert apply("Solarize", colour)[0, 0].tolist() == [55, 248, 224]  # all of it inverted
    assert apply("Brightness", colour)[0, 0].tolist() == [255, 13, 58]  # 1.9 times, cut off
    cut = apply("Cutout", Image.new("RGB", (200, 200)))  # on black, off the border
    hole = cut.any(2)
    assert (cut[hole] == (125, 122, 113)).all()
    rows, columns = np.nonzero(hole)
    assert (hole.sum(), np.ptp(rows), np.ptp(columns)) == (400, 19, 19)


def test_two_operations_are_drawn_apart_each_applied_half_the_time(monkeypatch):
    applied = []
    kinds = {"a": (0, 9, True), "b": (18, 0, False), "c": (0, 0, False)}
    operations = {k: (lambda im, m, _, k=k: applied.append((k, m)) or im, *kinds[k]) for k in kinds}
    monkeypatch.setattr(data, "OPERATIONS", operations)
    rng, image, times = np.random.default_rng(0), Image.new("RGB", (1, 1)), 4000
    counts, pairs = np.zeros(3), 0
    for _ in range(times):
        applied.append(None)
        data.augment(image, rng)
        new = applied[len(applied) - applied[::-1].index(None) :]
        counts[len(new)] += 1
        pairs += len(new) == 2 and new[0][0] == new[1][0]
    assert counts / times == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)
    assert pairs / counts[2] == pytest.approx(1 / 3, abs=0.05)  # drawn with replacement
    found = {k: [one[1] for one in applied if one and one[0] == k] for k in kinds}
    assert [len(found[k]) / times for k in kinds] == pytest.approx([1 / 3] * 3, abs=0.03)
    levels = {k: np.unique(np.round(found[k], 9), return_counts=True) for k in kinds}
    assert levels["a"][0].tolist() == [*range(-9, 0), *range(1, 10)]
    assert levels["a"][1] / len(found["a"]) == pytest.approx(np.full(18, 1 / 18), abs=0.02)
    assert levels["b"][0].tolist() == [*range(0, 18, 2)]  # 18 less two a level
    assert levels["c"][0].tolist() == [0]


def test_batches_shuffled_hold_an_image_at_most_once_and_depend_on_seed_and_epoch():
    def rows(sampler, epoch):
        sampler.epoch = epoch
        assert [len(batch) for batch in sampler] == [4, 4]  # the other 3 of 11 wait for their turn
        keys = [key for batch in sampler for key in batch]
        assert {key[0] for key in keys} == {epoch}
        return [key[1] for key in keys]

    first = rows(data.Batches(11, 4, shuffle=True, seed=2), 5)
    assert len(set(first) & set(range(11))) == 8
    again = data.Batches(11, 4, shuffle=True, seed=2)
    assert rows(again, 4) != first
    assert rows(again, 5) == first
    assert rows(data.Batches(11, 4, shuffle=True, seed=3), 5) != first


def test_batches_in_order_hold_every_image_once():
    rows = [[row for _, row in batch] for batch in data.Batches(11, 4)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_demo_scenes_of_one_seed_are_the_same_bytes_and_are_drawn_once(demo, tmp_path):
    data.make_demo(tmp_path, seed=0, train=24, val=12)
    files = [path.relative_to(demo) for path in sorted(demo.rglob("*.j*"))]
    assert len(files) == 2 + 24 + 12
    assert all((demo / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    photo = tmp_path / files[-1]
    photo.write_bytes(b"mine")
    data.make_demo(tmp_path, seed=0, train=24, val=12)
    assert photo.read_bytes() == b"mine"
    data.make_demo(tmp_path, seed=1, train=24, val=12)
    assert all((demo / file).read_bytes() != (tmp_path / file).read_bytes() for file in files)


def test_demo_boxes_lie_inside_their_pictures_and_hold_all_that_was_drawn(demo):
    document = json.loads((demo / "annotations/instances_train2014.json").read_text())
    for entry in document["images"]:
        with Image.open(demo / "train2014" / entry["file_name"]) as image:
            brightness = np.asarray(image).max(2)  # (H, W)
        for annotation in document["annotations"]:
            if annotation["image_id"] == entry["id"]:
                x, y, width, height = annotation["bbox"]
                assert 0 <= x < x + width <= 160
                assert 0 <= y < y + height <= 120
                brightness[y : y + height, x : x + width] = 255
        assert brightness.min() > 60  # the objects' outlines are darker, the background is not


# hostile files


OUTSIDE = [
    "/etc/passwd",
    "../x.jpg",
    "a/../../x.jpg",
    "a\\..\\..\\x.jpg",
    "\\\\server\\x.jpg",
    "\\x.jpg",
    "C:\\x.jpg",
    "c:x.jpg",
    "x.jpg\0.png",
    "",
    ".",
    "..",
    "a/..",
    "x" * 5000,
]
INSIDE = ["x.jpg", "a/x.jpg", "./x.jpg", "a/../x.jpg", "..x.jpg", "a..b/x..jpg", "x\udc80.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_photo_name_leads_out_of_the_image_folder(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    path = write_coco(tmp_path, document)
    with pytest.raises(ValueError, match=r"instances\.json: photo '.*' is not a file in") as error:
        data.load_coco(path, tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize("name", INSIDE)
def test_photo_names_that_stay_inside_are_taken_as_they_are(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.paths == ["photos/40.jpg", f"photos/{name}", "photos/7.jpg"]


@pytest.mark.parametrize("name", ["../8.jpg", "/etc/8.jpg", "C:8.jpg", "a\\..\\..\\8.jpg"])
def test_no_name_of_vg500s_lists_leads_out(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    (tmp_path / "train_list_500.txt").write_text("7.jpg")
    (tmp_path / "test_list_500.txt").write_text(name)
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text(json.dumps({"7.jpg": [1], name: [0]}))
    with pytest.raises(ValueError, match=r"test_list_500\.txt: photo"):
        data.load_vg500(tmp_path)


def test_a_kept_split_cannot_bring_in_what_the_json_may_not(tmp_path):
    path, cache = write_coco(tmp_path, coco_document()), tmp_path / "train.npz"
    good = data.load_coco(path, "photos", cache)
    with np.load(cache) as file:
        kept = dict(file)
    key, paths, classes = json.loads(kept["names"].tobytes())
    # Where the file is in order it is used, or the rest of the test would test nothing.
    for names, found in [
        ([key, ["40.jpg", "other.jpg", "7.jpg"], classes], ["40.jpg", "other.jpg", "7.jpg"]),
        ([key, ["40.jpg", "../3.jpg", "7.jpg"], classes], paths),
        ([key, ["40.jpg", "/etc/passwd", "7.jpg"], classes], paths),
        ([key, ["40.jpg", 3, "7.jpg"], classes], paths),
        ([key, paths[:2], classes], paths),
        ([key, paths, ["apple", None]], paths),
        ([key, paths, [f"label {j}" for j in range(9)]], paths),
    ]:
        text = np.frombuffer(json.dumps(names).encode(), np.uint8)
        np.savez_compressed(cache, names=text, targets=kept["targets"])
        split = data.load_coco(path, "photos", cache)
        assert split.paths == [f"photos/{name}" for name in found]
        assert split.classes == good.classes
        assert split.targets.tolist() == good.targets.tolist()


def test_a_split_is_kept_whatever_the_folder_of_its_photos(tmp_path, monkeypatch):
    path, cache = write_coco(tmp_path, coco_document()), tmp_path / "train.npz"
    data.load_coco(path, "/here", cache)
    monkeypatch.setattr(data, "read_lists", None)  # it is not parsed again
    assert data.load_coco(path, "/there", cache).paths[0] == "/there/40.jpg"


def test_links_may_lead_anywhere_inside_and_nowhere_outside(tmp_path):
    real, other = tmp_path / "disk/photos", tmp_path / "other"
    for folder in (real / "sub", other, tmp_path / "photos-2"):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    photos = tmp_path / "photos"
    links = {
        photos: real,  # the folder itself
        real / "in.jpg": "sub/x.jpg",
        real / "in": "sub",
        real / "out.jpg": other / "x.jpg",
        real / "up.jpg": "../../other/x.jpg",
        real / "chain.jpg": "out.jpg",
        real / "out": other,
        real / "beside": tmp_path / "photos-2",  # begins like the folder's name
        real / "loop.jpg": "loop.jpg",
        real / "cut.jpg": "absent.jpg",
    }
    for link, target in links.items():
        link.symlink_to(target)
    inside = ["in.jpg", "in/x.jpg", "sub/x.jpg", "absent.jpg", "cut.jpg", "loop.jpg", "a\0b"]
    inside = [f"{photos}/{name}" for name in [*inside, "in/../sub/x.jpg"]]
    data.check_inside(inside, photos)
    for name in (
        "out.jpg",
        "up.jpg",
        "chain.jpg",
        "out/x.jpg",
        "beside/x.jpg",
        "out/../other/x.jpg",
    ):
        path = f"{photos}/{name}"
        with pytest.raises(ValueError, match=re.escape(f"photo {path} is a link")) as error:
            data.check_inside([*inside, path], photos)
        assert_sentence(error.value)
    data.check_inside([f"{photos}/out.jpg", f"{photos}/x.jpg"], photos, other)  # one of two
    data.check_inside([f"{real}/in.jpg"], photos)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("traffic light", 80, "traffic light"),
        ("café 信号 🚦", 80, "café 信号 🚦"),
        ("\x1b[31mred\x07", 80, "\\x1b[31mred\\x07"),
        ("two\nlines\r\t", 80, "two\\nlines\\r\\t"),
        ("gpj.\u202eexe", 80, "gpj.\\u202eexe"),
        ("cat\u200b", 80, "cat\\u200b"),
        ("lone \ud800", 80, "lone \\ud800"),
        ("\U000e0041", 80, "\\U000e0041"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123...89a"),
        ("a" * 10**7 + "tail.jpg", 14, "aaaaaa...l.jpg"),
        ("\x00" * 10**7, 12, "\\x00\\...\\x00"),
        (7, 80, "7"),
    ],
)
def test_printable_by_hand(text, width, expected):
    assert data.printable(text, width) == expected


def test_label_names_are_kept_as_they_are_and_blank_ones_refused(tmp_path):
    names = ["cat", "cat\u200b", "\x1b[31mcat", "lone \ud800"]  # four labels, not one
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    assert data.load_coco(write_coco(tmp_path, document), "").classes == names
    for name in ("", "  \t", "\u3000", "x" * 1001, None, ["cat"]):
        document["categories"][2]["name"] = name
        with pytest.raises(ValueError, match="the name of category 2 is") as error:
            data.load_coco(write_coco(tmp_path, document), "")
        assert_sentence(error.value)


def assert_sentence(error, length=300, folder=None):
    text = str(error).replace(str(folder), "") if folder else str(error)
    assert re.match(r"/?\S", text)
    assert text.isprintable(), text[:500]
    assert len(text) <= length + 150, text[:500]  # 150 for pytest's long folders


LONG = "x" * 10**7
DEEP = functools.reduce(lambda inner, _: [inner], range(200), 1)


@pytest.mark.parametrize(
    ("key", "item", "words"),
    [
        ("images", {"id": LONG, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": 10**4000, "file_name": 7}, "expected a text"),
        ("images", {"id": 1e300, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": float("nan"), "file_name": "a.jpg"}, "id nan is not"),
        ("images", {"id": float("-inf"), "file_name": "a.jpg"}, "id -inf is not"),
        ("images", {"id": True, "file_name": "a.jpg"}, "id True is not"),
        ("images", {"id": DEEP, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": 5, "file_name": DEEP}, "expected a text"),
        ("images", {"id": 5, LONG: 1}, "lacks what it should hold"),
        ("images", LONG, "lacks what it should hold"),
        ("images", 7, "lacks what it should hold"),
        ("images", None, "lacks what it should hold"),
        ("images", DEEP, "lacks what it should hold"),
        ("categories", {"id": 5, "name": LONG}, "expected a text"),
        ("categories", {"id": LONG, "name": "a"}, "not a whole number"),
        ("annotations", {"image_id": LONG, "category_id": 2}, "names image id"),
        ("annotations", {"image_id": 7, "category_id": LONG}, "names category id"),
        ("annotations", {"image_id": 7, "category_id": DEEP}, "names category id"),
        ("annotations", {"image_id": True, "category_id": 2}, "names image id True"),
        ("annotations", {"image_id": 7, "category_id": float("nan")}, "category id nan"),
        ("annotations", {"image_id": "\x1b[2J\ud800", "category_id": 2}, r"id '\\x1b\[2J\\ud800'"),
    ],
)
def test_values_of_the_wrong_kind_are_shown_in_one_short_sentence(tmp_path, key, item, words):
    document = coco_document()
    document["images"].append({"id": 1, "file_name": "one.jpg"})  # equal to True
    document[key].append(item)
    with pytest.raises(ValueError, match=words) as error:
        data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert_sentence(error.value)


def test_numbers_that_no_reader_uses_may_be_anything(tmp_path):
    document = coco_document()
    document["annotations"][0] |= {"area": float("nan"), "bbox": [float("inf")] * 4}
    document["info"] = {"year": float("nan")}
    split = data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


COCO_TEXT = json.dumps(coco_document())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (COCO_TEXT.encode("utf-16"), "not valid JSON"),
        (COCO_TEXT.encode("utf-16-le"), "not valid JSON"),
        (COCO_TEXT.encode("utf-32"), "not valid JSON"),
        (
            COCO_TEXT.replace("apple", "pomme cuite \u00e0 point").encode("latin-1"),
            "not valid JSON",
        ),
        (COCO_TEXT.replace('"apple"', "\x1b[31m").encode(), "not valid JSON"),
        (COCO_TEXT.replace("40", "4" * 5000).encode(), "not valid JSON"),
        (COCO_TEXT.replace("40", "-").encode(), "not valid JSON"),
        (COCO_TEXT[:-1].encode() + b', "images": []}', "'images' is there twice"),
        (COCO_TEXT.replace('"images": [', '"images": [' + "[" * 5000).encode(), "not valid JSON"),
        (b"\x00" * 1000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b'"' + b"x" * 10**7, "not valid JSON"),
    ],
)
def test_json_of_another_encoding_or_damaged_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        data.load_coco(path, tmp_path)
    assert_sentence(error.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(COCO_TEXT.encode("utf-8-sig"))
    assert data.load_coco(path, "").classes == ["apple", "zebra"]


def test_many_categories_take_no_quadratic_time(tmp_path):
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": f"label {i}"} for i in range(50_000)]
    with time_limit(10):  # a search through all the names before would take longer
        assert len(data.load_coco(write_coco(tmp_path, document), "").classes) == 50_000


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_numbers_cut_by_the_window_are_whole_again(piece):
    text = '{"a": [1.5e3, -2.25, 1E+2, 0.5e-1, 12], "b": -7e-2, "c": 1.5}'
    assert walk(text, piece) == json.loads(text)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"image_id": 1, "objects": [{"names": "dog"}]}], "names is no list"),
        ([{"image_id": 1, "objects": 7}], "lacks what"),
        ([{"image_id": LONG, "objects": []}] * 2, "lacks what"),
        ([{"image_id": 1, "objects": [{"names": [LONG, 7]}]}], "lacks what"),
        ([{"image_id": 1.5, "objects": []}], "not a whole number"),
        ({"images": []}, "not a list of images"),
    ],
)
def test_visual_genomes_objects_of_the_wrong_kind_are_one_sentence(tmp_path, items, words):
    (tmp_path / "objects.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=rf"objects\.json.*{words}") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"image_id": 1}, {"image_id": 1}], "twice"),
        ([{"image_id": True}], "not a whole number"),
        ({"images": []}, "not a list of images"),
    ],
)
def test_visual_genomes_image_data_of_the_wrong_kind_is_one_sentence(tmp_path, items, words):
    (tmp_path / "objects.json").write_text("[]")
    (tmp_path / "image_data.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=rf"image_data\.json.*{words}") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize("labels", ["[true]", "[1.0]", "[-1]", "[[1]]", "7", "[NaN]", '"12"'])
def test_released_labels_are_whole_numbers(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    (tmp_path / "train_list_500.txt").write_text("7.jpg")
    (tmp_path / "test_list_500.txt").write_text("8.jpg")
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text(f'{{"7.jpg": [2], "8.jpg": {labels}}}')
    with pytest.raises(ValueError, match=r"labels_index\.json.*8\.jpg"):
        data.load_vg500(tmp_path)
    index.write_text('{"7.jpg": [2], "8.jpg": [0], "7.jpg": [1]}')
    with pytest.raises(ValueError, match=r"'7\.jpg' is there twice"):
        data.load_vg500(tmp_path)


def glove(tmp_path, content):
    (tmp_path / "glove.txt").write_bytes(content)
    return data.load_glove(tmp_path / "glove.txt", ["cat"])[0].tolist()


def test_glove_text_as_it_is_found(tmp_path):
    assert glove(tmp_path, b"cat 1 2\ncat 3 4\n") == [[1, 2]]  # the first counts, gensim's rule
    assert glove(tmp_path, b"\xef\xbb\xbfcat 1 2\n") == [[1, 2]]  # a byte order mark
    assert glove(tmp_path, b"cat 1 2\r\ndog 3 4\r\n") == [[1, 2]]
    assert glove(tmp_path, b"a\rb 5 6\ncat 1 2\n") == [[1, 2]]  # one line, one word
    assert glove(tmp_path, b"dog nan 1e999\ncat 1 2\n") == [[1, 2]]  # of no label


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cat 1 nan", "line 1: holds a number that is not finite"),
        (b"cat 1 -inf", "line 1: holds"),
        (b"cat 1 1e999", "line 1: holds"),
        (b"cat 1 1e39", "line 1: holds"),  # float32 ends at 3.4e38
        (b"dog 1 2\ncat 1", "line 2: has 1 numbers, line 1 has 2"),
        (b"dog 1 2\n\ncat 1 2", "line 2: has 0"),
        (b"dog 1 2\ncat 1 \x1b[31m", r"line 2: could not convert string to float: '\\x1b"),
        (b"dog 1 2\ncat 1 " + b"x" * 10**5, "line 2: could not convert"),
        (b"dog 1 2\ncat " + b"1" * 10**7, "line 2: is longer than 1,048,575"),
        (b"dog" * 10**6, "line 1: is longer"),
        (b"dog 1 2\nca\xff 1 2", "not UTF-8"),
        (b"dog 1 2", "none of the words"),
        (b"", "none of the words"),
    ],
)
def test_damaged_glove_text_is_one_sentence_that_names_the_line(tmp_path, content, words):
    with pytest.raises(ValueError, match=rf"glove\.txt.*{words}") as error:
        glove(tmp_path, content)
    assert_sentence(error.value)


def test_a_photo_over_pillows_limit_is_an_error_that_says_why_and_no_warning(
    tmp_path, monkeypatch, recwarn
):
    Image.new("RGB", (12, 10)).save(tmp_path / "a.png")
    images = data.MultiLabelImages(data.Split([f"{tmp_path}/a.png"], np.zeros((1, 1)), []), 8)
    filters = list(warnings.filters)
    # Pillow itself only warns up to twice its limit.
    for limit, readable in [(120, True), (119, False), (59, False), (None, True)]:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        image, _, _, error = images[0, 0]
        assert (image is not None) == readable
        assert readable == (error is None)
        if error:
            assert f"{tmp_path}/a.png" in error
            assert "120 pixels" in error
    assert len(recwarn) == 0
    assert warnings.filters == filters
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):  # as ever, outside our reading
        Image.open(tmp_path / "a.png").close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("draft", [False, True])
def test_a_truncated_photo_is_an_error(tmp_path, kind, draft):
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo", kind)
    data.read_image(tmp_path / "photo", 16, draft)
    truncate(tmp_path / "photo")
    with pytest.raises(ValueError, match=r"cannot read photo .*; replace the file") as error:
        data.read_image(tmp_path / "photo", 16, draft)
    assert_sentence(error.value)


def test_photos_are_data_not_programs(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", "EPS")  # Ghostscript would run it
    called = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: called.append(a))
    with pytest.raises(ValueError, match="cannot identify"):
        data.read_image(tmp_path / "photo.jpg", 8)
    assert called == []


@pytest.mark.parametrize("name", ["\x1b[31m\u202egpj.exe", "x" * 300, "lone \ud800", "absent.jpg"])
def test_photo_names_reach_a_message_in_one_clean_line(tmp_path, name):
    split = data.Split([f"{tmp_path}/{name}"], np.zeros((1, 1)), [])
    image, _, _, error = data.MultiLabelImages(split, 8)[0, 0]
    assert image is None
    assert_sentence(error)
    assert error.startswith("cannot read photo ")


def zipped(path, compression, change=lambda name, content: content):
    """The archive of torch.save again, some members changed, every checksum right."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            content = change(name, content)
            if content is not None:
                file.writestr(name, content)


def test_a_checkpoint_holds_no_more_than_its_size(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    zipped(path, zipfile.ZIP_STORED)
    assert tresnet.read_checkpoint(path)["a"].shape == (10**6,)
    zipped(path, zipfile.ZIP_DEFLATED)  # 4 MB in some KB; it could be TB in GB
    with pytest.raises(ValueError, match=r"bomb\.pt is not a checkpoint"):
        tresnet.read_checkpoint(path)


def odd_tensors():
    yield torch.zeros(1).expand(10**12)  # a terabyte over four bytes
    yield torch.empty(10**12, device="meta")
    yield torch.zeros(2, 3).to_sparse()
    yield torch.zeros(2, 3).to_sparse_csr()
    yield torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", range(5))
def test_tensors_that_are_not_what_they_claim_are_refused_wherever_they_are(tmp_path, case):
    tensor = list(odd_tensors())[case]
    for i, value in enumerate([tensor, [1, (tensor,)], {"b": {"c": tensor}}]):
        torch.save({"a": value}, tmp_path / f"{i}.pt")
        with pytest.raises(ValueError, match=rf"{i}\.pt is not a checkpoint of plain tensors"):
            tresnet.read_checkpoint(tmp_path / f"{i}.pt")
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole.T, "b": whole[1:, 2:], "c": nn.Parameter(whole)}, tmp_path / "good.pt")
    good = tresnet.read_checkpoint(tmp_path / "good.pt")
    assert good["a"].tolist() == whole.T.tolist()
    assert good["b"].tolist() == [[6, 7], [10, 11]]
    loop = [1]
    loop.append(loop)
    torch.save({"loop": loop}, tmp_path / "loop.pt")
    assert tresnet.read_checkpoint(tmp_path / "loop.pt")["loop"][1][0] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (7, torch.zeros(1)),
        (None, torch.zeros(1)),
        ("\x1b[31m\n", torch.zeros(1)),
        ("x" * 10**6, torch.zeros(1)),
        ("y" * 10**6, "text"),
        ("body.conv1.0.weight", torch.zeros(16, 48, 3, 3, dtype=torch.complex64)),
        ("body.conv1.1.weight", torch.zeros((1,) * 60)),
        ("body.conv1.1.weight", torch.ones(16, dtype=torch.bool)),  # no abs() of these
        ("body.conv1.0.weight", torch.zeros(16, 48, 3, 3, dtype=torch.int8)),
        ("conv1.1.weight", torch.ones(16)),  # body.conv1.1.weight is there, too
        ("body.conv1.1.weight", [[]]),
    ],
)
def test_odd_entries_of_a_file_of_weights_are_one_sentence(tmp_path, key, value, recwarn):
    torch.save(released_network(*TINY, IMAGES)[0] | {key: value}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt") as error:
        tresnet.load_weights(tresnet.tresnet_tiny(), tmp_path / "odd.pt")
    assert_sentence(error.value)
    assert len(recwarn) == 0


def deep(levels):
    return functools.reduce(lambda inner, _: [inner], range(levels), 1)


BYTES = b'NaN Infinity 1e999 -1 0 null true [[[]]] {} " \\ \\ud800 ../ , : [ ] }'.split()
BYTES += [b'"segmentation":[', b'"id":', b'"name":"']
BYTES += [b"9" * 400, b"9" * 5000, b"[" * 300, b"\xff\xfe", b"\xc3\xa9", b"\xe2\x80\xae", b"\0"]
BYTES += [b"\x1b[31m", b"\n", b" ", b"x" * 100_000, b"PK\3\4", b"\xff" * 8]
VALUES = [math.nan, math.inf, -math.inf, -1, 0, 1.5, 2**63, 10**400, None, True, False, [], {}]
VALUES += [[[[1]]], deep(150), {"id": 1}, "", " ", "\ud800", "\x1b[2J\n", "\u202e", "a\0b"]
VALUES += ["../../x", "/etc/passwd", "C:\\x", "a\\..\\..\\x", "x" * 100_000, "NaN", "7"]


def mutate_bytes(rng, content):
    """A few bytes changed, pieces cut out, doubled or exchanged, tokens put in, the end cut off."""
    for _ in range(rng.integers(1, 4)):
        a, b = sorted(rng.integers(len(content) + 1, size=2).tolist())
        b = min(b, a + int(rng.integers(1, 200)))
        piece = content[a:b]
        match rng.integers(6):
            case 0:
                noise = rng.integers(1, 256, size=len(piece), dtype=np.uint8)
                noise *= rng.random(len(piece)) < max(0.1, 1 / max(len(piece), 1))
                flipped = np.frombuffer(piece, np.uint8) ^ noise
                content = content[:a] + flipped.tobytes() + content[b:]
            case 1:
                content = content[:a]
            case 2:
                content = content[:a] + BYTES[rng.integers(len(BYTES))] + content[a:]
            case 3:
                content = content[:a] + content[b:]
            case 4:
                content = content[:b] + piece + content[b:]
            case 5:
                c = int(rng.integers(b, len(content) + 1))
                content = content[:a] + content[b:c] + piece + content[c:]
    return content


def slots(tree):
    """Every place in these dicts and lists, as (container, key)."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, (dict, list)):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            found += [(node, key) for key in keys]
            left += [node[key] for key in keys]
    return found


def mutate_tree(rng, tree, values=VALUES):
    """Values deleted, doubled, exchanged, wrapped, replaced, or under another key."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.integers(1, 4)):
        places = slots(tree)
        if not places:
            break
        (node, key), (other, place) = (places[rng.integers(len(places))] for _ in range(2))
        value = values[rng.integers(len(values))]
        match rng.integers(7):
            case 0:
                del node[key]
            case 1 | 2:
                node[key] = value
            case 3:
                node[key], other[place] = copy.deepcopy((other[place], node[key]))
            case 4:
                node[key] = [node[key]]
            case 5 if isinstance(node, list):
                node.insert(key, copy.deepcopy(node[key]))
            case 5:
                node[str(value)] = node.pop(key)
            case 6:
                node[key] = copy.deepcopy(other[place])
    return tree


def mutate_json(rng, content):
    tree = mutate_tree(rng, json.loads(content))
    text = json.dumps(tree, ensure_ascii=bool(rng.integers(2)))
    encoding = rng.choice(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "latin-1"])
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def mutate_zip(rng, content):
    """Members damaged, exchanged, missing, compressed, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [[info.filename, file.read(info)] for info in file.infolist()]
    small = [member for member in members if len(member[1]) < 10**5]  # the pickle is among them
    for _ in range(rng.integers(1, 3)):
        pool = small if rng.random() < 0.7 else members
        one, two = (pool[rng.integers(len(pool))] for _ in range(2))
        match rng.integers(6):
            case 0 | 1 | 2:
                one[1] = mutate_bytes(rng, one[1])
            case 3:
                one[1], two[1] = two[1], one[1]
            case 4:
                one[0], two[0] = two[0], one[0]
            case 5:
                members = [member for member in members if member is not one] or members
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if rng.random() < 0.8 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, member in {name: member for name, member in members}.items():
            file.writestr(name, member)
    return buffer.getvalue()


def mutate_checkpoint(rng, content):
    tree = torch.load(io.BytesIO(content), weights_only=True)
    values = [*VALUES, *odd_tensors(), torch.zeros(()), torch.zeros(0), torch.ones(3, dtype=bool)]
    values += [torch.full((16,), math.nan), torch.zeros(2, 2, dtype=torch.complex64)]
    buffer = io.BytesIO()
    torch.save(mutate_tree(rng, tree, values), buffer)
    return buffer.getvalue()


def mutate_png(rng, content):
    """One chunk damaged, its checksum right."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    i = int(rng.integers(len(chunks)))
    chunks[i] = chunks[i][0], mutate_bytes(rng, chunks[i][1])
    for name, chunk in chunks:
        size, checksum = len(chunk).to_bytes(4, "big"), zlib.crc32(name + chunk).to_bytes(4, "big")
        content = (content[:8] if name == b"IHDR" else content) + size + name + chunk + checksum
    return content


def assert_split(split, folder):
    M, n = len(split.paths), len(split.classes)
    assert split.targets.shape == (M, n)
    assert split.targets.dtype == np.uint8
    assert not M * n or split.targets.max() <= 1
    assert all(isinstance(name, str) and name for name in split.classes)
    assert len(set(split.classes)) == n
    assert all(os.path.normpath(path).startswith(f"{folder}/") for path in split.paths)


# A kind of file: a function that writes good ones into a folder and returns how they are read, with
# what may come of it, and the files that are to be damaged, each with the ways to do it.


def fuzz_coco(folder):
    path = write_coco(folder, coco_document() | {"info": {"year": 1.5}, "more": [1e5, 2.5]})

    def read(_):
        assert_split(data.load_coco(path, folder / "photos"), folder / "photos")

    return read, {path: [mutate_json, mutate_json, mutate_bytes]}


def fuzz_lists(folder):
    train, test = folder / "train_list_500.txt", folder / "test_list_500.txt"
    index = folder / "vg_category_500_labels_index.json"
    train.write_text("12.jpg\n7.jpg\n")
    test.write_text("8.jpg\n")
    index.write_text('{"7.jpg": [2], "8.jpg": [0, 2, 2], "12.jpg": [], "99.jpg": [1]}')

    def read(_):
        for split in data.load_vg500(folder):
            assert_split(split, folder / "VG_100K")

    jsons = [mutate_json, mutate_json, mutate_bytes]
    return read, {train: [mutate_bytes], test: [mutate_bytes], index: jsons}


def fuzz_objects(folder):
    write_vg(folder, 20)
    test = folder / "test_list_500.txt"
    test.write_text("90.jpg\n91.jpg\n")

    def read(_):
        for split in data.load_vg500(folder):
            assert_split(split, folder / "VG_100K")

    jsons = [mutate_json, mutate_json, mutate_bytes]
    files = {folder / "objects.json": jsons, folder / "image_data.json": jsons}
    return read, files | {test: [mutate_bytes]}


def fuzz_glove(folder):
    path = folder / "glove.txt"
    text = "light 1 2 3\ntraffic 3 0 -1\n\u00a0 7 7 7\n. . 8 8 8\nunused a b c\ntv 5 5 5.5e-3\n"
    path.write_text(text, encoding="utf-8")

    def read(_):
        nodes, unknown = data.load_glove(path, ["traffic light", "tv-set"])
        assert len(nodes) == 2
        assert nodes.isfinite().all()
        assert set(unknown) <= {"traffic", "light", "tv", "set"}

    return read, {path: [mutate_bytes]}


def fuzz_cache(folder):
    path, cache = write_coco(folder, coco_document()), folder / "train.npz"
    truth = data.load_coco(path, folder / "photos", cache)

    def read(_):  # what is damaged is made anew
        split = data.load_coco(path, folder / "photos", cache)
        assert split.paths == truth.paths
        assert split.classes == truth.classes
        assert split.targets.tolist() == truth.targets.tolist()

    return read, {cache: [mutate_bytes]}


def fuzz_forged_cache(folder):
    """Of right checksums: it may say what it likes, within the bounds of a split."""
    path, cache = write_coco(folder, coco_document()), folder / "train.npz"
    data.load_coco(path, "photos", cache)

    def forge(rng, content):
        with np.load(io.BytesIO(content)) as file:
            names, targets = json.loads(file["names"].tobytes()), file["targets"]
        text = json.dumps([names[0], *mutate_tree(rng, names[1:])]).encode()
        if rng.random() < 0.3:
            targets = targets[: rng.integers(4)].repeat(rng.integers(3), rng.integers(2))
        buffer = io.BytesIO()
        np.savez(buffer, names=np.frombuffer(text, np.uint8), targets=targets)
        return buffer.getvalue()

    def read(_):
        assert_split(data.load_coco(path, folder / "photos", cache), folder / "photos")

    return read, {cache: [forge, forge, mutate_zip]}


def fuzz_weights(folder):
    path, old = folder / "weights.pth", folder / "old.pth"
    state = {"epoch": 3, "model": released_network(*TINY, IMAGES)[0]}
    torch.save(state, path)
    torch.save(state, old, _use_new_zipfile_serialization=False)  # torch before 1.6: no archive

    def read(damaged):
        head = tresnet.load_weights(tresnet.tresnet_tiny(), damaged)
        assert all(type(value) is torch.Tensor for value in head.values())

    return read, {path: [mutate_checkpoint, mutate_zip, mutate_bytes], old: [mutate_bytes]}


def fuzz_checkpoints(folder, load_model=False):
    classes = [f"label {j}" for j in range(6)]
    graph = iml_gcn.LabelGCN(torch.rand(6, 5), torch.rand(6, 6), 512, hidden=7)
    for name, head in [("backbone.pt", nn.Linear(512, 6)), ("gcn-pca.pt", graph)]:
        state = iml_gcn.Classifier(tresnet.tresnet_tiny(), head).state_dict()
        model = {"classes": classes, "backbone": "tresnet_tiny", "pool": "avg", "epochs": 2}
        model |= {"settings": {"lr": 0.001}, "image_size": 32, "state_dict": state}
        torch.save(model, folder / name)
    embeddings = {"classes": classes, "settings": {"lr": 0.001}, "image": torch.rand(6, 512)}
    torch.save(embeddings | {"counts": torch.arange(6)}, folder / "embeddings.pt")

    def read(damaged):
        if damaged.name == "embeddings.pt":
            files.load(SimpleNamespace(out=folder), damaged.name, classes, "embed")
        elif load_model:
            run.load_model(damaged)
        else:
            tresnet.load_weights(tresnet.tresnet_tiny(), damaged)

    ways = [mutate_checkpoint, mutate_checkpoint, mutate_zip, mutate_bytes]
    return read, {path: ways for path in folder.iterdir()}


def fuzz_models(folder):
    return fuzz_checkpoints(folder, load_model=True)


def fuzz_photos(folder):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 4), dtype=np.uint8)
    rgba, ways = Image.fromarray(pixels), {}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    for name, image, options in [
        ("a.jpg", rgba.convert("RGB"), {"exif": exif}),
        ("b.jpg", rgba.convert("CMYK"), {"progressive": True}),
        ("c.png", rgba, {}),
        ("d.png", rgba.convert("P"), {"transparency": 3}),
        ("e.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), {}),
        ("f.gif", rgba.convert("P"), {}),
        ("g.tif", rgba.convert("RGB"), {"compression": "tiff_lzw"}),
        ("h.webp", rgba, {}),
        ("i.bmp", rgba.convert("RGB"), {}),
    ]:
        image.save(folder / name, **options)
        ways[folder / name] = [mutate_bytes] + [mutate_png] * name.endswith("png")

    def read(damaged):
        split = data.Split([str(damaged)], np.zeros((1, 1)), [])
        for draft in (False, True):
            image, _, _, error = data.MultiLabelImages(split, 16, draft=draft)[0, 0]
            if image is None:
                with pytest.raises(ValueError, match="cannot read photo") as raised:
                    data.read_image(damaged, 16, draft)
                assert str(raised.value) == error
                raise raised.value
            assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)

    return read, ways


FUZZED = [fuzz_coco, fuzz_lists, fuzz_objects, fuzz_glove, fuzz_cache, fuzz_forged_cache]
FUZZED += [fuzz_weights, fuzz_checkpoints, fuzz_photos, fuzz_models]


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        pytest.fail(f"longer than {seconds} s")  # no Exception: nothing but pytest catches it

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(more):
    """No more address space than there is now and `more` bytes."""
    resource = pytest.importorskip("resource")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


WATCHED = {}  # "folder": where files may be written now; "strayed": what was done elsewhere
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(event, arguments):
    """An audit hook; there is no way to take one off again."""
    if not WATCHED:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "pickle.find_class"):
        WATCHED["strayed"].append((event, *arguments))
    changes = event in ("os.mkdir", "os.remove", "os.rename", "os.symlink", "os.truncate")
    if changes or (event == "open" and arguments[2] & WRITING):
        for path in arguments[: 1 + (event == "os.rename")]:
            if isinstance(path, (str, os.PathLike)) and WATCHED["folder"] not in os.fspath(path):
                WATCHED["strayed"].append((event, *arguments))


@pytest.fixture(scope="session")
def watching():
    sys.addaudithook(watch)


def what_went_wrong(read, path):
    """None if a damaged file was read, or refused as it should be; else a text."""
    source, folder = Path(data.__file__).parent, str(path.parent)
    WATCHED.update(folder=folder, strayed=[])
    try:
        with warnings.catch_warnings(record=True) as warned, time_limit(20), memory_limit(1 << 30):
            warnings.simplefilter("always")
            read(path)
    except (ValueError, FileNotFoundError) as error:
        text, frame = str(error), traceback.extract_tb(error.__traceback__)[-1]
        if type(error) not in (ValueError, FileNotFoundError) or folder not in text:
            return f"not ours: {error!r}"
        if Path(frame.filename).parent != source:
            return f"raised in {frame}: {error!r}"
        if not text.isprintable() or len(text) > 500:
            return f"no sentence: {text!r:.1000}"
    except Exception:  # noqa: BLE001
        return traceback.format_exc()
    except pytest.fail.Exception as failed:
        return str(failed)
    finally:
        strayed = WATCHED.pop("strayed")
        WATCHED.clear()
    if strayed or warned:
        return f"{strayed} {[str(w.message) for w in warned]}"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="its limits are Linux's")
@pytest.mark.filterwarnings("ignore")  # of torch, on making odd tensors
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__[5:]) for kind in FUZZED])
def test_fuzz(kind, tmp_path, monkeypatch, request, watching):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "files"
    folder.mkdir()
    read, damaged = kind(folder)
    assert [what_went_wrong(read, path) for path in damaged] == [None] * len(damaged)
    originals = {path: path.read_bytes() for path in damaged}
    cases = range(request.config.getoption("--fuzz") // len(FUZZED))
    only = request.config.getoption("--fuzz-case")
    for case in cases if only is None else [only]:
        rng = np.random.default_rng((FUZZED.index(kind), case))  # the seed is kind and case
        path = list(damaged)[rng.integers(len(damaged))]
        mutate = damaged[path][rng.integers(len(damaged[path]))]
        content = mutate(rng, originals[path])
        path.write_bytes(content)
        wrong = what_went_wrong(read, path)
        if wrong:
            kept = tmp_path / f"case-{case}-{path.name}"
            kept.write_bytes(content)
            name = kind.__name__[5:]
            pytest.fail(
                f"{name}, case {case}, {mutate.__name__} of {path.name}: {wrong}\n"
                f"the file is {kept}; repeat with -k 'fuzz and {name}' --fuzz-case {case}"
            )
        path.write_bytes(originals[path])


# metrics


def brute_force_ap(scores, targets):
    """Area under the precision-recall steps, one for every distinct threshold, high to low."""
    area, recall = 0, 0
    for threshold in sorted(set(scores), reverse=True):
        found = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
        area += (sum(found) / sum(targets) - recall) * sum(found) / len(found)
        recall = sum(found) / sum(targets)
    return area


def brute_force_metrics(predicted, targets):
    """CP to OF1 in percent by counting, from two (M, n) nested lists of 0/1."""
    precisions, recalls, f1s, tp, fp, fn = [], [], [], 0, 0, 0
    for column, truth in zip(zip(*predicted, strict=True), zip(*targets, strict=True), strict=True):
        pairs = list(zip(column, truth, strict=True))
        a, b, c = pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1))
        precisions.append(a / (a + b) if a + b else 0)
        if a + c:
            recalls.append(a / (a + c))
            f1s.append(2 * a / (2 * a + b + c))
        tp, fp, fn = tp + a, fp + b, fn + c
    CP, CR = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    OP, OR = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn)
    result = {"CP": CP, "CR": CR, "CF1": sum(f1s) / len(f1s), "OP": OP, "OR": OR}
    result["CF1_h"] = 2 * CP * CR / (CP + CR) if CP + CR else 0
    result["OF1"] = 2 * tp / (2 * tp + fp + fn)
    return {name: 100 * value for name, value in result.items()}


def test_average_precision_matches_its_definition_for_every_labelling_of_five_images():
    scores = np.array([0.9, 0.1, 0.8, 0.3, 0.5])
    ranking = [0, 2, 4, 3, 1]
    for labels in list(itertools.product([0, 1], repeat=5))[1:]:  # [0] has no positive
        ranked = [labels[i] for i in ranking]
        precisions = [sum(ranked[: k + 1]) / (k + 1) for k in range(5) if ranked[k]]
        ap = metrics.average_precision(scores, np.array(labels))
        assert ap == pytest.approx(sum(precisions) / len(precisions))


def test_average_precision_with_ties_is_brute_force_and_does_not_see_the_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, targets = rng.integers(0, 4, size=(12, 3)) / 4, rng.random((12, 3)) < 0.4
        targets[0] = True
        ap = metrics.average_precision(scores, targets)
        order = rng.permutation(12)
        assert ap.tolist() == metrics.average_precision(scores[order], targets[order]).tolist()
        expected = [brute_force_ap(scores[:, j], targets[:, j].tolist()) for j in range(3)]
        assert ap.tolist() == pytest.approx(expected)


def test_all_metrics_by_hand():
    # Labels A and B; C, never predicted; D, without positives. The threshold is 0.5.
    targets = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]])
    scores = np.array(
        [[0.9, 0.6, 0.1, 0.7], [0.8, 0.1, 0.2, 0.1], [0.2, 0.5, 0.3, 0.1], [0.7, 0.3, 0.4, 0.1]]
    )
    # AP: A ranks 1 1 0 1: (1 + 1 + 3/4) / 3 = 11/12. B ranks 1 0 1 0: (1 + 2/3) / 2 = 10/12.
    #   C ranks 0 1 0 0: 6/12. D is left out. mAP = 27/36.
    # Predicted A 3, B 1 (0.5 is not above 0.5), C 0, D 1; right A 2, B 1; positives 3, 2, 1, 0.
    # CP = (2/3 + 1/1 + 0 + 0/1) / 4 = 5/12. CR = (2/3 + 1/2 + 0) / 3 = 7/18.
    # F1 of A 2/3, of B 2/3, of C 0: CF1 = 4/9. CF1_h = 2 (5/12) (7/18) / (5/12 + 7/18) = 35/87.
    # OP = 3/5, OR = 3/6, OF1 = 2 * 3 / (5 + 6).
    expected = {"mAP": 27 / 36, "CP": 5 / 12, "CR": 7 / 18, "CF1": 4 / 9, "CF1_h": 35 / 87}
    expected |= {"OP": 3 / 5, "OR": 3 / 6, "OF1": 6 / 11}
    ours = metrics.evaluate(scores, targets, 0.5)
    assert ours.pop("left_out") == 1
    assert ours == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_harmonic_cf1_of_ml_gcns_row_in_table_1_is_78():
    # Label 1: 44 of 100 positives found, nothing else. Label 2: 500 found, 351 of them right, all
    # there are. CP = (1 + 0.702) / 2 = 85.1 and CR = (0.44 + 1) / 2 = 72.0, as in the table.
    predicted, targets = np.zeros((500, 2)), np.zeros((500, 2))
    predicted[:44, 0] = targets[:100, 0] = predicted[:, 1] = targets[:351, 1] = 1
    ours = metrics.precision_recall_f1(predicted, targets, 0.5)
    assert (ours["CP"], ours["CR"]) == pytest.approx((85.1, 72.0))
    assert round(ours["CF1_h"], 1) == 78.0
    # The mean of F1 is another number: (0.88 / 1.44 + 1.404 / 1.702) / 2
    assert ours["CF1"] == pytest.approx(71.80, abs=0.005)


def test_scores_without_a_rank_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        metrics.average_precision(np.array([0.1, np.nan]), np.array([1, 0]))


# run


def argv(demo, out, *more):
    fixed = "--dataset coco --backbone tresnet_tiny --image-size 32 --batch-size 8 --epochs 2"
    fixed += f" --workers 0 --device cpu --data {demo} --out {out}"
    return fixed.split() + " ".join(map(str, more)).split()  # of equal options the last counts


@pytest.fixture(scope="session")
def finished(demo, tmp_path_factory):
    """A whole run."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run.main(argv(demo, out)) == 0
    return out


def test_embeddings_are_those_of_the_training_photos_as_they_are(demo, finished):
    model, _ = run.load_model(finished / "backbone.pt")
    split = demo_split(demo, "train2014")
    expected, counts = np.zeros((16, 512)), np.zeros(16)
    for path, target in zip(split.paths, split.targets, strict=True):
        with Image.open(path) as image:
            pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255
        with torch.no_grad():
            feature = model.backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        for j in np.flatnonzero(target):
            expected[j] += feature[0].numpy()
            counts[j] += 1
    expected /= np.maximum(counts, 1)[:, None]
    stored = torch.load(finished / "embeddings.pt", weights_only=True)
    np.testing.assert_allclose(stored["image"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert stored["counts"].tolist() == counts.tolist()


@pytest.mark.parametrize("kind", ["image", "pca"])
def test_nodes_reach_the_gcn_at_unit_length_or_as_they_come(demo, finished, tmp_path, kind):
    raw = torch.load(finished / "embeddings.pt", weights_only=True)[kind]
    length = sum(math.sqrt(sum(x * x for x in row)) for row in raw.tolist()) / 16
    out = shutil.copytree(finished, tmp_path / "out")
    for norm, factor in [(1, 1 / length), (0, 1), (3, 3 / length)]:
        more = f"--phase gcn --nodes {kind} --epochs 1 --eval-every 0 --fresh --node-norm {norm}"
        assert run.main(argv(demo, out, more)) == 0
        nodes = torch.load(out / f"gcn-{kind}.pt", weights_only=True)["state_dict"]["head.nodes"]
        torch.testing.assert_close(nodes, raw * factor)


def test_random_nodes_have_the_shape_and_scale_of_f_pca_and_nothing_else(demo, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    found = []
    for seed in (5, 5, 6):
        more = f"--phase gcn --nodes random --epochs 1 --eval-every 0 --fresh --seed {seed}"
        assert run.main(argv(demo, out, more)) == 0
        state = torch.load(out / "gcn-random.pt", weights_only=True)["state_dict"]
        found.append(state["head.nodes"])
    assert found[0].shape == (16, 16)
    assert torch.equal(found[0], found[1])
    assert float(found[0].norm(dim=1).mean()) == pytest.approx(1)
    # 256 numbers each, of deviation 1/4: correlations of independent ones stay within 4 / 16.
    for other in (found[2], torch.load(out / "embeddings.pt", weights_only=True)["pca"]):
        assert abs(np.corrcoef(found[0].flatten(), other.flatten())[0, 1]) < 0.25


@pytest.mark.parametrize("part", [1, 0.1, 0])
def test_the_backbone_learns_at_its_part_of_the_rate_or_not_at_all(demo, finished, tmp_path, part):
    out = shutil.copytree(finished, tmp_path / "out")
    more = f"--phase gcn --nodes pca --epochs 1 --limit 8 --fresh --lr 1e-3 --backbone-lr {part}"
    assert run.main(argv(demo, out, more)) == 0
    before, after = (
        torch.load(out / f"{name}.pt", weights_only=True)["state_dict"]
        for name in ("backbone", "gcn-pca")
    )
    moved = {
        key: float((after[key] - before[key]).abs().max())
        for key in before
        if key.startswith("backbone.") and before[key].is_floating_point()
    }
    if part == 0:  # weights and running statistics
        assert max(moved.values()) == 0
        return
    # One step: Adam's first has the length of the rate in every entry that has a gradient at all.
    weights = [value for key, value in moved.items() if key.endswith("conv.weight")]
    assert max(weights) == pytest.approx(1e-3 * part, rel=0.02)
    assert min(weights) == pytest.approx(1e-3 * part, rel=0.02)
    assert max(v for k, v in moved.items() if k.endswith("running_mean")) > 0


def test_the_label_graph_may_be_that_of_other_images(demo, finished, tmp_path, capsys):
    classes = torch.load(finished / "backbone.pt", weights_only=True)["classes"]
    # In other category order. Labels 2 and 5 share one image of the 3 with label 5, the 1 with 2.
    categories = [{"id": 100 - j, "name": name} for j, name in enumerate(classes)]
    marks = [(0, 2), (0, 5), (1, 5), (2, 5)]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"image_id": i, "category_id": 100 - j} for i, j in marks],
        "categories": categories,
    }
    (tmp_path / "graph.json").write_text(json.dumps(coco))
    out = shutil.copytree(finished, tmp_path / "out")
    more = f"--phase gcn --nodes pca --epochs 1 --limit 8 --fresh --tau 0.5 --graph-json {tmp_path}"
    assert run.main(argv(demo, out, f"{more}/graph.json")) == 0
    A_hat = torch.load(out / "gcn-pca.pt", weights_only=True)["state_dict"]["head.A_hat"]
    # P(5|2) = 1 is an edge, P(2|5) = 1/3 is none. Rows sum to 1 (label 2) or 0.8 (the others).
    expected = torch.eye(16)
    expected[2, 2], expected[2, 5] = 0.8, 0.2 / math.sqrt(0.8)
    torch.testing.assert_close(A_hat, expected)
    coco["categories"][3]["name"] = "cloud"
    (tmp_path / "graph.json").write_text(json.dumps(coco))
    assert run.main(argv(demo, out, f"{more}/graph.json")) == 2
    assert "their names differ" in capsys.readouterr().err


def test_phases_run_apart_with_workers_give_the_numbers_of_one_run_without(
    demo, finished, tmp_path
):
    for phase in ("backbone", "embed", "gcn", "eval"):
        assert run.main(argv(demo, tmp_path, "--workers 2 --phase", phase)) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in finished.iterdir()}
    for name in ("backbone", "gcn-image", "gcn-pca"):
        file = f"metrics-{name}.json"
        assert (tmp_path / file).read_text() == (finished / file).read_text()
        ours, other = (np.load(out / f"scores-{name}.npz") for out in (tmp_path, finished))
        assert (ours["logits"] == other["logits"]).all()


@pytest.mark.parametrize("name", ["backbone", "gcn-image", "gcn-pca"])
def test_stored_metrics_are_those_of_the_stored_scores(demo, finished, name):
    report = json.loads((finished / f"metrics-{name}.json").read_text())
    with np.load(finished / f"scores-{name}.npz", allow_pickle=False) as file:
        logits, targets = file["logits"].tolist(), file["targets"].tolist()
    assert targets == demo_split(demo, "val2014").targets.tolist()
    columns = list(zip(zip(*logits, strict=True), zip(*targets, strict=True), strict=True))
    AP = [100 * brute_force_ap(s, t) if any(t) else None for s, t in columns]
    assert list(report["AP"].values()) == pytest.approx(AP)
    defined = [ap for ap in AP if ap is not None]
    assert report["mAP"] == pytest.approx(sum(defined) / len(defined))
    assert report["left_out"] == AP.count(None)
    for p in ("0.5", "0.8"):
        # The sigmoid is (1 + tanh(s / 2)) / 2, which does not overflow.
        predicted = [[int(math.tanh(s / 2) > 2 * float(p) - 1) for s in row] for row in logits]
        assert report["thresholds"][p] == pytest.approx(brute_force_metrics(predicted, targets))
    top3 = [[int(s in sorted(row)[-3:]) for s in row] for row in logits]
    assert report["top3"] == pytest.approx(brute_force_metrics(top3, targets))


def test_a_model_remembers_the_threshold_of_its_highest_of1(demo, finished):
    for name in ("backbone", "gcn-pca"):
        with np.load(finished / f"scores-{name}.npz") as scores:
            probabilities, targets = 1 / (1 + np.exp(-scores["logits"])), scores["targets"]
        found = {}
        for p in range(5, 100, 5):
            hits = misses = alarms = 0
            for row, truth in zip(probabilities.flatten(), targets.flatten(), strict=True):
                hits += row > p / 100 and truth
                misses += row <= p / 100 and truth
                alarms += row > p / 100 and not truth
            found[p / 100] = 2 * hits / max(2 * hits + misses + alarms, 1)
        stored = torch.load(finished / f"{name}.pt", weights_only=True)["threshold"]
        assert found[stored] == max(found.values()) > found[0.8]


def test_evaluation_does_not_depend_on_the_batch_size(demo, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert run.main(argv(demo, tmp_path, "--phase eval --batch-size 5")) == 0
    for name in ("backbone", "gcn-pca"):
        ours, other = (np.load(out / f"scores-{name}.npz") for out in (tmp_path, finished))
        np.testing.assert_allclose(ours["logits"], other["logits"], rtol=1e-4, atol=1e-4)


def test_the_learning_rate_falls_tenfold_after_each_quarter_of_the_epochs(demo, tmp_path):
    assert run.main(argv(demo, tmp_path, "--phase backbone --epochs 8 --limit 8")) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # 40 epochs, x0.1 at 10, 20 and 30: 8 epochs, x0.1 at 2, 4 and 6
    expected = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert [entry["lr"] for entry in log] == pytest.approx(expected)


def test_images_without_a_label_are_dropped_unless_they_are_wanted(demo, tmp_path):
    root = shutil.copytree(demo, tmp_path / "data")
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    first = document["images"][0]["id"]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != first]
    path.write_text(json.dumps(document))
    _, dropped = run.load_data(run.parse_args(argv(root, tmp_path)))
    _, kept = run.load_data(run.parse_args(argv(root, tmp_path, "--keep-unlabelled")))
    assert kept.paths[1:] == dropped.paths
    assert (kept.targets.any(1).tolist(), len(kept)) == ([False] + [True] * 11, 12)


def test_one_batch_can_be_overfitted(demo):
    split = demo_split(demo, "train2014").select(np.arange(8))
    images, targets, *_ = data.collate(
        [data.MultiLabelImages(split, 32)[0, row] for row in range(8)]
    )
    torch.manual_seed(0)
    A_hat = iml_gcn.normalise(iml_gcn.adjacency(*iml_gcn.cooccurrence(targets)))
    head = iml_gcn.LabelGCN(torch.randn(16, 16), A_hat, 512)
    model = iml_gcn.Classifier(tresnet.tresnet_tiny(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        logits = model(images.float() / 255)
        loss = iml_gcn.asymmetric_loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    ap = metrics.average_precision(logits.detach().numpy(), targets.numpy())
    assert metrics.mean_average_precision(ap) > 99


def test_logits_keep_float32s_precision_under_mixed_precision(demo, tmp_path):
    assert run.main(argv(demo, tmp_path, "--amp --epochs 1 --nodes pca")) == 0
    for name in ("backbone", "gcn-pca"):
        with np.load(tmp_path / f"scores-{name}.npz") as file:
            logits = torch.from_numpy(file["logits"])
        assert (logits.bfloat16().float() != logits).float().mean() > 0.9
        assert len(logits.unique()) > 0.95 * logits.numel()


def test_a_released_file_is_evaluated_as_it_stands(demo, finished, tmp_path):
    state = torch.load(finished / "backbone.pt", weights_only=True)["state_dict"]
    names = {"backbone.": "body.", "head.": "head.fc."}
    renamed = {re.sub(r"^\w+\.", lambda m: names[m[0]], k): v for k, v in state.items()}
    torch.save({"state_dict": renamed}, tmp_path / "released.pth")
    more = f"--phase eval --weights {tmp_path}/released.pth"
    assert run.main(argv(demo, tmp_path / "out", more)) == 0
    ours, theirs = finished / "scores-backbone.npz", tmp_path / "out/scores-weights.npz"
    with np.load(ours) as a, np.load(theirs) as b:
        assert np.array_equal(a["logits"], b["logits"])


def test_asls_recipe_warms_up_and_anneals_along_two_cosines(demo, tmp_path):
    more = "--recipe asl --epochs 10 --phase backbone --limit 8 --batch-size 4 --eval-every 0"
    assert run.main(argv(demo, tmp_path, more)) == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lrs = [json.loads(line)["lr"] for line in lines]
    # One cycle over 20 epochs of 2 steps, 40 steps, left after 20: from 1e-4 / 25 up to 1e-4 at
    # step 0.2 * 40 - 1 = 7, then down to 1e-4 / 25 / 1e4 at step 39, both along half a cosine.
    low, high, end, expected = 4e-6, 1e-4, 4e-10, []
    for step in range(0, 20, 2):  # the first of every epoch
        if step <= 7:
            expected.append(high + (low - high) * (1 + math.cos(math.pi * step / 7)) / 2)
        else:
            rest = (step - 7) / (39 - 7)
            expected.append(end + (high - end) * (1 + math.cos(math.pi * rest)) / 2)
    assert lrs == pytest.approx(expected, rel=1e-6)


def test_a_moving_average_that_forgets_nothing_stays_at_the_first_step(demo, tmp_path):
    states = []
    for more in ("--epochs 2 --ema 1", "--epochs 1"):
        more += " --phase backbone --limit 8 --batch-size 8 --eval-every 0 --fresh"
        assert run.main(argv(demo, tmp_path, more)) == 0
        states.append(torch.load(tmp_path / "backbone.pt", weights_only=True)["state_dict"])
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert a.equal(b)


def test_pooling_is_trained_kept_and_evaluated_as_asked(demo, tmp_path):
    states = []
    for pool in ("avg", "max"):
        more = f"--phase backbone eval --epochs 1 --limit 8 --image-size 64 --pool {pool}"
        assert run.main(argv(demo, tmp_path / pool, more)) == 0
        states.append(torch.load(tmp_path / pool / "backbone.pt", weights_only=True)["state_dict"])
    assert not states[0]["head.weight"].equal(states[1]["head.weight"])
    model = iml_gcn.Classifier(tresnet.tresnet_tiny(), nn.Linear(512, 16)).eval()
    model.load_state_dict(states[1])
    photo = data.MultiLabelImages(demo_split(demo, "val2014"), 64)[(0, 0)][0]
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model.head(model.backbone.forward_features(image).amax((2, 3)))[0]
    with np.load(tmp_path / "max/scores-backbone.npz") as file:
        assert file["logits"][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_ml_gcns_row_trains_without_a_backbone_phase(demo, tmp_path):
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\nlight 0 0 1\n")
    more = "--backbone resnet101 --pool max --nodes word --adjacency mlgcn --tau 0.4 --epochs 1"
    more += f" --init imagenet --weights none --glove {tmp_path}/glove.txt --limit 4"
    assert run.main(argv(demo, tmp_path, more, "--phase gcn eval")) == 0
    checkpoint = torch.load(tmp_path / "gcn-word.pt", weights_only=True)
    nodes = dict(
        zip(checkpoint["classes"], checkpoint["state_dict"]["head.nodes"].tolist(), strict=True)
    )
    assert nodes["car"] == [2, 1, 0]
    assert nodes["traffic light"] == [0, 0, 1]
    assert nodes["tree"] == [0, 0, 0]
    report = json.loads((tmp_path / "metrics-gcn-word.json").read_text())
    # ResNet-101's published 44,549,160 less its 1000-way classifier, 3 -> 1024 -> 2048, 16 x 16
    assert report["parameters"] == 44_549_160 - 2_049_000 + 3 * 1024 + 1024 * 2048 + 256


def test_vg500_runs_all_its_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    shown = write_vg(tmp_path)
    vg_photos(tmp_path, [f"{image_id}.jpg" for image_id in shown])
    more = "--dataset vg500 --epochs 1 --weights none --keep-unlabelled"
    assert run.main(argv(tmp_path, tmp_path / "out", more)) == 0
    with np.load(tmp_path / "out/scores-gcn-pca.npz") as file:
        assert file["targets"].shape == (6, 4)
    assert "34.5" in (tmp_path / "out/results.md").read_text()  # Table 2's last row


# picture


def drawn(targets, names=None, tau=0.1, embeddings=None):
    """The picture of a label graph, as an image and as pixels."""
    pairs, counts = (array.numpy() for array in iml_gcn.cooccurrence(torch.as_tensor(targets)))
    A = iml_gcn.adjacency(torch.as_tensor(pairs), torch.as_tensor(counts), tau).numpy()
    n = len(A)
    embeddings = np.eye(n) if embeddings is None else np.array(embeddings, np.float32)
    names = names or [f"name {j}" for j in range(n)]
    image = heatmap.graph(pairs, counts, A, embeddings, names, tau, "paper")
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
        assert panel.cell >= heatmap.FONT_SIZE
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
    assert len(set(image.info["order"].tolist())) == image.info["panels"][0].n == heatmap.FEWER
    assert image.width * image.height < 8e6


def test_embed_draws_the_graph_and_draws_it_again_for_another_threshold(demo, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    first = np.asarray(Image.open(out / "graph.png"))
    assert run.main(argv(demo, out, "--phase embed --tau 0.9")) == 0
    second = np.asarray(Image.open(out / "graph.png"))
    for pixels, found in ((first, True), (second, False)):  # the colour of P = 0.5
        assert (np.abs(pixels.astype(int) - [33, 145, 140]).max(2) < 3).any() == found


# evidence


def test_evidence_scores_labels_of_ten_photos_and_not_the_most_frequent_one():
    # 30 photos. Label 0 shows in 20, 1 and 2 in 10, 3 in 9. The logits of 1 put its positives
    # first (AP 1); 2's put them last, at ranks 21 to 30: AP is the mean of k / (20 + k).
    targets = np.zeros((30, 4), dtype=np.uint8)
    targets[:20, 0] = targets[:10, 1] = targets[:10, 2] = targets[:9, 3] = 1
    falling = -np.arange(30.0)
    logits = np.stack([falling, falling, -falling, falling], axis=1)
    last = sum(k / (20 + k) for k in range(1, 11)) / 10
    figures = evidence.figures(logits, targets)
    assert figures["labels_10"] == 2
    assert figures["mAP_10"] == pytest.approx(50 * (1 + last), abs=1e-3)
    assert figures["mAP_without"] == pytest.approx(100 * (2 + last) / 3, abs=1e-3)
    assert figures["mAP"] == pytest.approx(100 * (3 + last) / 4, abs=1e-3)


def test_evidence_pairs_the_seeds(capsys):
    rows = [("a", 1, 10.0), ("a", 2, 12.0), ("b", 1, 11.0), ("b", 2, 14.0)]
    rows = [dict(zip(("setting", "seed", "mAP_10"), row, strict=True)) for row in rows]
    evidence.show("table", rows, "a")
    # b - a is 1 and 2: mean 1.5, deviation 0.71; b itself 12.5 and 2.12.
    lines = capsys.readouterr().out.splitlines()
    assert "| b | 12.50 +- 2.12 | 1.50 +- 0.71 |" in lines


def test_evidence_trains_every_row_and_goes_on_where_it_was(demo, tmp_path, monkeypatch):
    ran = []

    def here(command, **_):  # a process of its own takes two seconds to start
        ran.append(command[2:])
        code = run.main([*command[2:], "--workers", "0"])
        return SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(evidence.subprocess, "Popen", here)
    monkeypatch.setattr(evidence, "JOINT", {"as in the table": "--nodes pca"})
    monkeypatch.setattr(evidence, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    few = ("F_PCA", "F_PCA, no graph", "F_W")
    monkeypatch.setattr(evidence, "FROZEN", {name: evidence.FROZEN[name] for name in few})
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\n")
    command = ["--data", demo, "--glove", tmp_path / "glove.txt", "--out", tmp_path / "out"]
    command += ["--csv", tmp_path, "--seeds", "3", "--jobs", "1", "--epochs", "2", "1", "--"]
    command += "--backbone tresnet_tiny --image-size 32 --batch-size 4 --device cpu".split()
    for _ in range(2):
        assert evidence.main(list(map(str, command))) == 0
    assert len(ran) == 3 + 3  # three runs a seed, three of the part joint; none twice
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    epochs = ["2", "1", "1", "1", "1"]  # direct; F_I, F_PCA, F_W and direct again, each from it
    assert [(row["seed"], row["epochs"]) for row in rows] == [("3", number) for number in epochs]
    for row in rows:
        folder = tmp_path / "out" / f"seed{row['seed']}{row['setting'] and '-longer'}"
        names = {label: name for name, label in report.MODELS.items()}
        stored = json.loads((folder / f"metrics-{names[row['model']]}.json").read_text())
        assert float(row["mAP"]) == pytest.approx(stored["mAP"], abs=1e-3)
        (without,) = stored["mAP_without"].values()
        assert float(row["mAP_without"]) == pytest.approx(without, abs=1e-3)
    with open(tmp_path / "frozen.csv") as file:
        frozen = list(csv.DictReader(file))
    assert [row["setting"] for row in frozen][-4:] == ["linear head, learning rate 0.01", *few]
    with open(tmp_path / "joint.csv") as file:
        joint = [row["setting"] for row in csv.DictReader(file)]
    assert joint == ["as in the table", "longer"]
    held_out = [
        json.loads((tmp_path / f"out/held-out-{name}.json").read_text())
        for name in ("train", "val")
    ]
    ids = [{photo["id"] for photo in part["images"]} for part in held_out]
    assert (len(ids[0]), len(ids[1]), len(ids[0] & ids[1])) == (20, 4, 0)


def test_evidence_stops_everything_at_the_first_error(tmp_path, monkeypatch, capsys):
    began, ended, both, stopped = [], [], threading.Barrier(2), threading.Event()

    def start(command, stdout, **_):
        began.append(command[command.index("--seed") + 1])
        seed = began[-1]
        stdout.write(f"epoch 1\nerror: disk {seed} is full\n")

        def wait():
            both.wait(timeout=60)
            if seed != "1":  # it goes on until it is stopped
                ended.append(stopped.wait(timeout=20))
            return 2

        return SimpleNamespace(wait=wait, terminate=stopped.set)

    monkeypatch.setattr(evidence.subprocess, "Popen", start)
    command = f"--data d --glove g --part table --csv {tmp_path}/csv --out {tmp_path}/out"
    assert evidence.main(command.split()) == 2
    assert sorted(began) == ["1", "2"]  # 3 never began
    assert ended == [True]
    assert "error: disk 1 is full" in capsys.readouterr().err
    assert not (tmp_path / "csv").exists()


def test_the_evidences_photos_are_taken_from_both_parts_of_coco_by_their_ids(tmp_path):
    source = Path(__file__).parent / "results"
    with open(source / "photos.csv") as file:
        rows = [(row["split"], int(row["id"])) for row in csv.DictReader(file)]
    ours = {name: {i for split, i in rows if split == name} for name in ("train", "val")}
    assert (len(ours["train"]), len(ours["val"]), len(rows)) == (2118, 705, 2823)
    ids = {name: sorted(ours[name]) for name in ours}
    photos = {  # of either official part: one of our train, one of our val, one of neither photos
        "train": [ids["train"][0], ids["val"][0], 10**7],
        "val": [ids["train"][1], ids["val"][1], 10**7 + 1],
    }
    (tmp_path / "annotations").mkdir()
    for name, part in photos.items():
        (tmp_path / f"{name}2014").mkdir()
        images = [{"id": i, "file_name": f"COCO_{name}2014_{i:012d}.jpg"} for i in part]
        for image in images:
            (tmp_path / f"{name}2014" / image["file_name"]).write_text(str(image["id"]))
        marks = [{"image_id": i, "category_id": 1} for i in part]
        document = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / f"annotations/instances_{name}2014.json").write_text(json.dumps(document))
    command = [sys.executable, source / "subset.py", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    for name, number in (("train", 0), ("val", 1)):
        json_path = tmp_path / f"subset/annotations/instances_{name}2014.json"
        split = data.load_coco(json_path, tmp_path / f"subset/{name}2014")
        data.check_inside(split.paths, tmp_path / f"subset/{name}2014")
        read = [int(Path(path).read_text()) for path in split.paths]
        assert sorted(read) == sorted([photos["train"][number], photos["val"][number]])
        assert split.targets.tolist() == [[1], [1]]
    graph = json.loads((tmp_path / "subset/graph.json").read_text())
    assert [image["id"] for image in graph["images"]] == [ids["train"][0], 10**7]
    assert [mark["image_id"] for mark in graph["annotations"]] == [ids["train"][0], 10**7]


# run: what interrupts it


def assert_same_run(out, other):
    """Weights, metrics and log of two runs are equal to the last bit."""
    for path in [*other.glob("*.pt"), *other.glob("metrics-*.json"), other / "log.jsonl"]:
        if path.suffix != ".pt":
            assert (out / path.name).read_text() == path.read_text(), path.name
            continue
        ours, theirs = (torch.load(p, weights_only=True) for p in (out / path.name, path))
        ours, theirs = ours.get("state_dict", ours), theirs.get("state_dict", theirs)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if torch.is_tensor(value) else ours[key] == value
            assert same, f"{path.name}: {key}"
    assert not (out / "last.pt").exists()


def test_a_run_stopped_at_every_save_ends_as_an_unbroken_one(demo, tmp_path, monkeypatch):
    # The last photo trained on cannot be read: it is counted across the stops, too.
    demo = shutil.copytree(demo, tmp_path / "demo")
    rows = [row for _, row in next(iter(data.Batches(16, 8, True, 0)))]
    Path(demo_split(demo, "train2014").paths[rows[-1]]).write_bytes(b"no photo")
    options = "--nodes pca --ema 0.9 --limit 16 --skip-bad-images"
    assert run.main(argv(demo, tmp_path / "unbroken", options)) == 0
    save, stops = files.save, []

    def save_and_stop(path, checkpoint):
        save(path, checkpoint)
        if path.name == "last.pt":
            stops.append((checkpoint["name"], checkpoint["epochs"], checkpoint["step"]))
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", save_and_stop)
    for workers in itertools.cycle([0, 2]):
        more = f"--save-every 0 --workers {workers}"
        try:
            assert run.main(argv(demo, tmp_path / "broken", options, more)) == 0
            break
        except KeyboardInterrupt:
            pass
    assert stops == list(itertools.product(["backbone", "gcn-pca"], [0, 1], [1, 2]))
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.parametrize("damage", [{"step": None}, {"model": {}}, {"losses": [1, 2, 3]}])
def test_a_damaged_last_pt_is_refused_and_kept(demo, tmp_path, capsys, monkeypatch, damage):
    def save_and_stop(path, checkpoint, save=files.save):
        save(path, {key: damage.get(key, value) for key, value in checkpoint.items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, "--limit 8 --phase backbone"))
    before = (tmp_path / "last.pt").read_bytes()
    assert run.main(argv(demo, tmp_path, "--limit 8 --phase backbone")) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/last.pt is not from this version" in error
    assert "--fresh" in error
    assert (tmp_path / "last.pt").read_bytes() == before


def program(*arguments, **options):
    """A process of its own, as a user starts it."""
    here = Path(run.__file__).parent
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=here, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(
    demo, finished, tmp_path, number, code
):
    options = argv(demo, tmp_path / "out", "--workers 2")
    started = program("run.py", *options)
    while not (tmp_path / "out" / "log.jsonl").exists():
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    started.send_signal(number)
    output, errors = started.communicate(timeout=60)
    assert started.returncode == code
    assert "Traceback" not in errors
    assert "the same command goes on" in errors
    assert run.main(options) == 0
    assert_same_run(tmp_path / "out", finished)


def test_a_second_run_in_a_folder_in_use_is_refused(demo, tmp_path, capsys):
    hold = "import files, pathlib, sys\nwith files.lock(pathlib.Path(sys.argv[1])):\n"
    first = program(
        "-c", hold + "    print(flush=True)\n    input()", tmp_path, stdin=subprocess.PIPE
    )
    first.stdout.readline()
    assert run.main(argv(demo, tmp_path)) == 2
    assert f"in use by process {first.pid}" in capsys.readouterr().err
    assert not (tmp_path / "args.json").exists()
    first.kill()  # even so, the folder is free again
    first.wait()
    assert run.main(argv(demo, tmp_path, "--phase backbone --epochs 1 --limit 8")) == 0


def test_an_output_folder_that_cannot_be_is_found_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(argv(tmp_path / "nothing", tmp_path / "file" / "out")) == 2
    assert f"cannot write to {tmp_path}/file/out (Not a directory)" in capsys.readouterr().err


NO_SPACE = (os, "fsync", OSError(28, "No space left on device"))


@pytest.mark.parametrize(("module", "name", "error"), [NO_SPACE, (torch, "save", RuntimeError())])
def test_a_full_disk_leaves_what_was_saved(
    demo, finished, tmp_path, capsys, monkeypatch, module, name, error
):
    out = shutil.copytree(finished, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}

    def full(*_):
        raise error

    monkeypatch.setattr(
        os if isinstance(error, OSError) else torch,
        "fsync" if isinstance(error, OSError) else "save",
        full,
    )
    with pytest.raises(OSError, match="one before is as it was"):
        files.save(out / "backbone.pt", {"name": "new"})
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before
    assert run.main(argv(demo, out, "--fresh --phase backbone")) == 2
    assert "cannot write" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before


def test_photos_that_cannot_be_read_are_counted_in_training_and_stop_evaluation(
    demo, finished, tmp_path, capsys
):
    demo, out = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "out"
    val = demo_split(demo, "val2014")
    for path in [*demo_split(demo, "train2014").paths[:2], val.paths[3]]:
        Path(path).write_bytes(Path(path).read_bytes()[:300])
    assert run.main(argv(demo, out, "--phase backbone --eval-every 0 --batch-size 4")) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 photos left out of this epoch") == 2
    assert all(path in printed for path in demo_split(demo, "train2014").paths[:2])
    for phase, name in [("embed", "train2014"), ("eval", "val2014")]:
        assert run.main(argv(demo, out, "--phase", phase)) == 2
        error = capsys.readouterr().err
        assert name in error
        assert "--skip-bad-images" in error
    shutil.copytree(finished, out, dirs_exist_ok=True)
    assert run.main(argv(demo, out, "--phase eval --skip-bad-images")) == 0
    table = (out / "results.md").read_text()
    assert f"{len(val) - 1} val images at 32 px, percent; 1 more could not be read" in table
    report = json.loads((out / "metrics-gcn-pca.json").read_text())
    scores = np.load(finished / "scores-gcn-pca.npz")
    others = np.delete(np.arange(len(val)), 3)
    expected = metrics.evaluate(scores["logits"][others], scores["targets"][others], 0)
    assert report["unreadable"] == 1
    assert report["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)


def torchrun(tmp_path, *arguments, ranks=2, more=()):
    """run.main in so many ranks; the script is ours to add to."""
    script = tmp_path / "script.py"
    lines = [f"import sys; sys.path.insert(0, {str(Path(run.__file__).parent)!r})"]
    lines += ["import run", *more, "sys.exit(run.main(sys.argv[1:]))"]
    script.write_text("\n".join(lines))
    options = ["--standalone", "--nproc-per-node", ranks, "--max-restarts", 1]
    if ranks == 1:
        done = program(script, *arguments)
    else:
        done = program("-m", "torch.distributed.run", *options, script, *arguments)
    output, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    return output


def test_two_ranks_download_once_and_embed_and_evaluate_every_photo_once(web, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    for path in [out / "embeddings.pt", *out.glob("metrics*"), *out.glob("scores*")]:
        path.unlink()
    options = argv(tmp_path / "data", out, "--download --phase embed eval --batch-size 7")
    torchrun(tmp_path, *options, more=[f"import download; download.SERVER = {web.url!r}"])
    assert web.asked == [(address, 0, 200) for address in ZIPS]
    ours, theirs = (torch.load(o / "embeddings.pt", weights_only=True) for o in (out, finished))
    for key in ("image", "pairs", "counts"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6)
    for path in finished.glob("scores-*.npz"):
        ours, theirs = np.load(out / path.name), np.load(path)
        assert (ours["targets"] == theirs["targets"]).all()
        np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-5, atol=1e-5)


FROZEN = "from torch.nn import BatchNorm2d, Module\n"
FROZEN += "BatchNorm2d.train = lambda self, mode=True: Module.train(self, False)"


def test_two_ranks_train_as_one_does_where_norms_are_frozen(demo, tmp_path):
    # Each rank norms by its own images; frozen, nothing is left to tell them apart. A rank is lost
    # on the way: torchrun starts again, from last.pt. 7 images of a batch fall to them as 4 and 3.
    states = []
    die = """
import os, train, iml_gcn
def loss(*arguments, calls=[], original=iml_gcn.asymmetric_loss):
    calls.append(0)
    if len(calls) == 6 and os.environ["TORCHELASTIC_RESTART_COUNT"] == os.environ["RANK"] == "0":
        os._exit(9)
    return original(*arguments)
train.iml_gcn.asymmetric_loss = loss
"""
    for ranks, more in [(1, [FROZEN]), (2, [FROZEN, die])]:
        out = tmp_path / f"{ranks}"
        options = "--phase backbone --batch-size 7 --epochs 7 --eval-every 0 --lr 1e-4"
        output = torchrun(
            tmp_path, *argv(demo, out, options, "--save-every 0"), ranks=ranks, more=more
        )
        states.append(torch.load(out / "backbone.pt", weights_only=True)["state_dict"])
        log = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        states[-1]["log"] = torch.tensor(log)
    assert "goes on after epoch 1 and 2 of 3 steps" in output
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-5)


# run: bad input


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename_a_label(annotations):
    for path in annotations.iterdir():
        path.write_text(path.read_text().replace('"person"', '"pedestrian"'))


JSON, PHOTO = "annotations/instances_train2014.json", "val2014/demo_val2014_000001000003.jpg"
BAD_INPUT = [  # what happens to data/ or the finished run in out/, arguments, words of the message
    (lambda d: shutil.rmtree(d / "data"), "", f"{JSON} instances_val2014.json train2014/"),
    (lambda d: truncate(d / "data" / JSON), "", JSON),
    (lambda d: (d / "data" / PHOTO).unlink(), "", f"missing {PHOTO}"),
    (lambda d: truncate(d / "data" / PHOTO), "--phase eval", PHOTO),
    (lambda d: None, "--image-size 102", "102 multiple"),
    (lambda d: (d / "out/embeddings.pt").unlink(), "--phase gcn", "out/embeddings.pt --phase"),
    (lambda d: None, "--lr 0.002", "out/backbone.pt lr 0.001 0.002 --fresh"),
    (lambda d: None, "--tau 0.3", "out/gcn-image.pt tau 0.1 0.3 --fresh"),
    (lambda d: rename_a_label(d / "data/annotations"), "--phase embed", "out/backbone.pt labels"),
    (lambda d: truncate(d / "out/backbone.pt"), "--phase eval", "out/backbone.pt"),
    (
        lambda d: (d / "g").write_text("cup 1 2\ncar 1\n"),
        "--nodes word --glove {d}/g",
        "/g, line 2",
    ),
]


@pytest.mark.parametrize(("spoil", "more", "words"), BAD_INPUT)
def test_bad_input_ends_with_code_2_and_a_sentence_that_names_it(
    demo, finished, tmp_path, capsys, spoil, more, words
):
    data_dir = shutil.copytree(demo, tmp_path / "data")
    out = shutil.copytree(finished, tmp_path / "out")
    spoil(tmp_path)
    try:
        code = run.main(argv(data_dir, out, more.format(d=tmp_path)))
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    sentence = error[error.index("error: ") :].strip()  # after argparse's usage
    assert len(sentence.splitlines()) == (3 if "val2014.json" in words else 1)  # 2 for the tree
    assert [word for word in words.split() if word not in sentence] == []


# download

ZIPS = ["annotations/annotations_trainval2014.zip", "zips/train2014.zip", "zips/val2014.zip"]
TRAIN = ZIPS[1]


class Web:
    """A server of COCO's zips on this machine, and what can be wrong with one."""

    def __init__(self):
        self.files, self.tag = {}, '"1"'
        self.breaks = []  # of the next answers, the bytes after which they are cut off
        self.ranges = self.if_range = True  # whether it knows these headers
        self.asked = []  # path, first byte asked for, status

    def answer(self, handler):
        path, status, first = handler.path[1:], 200, 0
        body = self.files.get(path)
        if body is None:
            self.asked.append((path, 0, 404))
            return handler.send_error(404)
        if self.ranges and "Range" in handler.headers:
            if not self.if_range or handler.headers["If-Range"] == self.tag:
                status = 206
                first = int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"])[1])
        if first >= len(body):
            self.asked.append((path, first, 416))
            return handler.send_error(416)
        self.asked.append((path, first, status))
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) - first))
        handler.send_header("ETag", self.tag)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        end = first + self.breaks.pop(0) if self.breaks else None
        handler.wfile.write(body[first:end])


@pytest.fixture
def web(demo, monkeypatch):
    web = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            web.answer(self)

        def log_message(self, *_):
            pass

    for address in ZIPS:
        folder = "annotations" if "annotations" in address else Path(address).stem
        web.files[address] = zip_of({f"{folder}/": b""} | contents(demo, folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        web.url = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setattr(download, "SERVER", web.url)
        monkeypatch.setattr(download, "PAUSE", 0)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield web
        httpd.shutdown()


def zip_of(entries, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip; a key may be a ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def contents(root, *folders):
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


TREE = "annotations", "train2014", "val2014"


def test_coco_is_downloaded_unpacked_trained_on_and_not_asked_for_again(demo, web, tmp_path):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    for _ in range(2):
        assert run.main(options) == 0
        assert web.asked == [(address, 0, 200) for address in ZIPS]
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(TREE)
    assert contents(tmp_path / "data", ".") == contents(demo, *TREE)


def test_a_download_that_breaks_goes_on_at_the_byte_it_had(demo, web, tmp_path):
    size = len(web.files[ZIPS[0]])
    web.breaks = [0, 1000, 0, 1, size // 2, 0, 0, 0]  # 7 tries without a byte, but not in a row
    download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    starts = [0, 0, 1000, 1000, 1001, *[1001 + size // 2] * 4]
    assert [first for _, first, _ in web.asked[:-2]] == starts
    assert [status for *_, status in web.asked[:-2]] == [200, 200] + [206] * 7


def test_a_server_that_knows_no_ranges_starts_over(demo, web, tmp_path):
    web.ranges, web.breaks = False, [1000, 500]
    download.coco(tmp_path, "2014")
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert web.asked == [(address, 0, 200) for address in [ZIPS[0]] * 2 + ZIPS]


@pytest.mark.parametrize(
    ("if_range", "keep", "statuses"),
    [(True, 1, [200]), (False, 1, [206, 200]), (False, 0.1, [416, 200])],
)
def test_a_file_that_changes_between_two_tries_is_fetched_anew(
    demo, web, tmp_path, monkeypatch, if_range, keep, statuses
):
    web.if_range, web.breaks, new = if_range, [3000, 0], web.files[TRAIN]
    monkeypatch.setattr(download, "TRIES", 1)
    web.files[TRAIN] = bytes(int(len(new) / keep))  # the old one: as long, or ten times
    with pytest.raises(ConnectionError, match=r"3,000 bytes so far"):
        download.fetch(f"{web.url}/{TRAIN}", tmp_path / "z", tmp_path / "z.json")
    web.tag, web.files[TRAIN] = '"2"', new if keep == 1 else new[:2000]
    monkeypatch.setattr(download, "TRIES", 2)
    web.asked.clear()
    download.fetch(f"{web.url}/{TRAIN}", tmp_path / "z", tmp_path / "z.json")
    assert (tmp_path / "z").read_bytes() == web.files[TRAIN]
    assert [status for *_, status in web.asked] == statuses


def test_a_download_that_fails_says_how_to_go_on_and_does_so(demo, web, tmp_path, capsys):
    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    whole = web.files.pop(TRAIN)
    assert run.main(options) == 2
    asked = [(ZIPS[0], 0, 200), (TRAIN, 0, 404)]  # once: 404 will not change
    assert web.asked == asked
    web.files[TRAIN], web.breaks = whole, [5000] + [0] * 6
    assert run.main(options) == 2
    assert web.asked[2:] == [(TRAIN, 0, 200)] + [(TRAIN, 5000, 206)] * 6
    web.asked.clear()
    assert run.main(options) == 0
    assert web.asked == [(TRAIN, 5000, 206), (ZIPS[2], 0, 200)]
    errors = capsys.readouterr().err.splitlines()
    for line, reason in zip(errors, ["HTTP 404", "closed early; 5,000 bytes so far"], strict=True):
        assert line.startswith(f"error: cannot download {web.url}/{TRAIN} (")
        assert reason in line
        assert line.endswith(f"put it into {tmp_path}/data")


def test_a_full_disk_keeps_what_has_come(demo, web, tmp_path, capsys, monkeypatch):
    class Full(io.FileIO):
        def write(self, piece):
            if self.tell() + len(piece) > 1000:
                super().write(piece[: 1000 - self.tell()])
                raise OSError(28, "No space left on device")
            return super().write(piece)

    options = argv(tmp_path / "data", tmp_path / "out", "--download --phase backbone --limit 8")
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", Full, raising=False)
        assert run.main(options) == 2
    size = (tmp_path / "data" / f"{Path(ZIPS[0]).name}.part").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=17))
        assert run.main(options) == 2
    assert run.main(options) == 0
    assert web.asked[1:3] == [(ZIPS[0], size, 206)] * 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"error: cannot write to {tmp_path}/data (No space left on device)" in first
    assert f"room for 17 bytes, {len(web.files[ZIPS[0]]) - size:,} more" in second


def test_an_interrupted_unpacking_is_noticed_and_goes_on(demo, web, tmp_path, monkeypatch):
    opened, open_entry = [], zipfile.ZipFile.open

    def open_and_note(self, entry, *more):
        opened.append(entry.filename)
        if len(opened) == 9:
            process.received = signal.SIGTERM
        return open_entry(self, entry, *more)

    monkeypatch.setattr(process, "received", None)
    monkeypatch.setattr(zipfile.ZipFile, "open", open_and_note)
    with pytest.raises(process.Stopped, match=r"unpacking of .*train2014.zip, what is there is"):
        download.coco(tmp_path, "2014")
    assert not (tmp_path / "train2014").exists()
    (tmp_path / "train2014.zip.tmp" / opened[-1]).write_bytes(b"cut")  # this one is unpacked again
    process.received = None
    download.coco(tmp_path, "2014")
    again = {opened[8]}
    assert len(opened) == len(set(opened)) + len(again)
    assert contents(tmp_path, ".") == contents(demo, *TREE)
    assert len(web.asked) == 3


def test_a_zip_put_there_by_hand_is_used_and_kept(demo, web, tmp_path):
    (tmp_path / "train2014.zip").write_bytes(web.files.pop(TRAIN))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.json").write_text("mine")
    download.coco(tmp_path, "2014")
    mine = {"annotations/mine.json": b"mine"}
    assert contents(tmp_path, *TREE) == contents(demo, *TREE) | mine
    assert {path.name for path in tmp_path.iterdir()} == {*TREE, "train2014.zip"}


def entry(name, mode=0o644, **more):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "name",
    [
        *["../a.jpg", "train2014/../../a.jpg", "/tmp/a.jpg", "train2014/..", "train2014/b/a.jpg"],
        *["train2014/..\\a.jpg", "C:\\a.jpg", "C:/a.jpg", "train2014/C:a.jpg", "train2014/a\n.jpg"],
        *["val2014/a.jpg", "annotations/instances_train2014.json", "train2014/B.JPG"],
        *[entry("train2014/a.jpg", 0o120777), entry("train2014/a.jpg", 0o060644)],  # link, device
    ],
)
def test_a_hostile_zip_writes_nothing(demo, web, tmp_path, name):
    web.files[TRAIN] = zip_of({"train2014/b.jpg": b"good", name: b"/etc/passwd"})
    with pytest.raises(ValueError, match=r"train2014.zip holds '.*delete it"):
        download.coco(tmp_path / "data", "2014")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    there = {"annotations", "train2014.zip", "train2014.zip.json"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == there


def test_a_zip_that_swells_beyond_its_word_or_reason_is_refused(web, tmp_path, monkeypatch):
    bomb = zip_of({"train2014/a.jpg": bytes(10**6)})
    size = (10**6).to_bytes(4, "little")
    assert bomb.count(size) == 2  # in front of the file and in the directory
    for content, reason in [
        (bomb, "would unpack to 1,000,000 bytes"),
        (bomb.replace(size, (1000).to_bytes(4, "little")), "is damaged"),
    ]:
        (tmp_path / "train2014.zip").write_bytes(content)
        monkeypatch.setattr(download, "MOST", 10**5)
        with pytest.raises(ValueError, match=reason):
            download.unpack(tmp_path / "train2014.zip", tmp_path, "train2014")
        written = [path.stat().st_size for path in tmp_path.rglob("*.jpg")]
        assert sum(written) <= 1000


def test_a_damaged_zip_is_named_and_nothing_of_it_is_used(web, tmp_path, capsys):
    whole = zip_of({"train2014/a.jpg": bytes(range(256))}, zipfile.ZIP_STORED)
    middle = whole.index(bytes(range(256))) + 100
    spoilt = whole[:middle] + b"!" + whole[middle + 1 :]
    for content, reason in [(spoilt, "Bad CRC-32"), (b"<html>", "not a zip"), (whole[:-9], "zip")]:
        web.files[TRAIN] = content
        options = argv(tmp_path / "data", tmp_path / "out", "--download")
        assert run.main(options) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path}/data/train2014.zip is damaged, or no zip at all" in error
        assert reason in error
        assert not (tmp_path / "data" / "train2014").exists()
        (tmp_path / "data" / "train2014.zip").unlink()  # as the sentence says


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--dataset vg500", "VG-500 visualgenome.org SSGRL README"),
        ("--dataset demo", "COCO only"),
        ("--train-json t.json", "COCO only"),
        ("--val-images v", "COCO only"),
    ],
)
def test_download_is_for_cocos_own_tree(demo, web, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as stop:
        run.main(argv(tmp_path, tmp_path, "--download", more))
    assert stop.value.code == 2
    assert web.asked == []
    error = capsys.readouterr().err.splitlines()[-1]
    assert [word for word in words.split() if word not in error] == []


# board


def events(folder):
    """What TensorBoard's own reader finds: {tag: [(step, value), ...]} of scalars, and the rest."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0, "images": 0}).Reload()
    scalars = {
        tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    return scalars, found


def test_tensorboard_shows_the_logs_and_the_metrics_numbers_also_after_a_resume(
    demo, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    epoch, options = board.Board.epoch, "--phase backbone eval --threshold 0.25 --tensorboard"

    def break_off(self, entry, speed):
        epoch(self, entry, speed)
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(board.Board, "epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, options, "--epochs 2"))
    assert run.main(argv(demo, tmp_path, options, "--epochs 2")) == 0  # does epoch 2 again
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scalars, found = events(tmp_path / "tensorboard" / "backbone")
    for tag, key in [("train/loss", "loss"), ("train/lr", "lr"), ("val/mAP", "mAP")]:
        assert [step for step, _ in scalars[tag]] == [1, 2]
        assert [v for _, v in scalars[tag]] == pytest.approx([entry[key] for entry in log])
    assert [step for step, _ in scalars["train/images per second"]] == [1]  # 2 had none left
    report = json.loads((tmp_path / "metrics-backbone.json").read_text())
    assert scalars["val/mAP"][-1][1] == pytest.approx(report["mAP"])
    for p in ("0.25", "0.5", "0.8"):
        last = {key: scalars[f"val at p over {p}/{key}"][-1] for key in report["thresholds"][p]}
        assert last == {k: (2, pytest.approx(v)) for k, v in report["thresholds"][p].items()}
    split = demo_split(demo, "val2014")
    with np.load(tmp_path / "scores-backbone.npz") as file:
        logits, targets = file["logits"], file["targets"]
    for j in board.curve_labels(targets):
        tag = f"PR/{split.classes[j]}, {sum(targets[:, j])} photos"
        assert [event.step for event in found.Tensors(tag)] == [1, 2]
        curve = torch.tensor(found.Tensors(tag)[-1].tensor_proto.float_val).view(6, 127)
        pairs = [(y, x >= 0) for x, y in zip(logits[:, j], targets[:, j], strict=True)]
        counts = [pairs.count(pair) for pair in [(1, True), (0, True), (0, False), (1, False)]]
        assert curve[:4, 63].tolist() == counts  # tp, fp, tn, fn at 63 / 126
    assert len([tag for tag in found.Tags()["tensors"] if tag.startswith("PR")]) == 9
    images = found.Images("val photos")
    assert [image.step for image in images] == [1, 2]
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as picture:
        photo = np.asarray(picture)[:200, :200]
    with Image.open(split.paths[0]) as image:
        expected = np.asarray(image.resize((200, 200), Image.Resampling.BILINEAR))
    assert (photo == expected).all()
    assert run.main(argv(demo, tmp_path, options, "--epochs 1 --fresh")) == 0
    scalars, _ = events(tmp_path / "tensorboard" / "backbone")
    assert [step for step, _ in scalars["train/loss"]] == [1]


def test_tensorboard_shows_the_graph_and_the_nodes_by_name(demo, finished, tmp_path):
    pytest.importorskip("tensorboard")
    out = shutil.copytree(finished, tmp_path / "out")
    for _ in range(2):  # what is there is replaced, though no model is trained
        assert run.main(argv(demo, out, "--phase gcn --tensorboard")) == 0
    folder = out / "tensorboard" / "labels"
    assert (folder / "projector_config.pbtxt").read_text().count("tensor_name") == 2
    for kind in ("image", "pca"):
        state = torch.load(out / f"gcn-{kind}.pt", weights_only=True)["state_dict"]
        shown = np.loadtxt(folder / "00000" / kind / "tensors.tsv", delimiter="\t")
        np.testing.assert_allclose(shown, state["head.nodes"].numpy(), rtol=1e-6)
        names = (folder / "00000" / kind / "metadata.tsv").read_text().splitlines()
        assert names == demo_split(demo, "train2014").classes
    (image,) = events(folder)[1].Images("adjacency")
    split = demo_split(demo, "train2014").select(np.arange(24))
    split = split.select(np.flatnonzero(split.targets.any(1)))
    A = iml_gcn.adjacency(*iml_gcn.cooccurrence(torch.from_numpy(split.targets)))
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        cells = np.asarray(picture)[-16 * 14 + 7 :: 14, -16 * 14 + 7 :: 14, 0]  # their middles
    assert ((cells < 255) == (A > 0).numpy()).all()


def test_adjacency_image_by_hand():
    A = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.8, 0.1], [0.0, 0.0, 0.8]])
    expected = [[0, 0, 255], [255, 0, 127], [255, 255, 0]]  # 0.2 is black, 0.1 half of it
    picture = np.asarray(board.matrix(A, ["a", "long name", "c"]))
    assert picture[-42 + 7 :: 14, -42 + 7 :: 14, 0].tolist() == expected
    rows, columns = picture[-42:, :-42], picture[:-42, -42:]  # names, dark on white
    assert (rows[14:28] < 128).sum() > (rows[:14] < 128).sum() > 0
    assert (columns[:, 14:28] < 128).sum() > (columns[:, :14] < 128).sum() > 0
    many = board.matrix(torch.eye(500), [f"label {j}" for j in range(500)])
    assert (np.asarray(many)[:, :, 0] == 255 - 255 * np.eye(500).repeat(2, 0).repeat(2, 1)).all()


def test_pr_curves_are_of_the_same_few_labels_from_frequent_to_rare():
    counts = [0, 9, 3, 8, 0, 7, 1, 6, 5, 4, 2]  # 9 of the 11 labels are shown, 8 are taken
    targets = np.array([[int(count > row) for count in counts] for row in range(9)], np.uint8)
    labels = board.curve_labels(targets).tolist()
    assert [counts[j] for j in labels] == [9, 8, 7, 6, 4, 3, 2, 1]  # of 0, 8/7, ... 8: 4 is 4.57
    assert board.curve_labels(targets[:1]).tolist() == [1, 2, 3, 5, 7, 8, 9, 10]
    assert board.curve_labels(targets[:0]).tolist() == []


def test_the_sheet_tells_right_from_wrong_and_missed(demo):
    split = demo_split(demo, "val2014").select(np.arange(4))
    split.targets[:], scores = 0, np.full((4, 16), 0.1)
    scores[0, 3] = scores[1, 3] = 0.81
    split.targets[0, 3] = split.targets[2, 3] = 1  # right, wrong, missed, nothing
    picture = np.asarray(board.sheet(scores, split))
    cells = [picture[200:334, :200], picture[200:334, 208:408]]
    cells += [picture[200:334, 416:616], picture[534:668, :200]]
    colours = [board.GREEN, board.RED, board.GREY]
    found = [[int((cell == colour).all(-1).any()) for colour in colours] for cell in cells]
    assert found == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_without_its_package_tensorboard_is_refused_before_anything_begins(
    demo, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        run.main(argv(demo, tmp_path / "out", "--tensorboard"))
    assert stop.value.code == 2
    assert "needs the package tensorboard" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# bench


def test_bench_takes_turns_and_its_medians_leave_the_first_call_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def lasting(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds.pop(0)

        return call

    ours, theirs = lasting("ours", [99, 3, 1, 2]), lasting("peer", [99, 8, 5, 50])
    medians = bench.alternate(3, ours=bench.timed(ours), peer=bench.timed(theirs))
    assert medians == {"ours": 2, "peer": 8}
    assert calls == ["ours", "peer"] * 4  # the first of each is not counted
    assert bench.alternate(3, both=iter([[1, 9], [3, 7], [2, 8]]).__next__)["both"].tolist() == [
        2,
        8,
    ]


def test_bench_table_has_ratios_to_the_first_and_empty_cells_for_an_absent_peer(capsys):
    rows = [("time", "{:.1f}", {"ours": 2, "b": 5}), ("size", "{:,}", {"ours": 4000, "a": 1000})]
    bench.table("what", ["ours", "a", "b"], rows)
    assert capsys.readouterr().out.strip().splitlines() == [
        "| what | ours | a | a / ours | b | b / ours |",
        "| --- | --- | --- | --- | --- | --- |",
        "| time | 2.0 |  |  | 5.0 | 2.50 |",
        "| size | 4,000 | 1,000 | 0.25 |  |  |",
    ]


def test_bench_says_which_peers_are_missing_and_measures_without_them(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SCORES", [(50, 3)])
    monkeypatch.setattr(bench, "convolution_ceiling", lambda dtype: 100.0)
    for name in ("sklearn", "sklearn.metrics", "torchmetrics"):
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    assert bench.main(["metrics", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not installed: pip install scikit-learn" in lines
    assert "not installed: pip install torchmetrics" in lines
    measured = next(line for line in lines if line.startswith("| 50 x 3"))
    assert re.fullmatch(r"\| 50 x 3, s \| 0\.\d+ \|  \|  \|  \|  \|", measured)


def test_a_measurement_that_fails_in_its_own_process_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"bench.read_ours gave no figures: .*no file .*nope"):
        bench.child("read_ours", str(tmp_path / "nope"), str(tmp_path / "cache.npz"))


def test_saved_bytes_are_those_of_each_stored_activation_once():
    weight = torch.ones(5, requires_grad=True)
    x = torch.ones(4, 5)

    def forward():  # (4, 5) float32 is 80 bytes
        y = (x * weight).exp()  # keeps x, the weight (left out), the result of exp
        y = y.view(20).sin()  # keeps its argument, exp's result once more: not counted again
        return (y.double() * 2).square().sum()  # keeps square's argument in float64: 160 bytes

    assert bench.saved_bytes(forward, [weight]) == 80 + 80 + 160
    assert bench.saved_bytes(forward, [weight, x]) == 80 + 160


def test_the_drawn_coco_file_holds_what_the_reader_finds_in_it(tmp_path):
    path = bench.write_coco(tmp_path / "drawn.json", 7, 50)
    document = json.loads(path.read_text())
    assert (len(document["images"]), len(document["annotations"])) == (7, 50)
    assert path.read_bytes() == bench.write_coco(tmp_path / "again.json", 7, 50).read_bytes()
    pairs = {(a["image_id"], a["category_id"]) for a in document["annotations"]}
    split = data.load_coco(path, tmp_path)
    assert set(zip(*(k.tolist() for k in split.targets.nonzero()), strict=True)) == pairs


def test_the_rebuilt_asl_pipeline_does_the_same_to_a_photo_as_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PHOTOS", 8)
    paths = sorted(bench.draw_photos(tmp_path).iterdir())
    images = data.MultiLabelImages(data.Split(paths, np.zeros((8, 1)), []), 64, augment=True)
    for row, path in enumerate(paths):
        ours = torch.from_numpy(images[0, row][0].copy()).permute(2, 0, 1) / 255  # (3, S, S)
        assert (bench.asl_image(path, 64, row) - ours).abs().mean() < 0.02


# predict

LABELS = ["cat", "traffic light", "dog\x1b[2J\n", "café", "x" * 90, "umbrella", "tie"]


@pytest.fixture(autouse=True)
def printable(monkeypatch):
    """data.printable until it is merged."""
    if not hasattr(data, "printable"):
        escape = functools.partial(re.sub, r"[^ -~é]", lambda match: repr(match[0])[1:-1])
        monkeypatch.setattr(
            data, "printable", lambda text, width=80: escape(str(text))[:width], raising=False
        )


@pytest.fixture(scope="session")
def predictor(tmp_path_factory):
    """A checkpoint of random weights at 64 px, and its model."""
    torch.manual_seed(0)
    model = iml_gcn.Classifier(tresnet.tresnet_tiny(), nn.Linear(512, len(LABELS))).eval()
    nn.init.normal_(model.head.weight)  # scores from 0 to 1, not all about 0.5
    path = tmp_path_factory.mktemp("predictor") / "gcn-pca.pt"
    about = {"name": "gcn-pca", "classes": LABELS, "backbone": "tresnet_tiny", "pool": "avg"}
    torch.save(about | {"image_size": 64, "state_dict": model.state_dict()}, path)
    return path, model


def drawn_photo(seed=0, size=(90, 70)):
    """Blocks of noise: unlike itself when turned or mirrored, alike when compressed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def scores_by_hand(model, photo):
    pixels = np.array(photo.resize((64, 64), Image.Resampling.BILINEAR))  # (S, S, 3)
    images = torch.tensor(pixels.transpose(2, 0, 1)[None] / 255, dtype=torch.float32)
    with torch.no_grad():
        return (1 / (1 + (-model(images)[0].double()).exp())).tolist()


def predicted(capsys, *argv, code=0):
    """The lines that predict.py prints, and what it says on stderr."""
    assert predict.main([str(part) for part in argv]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_folders_photos_get_the_classifiers_scores_highest_first(
    predictor, tmp_path, capsys, batch_size
):
    path, model = predictor
    names = ["b.png", "deep/a.PNG", "a.png"]
    for seed, name in enumerate([*names, ".hidden.png", ".git/a.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        drawn_photo(seed, (90 + seed, 70)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    argv = [path, tmp_path, "--batch-size", batch_size]
    as_json, _ = predicted(capsys, *argv, "--json", "--top", len(LABELS))
    as_text, _ = predicted(capsys, *argv)
    in_order = ["a.png", "b.png", "deep/a.PNG"]
    for name, line, text in zip(in_order, map(json.loads, as_json), as_text, strict=True):
        scores = scores_by_hand(model, drawn_photo(names.index(name), (90 + names.index(name), 70)))
        ranked = sorted(zip(LABELS, scores, strict=True), key=lambda pair: -pair[1])
        assert line["photo"] == str(tmp_path / name)
        assert [item["label"] for item in line["labels"]] == [label for label, _ in ranked]
        expected = pytest.approx([score for _, score in ranked], abs=2e-6)
        assert [item["score"] for item in line["labels"]] == expected
        assert re.findall(r" (\d\.\d\d)(?:,|$)", text) == [f"{s:.2f}" for _, s in ranked if s > 0.8]


# How a camera stores the upright photo U (rows from the top, columns from the left) under each
# orientation: the EXIF standard names where the stored row 0 and column 0 are in U.
STORED = {
    1: lambda U: U,  # row 0 is the top, column 0 the left
    2: lambda U: U[:, ::-1],  # top, right
    3: lambda U: U[::-1, ::-1],  # bottom, right
    4: lambda U: U[::-1],  # bottom, left
    5: lambda U: U.transpose(1, 0, 2),  # left, top
    6: lambda U: U.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda U: U.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda U: U.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def test_a_photo_is_labelled_upright_whatever_way_the_camera_was_held(predictor, tmp_path, capsys):
    U = np.asarray(drawn_photo())
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        photo = Image.fromarray(np.ascontiguousarray(stored(U)))
        photo.save(tmp_path / f"{orientation}.png", exif=exif)
    argv = [predictor[0], tmp_path, "--json", "--top", 7, "--save", tmp_path / "out"]
    lines, _ = predicted(capsys, *argv)
    assert len({json.dumps(json.loads(line)["labels"]) for line in lines}) == 1
    for orientation in STORED:
        with Image.open(tmp_path / f"out/{orientation}.jpg") as picture:
            assert np.abs(np.asarray(picture, int)[:60, 67:157] - U[:60]).mean() < 8  # JPEG's


def test_unreadable_photos_are_named_and_skipped_and_the_others_labelled(
    predictor, tmp_path, capsys
):
    drawn_photo().save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no photo")
    names = ["cut.jpg", "good.jpg", "missing.jpg", "text.jpg"]
    argv = [predictor[0], *(tmp_path / name for name in names)]
    lines, errors = predicted(capsys, *argv, "--save", tmp_path / "out", code=1)
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / "good.jpg")]
    assert sorted(re.findall(r"^cannot read photo \S*/(\S+) ", errors, re.M)) == [
        "cut.jpg",
        "missing.jpg",
        "text.jpg",
    ]
    assert len(errors.splitlines()) == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.jpg", "predictions.jsonl"]


def test_the_threshold_is_the_command_lines_else_the_checkpoints_else_asls(
    predictor, tmp_path, capsys
):
    path, model = predictor
    photo = tmp_path / "photo.png"
    drawn_photo().save(photo)
    checkpoint = torch.load(path)
    scores = sorted(scores_by_hand(model, drawn_photo()))
    between = [(a + b) / 2 for a, b in itertools.pairwise(scores)]
    torch.save(checkpoint | {"threshold": between[-2]}, tmp_path / "two.pt")

    def count(*argv):
        lines, _ = predicted(capsys, *argv, photo, "--json")
        return len(json.loads(lines[0])["labels"])

    assert count(tmp_path / "two.pt") == 2
    assert count(tmp_path / "two.pt", "--threshold", between[0]) == len(LABELS) - 1
    assert count(tmp_path / "two.pt", "--top", 5) == 5
    assert count(path) == sum(score > 0.8 for score in scores) not in (0, len(LABELS))
    lines, _ = predicted(capsys, path, photo, "--threshold", 1)
    assert lines[0].startswith(f"{photo}: no label above 1, highest: ")
    assert lines[0].endswith(f" {scores[-1]:.2f}")


def test_names_with_control_characters_reach_no_terminal_and_no_file_name_raw(
    predictor, tmp_path, capsys
):
    folder = tmp_path / "photos\x1b[2J"
    folder.mkdir()
    drawn_photo().save(folder / "a\x07\nb.png")
    (folder / "c\x1b.png").write_text("no photo")
    argv = [predictor[0], folder, "--top", len(LABELS)]
    for more in [(), ("--json",), ("--save", tmp_path / "out")]:
        lines, errors = predicted(capsys, *argv, *more, code=1)
        assert len(lines) == len(errors.splitlines()) == 1
        assert lines[0].isprintable()
        assert errors.rstrip("\n").isprintable()
        assert "cat" in lines[0]
    assert all(path.name.isprintable() for path in (tmp_path / "out").iterdir())


SIZES = [(32, 32), (640, 480), (480, 640), (1500, 40), (32, 1500), (3000, 2000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colour", ["white", "black"])
def test_labels_stand_beneath_the_photo_whole_and_in_contrast(size, colour):
    photo = Image.new("RGB", size, colour)
    names = [f"{name} {i}" for i in range(4) for name in [*LABELS, "日本語" * 20]]
    labels = [(name, "0.50") for name in names]
    picture = np.asarray(pictures.labelled(photo, labels, "a long name " * 9))
    left = (picture.shape[1] - size[0]) // 2
    assert (picture[: size[1], left : left + size[0]] == np.asarray(photo)).all()
    strip = picture[size[1] :].mean(2)  # (h, w) grey levels
    ground = strip[0, 0]
    assert ground < 30
    assert strip.max() > 250
    for edge in (strip[0], strip[-1], strip[:, 0], strip[:, -1]):  # nothing is cut off there
        assert (edge == ground).all()
    lines = (strip > 128).any(1).astype(int)  # rows that type crosses
    heights = np.diff(np.flatnonzero(np.diff(np.r_[0, lines, 0])))[::2]
    assert heights.max() >= 10  # px, of a capital and its descender
    assert heights.max() >= max(size) * min(size) / 6000 / 60
    few = pictures.labelled(photo, labels[:2], "a long name " * 9)
    assert few.height < picture.shape[0]


def test_saved_pictures_replace_no_file_but_their_own(predictor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "PAGE", 4)
    names = ["a/x.png", "b/x.png", "b/X.jpg", "b/x-2.png", "contact.png", "deep/x.png"]
    for seed, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(seed).save(tmp_path / "in" / name)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))}
    out = tmp_path / "in" / "out"  # inside: what is written is not read the second time
    argv = [predictor[0], tmp_path / "in"]
    for _ in range(2):
        lines, _ = predicted(capsys, *argv, "--json", "--save", out)
        assert len(lines) == len(names)
        assert (out / "predictions.jsonl").read_text().splitlines() == lines
        written = [path.name for path in out.iterdir()]
        assert len({name.lower() for name in written}) == len(written) == len(names) + 1 + 2
        assert {path: path.read_bytes() for path in before} == before
    for line, name in zip(lines, ["x", "X-2", "x-2-2", "x-3", "contact-3", "x-4"], strict=True):
        with (
            Image.open(json.loads(line)["photo"]) as photo,
            Image.open(out / f"{name}.jpg") as ours,
        ):
            shown = np.asarray(ours.convert("RGB"), int)[:60, 67:157]
            assert np.abs(shown - np.asarray(photo.convert("RGB"), int)[:60]).mean() < 8
    for folder in (tmp_path / "in", tmp_path / "in" / "a"):
        _, errors = predicted(capsys, *argv, "--save", folder, code=2)
        assert "--save" in errors
    _, errors = predicted(capsys, predictor[0], out / "x.jpg", "--save", out, code=2)
    assert "--save" in errors
    assert {path: path.read_bytes() for path in before} == before


def break_checkpoint(change):
    def spoil(path, folder):
        torch.save(torch.load(path) | change, folder / "broken.pt")
        return [folder / "broken.pt", folder / "photo.png"]

    return spoil


BAD_CALLS = [
    (lambda path, folder: [folder / "none.pt", folder], "no checkpoint at"),
    (lambda path, folder: [folder / "photo.png", folder], "photo.png is not a checkpoint"),
    (break_checkpoint({"classes": LABELS[:-1]}), "not a model this program wrote"),
    (break_checkpoint({"classes": [*range(7)]}), "does not name its model's labels"),
    (break_checkpoint({"image_size": None}), "no image_size from 32"),
    (break_checkpoint({"image_size": 66}), "multiples of 4"),
    (break_checkpoint({"image_size": 10**9}), "no image_size from 32"),
    (break_checkpoint({"threshold": "high"}), "threshold that is not a number"),
    (lambda path, folder: [path, folder / "empty"], "no photo in"),
    (lambda path, folder: [path], "name photos or folders"),
    (lambda path, folder: [path, folder, "--top", "0"], "--top 0 is below 1"),
    (lambda path, folder: [path, folder, "--batch-size", "-1"], "--batch-size -1 is below 1"),
    (lambda path, folder: [path, folder, "--threshold", "nan"], "not in 0 .. 1"),
    (lambda path, folder: [path, folder, "--threshold", "0.5", "--top", "2"], "not allowed with"),
    (lambda path, folder: [path, folder, "--device", "cuda:77"], "--device cuda:77"),
    (lambda path, folder: [path, folder, "--export", "model.pt"], "neither in .onnx nor in .pt2"),
    (lambda path, folder: [path, "--export", "model.pt2", "--json"], "--export writes a model"),
    (
        lambda path, folder: [path, folder, "--save", folder / "out", "--font", path],
        "no TrueType font",
    ),
]


@pytest.mark.parametrize(("make", "words"), BAD_CALLS)
def test_bad_calls_of_predict_end_with_code_2_and_one_sentence(
    predictor, tmp_path, capsys, make, words
):
    drawn_photo().save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    try:
        code = predict.main([str(part) for part in make(predictor[0], tmp_path)])
    except SystemExit as end:  # argparse's
        code = end.code
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert re.match(r"(predict\.py|pytest|__main__\.py|.*): error: |error: ", sentence)
    assert words in sentence
    assert not (tmp_path / "out").exists()


# export


def reload_pt2(path):
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra["metadata.json"])


def reload_onnx(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    for key in ("classes", "image_size", "threshold"):
        metadata[key] = json.loads(metadata[key])

    def module(images):
        return torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])

    return module, metadata


@pytest.mark.parametrize(
    ("name", "reload"),
    [
        ("model.pt2", reload_pt2),
        ("model.onnx", reload_onnx),
    ],
)
def test_an_exported_model_has_the_scores_of_the_checkpoint_and_says_what_it_needs(
    predictor, tmp_path, capsys, monkeypatch, name, reload
):
    if name.endswith("onnx"):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    path, model = predictor
    photos, target = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "new" / name
    for seed, photo in enumerate(photos):
        drawn_photo(seed).save(photo)
    lines, _ = predicted(capsys, path, *photos, "--export", target, "--threshold", 0.7)
    worst, count = re.search(r"scores (\S+) on (\d) images", lines[-1]).groups()
    assert float(worst) < 1e-5
    assert count == "2"
    assert [file.name for file in target.parent.iterdir()] == [name]
    exported, metadata = reload(target)
    assert metadata["classes"] == LABELS
    assert metadata["image_size"] == 64
    assert metadata["threshold"] == 0.7
    assert "[0, 1]" in metadata["normalisation"]
    for seeds in ([0], [1, 2, 3]):
        batch = [drawn_photo(seed).resize((64, 64), Image.Resampling.BILINEAR) for seed in seeds]
        images = torch.stack([torch.from_numpy(np.array(photo)) for photo in batch]) / 255
        expected = torch.tensor([scores_by_hand(model, drawn_photo(seed)) for seed in seeds])
        ours = exported(images.permute(0, 3, 1, 2).contiguous())  # (B, n)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert str(tmp_path).encode() not in target.read_bytes()
    assert str(files.__file__).encode() not in target.read_bytes()


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_an_export_that_differs_is_an_error_and_leaves_the_file_before_as_it_was(
    predictor, tmp_path, capsys, monkeypatch, error
):
    def write(file, program, metadata):  # a runtime that is wrong by `error` for one label
        file.write_text("a model")
        offset = error * F.one_hot(torch.tensor(3), len(LABELS))
        return "a runtime", lambda images: predictor[1](images).sigmoid() + offset

    monkeypatch.setattr(export, "write_pt2", write)
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    target = tmp_path / "model.pt2"
    target.write_text("before")
    _, errors = predicted(capsys, predictor[0], "--export", target, code=2)
    assert errors.startswith("error: scores of the exported model differ")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("model.pt2", "before")
    ]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_before_anything_is_exported(
    predictor, tmp_path, capsys, monkeypatch, package
):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    _, errors = predicted(capsys, predictor[0], "--export", tmp_path / "m.onnx", code=2)
    assert errors == f"error: no package {package}; pip install onnx onnxscript\n"
    assert not list(tmp_path.iterdir())
