"""What more than one file of tests uses; and an option: how many damaged files to try."""

import http.server
import io
import json
import re
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import iml_gcn
import run
from extras import demo as scenes
from extras import download


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        default=450,
        metavar="N",
        help="cases of the tests of damaged files, in all (450, some seconds; 10000 some minutes)",
    )
    parser.addoption(
        "--fuzz-case",
        type=int,
        metavar="I",
        help="the case to repeat alone, as a failure names it; add -k <kind>",
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_targets(images, labels, rate=0.3, seed=0):
    return (np.random.default_rng(seed).random((images, labels)) < rate).astype(np.uint8)


def label_gcn(n=5, d=7, D=6, A_hat=None, nodes=None):
    torch.manual_seed(0)
    A_hat = random(n, n, seed=2).abs() if A_hat is None else A_hat
    nodes = random(n, d, seed=1) if nodes is None else nodes
    return iml_gcn.LabelGCN(nodes, A_hat, D, hidden=9).double()


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


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    scenes.make_demo(root, seed=0, train=24, val=12)
    return root


def demo_split(demo, name):
    return data.load_coco(demo / f"annotations/instances_{name}.json", demo / name)


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
    assert not (out / "last-backbone.pt").exists()


def program(*arguments, **options):
    """A process of its own, as a user starts it."""
    here = Path(run.__file__).parent
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=here, stdout=pipe, stderr=pipe, text=True, **options)


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
