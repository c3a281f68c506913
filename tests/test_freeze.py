"""--freeze: heads trained on features that are computed once, against the whole model on photos."""

import shutil

import numpy as np
import pytest
import torch
from conftest import argv, demo_split, state_of
from PIL import Image

import backbones
import iml_gcn
import run
from backbones import features
from reports import pictures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for the tiny backbone, with statistics of their own."""
    torch.manual_seed(3)
    backbone = backbones.BACKBONES["tresnet_tiny"][0]("avg")
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": backbone.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def frozen(demo, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("frozen")
    assert run.main(argv(demo, out, "--freeze --weights", weights)) == 0
    return out


@pytest.mark.parametrize("name", ["backbone", "gcn-image", "gcn-pca"])
def test_a_frozen_run_trains_the_head_of_a_whole_model(demo, frozen, weights, name):
    model, _ = backbones.load_model(frozen / f"{name}.pt")
    start = torch.load(weights, weights_only=True)["state_dict"]
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, start[key]), key
    photos = [Image.open(p).resize((32, 32), 2) for p in demo_split(demo, "val2014").paths]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    with np.load(frozen / f"scores-{name}.npz") as stored:
        expected = model(images).detach().numpy()
        np.testing.assert_allclose(stored["logits"], expected, rtol=1e-3, atol=1e-4)


def test_features_are_computed_once_and_again_for_another_size(
    demo, frozen, weights, monkeypatch, capsys
):
    passes = []

    class Counted(features.Pass):
        def __init__(self, loader, what, skip_bad):
            passes.append(what)
            super().__init__(loader, what, skip_bad)

    monkeypatch.setattr(features, "Pass", Counted)
    options = argv(demo, frozen, "--freeze --weights", weights, "--nodes random --phase gcn")
    assert run.main(options) == 0
    assert passes == []
    assert run.main([*options, "--image-size", "64", "--fresh"]) == 0
    assert passes == ["features train", "features val"]


def test_a_frozen_run_cut_off_ends_as_an_unbroken_one(demo, frozen, weights, tmp_path, monkeypatch):
    loss, calls = iml_gcn.asymmetric_loss, []

    def cut_off(*arguments):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments)

    more = "--freeze --phase backbone --save-every 0 --weights"
    monkeypatch.setattr(iml_gcn, "asymmetric_loss", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.main(argv(demo, tmp_path, more, weights))
    assert run.main(argv(demo, tmp_path, more, weights)) == 0
    ours, theirs = (state_of(out / "backbone.pt") for out in (tmp_path, frozen))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_heads_are_not_trained_on_features_of_another_backbone(
    demo, finished, weights, tmp_path, capsys
):
    out = shutil.copytree(finished, tmp_path / "out")  # its backbone was trained
    more = "--phase embed gcn --nodes random --fresh --freeze --weights"
    assert run.main(argv(demo, out, more, weights)) == 2
    assert "out/backbone.pt has another backbone" in capsys.readouterr().err
    ours, theirs = (
        torch.load(path / "embeddings.pt", weights_only=True)["image"] for path in (out, finished)
    )
    torch.testing.assert_close(ours, theirs)  # those of backbone.pt, whatever --weights is


def test_unit_features_are_centred_roots_of_length_1_from_photo_to_prediction(
    demo, weights, tmp_path
):
    more = "--freeze --unit-features --phase backbone embed gcn eval --nodes pca --weights"
    assert run.main(argv(demo, tmp_path, more, weights)) == 0
    backbone = backbones.build("tresnet_tiny", "avg")
    backbone.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])

    def features_of(name):
        paths = demo_split(demo, name).paths
        photos = [Image.open(path).resize((32, 32), 2) for path in paths]
        images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            features = backbone.eval()(images).numpy().astype(float)
        return images, np.sign(features) * np.abs(features) ** 0.5

    mean = features_of("train2014")[1].mean(0)
    images, roots = features_of("val2014")
    expected = (roots - mean) / np.linalg.norm(roots - mean, axis=1)[:, None]
    for name in ("backbone", "gcn-pca"):
        model, _ = backbones.load_model(tmp_path / f"{name}.pt")
        features = model.backbone(images).detach().numpy()
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
        head = model.head.to_linear() if name == "gcn-pca" else model.head
        logits = expected @ head.weight.detach().numpy().T
        if head.bias is not None:
            logits += head.bias.detach().numpy()
        with np.load(tmp_path / f"scores-{name}.npz") as stored:
            np.testing.assert_allclose(stored["logits"], logits, rtol=1e-3, atol=1e-3)
        folded = model.fold()
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)
        old = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        old["state_dict"]["backbone.mean"] = old["state_dict"].pop("backbone.mean_root")
        torch.save(old, tmp_path / "old.pth")
        with pytest.raises(ValueError, match="of an older version; train it again"):
            backbones.load_model(tmp_path / "old.pth")
        if name == "backbone":  # the mean of a map is the logit
            maps = pictures.activation_maps(model, images)
            torch.testing.assert_close(maps.mean((2, 3)), model(images), rtol=1e-3, atol=1e-4)
