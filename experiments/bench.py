"""Speed and memory on this machine's CPU, beside timm's TResNet and ASL's steps.  Typical use:

    python -m experiments.bench --photos DIR   # every section, some 8 minutes on 2 cores
    python -m experiments.bench model train    # some of: model train input
    pip install timm                           # the peer, optional

Ours and the peer take turns within one run (ours, peer, ours, peer, ...), so that whatever else
the machine does falls on both. Figures are medians over --rounds; a ratio "peer / ours"
above 1 means that ours is faster or smaller. Weights are random, which time and memory do not show.

Symbols: B images in a batch, M images in a split, n labels, D image feature size, S image side.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.benchmark import Timer

import data
import iml_gcn
import tresnet
from runtime import loading

LABELS = 80  # COCO's
INFERENCE = [(8, 448), (16, 224)]  # B, S; run.py's size and ASL's
PHOTOS = 64  # run.py's batch


def alternate(rounds: int, threads: int | None = None, **functions: Callable) -> dict[str, float]:
    """Median seconds of the functions, called in turns after a first call that is not counted: it
    pays for what later ones find ready (kernels, memory, files)."""
    threads = threads or torch.get_num_threads()
    timers = {
        name: Timer("f()", globals={"f": function}, num_threads=threads)
        for name, function in functions.items()
    }
    seconds = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, timer in timers.items():
            found = timer.timeit(1).median
            if i:
                seconds[name].append(found)
    return {name: float(np.median(found)) for name, found in seconds.items()}


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


def peer():
    """timm, or None after a line that says so."""
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        print(f"without timm: {error}")


def table(title: str, names: list[str], rows: list[tuple[str, str, dict]]) -> None:
    """Markdown rows of (label, format, {name: figure}). Every name after the first is followed by
    its ratio to the first; the cells of a name without figure, a peer that is not there, are empty.
    """
    first, *others = names
    lines = [[title, first, *(cell for name in others for cell in (name, f"{name} / {first}"))]]
    lines.append(["---"] * len(lines[0]))
    for label, text, figures in rows:
        lines.append([label, text.format(figures[first])])
        for name in others:
            there = name in figures
            lines[-1].append(text.format(figures[name]) if there else "")
            lines[-1].append(f"{figures[name] / figures[first]:.2f}" if there else "")
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


# The sections; a docstring is the section's title


def bench_model(args) -> None:
    """inference at B x S px in float32, TResNet-M with 80 labels, ours folded"""
    timm, rows = peer(), []
    model = direct_model().fold()
    for B, S in INFERENCE:
        images = torch.rand(B, 3, S, S)
        ours = partial(model, images.contiguous(memory_format=torch.channels_last))
        runs = {"ours": torch.inference_mode()(ours)}
        if timm:
            other = timm.create_model("tresnet_m", num_classes=LABELS).eval()
            runs["timm"] = torch.inference_mode()(partial(other, images))
        ms = {k: 1000 * seconds / B for k, seconds in alternate(args.rounds, **runs).items()}
        rows.append((f"{B} x {S} px, ms an image", "{:.1f}", ms))
    table("", ["ours", "timm"], rows)


def direct_model() -> iml_gcn.Model:
    backbone = tresnet.tresnet_m()
    return iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, LABELS))


def bench_train(args) -> None:
    """training at 224 px, TResNet-M in channels_last: forward, ASL, backward, fused Adam"""
    timm, B = peer(), args.batch_size
    models = {"ours": direct_model()}
    if timm:
        models["timm"] = timm.create_model("tresnet_m", num_classes=LABELS)
    images = torch.rand(B, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(B, LABELS) < 2.9 / 80).float()  # (B, n), as many as a COCO photo has
    steps, kept = {}, {}
    for name, model in models.items():
        model = model.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

        def loss(model=model) -> torch.Tensor:
            return iml_gcn.asymmetric_loss(model(images), targets)

        def step(loss=loss, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        steps[name] = step
        constants = [*model.parameters(), *model.buffers()]
        kept[name] = saved_bytes(loss, constants) / B / 2**20
    rows = [("MiB kept for backward an image", "{:.1f}", kept)]
    rows.append(("s a step", "{:.2f}", alternate(args.rounds, **steps)))
    table(f"B = {B}", ["ours", "timm"], rows)


def bench_input(args) -> None:
    """training photos read, augmented at 448 px and collated, one process, one thread"""
    if not args.photos:
        print("needs --photos, a folder of JPEGs")
        return
    paths = sorted(p for p in args.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[:PHOTOS]
    if not paths:
        raise ValueError(f"{args.photos} has no .jpg in it; give --photos a folder of JPEGs")
    split = data.Split(paths, np.zeros((len(paths), LABELS), np.uint8), [])
    ours, rows = data.MultiLabelImages(split, 448, augment=True), range(len(paths))
    runs = {"ours": lambda: loading.collate([ours[0, i] for i in rows])}
    runs["ASL"] = lambda: torch.stack([asl_image(paths[i], 448, i) for i in rows])
    medians = alternate(args.rounds, threads=1, **runs)
    ms = {name: 1000 * seconds / len(paths) for name, seconds in medians.items()}
    kb = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    title = f"{len(paths)} photos, {kb:.0f} KB each; ASL's steps rebuilt with Pillow"
    table(title, ["ours", "ASL"], [("ms an image and core", "{:.1f}", ms)])


def asl_image(path: Path, S: int, row: int) -> torch.Tensor:
    """Difference 10's steps in ASL's order, (3, S, S) float32 in [0, 1]; drawn as ours are."""
    image = Image.open(path).convert("RGB").resize((S, S), Image.Resampling.BILINEAR)
    image = data.augment(image, np.random.default_rng((0, 0, row)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


SECTIONS = {"model": bench_model, "train": bench_train, "input": bench_input}


def describe_machine() -> None:
    cpu = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        cpu = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or cpu
    print(f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch ", end="")
    print(torch.__version__, getattr(peer(), "__version__", ""), sep=", timm ")


def main(argv=None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add, names = parser.add_argument, ["all", *SECTIONS]
    add("sections", nargs="*", choices=names, default="all", help="one or several (all)")
    add("--rounds", type=int, default=5, help="(5: a median over two disturbed rounds)")
    add("--batch-size", type=int, default=16, help="of a training step (16: fits 8 GB of memory)")
    add("--photos", type=Path, metavar="DIR", help="JPEGs for `input`")
    args = parser.parse_args(argv)
    if min(args.rounds, args.batch_size) < 1:
        parser.error("--rounds and --batch-size must be 1 or more")
    try:
        describe_machine()
        for name, section in SECTIONS.items():
            if name in args.sections or "all" in args.sections:
                print(f"\n### {name}: {section.__doc__}", flush=True)
                section(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
