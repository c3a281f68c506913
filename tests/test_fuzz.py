"""Files damaged in thousands of ways are read as what they say, or refused in one sentence of ours.

Nothing else may happen: no other error, no file elsewhere, no program, no connection, no warning,
not 20 s, not two gigabytes. `--fuzz N` tries N files in all, `--fuzz-case I` repeats one.
"""

import copy
import io
import json
import math
import os
import signal
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, coco_document, write_coco, write_vg
from PIL import Image
from test_backbones import IMAGES, TINY, released_network
from test_hostile import DEEP, assert_sentence
from torch import nn

import backbones
import data
import iml_gcn
import tresnet
from runtime.folder import Folder

TOKENS = b'NaN Infinity 1e999 -1 0 null true [[[]]] {} " \\ \\ud800 ../ , : [ ] }'.split()
TOKENS += [b'"segmentation":[', b'"id":', b'"name":"', b"9" * 5000, b"[" * 5000, b"x" * 100_000]
TOKENS += [b"\xff\xfe", b"\xe2\x80\xae", b"\0", b"\x1b[31m", b"\n", b" ", b"PK\3\4", b"\xff" * 8]
VALUES = [math.nan, math.inf, -1, 0, 1.5, 2**63, 10**400, None, True, [], {}, DEEP, {"id": 1}]
VALUES += ["", " ", "\ud800", "\x1b[2J\n", "\u202e", "a\0b", "x" * 100_000, "NaN", "7"]
VALUES += ["../../x", "/etc/passwd", "C:\\x", "a\\..\\..\\x"]


def pick(rng, values):
    return values[rng.integers(len(values))]


def mutate_bytes(rng, content):
    """A piece, or all that follows, makes room for nothing, noise, a token or another piece."""
    for _ in range(rng.integers(1, 4)):
        at, other = rng.integers(len(content) + 1, size=2)
        size = pick(rng, [0, 1, 1, 8, 200])
        new = pick(rng, [b"", rng.bytes(size), pick(rng, TOKENS), content[other : other + size]])
        rest = b"" if rng.random() < 0.1 else content[at + size :]
        content = content[:at] + new + rest
    return content


def places(tree):
    """Every place in these dicts and lists, as (container, key)."""
    if not isinstance(tree, (dict, list)):
        return []
    here = [(tree, key) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    return here + [place for node, key in here for place in places(node[key])]


def mutate_tree(rng, tree, values=VALUES):
    """Something deleted, replaced or added: a value from outside, or from elsewhere in the tree."""
    for _ in range(rng.integers(1, 4)):
        if not (found := places(tree)):
            break
        (node, key), (other, place) = pick(rng, found), pick(rng, found)
        new = pick(rng, values)
        new = copy.deepcopy(pick(rng, [new, new, other[place], [node[key]]]))
        match rng.integers(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, list):
                node.insert(key, new)
            case 1:
                node[str(pick(rng, VALUES))] = new
            case _:
                node[key] = new
    return tree


def mutate_json(rng, content):
    tree = mutate_tree(rng, json.loads(content))
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def mutate_checkpoint(rng, content):
    tree = torch.load(io.BytesIO(content), weights_only=True)
    values = [*VALUES, torch.zeros(()), torch.zeros(0), torch.ones(3, dtype=bool)]
    values += [torch.full((16,), math.nan), torch.zeros(2, 2, dtype=torch.complex64)]
    buffer = io.BytesIO()
    torch.save(mutate_tree(rng, tree, values), buffer)
    return buffer.getvalue()


def mutate_zip(rng, content):
    """A member damaged, half the time the pickle; maybe all compressed. Checksums are right."""
    buffer = io.BytesIO()
    method = pick(rng, [zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = pick(rng, pick(rng, [names, pickles]))
        for name in names:
            member = old.read(name)
            new.writestr(name, mutate_bytes(rng, member) if name == chosen else member)
    return buffer.getvalue()


WAYS = {".json": [mutate_json, mutate_json, mutate_bytes]}
WAYS[".pt"] = [mutate_checkpoint, mutate_checkpoint, mutate_zip, mutate_bytes]

# A kind of file: a function that writes good ones and returns how they are read, and what may come.


def assert_split(split, folder):
    assert split.targets.shape == (len(split.paths), len(split.classes))
    assert split.targets.max(initial=0) <= 1
    assert len({str(name) for name in split.classes} - {""}) == len(split.classes)
    assert all(os.path.normpath(path).startswith(f"{folder}/") for path in split.paths)


def fuzz_coco(folder):
    path = write_coco(folder, coco_document() | {"info": {"year": 1.5}, "more": [1e5, 2.5]})

    def read(_):
        assert_split(data.load_coco(path, folder / "photos"), folder / "photos")

    return read


def fuzz_vg500(folder):
    write_vg(folder)

    def read(_):
        for split in data.load_vg500(folder):
            assert_split(split, folder / "VG_100K")

    return read


def fuzz_glove(folder):
    path = folder / "glove.txt"
    text = "light 1 2 3\ntraffic 3 0 -1\n\u00a0 7 7 7\n. . 8 8 8\nunused a b c\ntv 5 5 5.5e-3\n"
    path.write_text(text, encoding="utf-8")

    def read(_):
        nodes, _ = data.load_glove(path, ["traffic light", "tv-set"])
        assert nodes.isfinite().all()

    return read


def fuzz_weights(folder):
    state = {"epoch": 3, "model": released_network(*TINY, IMAGES)[0]}
    torch.save(state, folder / "weights.pt")
    old = folder / "old.pth"  # of torch before 1.6: no archive
    torch.save(state, old, _use_new_zipfile_serialization=False)

    def read(damaged):
        backbones.load_weights(tresnet.tresnet_tiny(), damaged)

    return read


def fuzz_checkpoints(folder):
    classes = [f"label {j}" for j in range(6)]
    graph = iml_gcn.LabelGCN(torch.rand(6, 5), torch.rand(6, 6), 512, hidden=7)
    for name, head in [("backbone.pt", nn.Linear(512, 6)), ("gcn-pca.pt", graph)]:
        state = iml_gcn.Model(tresnet.tresnet_tiny(), head).state_dict()
        model = {"classes": classes, "backbone": "tresnet_tiny", "pool": "avg", "epochs": 2}
        model |= {"settings": {"lr": 0.001}, "image_size": 32, "state_dict": state}
        torch.save(model, folder / name)
    embeddings = {"classes": classes, "settings": {"lr": 0.001}, "image": torch.rand(6, 512)}
    torch.save(embeddings | {"pca": torch.rand(6, 6)}, folder / "embeddings.pt")

    def read(damaged):
        if damaged.name == "embeddings.pt":
            Folder(folder, classes).load(damaged.name, "embed", embeddings["settings"])
        elif damaged.name == "backbone.pt":
            backbones.load_weights(tresnet.tresnet_tiny(), damaged)
        else:
            backbones.load_model(damaged)

    return read


PHOTOS = {"a.jpg": "RGB", "b.jpg": "CMYK", "c.png": "RGBA", "d.png": "P", "e.tif": "I"}
PHOTOS |= {"f.tif": "RGB", "g.gif": "P", "h.webp": "RGBA", "i.bmp": "RGB"}


def fuzz_photos(folder):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 4), dtype=np.uint8)
    options = {"progressive": True, "compression": "tiff_lzw"}
    for name, mode in PHOTOS.items():
        Image.fromarray(pixels).convert(mode).save(folder / name, **options)

    def read(damaged):
        split = data.Split([str(damaged)], np.zeros((1, 1)), [])
        for augment in (False, True):
            image, _, _, error = data.MultiLabelImages(split, 16, augment)[0, 0]
            if error:
                raise ValueError(error)
            assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)

    return read


KINDS = [fuzz_coco, fuzz_vg500, fuzz_glove]
KINDS += [fuzz_weights, fuzz_checkpoints, fuzz_photos]

STRAYED = []  # what was done outside WATCHED, the folder of the file that is being read
WATCHED = ""
PYTHON = (sys.prefix, sys.base_prefix, str(ROOT))  # modules may be loaded while a file is read
NEVER = ("os.mkdir", "os.remove", "os.rename", "os.symlink", "os.truncate", "pickle.find_class")
NEVER += ("subprocess.Popen", "os.system", "os.exec", "socket.connect")


def watch(event, arguments):
    """An audit hook. Idle while WATCHED is "": there is no way to take one off again."""
    if WATCHED and event == "open" and not isinstance(arguments[0], int):
        path, _, flags = arguments
        known = os.path.abspath(os.fsdecode(path)).startswith((WATCHED, *PYTHON))
        if not known or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            STRAYED.append((event, *arguments))
    elif WATCHED and event in NEVER:
        STRAYED.append((event, *arguments))


sys.addaudithook(watch)


@pytest.fixture
def limits():
    """20 s a file, from signal.alarm(20) on, and no more memory than now and two gigabytes."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), memory[1]))
    # What fail raises is no Exception: nothing but pytest catches it.
    handler = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("longer than 20 s"))
    yield
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, memory)


def assert_read_or_refused(read, path):
    global WATCHED
    STRAYED.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        WATCHED = str(path.parent)
        signal.alarm(20)
        try:
            read(path)
        except (ValueError, FileNotFoundError) as error:
            assert_sentence(error, WATCHED)
        finally:
            signal.alarm(0)
            WATCHED = ""
    assert not STRAYED
    assert not warned, str(warned[0])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="its limits are Linux's")
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__[5:]) for kind in KINDS])
def test_fuzz(kind, tmp_path, monkeypatch, request, limits):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    read = kind(tmp_path)
    files = [path for path in sorted(tmp_path.iterdir()) if path.is_file()]
    originals = {path: path.read_bytes() for path in files}
    for path in originals:
        read(path)
    only = request.config.getoption("--fuzz-case")
    cases = range(request.config.getoption("--fuzz") // len(KINDS)) if only is None else [only]
    for case in cases:
        rng = np.random.default_rng((KINDS.index(kind), case))  # the seed is kind and case
        path = pick(rng, list(originals))
        mutate = pick(rng, WAYS.get(path.suffix, [mutate_bytes]))
        path.write_bytes(mutate(rng, originals[path]))
        try:
            assert_read_or_refused(read, path)
        except BaseException:
            print(f"case {case}, {mutate.__name__}, is {path}; repeat it with --fuzz-case {case}")
            raise
        path.write_bytes(originals[path])
