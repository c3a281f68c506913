"""What more than one file of tests uses; and the options of the tests."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import iml_gcn
import predict
import run
import tresnet
from datasets import demo as scenes

# Small images gain nothing by a second thread, and threads that wait for each other on a machine
# with other work take many times as long. The variable is for processes of their own.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# The tests do not cut the power, so nothing of theirs has to wait for the disk.
os.fsync = lambda file: None


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        default=300,
        metavar="N",
        help="cases of the tests of damaged files, in all (300, some seconds; 10000 some minutes)",
    )
    parser.addoption(
        "--fuzz-case",
        type=int,
        metavar="I",
        help="the case to repeat alone, as a failure names it; add -k <kind>",
    )
    text = "run test_two_hosts.py, as root"
    parser.addoption("--two-hosts", action="store_true", help=text)
    text = "run test_rehearsal.py with so much of COCO: 1 takes 25 minutes, 0.02 a minute"
    parser.addoption("--rehearsal", type=float, metavar="FACTOR", help=text)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_targets(images, labels, rate=0.3, seed=0):
    return (np.random.default_rng(seed).random((images, labels)) < rate).astype(np.uint8)


def gcn_head(n, d, num_features):
    """A head of n labels with d numbers per node, whose parameters are counted."""
    return iml_gcn.LabelGCN(torch.zeros(n, d), torch.zeros(n, n), num_features)


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


def vg_photos(root, names):
    """Small photos, every second one in the second folder."""
    for i, name in enumerate(names):
        folder = root / ("VG_100K_2" if i % 2 else "VG_100K")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * i % 255, 50, 99)).save(folder / name)


def write_vg(root):
    """VG-500's release of three photos with 3 labels, of which one is tested; another is in its
    index alone."""
    (root / "train_list_500.txt").write_bytes(b"12.jpg\r\n7.jpg\r\n")
    (root / "test_list_500.txt").write_bytes(b"8.jpg")  # no newline at the end
    index = '{"7.jpg": [2], "8.jpg": [0, 2, 2], "12.jpg": [1], "99.jpg": [1]}'
    (root / "vg_category_500_labels_index.json").write_text(index)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    scenes.make_demo(root, seed=0, train=24, val=12)
    return root


def demo_split(demo, name):
    return data.load_coco(demo / f"annotations/instances_{name}.json", demo / name)


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


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the whole run, to go on from."""
    return shutil.copytree(finished, tmp_path / "out")


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def scores_of(out, name):
    """Logits and targets (M, n) that a run has stored of a model."""
    with np.load(out / f"scores-{name}.npz", allow_pickle=False) as file:
        return file["logits"], file["targets"]


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def refused(capsys, arguments):
    """The sentence with which run.py ends, with code 2."""
    capsys.readouterr()
    try:
        code = run.main(arguments)
    except SystemExit as stop:  # argparse's
        code = stop.code
    errors = capsys.readouterr().err
    assert code == 2, errors
    sentence = errors[errors.index("error: ") :].strip()  # after argparse's usage
    assert len(sentence.split("\n  ")[0].splitlines()) == 1  # a tree of folders is indented
    return sentence


def assert_same_run(out, other):
    """Weights, metrics and log of two runs are equal to the last bit."""
    for path in [*other.glob("*.pt"), *other.glob("metrics-*.json"), other / "log.jsonl"]:
        if path.suffix != ".pt":  # the log's lines are in the order in which they came
            ours, theirs = (sorted((p / path.name).read_text().splitlines()) for p in (out, other))
            assert ours == theirs, path.name
            continue
        ours, theirs = (torch.load(p, weights_only=True) for p in (out / path.name, path))
        ours, theirs = ours.get("state_dict", ours), theirs.get("state_dict", theirs)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if torch.is_tensor(value) else ours[key] == value
            assert same, f"{path.name}: {key}"
    assert not list(out.glob("last-*"))


ROOT = Path(run.__file__).parent


# Predictions


LABELS = ["cat", "traffic light", "dog\x1b[2J\n", "café", "x" * 90, "umbrella", "tie"]


@pytest.fixture(scope="session")
def predictor(tmp_path_factory):
    """A checkpoint of random weights at 64 px, and its model."""
    torch.manual_seed(0)
    model = iml_gcn.Model(tresnet.tresnet_tiny(), torch.nn.Linear(512, len(LABELS))).eval()
    torch.nn.init.normal_(model.head.weight)  # scores from 0 to 1, not all about 0.5
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
    assert predict.main(["--device", "cpu", *(str(part) for part in argv)]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err
