"""Speed and memory on this machine's CPU, beside the peers that are installed.  Typical use:

    python -m experiments.bench                # every section, 10 to 15 minutes on 2 cores
    python -m experiments.bench model train    # some of: model train input reader metrics graph
    pip install timm torchvision scikit-learn torchmetrics pycocotools    # the peers, all optional

Ours and the peers take turns within one run (ours, peer, ours, peer, ...), so that whatever else
the machine does falls on all of them. Figures are medians over --rounds; a ratio "peer / ours"
above 1 means that ours is faster or smaller. Weights are random, which time and memory do not show.

Symbols: B images in a batch, M images in a split, n labels, D image feature size, S image side.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import data
import iml_gcn
import metrics
import tresnet
from runtime import loading

PEERS = {  # module -> its name for pip
    "timm": "timm",
    "sklearn.metrics": "scikit-learn",
    "torchmetrics.functional.classification": "torchmetrics",
    "pycocotools.coco": "pycocotools",
}
LABELS = 80  # COCO's
INFERENCE = [(8, 448), (16, 224)]  # B, S; run.py's size and ASL's
SCORES = [(40_504, 80), (10_000, 500)]  # M, n; COCO's val2014 and VG-500's test photos
GRAPHS = [(80, 10_000), (80, 80_000), (500, 10_000), (500, 80_000), (5_000, 10_000)]  # n, M
PHOTOS = 64  # run.py's batch
COCO = (82_783, 604_907)  # images and annotations of instances_train2014.json


def clock(function: Callable) -> tuple[float, object]:
    """Seconds of one call, and what it returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def timed(function: Callable) -> Callable[[], float]:
    """A function that returns the seconds of a call. One call is made here and not counted: it
    pays for what later ones find ready (kernels, memory, files)."""
    function()
    return lambda: clock(function)[0]


@contextlib.contextmanager
def one_thread():
    """For work that has nothing to share out: a torch with threads would only wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alternate(rounds: int, **functions: Callable) -> dict:
    """Medians of the numbers, or lists of numbers, that the functions return, called in turns."""
    values = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            values[name].append(function())
    return {name: np.median(found, axis=0) for name, found in values.items()}


def child(function: str, *arguments):
    """bench.<function>(*arguments) in a process of its own, whose peak memory is its alone."""
    code = f"import json; from experiments import bench; found = bench.{function}(*{arguments!r})"
    command = [sys.executable, "-c", f"{code}; print(json.dumps(found))"]
    here = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise ValueError(f"bench.{function} gave no figures: {reason}")
    return json.loads(done.stdout.splitlines()[-1])  # after what a peer says on being imported


def peak_mb() -> float:
    """The most memory this process ever held, in MiB. On Linux ru_maxrss starts at the parent's."""
    if os.path.isfile("/proc/self/status"):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def saved_bytes(forward: Callable, left_out: Iterable[torch.Tensor] = ()) -> int:
    """Bytes `forward` keeps for backward, every storage once, those of `left_out` not."""
    known = {tensor.untyped_storage().data_ptr() for tensor in left_out}
    storages = {}  # pointer -> storage; held, so that a pointer is not used for a second one

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for key, storage in storages.items() if key not in known)


def inference(model, images: torch.Tensor, layout=torch.channels_last) -> Callable[[], float]:
    model, images = model.to(memory_format=layout), images.contiguous(memory_format=layout)
    return timed(torch.inference_mode()(partial(model, images)))


def convolution_ceiling(dtype: torch.dtype) -> float:
    """GFLOP/s of the best of three 3x3 convolutions, of sizes TResNet-M has at 448 px."""
    best = 0.0
    for C, side in ((64, 112), (128, 56), (256, 28)):
        layer = torch.nn.Conv2d(C, C, 3, padding=1, bias=False, dtype=dtype)
        run = inference(layer, torch.rand(8, C, side, side, dtype=dtype))
        best = max(best, 2 * 9 * C * (8 * C * side**2) / min(run() for _ in range(5)) / 1e9)
    return best


def peer(module: str):
    """The module, or None after a line that says how to get it."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        absent = (getattr(error, "name", None) or "").split(".")[0] == module.split(".")[0]
        reason = "not installed" if absent else f"{module} cannot be imported ({error})"
        print(f"{reason}: pip install {PEERS[module]}")


def table(title: str, names: list[str], rows: list[tuple[str, str, dict]]) -> None:
    """Rows of (label, format, {name: figure}). Every name after the first is followed by its ratio
    to the first; the cells of a name without figure, a peer that is not there, stay empty."""
    first, *others = names
    lines = [[title, first, *(cell for name in others for cell in (name, f"{name} / {first}"))]]
    for label, text, figures in rows:
        lines.append([label, text.format(figures[first])])
        for name in others:
            there = name in figures
            lines[-1].append(text.format(figures[name]) if there else "")
            lines[-1].append(f"{figures[name] / figures[first]:.2f}" if there else "")
    markdown(lines)


def markdown(lines: list[list[str]]) -> None:
    print()
    for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]):
        print(f"| {' | '.join(line)} |", flush=True)


# The sections; a docstring is the section's title


def bench_model(args) -> None:
    """inference at B x S px, TResNet-M with 80 labels, ours folded"""
    timm = peer("timm")
    backbone, rows = tresnet.tresnet_m(), []
    D = backbone.num_features
    nodes = iml_gcn.pca(torch.randn(LABELS, D), LABELS)  # (n, n)
    head = iml_gcn.LabelGCN(nodes, torch.eye(LABELS), D)
    models = {"direct": iml_gcn.Model(backbone, iml_gcn.linear_head(D, LABELS)).eval()}
    models |= {"IML-GCN": iml_gcn.Model(backbone, head).eval()}
    layouts = {"timm": torch.contiguous_format, "timm channels_last": torch.channels_last}
    for B, S in INFERENCE:
        images = torch.rand(B, 3, S, S)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            models["direct"](images[:1])
        gflop = B * counter.get_total_flops() / 1e9  # a multiply-add counts as two
        for dtype in args.dtypes:
            runs = {}
            for name, model in models.items():
                model = model.fold()
                model.backbone.to(dtype)  # the head stays float32, as under autocast
                runs[name] = inference(model, images.to(dtype))
            for name, layout in layouts.items() if timm else ():
                model = timm.create_model("tresnet_m", num_classes=LABELS).eval()
                runs[name] = inference(model, images, layout)
            medians = alternate(args.rounds, **runs)
            label, ms, share = f"{B} x {S} px, {str(dtype)[6:]}", {}, {}
            for name, seconds in medians.items():
                ceiling = args.ceilings[dtype if name in models else torch.float32]
                ms[name], share[name] = 1000 * seconds / B, 100 * gflop / seconds / ceiling
            rows.append((f"{label}, ms an image", "{:.1f}", ms))
            rows.append((f"{label}, % of the ceiling", "{:.0f}", share))
    models["IML-GCN"].head = head.to_linear()
    counts = {k: sum(p.numel() for p in model.parameters()) for k, model in models.items()}
    rows.append(("parameters before folding", "{:,}", counts))
    table("", ["direct", "IML-GCN", *layouts], rows)


def bench_train(args) -> None:
    """training at 224 px, TResNet-M in channels_last: forward, ASL, backward, fused Adam"""
    names = ["ours", "timm"] if peer("timm") else ["ours"]
    B, rows = args.batch_size, []
    for dtype in (torch.float32, torch.bfloat16):  # memory, also of a dtype too slow to time
        steps, kept, peaks = {}, {}, {}
        for name in names:
            step, loss, constants = training(name, dtype, B)
            kept[name] = saved_bytes(loss, constants) / B / 2**20
            if dtype in args.dtypes:
                steps[name] = timed(step)
                peaks[name] = child("training_peak", name, str(dtype)[6:], B)
        rows.append((f"{str(dtype)[6:]}, MiB kept for backward an image", "{:.1f}", kept))
        if steps:
            rows.append(("s a step", "{:.2f}", alternate(args.rounds, **steps)))
            rows.append(("MiB at the peak of a process", "{:,.0f}", peaks))
    table(f"B = {B}", ["ours", "timm"], rows)


def training(name: str, dtype: torch.dtype, B: int) -> tuple[Callable, Callable, list]:
    """A step as run.py's loop has it, its loss alone, and the tensors that are no activations."""
    if name == "timm":
        model = importlib.import_module("timm").create_model("tresnet_m", num_classes=LABELS)
    else:
        backbone = tresnet.tresnet_m()
        model = iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, LABELS))
    model = model.train().to(memory_format=torch.channels_last)
    images = torch.rand(B, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(B, LABELS) < 2.9 / 80).float()  # (B, n), as many as a COCO photo has
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss(side: int = 224) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(images[..., :side, :side])  # (B, n)
        return iml_gcn.asymmetric_loss(logits, targets)

    def step(side: int = 224) -> None:
        value = loss(side)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step, loss, [*model.parameters(), *model.buffers()]


def training_peak(name: str, dtype: str, B: int) -> float:
    step, _, _ = training(name, getattr(torch, dtype), B)
    step(side=64)  # makes Adam's averages, which every step but the first finds there
    step()
    return peak_mb()


@one_thread()
def bench_input(args) -> None:
    """training photos read, augmented at 448 px and collated, one process, one thread"""
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.photos or draw_photos(Path(temporary))
        paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg")]
        paths = paths[:PHOTOS]
        if not paths:
            raise ValueError(f"{folder} has no .jpg in it; give --photos a folder of JPEGs")
        split = data.Split(paths, np.zeros((len(paths), LABELS), np.uint8), [])
        ours, rows = data.MultiLabelImages(split, 448, augment=True), range(len(paths))
        runs = {"ours": lambda: loading.collate([ours[0, i] for i in rows])}
        runs["ASL"] = lambda: torch.stack([asl_image(paths[i], 448, i) for i in rows])
        medians = alternate(args.rounds, **{name: timed(run) for name, run in runs.items()})
        kb = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    ms = {name: 1000 * seconds / len(paths) for name, seconds in medians.items()}
    kind = "photos" if args.photos else "drawn photos, smooth noise"
    title = f"{len(paths)} {kind}, {kb:.0f} KB each; ASL's steps rebuilt with Pillow"
    table(title, ["ours", "ASL"], [("ms an image and core", "{:.1f}", ms)])
    print("\n" + ", ".join(f"{k} {1000 / each:.1f}" for k, each in ms.items()) + " images/s a core")


def asl_image(path: Path, S: int, row: int) -> torch.Tensor:
    """Difference 10's steps in ASL's order, (3, S, S) float32 in [0, 1]; drawn as ours are."""
    image = Image.open(path).convert("RGB").resize((S, S), Image.Resampling.BILINEAR)
    image = data.augment(image, np.random.default_rng((0, 0, row)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def draw_photos(folder: Path) -> Path:
    """Noise of four scales, 640 x 480: about as many bytes as COCO's photos have, 160 KB."""
    rng, size = np.random.default_rng(0), (640, 480)
    for i in range(PHOTOS):
        photo = Image.new("RGB", size)
        for cell, share in ((160, 1.0), (40, 0.4), (8, 0.3), (2, 0.2)):  # px, weight
            noise = rng.integers(0, 256, (480 // cell, 640 // cell, 3), dtype=np.uint8)
            noise = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
            photo = Image.blend(photo, noise, share)
        photo.save(folder / f"{i:02}.jpg", quality=95)
    return folder


def bench_reader(args) -> None:
    """COCO's annotations, read in processes of their own; peaks hold Python and torch too"""
    with tempfile.TemporaryDirectory() as folder:
        path = str(args.json or write_coco(Path(folder, "drawn.json"), *COCO))
        runs = {"ours": partial(child, "read_ours", path)}
        if peer("pycocotools.coco"):
            runs["pycocotools"] = partial(child, "read_pycocotools", path)
        medians = alternate(args.rounds, **runs)
        title = f"{Path(path).name}, {os.path.getsize(path) / 1e6:,.0f} MB"
    kinds = [("s", "{:.2f}"), ("MiB at the peak", "{:,.0f}"), ("labels found", "{:,.0f}")]
    rows = [(*kind, {k: m[i] for k, m in medians.items()}) for i, kind in enumerate(kinds)]
    table(title, ["ours", "pycocotools"], rows)


def read_ours(path: str) -> list[float]:
    seconds, split = clock(partial(data.load_coco, path, "photos"))
    return [seconds, peak_mb(), int(split.targets.sum())]


def read_pycocotools(path: str) -> list[float]:
    module = importlib.import_module("pycocotools.coco")
    with contextlib.redirect_stdout(None):
        seconds, coco = clock(partial(module.COCO, path))
    peak = peak_mb()
    return [seconds, peak, len({(a["image_id"], a["category_id"]) for a in coco.anns.values()})]


def write_coco(path: Path, images: int, annotations: int) -> Path:
    """A file with the keys, counts and size of COCO's; its polygons are taken from 1,000."""
    rng = np.random.default_rng(0)
    outlines = [rng.uniform(0, 640, 2 * k).round(2).tolist() for k in rng.integers(5, 65, 1000)]
    shape = '"segmentation": [%s], "area": 1234.5, "iscrowd": 0, "bbox": [1.5, 2.5, 30.5, 40.5]'
    shapes = [shape % outline for outline in outlines]
    photo = '{"license": 1, "file_name": "COCO_train2014_%012d.jpg", "height": 480, "width": 640, '
    photo += '"date_captured": "2013-11-14 16:28:13", "coco_url": "http://%s", "id": %d}'
    drawn = [rng.integers(most, size=annotations).tolist() for most in (1000, images, LABELS)]
    labels = [{"supercategory": "drawn", "id": j, "name": f"label {j}"} for j in range(LABELS)]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "categories": {json.dumps(labels)}, "images": [')
        file.write(", ".join(photo % (i, "x" * 90, i) for i in range(images)))
        file.write('], "annotations": [')
        for i, (k, image, label) in enumerate(zip(*drawn, strict=True)):
            ids = f'"image_id": {image}, "category_id": {label}, "id": {i}'
            file.write(f"{', ' if i else ''}{{{shapes[k]}, {ids}}}")
        file.write("]}")
    return path


@one_thread()
def bench_metrics(args) -> None:
    """average precision of every label, half of them with tied scores; one thread"""
    sklearn, torchmetrics = peer("sklearn.metrics"), peer("torchmetrics.functional.classification")
    rows = []
    for M, n in SCORES:
        rng = np.random.default_rng(0)
        targets = rng.random((M, n)) < np.geomspace(0.5, 10 / M, n)  # (M, n), from common to rare
        targets[0] = True  # every label has a positive
        scores = (rng.random((M, n)) * (0.7 + 0.3 * targets)).astype(np.float32)  # (M, n)
        scores[:, ::4], scores[:, 1::4] = scores[:, ::4].round(2), scores[:, 1::4].round(3)
        calls = {"ours": partial(metrics.average_precision, scores, targets)}
        if sklearn:
            function = sklearn.average_precision_score
            calls["scikit-learn"] = partial(function, targets, scores, average=None)
        if torchmetrics:
            function = partial(torchmetrics.multilabel_average_precision, average="none")
            tensors = torch.from_numpy(scores), torch.from_numpy(targets).int()
            calls["torchmetrics"] = partial(function, *tensors, num_labels=n, thresholds=None)
        ap = {name: np.asarray(call()) for name, call in calls.items()}  # (n,) each
        runs = {name: timed(call) for name, call in calls.items()}
        rows.append((f"{M:,} x {n}, s", "{:.3f}", alternate(args.rounds, **runs)))
        for name in list(ap)[1:]:
            difference = np.abs(ap[name] - ap["ours"]).max()
            print(f"{M:,} x {n}: largest difference from {name} {difference:.1e}, of APs in 0..1")
    table("M x n", ["ours", "scikit-learn", "torchmetrics"], rows)


def bench_graph(args) -> None:
    """label graph and embeddings: seconds, measured once, a process for each line"""
    steps = ["co-occurrence", "A_hat", "LabelMeans of M images", "pca", "GCN forward"]
    lines = [["n", "M", *steps, "MiB at the peak"]]
    for n, M in GRAPHS:
        *seconds, peak = child("graph_figures", n, M)
        lines.append([f"{n:,}", f"{M:,}", *(f"{s:.3f}" for s in seconds), f"{peak:,.0f}"])
    markdown(lines)


def graph_figures(n: int, M: int, D: int = 2048) -> list[float]:
    targets = torch.zeros(M, n, dtype=torch.uint8)  # (M, n)
    targets.scatter_(1, torch.randint(n, (M, 8)), 1)
    features, F_I = torch.randn(64, D), torch.randn(n, D)  # a batch of run.py's, all of Eq. 5

    def averages():
        means = iml_gcn.LabelMeans(n, D)
        for block in targets.split(len(features)):
            means.update(features[: len(block)], block)
        return means.mean()

    counting, counts = clock(lambda: iml_gcn.cooccurrence(targets))
    building, A_hat = clock(lambda: iml_gcn.normalise(iml_gcn.adjacency(*counts)))
    averaging, _ = clock(averages)
    projecting, nodes = clock(lambda: iml_gcn.pca(F_I, min(n, D)))
    forward, _ = clock(torch.no_grad()(iml_gcn.LabelGCN(nodes, A_hat, D).classifiers))
    return [counting, building, averaging, projecting, forward, peak_mb()]


SECTIONS = {"model": bench_model, "train": bench_train, "input": bench_input}
SECTIONS |= {"reader": bench_reader, "metrics": bench_metrics, "graph": bench_graph}


def describe_machine(args) -> None:
    """The first lines. Sets args.ceilings and args.dtypes, those that are timed."""
    cpu = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        cpu = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or cpu
    found = [f"torch {torch.__version__}"]
    for package in PEERS.values():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    print(f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {', '.join(found)}")
    args.ceilings = {d: convolution_ceiling(d) for d in (torch.float32, torch.bfloat16)}
    speeds = ", ".join(f"{str(d)[6:]} {most:.0f}" for d, most in args.ceilings.items())
    print(f"convolution ceiling, GFLOP/s: {speeds}")
    args.dtypes = list(args.ceilings)
    if args.ceilings[torch.bfloat16] < args.ceilings[torch.float32] and not args.bfloat16:
        args.dtypes.remove(torch.bfloat16)
        print("bfloat16 is the slower one on this CPU: timed only with --bfloat16")


def main(argv=None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add, names = parser.add_argument, ["all", *SECTIONS]
    add("sections", nargs="*", choices=names, default="all", help="one or several (all)")
    add("--rounds", type=int, default=5, help="(5: a median over two disturbed rounds)")
    add("--batch-size", type=int, default=16, help="of a training step (16: fits 8 GB of memory)")
    add("--photos", type=Path, metavar="DIR", help="JPEGs for `input` (drawn ones)")
    add("--json", type=Path, metavar="FILE", help="instances_*.json for `reader` (a drawn one)")
    add("--bfloat16", action="store_true", help="time it where float32 is faster, too")
    args, start = parser.parse_args(argv), time.monotonic()
    if min(args.rounds, args.batch_size) < 1:
        parser.error("--rounds and --batch-size must be 1 or more")
    if args.json:
        args.json = args.json.resolve()  # child processes work in another folder
    try:
        describe_machine(args)
        for name, section in SECTIONS.items():
            if name in args.sections or "all" in args.sections:
                print(f"\n### {name}: {section.__doc__}", flush=True)
                section(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{time.monotonic() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
