"""Files damaged in thousands of ways are read as what they say, or refused in one sentence of ours.

Nothing else may happen: no other error, no file elsewhere, no program, no connection, no warning,
not 20 s, not a gigabyte. `--fuzz N` tries N files in all, `--fuzz-case I` repeats one.
"""

import contextlib
import functools
import io
import json
import math
import os
import signal
import sys
import traceback
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coco_document, write_coco, write_vg
from PIL import Image
from test_backbones import IMAGES, TINY, released_network
from test_hostile import odd_tensors
from torch import nn

import backbones
import data
import iml_gcn
import tresnet
from runtime.folder import Folder


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


def copied(tree):
    """A deep copy but of tensors, which cannot all be copied."""
    if isinstance(tree, dict):
        return type(tree)((key, copied(value)) for key, value in tree.items())
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def mutate_tree(rng, tree, values=VALUES):
    """Values deleted, doubled, exchanged, wrapped, replaced, or under another key."""
    tree = copied(tree)
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
                node[key], other[place] = copied(other[place]), copied(node[key])
            case 4:
                node[key] = [node[key]]
            case 5 if isinstance(node, list):
                node.insert(key, copied(node[key]))
            case 5:
                node[str(value)] = node.pop(key)
            case 6:
                node[key] = copied(other[place])
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


def fuzz_weights(folder):
    path, old = folder / "weights.pth", folder / "old.pth"
    state = {"epoch": 3, "model": released_network(*TINY, IMAGES)[0]}
    torch.save(state, path)
    torch.save(state, old, _use_new_zipfile_serialization=False)  # torch before 1.6: no archive

    def read(damaged):
        head = backbones.load_weights(tresnet.tresnet_tiny(), damaged)
        assert all(type(value) is torch.Tensor for value in head.values())

    return read, {path: [mutate_checkpoint, mutate_zip, mutate_bytes], old: [mutate_bytes]}


def fuzz_checkpoints(folder, load_model=False):
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
        elif load_model:
            backbones.load_model(damaged)
        else:
            backbones.load_weights(tresnet.tresnet_tiny(), damaged)

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
        for augment in (False, True):
            image, _, _, error = data.MultiLabelImages(split, 16, augment)[0, 0]
            if image is None:
                with pytest.raises(ValueError, match="cannot read photo") as raised:
                    data.read_image(damaged, 16, draft=augment)
                assert str(raised.value) == error
                raise raised.value
            assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)

    return read, ways


FUZZED = [fuzz_coco, fuzz_lists, fuzz_objects, fuzz_glove]
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
        if Path(frame.filename).parent not in (source, source / "runtime", source / "backbones"):
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
