"""Speed and memory of TResNet-M on this machine, beside timm's.  Typical use:

    pip install timm                    # the peer, optional
    python -m experiments.bench         # the CPU: some 6 minutes on 2 cores
    python -m experiments.bench gpu     # a card: is it right, how fast, how much memory -> gpu.json

Ours and the peer take turns (ours, peer, ours, peer, ...), so that whatever else the machine does
falls on both. Figures are medians over ROUNDS; a ratio "timm / ours" above 1 means that ours is
faster or smaller. Weights are random, which time and memory do not show.

Symbols: B images in a batch, S image side.
"""

import copy
import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

import iml_gcn
import run
import tresnet
from runtime import lean

LABELS, ROUNDS = 80, 5  # COCO's; a median over two disturbed rounds
INFERENCE = [(8, 448), (16, 224)]  # B, S; run.py's size and ASL's
TRAINING = 16, 224  # B, S: fits 8 GB of memory


def alternate(**functions: Callable) -> dict[str, float]:
    """Median seconds of the functions, called in turns after a first call that is not counted: it
    pays for what later ones find ready (kernels, memory, files)."""
    threads = torch.get_num_threads()
    timers = {
        name: Timer("f()", globals={"f": function}, num_threads=threads)
        for name, function in functions.items()
    }
    seconds = {name: [] for name in functions}
    for i in range(ROUNDS + 1):
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


@functools.cache
def peer():
    """timm, where it is installed."""
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        print(f"without timm: {error}")


def models() -> dict[str, torch.nn.Module]:
    """TResNet-M with a linear head, ours and, where it is installed, timm's."""
    backbone = tresnet.tresnet_m()
    found = {"ours": iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, LABELS))}
    if timm := peer():
        found["timm"] = timm.create_model("tresnet_m", num_classes=LABELS)
    return found


def row(what: str, figures: dict[str, float]) -> None:
    """A line of a Markdown table."""
    ours, timm = figures["ours"], figures.get("timm")
    ratio = f"{timm:.2f} | {timm / ours:.2f}" if timm else " | "
    print(f"| {what} | {ours:.2f} | {ratio} |", flush=True)


def inference() -> None:
    for B, S in INFERENCE:
        images, runs = torch.rand(B, 3, S, S), {}
        for name, model in models().items():
            model, x = model.eval(), images
            if name == "ours":
                model, x = model.fold(), images.contiguous(memory_format=torch.channels_last)
            runs[name] = torch.inference_mode()(functools.partial(model, x))
        ms = {name: 1000 * seconds / B for name, seconds in alternate(**runs).items()}
        row(f"inference, {B} x {S} px, ms an image (ours folded)", ms)


def training() -> None:
    """Forward, asymmetric loss, backward, fused Adam, in channels_last."""
    B, S = TRAINING
    images = torch.rand(B, 3, S, S).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(B, LABELS) < 2.9 / 80).float()  # (B, n), as many as a COCO photo has
    steps, kept = {}, {}
    for name, model in models().items():
        model = model.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

        def loss(model=model) -> torch.Tensor:
            return iml_gcn.asymmetric_loss(model(images), targets)

        def step(loss=loss, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        constants = [*model.parameters(), *model.buffers()]
        steps[name], kept[name] = step, saved_bytes(loss, constants) / B / 2**20
    row(f"training, {B} x {S} px, MiB kept for backward an image", kept)
    row(f"training, {B} x {S} px, s a step", alternate(**steps))


# A card

CARD = {"sizes": (224, 448), "batches": (64, 128), "steps": 20}


def one_step(model: torch.nn.Module, images, targets, amp: bool = False) -> torch.Tensor:
    """Forward, loss and backward; returns the loss."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        logits = model(images)
    loss = iml_gcn.asymmetric_loss(logits, targets)
    loss.backward()
    return loss.detach()


def drawn_batch(B: int, S: int, device: str, dtype=torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(B, 3, S, S, generator=generator, dtype=dtype)
    targets = (torch.rand(B, LABELS, generator=generator) < 2.9 / 80).to(dtype)
    return images.to(device, memory_format=torch.channels_last), targets.to(device)


def differences(device: str, S: int = 64) -> dict[str, float]:
    """Largest relative difference of the device from the CPU, in-place from plain, run from run:
    of the loss and of all gradients, after one step of a TResNet-M in float64."""
    torch.manual_seed(0)
    start, found = models()["ours"].double().train(), {}
    for name, where, on in (
        ("cpu", "cpu", True),
        ("device", device, True),
        ("again", device, True),
        ("plain", device, False),
    ):
        lean.on = on
        model = copy.deepcopy(start).to(where, memory_format=torch.channels_last)
        loss = one_step(model, *drawn_batch(4, S, where, torch.float64))
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[name] = torch.cat([loss.view(1), grads]).cpu()
    lean.on = True

    def between(a: str, b: str) -> float:
        return ((found[a] - found[b]).abs().max() / found[b].abs().max()).item()

    pairs = {"device - CPU": ("device", "cpu"), "lean - plain": ("device", "plain")}
    return {k: between(*v) for k, v in (pairs | {"run - run": ("again", "device")}).items()}


def pace(model, B: int, S: int, device: str, amp: bool) -> dict[str, float]:
    """Images a second and peak memory in GiB of training steps; none where memory is short."""
    images, targets = drawn_batch(B, S, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    memory, seconds = getattr(torch, torch.device(device).type), []
    try:
        for step in range(CARD["steps"] + 3):  # the first 3 are not counted
            if step == 3:
                memory.synchronize()
                start = time.perf_counter()
            optimizer.zero_grad()
            one_step(model, images, targets, amp)
            optimizer.step()
        memory.synchronize()
        seconds = time.perf_counter() - start
    except RuntimeError as error:  # short of memory, or what torch.compile has against it
        return {"error": str(error)[:200]}
    peak = memory.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
    return {"images/s": B * CARD["steps"] / seconds, "GiB": peak}


def card(device: str = "cuda", out: str = "gpu.json") -> None:
    about = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    if device != "cpu":
        about |= {"card": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        about["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    report = {"about": about, "differences": differences(device), "training": []}
    print(about, report["differences"], sep="\n", flush=True)
    kinds = ["ours, lean", "ours, plain", "ours, compiled", *list(models())[1:]]
    for S, B, amp, kind in itertools.product(CARD["sizes"], CARD["batches"], (False, True), kinds):
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = models()["timm" if kind == "timm" else "ours"].train()
        model = model.to(device, memory_format=torch.channels_last)
        lean.on = kind == "ours, lean"
        model = torch.compile(model) if kind == "ours, compiled" else model
        row = {"kind": kind, "S": S, "B": B, "bfloat16": amp} | pace(model, B, S, device, amp)
        lean.on = True
        report["training"].append(row)
        print(row, flush=True)
        Path(out).write_text(json.dumps(report, indent=1))
    code = run.main(["--device", device, "--out", "runs/bench-demo", "--fresh"])
    report["demo"] = Path("runs/bench-demo/results.md").read_text() if not code else code
    Path(out).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["gpu"]:
        card()
        sys.exit()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads\n")
    print("| | ours | timm | timm / ours |\n| --- | --- | --- | --- |")
    inference()
    training()
