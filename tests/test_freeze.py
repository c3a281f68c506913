"""--freeze: heads trained on features that are computed once, against the whole model on photos."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import argv, demo_split, refused, state_of
from PIL import Image

import backbones
import data
import iml_gcn
import run
from backbones import features
from reports import pictures
from runtime import signals, terminal
from runtime.folder import Folder


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


def test_the_loss_of_the_log_is_that_of_one_photo_and_the_rate_that_of_the_epochs_first_step(
    demo, weights, tmp_path
):
    options = "--freeze --phase backbone --epochs 4 --lr 1e-9 --gamma-neg 2 --gamma-pos 1"
    options = argv(demo, tmp_path, options, "--clip 0.1 --weights", weights)
    assert run.main(options) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["lr"] for entry in log] == pytest.approx([1e-9, 1e-10, 1e-11, 1e-12])
    model, _ = backbones.load_model(tmp_path / "backbone.pt")  # such rates change nothing
    split = demo_split(demo, "train2014")
    photos = np.stack([data.read_image(path, 32) for path in split.paths])
    logits = model(torch.from_numpy(photos).permute(0, 3, 1, 2) / 255)
    p = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    lower = np.maximum(p - 0.1, 0)
    losses = np.where(split.targets, (1 - p) * np.log(p), lower**2 * np.log(1 - lower))
    assert [entry["loss"] for entry in log] == pytest.approx([-losses.sum() / len(p)] * 4, rel=1e-3)


@pytest.fixture
def computed(monkeypatch):
    """(what, photos) of each pass that computes features."""
    passes = []

    class Counted(run.Pass):
        def __init__(self, loader, what, *others):
            if what.startswith("features"):
                passes.append((what, loader.rows.num_images))
            super().__init__(loader, what, *others)

    monkeypatch.setattr(run, "Pass", Counted)
    return passes


def test_features_are_computed_once_and_again_for_another_size(
    demo, frozen, weights, tmp_path, computed
):
    out = shutil.copytree(frozen, tmp_path / "out")
    options = argv(demo, out, "--freeze --weights", weights, "--nodes random --phase gcn")
    assert run.main(options) == 0
    assert computed == []
    size = ["--image-size", "64", "--fresh"]
    assert run.main([*options, *size]) == 2  # backbone.pt is of the other size: nothing is done
    assert computed == []
    assert run.main([*options, *size, "--phase", "backbone"]) == 0
    assert computed == [("features train", 24), ("features val", 12)]


def test_features_of_other_weights_are_replaced_by_a_fresh_run_only(
    weights, tmp_path, computed, capsys
):
    own_photos(tmp_path / "photos", range(6))
    labelled(tmp_path / "train.csv", range(4), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(4, 6), ["cat", "dog"])
    *options, fresh = own_options(tmp_path, tmp_path / "out", weights)
    assert fresh == "--fresh"
    assert run.main(options) == 0
    before = (tmp_path / "out/features.pt").read_bytes()
    computed.clear()
    state = torch.load(weights, weights_only=True)["state_dict"]
    other = tmp_path / "other.pth"
    torch.save({key: value * 1.1 for key, value in state.items()}, other)
    sentence = refused(capsys, [*options, "--weights", str(other)])
    assert f"{tmp_path}/out/features.pt was made with other starting weights" in sentence
    # The folder's model has its own backbone: to evaluate it, no features are needed.
    assert run.main([*options, "--weights", str(other), "--phase", "eval"]) == 0
    sentence = refused(capsys, [*options, "--phase", "eval", "--image-size", "64"])
    assert "pass --image-size 32" in sentence
    assert (tmp_path / "out/features.pt").read_bytes() == before
    assert computed == []


def test_weights_that_have_seen_val_photos_are_refused(weights, tmp_path, capsys):
    own_photos(tmp_path / "photos", range(8))
    labelled(tmp_path / "train.csv", range(4), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(4, 6), ["cat", "dog"])
    assert run.main(own_options(tmp_path, tmp_path / "first", weights)) == 0
    first = str(tmp_path / "first/backbone.pt")
    labelled(tmp_path / "train.csv", range(3), ["cat", "dog"])
    options = own_options(tmp_path, tmp_path / "second", first)
    assert run.main(options) == 0  # the same val photos
    labelled(tmp_path / "val.csv", range(3, 6), ["cat", "dog"])
    sentence = refused(capsys, options)
    assert f"{first} was trained on 1 of the 3 val photos" in sentence
    # What the first model saw, the one that started from it has seen, too.
    sentence = refused(capsys, [*options[:-3], "--evaluate", f"{tmp_path}/second/backbone.pt"])
    assert "second/backbone.pt was trained on 1 of the 3 val photos" in sentence


def test_fresh_does_not_move_the_weights_it_starts_from(weights, tmp_path, capsys):
    own_photos(tmp_path / "photos", range(6))
    labelled(tmp_path / "train.csv", range(4), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(4, 6), ["cat", "dog"])
    out = tmp_path / "out"
    assert run.main(own_options(tmp_path, out, weights)) == 0
    assert capsys.readouterr().out.count("backbone tensors") == 1  # told once, though loaded twice
    (out / "before-fresh").mkdir()
    for start in (out / "backbone.pt", out / "before-fresh/backbone.pt"):
        start.write_bytes((out / "backbone.pt").read_bytes())
        sentence = refused(capsys, own_options(tmp_path, out, start))
        assert f"--fresh would move --weights {start} away" in sentence
        assert start.is_file()


def test_a_fresh_run_that_was_killed_in_its_features_resumes_without_fresh(
    weights, tmp_path, monkeypatch
):
    own_photos(tmp_path / "photos", range(6))
    labelled(tmp_path / "train.csv", range(4), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(4, 6), ["cat", "dog"])
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    before = (tmp_path / "out/features.pt").read_bytes()
    *larger, fresh = [*options[:-1], "--image-size", "64", options[-1]]
    with monkeypatch.context() as patch:

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(features.FeatureStore, "compute", killed)
        with pytest.raises(KeyboardInterrupt):
            run.main([*larger, fresh])
    assert (tmp_path / "out/before-fresh/features.pt").read_bytes() == before
    assert run.main(larger) == 0


def own_photos(folder, numbers):
    """Photos of one size in bytes, each with a name and a content of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(256, size=(9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.bmp")


def labelled(path, numbers, labels):
    rows = [f"{number}.bmp,{labels[number % len(labels)]}\n" for number in numbers]
    path.write_text("file,label\n" + "".join(rows))


def own_options(folder, out, weights):
    text = f"--photos {folder / 'photos'} --labels {folder / 'train.csv'} --weights {weights}"
    text += f" --val-labels {folder / 'val.csv'} --out {out} --recipe cycle --freeze --lr 1e-3"
    text += " --backbone tresnet_tiny --image-size 32 --batch-size 4 --epochs 1 --workers 0"
    return f"{text} --device cpu --phase backbone --fresh".split()


def features_in(out):
    """features.pt as {photo: its features}."""
    stored = torch.load(out / "features.pt", weights_only=True)
    return dict(zip(stored["photos"].tolist(), stored["features"], strict=True))


def test_other_labels_another_split_and_more_photos_keep_the_features(weights, tmp_path, computed):
    own_photos(tmp_path / "photos", range(12))
    labelled(tmp_path / "train.csv", range(8), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(8, 12), ["cat", "dog"])
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    assert computed == [("features train", 8), ("features val", 4)]
    computed.clear()
    own_photos(tmp_path / "photos", [12])
    labelled(tmp_path / "train.csv", [*range(9), 12], ["cat", "fox", "dog"])
    labelled(tmp_path / "val.csv", range(9, 12), ["cat", "fox", "dog"])
    assert run.main(options) == 0
    assert computed == [("features train", 1)]
    assert run.main(own_options(tmp_path, tmp_path / "anew", weights)) == 0
    kept, anew = features_in(tmp_path / "out"), features_in(tmp_path / "anew")
    assert len(kept) == 13
    assert kept.keys() == anew.keys()
    assert all(torch.equal(kept[photo], anew[photo]) for photo in kept)
    ours, theirs = (state_of(tmp_path / name / "backbone.pt") for name in ("out", "anew"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_photo_that_was_replaced_gets_new_features(weights, tmp_path, computed):
    own_photos(tmp_path / "photos", range(8))
    for name in ("train", "val"):
        labelled(tmp_path / f"{name}.csv", range(4, 8) if name == "val" else range(4), ["a", "b"])
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    own_photos(tmp_path, [8])
    (tmp_path / "8.bmp").replace(tmp_path / "photos/2.bmp")
    computed.clear()
    assert run.main(options) == 0
    assert computed == [("features train", 1)]


def test_photos_of_one_name_and_size_do_not_share_features(weights, tmp_path):
    document = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    document["images"] = [{"id": i, "file_name": f"{i}.bmp"} for i in range(4)]
    document["annotations"] = [{"image_id": i, "category_id": i % 2 + 1} for i in range(4)]
    (tmp_path / "annotations").mkdir()
    for name in ("train2014", "val2014"):
        own_photos(tmp_path / name, range(4))
        (tmp_path / f"annotations/instances_{name}.json").write_text(json.dumps(document))
    own_photos(tmp_path / "other", range(4, 8))
    for i in range(4):  # the photos of val are others, of the same names and sizes
        (tmp_path / f"other/{i + 4}.bmp").replace(tmp_path / f"val2014/{i}.bmp")
    out = tmp_path / "out"
    options = argv(tmp_path, out, "--freeze --phase backbone --weights", weights)
    assert run.main(options) == 0
    stored = torch.stack([*features_in(out).values()])
    assert len(stored.unique(dim=0)) == 8


def test_photos_known_by_path_get_their_features_as_well(weights, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(data, "MOST_READ_FOR_ID", 1000)  # ten photos have more, the two added less
    own_photos(tmp_path / "photos", range(12))
    labelled(tmp_path / "train.csv", range(8), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(8, 10), ["cat", "dog"])
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    computed.clear()
    labelled(tmp_path / "train.csv", [*range(8), 10, 11], ["cat", "dog"])
    assert run.main(options) == 0
    assert computed == [("features train", 2)]
    checkpoint = torch.load(tmp_path / "out/backbone.pt", weights_only=True)
    assert len(checkpoint["training_photos"]) == 10


@pytest.mark.parametrize("many_in", ["train", "val"])
def test_a_photo_that_was_trained_on_is_known_however_many_others_there_are(
    weights, tmp_path, monkeypatch, capsys, many_in
):
    # Ten photos are known by names and sizes, two by their content.
    monkeypatch.setattr(data, "MOST_READ_FOR_ID", 1000)
    own_photos(tmp_path / "photos", range(12))
    many, few = range(10), range(8, 12)
    labelled(tmp_path / "train.csv", many if many_in == "train" else few[:2], ["cat", "dog"])
    labelled(tmp_path / "val.csv", few[2:], ["cat", "dog"])
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    labelled(tmp_path / "val.csv", few[:2] if many_in == "train" else many, ["cat", "dog"])
    evaluate = f"--evaluate {tmp_path / 'out/backbone.pt'}".split()
    assert run.main([*options[:-3], *evaluate]) == 2
    count = "2 of the 2" if many_in == "train" else "2 of the 10"
    assert f"was trained on {count} val photos" in capsys.readouterr().err


def test_a_frozen_run_on_own_photos_is_evaluated_again_with_its_weights(
    weights, tmp_path, computed
):
    own_photos(tmp_path / "photos", range(6))
    labelled(tmp_path / "train.csv", range(4), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(4, 6), ["cat", "dog"])
    options = [
        option
        for option in own_options(tmp_path, tmp_path / "out", weights)
        if option not in ("--freeze", "--recipe", "cycle")  # recipe small freezes by itself
    ]
    assert run.main(options) == 0
    computed.clear()
    assert run.main([*options[:-3], "--phase", "eval"]) == 0
    assert computed == []


def test_a_run_that_skips_a_broken_photo_can_be_repeated(weights, tmp_path, capsys):
    own_photos(tmp_path / "photos", range(8))
    (tmp_path / "photos/2.bmp").write_bytes(b"BM")
    labelled(tmp_path / "train.csv", range(6), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(6, 8), ["cat", "dog"])
    *options, fresh = own_options(tmp_path, tmp_path / "out", weights)
    assert fresh == "--fresh"
    for _ in range(2):
        assert run.main([*options, "--skip-bad-images"]) == 0
    assert "backbone: done before" in capsys.readouterr().out


def test_a_run_that_is_refused_leaves_the_features_as_they_are(weights, tmp_path, capsys):
    own_photos(tmp_path / "photos", range(8))
    labelled(tmp_path / "train.csv", range(6), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(6, 8), ["cat", "dog"])
    *options, _ = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == 0
    content = (tmp_path / "out/features.pt").read_bytes()
    assert run.main([*options, "--image-size", "64"]) == 2
    assert "made with image-size 32, now it is 64" in capsys.readouterr().err
    assert (tmp_path / "out/features.pt").read_bytes() == content


def test_features_that_cannot_be_right_are_not_used(tmp_path):
    folder = Folder(tmp_path, ["cat"])
    backbone = torch.nn.Identity()
    backbone.num_features = 4
    content = {"photos": torch.arange(3), "features": torch.ones(3, 4)}
    store = features.FeatureStore(backbone, folder, {})

    def kept(change):
        store.folder.save(store.FILE, content | change, store.settings)
        return len(features.FeatureStore(backbone, folder, {}).photos)

    assert kept({}) == 3
    for photos in (None, torch.arange(2), torch.arange(3.0), torch.arange(3)[None]):
        assert kept({"photos": photos}) == 0
    right = content["features"]
    for wrong in (
        None,
        right[:, :3],
        right[:2],
        right * torch.nan,
        right.half(),
        right.to_sparse(),
    ):
        assert kept({"features": wrong}) == 0


@pytest.mark.parametrize("reason", ["asked to stop", "a photo that cannot be read"])
def test_features_that_were_computed_before_a_run_stopped_are_kept(
    weights, tmp_path, computed, monkeypatch, reason
):
    own_photos(tmp_path / "photos", range(12))
    labelled(tmp_path / "train.csv", range(12), ["cat", "dog"])
    labelled(tmp_path / "val.csv", range(8, 12), ["cat", "dog"])
    good = (tmp_path / "photos/9.bmp").read_bytes()
    if reason == "asked to stop":
        advance = terminal.Progress.advance
        monkeypatch.setattr(signals, "received", None)

        def after_two_batches(progress, count):
            if progress.done == 4:
                signals.received = signal.SIGINT
            return advance(progress, count)

        monkeypatch.setattr(terminal.Progress, "advance", after_two_batches)
        expected = 128 + signal.SIGINT
    else:
        (tmp_path / "photos/9.bmp").write_bytes(b"BM")
        expected = 2
    options = own_options(tmp_path, tmp_path / "out", weights)
    assert run.main(options) == expected
    monkeypatch.undo()
    (tmp_path / "photos/9.bmp").write_bytes(good)
    known = 8 if reason == "asked to stop" else 11
    assert len(features_in(tmp_path / "out")) == known
    left = features_in(tmp_path / "out")
    assert run.main(options) == 0
    assert run.main(own_options(tmp_path, tmp_path / "anew", weights)) == 0
    ours, theirs = features_in(tmp_path / "out"), features_in(tmp_path / "anew")
    assert left.keys() < ours.keys() == theirs.keys()
    assert all(torch.equal(ours[photo], theirs[photo]) for photo in theirs)


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
