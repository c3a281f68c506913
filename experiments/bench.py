"""Speed and memory of TResNet-M on this machine's CPU, beside timm's.  Typical use:

    pip install timm                # the peer, optional
    python -m experiments.bench     # some 6 minutes on 2 cores

Ours and the peer take turns (ours, peer, ours, peer, ...), so that whatever else the machine does
falls on both. Figures are medians over ROUNDS; a ratio "timm / ours" above 1 means that ours is
faster or smaller. Weights are random, which time and memory do not show.

Symbols: B images in a batch, S image side.
"""

import importlib
import os
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch.utils.benchmark import Timer

import iml_gcn
import tresnet

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


def models() -> dict[str, torch.nn.Module]:
    """TResNet-M with a linear head, ours and, where it is installed, timm's."""
    backbone = tresnet.tresnet_m()
    found = {"ours": iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, LABELS))}
    try:
        timm = importlib.import_module("timm")
        found["timm"] = timm.create_model("tresnet_m", num_classes=LABELS)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        print(f"without timm: {error}")
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
            runs[name] = torch.inference_mode()(partial(model, x))
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


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads\n")
    print("| | ours | timm | timm / ours |\n| --- | --- | --- | --- |")
    inference()
    training()
