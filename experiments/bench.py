"""Speed and memory of TResNet-M on this machine, beside timm's.  Typical use:

    pip install timm                    # the peer, optional
    python -m experiments.bench         # the CPU: some 6 minutes on 2 cores
    python -m experiments.bench memory  # the CPU: freed memory kept, or given back; 5 minutes
    python -m experiments.bench gpu     # a GPU: correctness, speed, memory -> gpu.json

On the CPU ours and the peer take turns (ours, peer, ours, ...), so that other work of the machine
slows both; on a GPU each kind is timed by itself. Figures are medians over ROUNDS; a ratio
"timm / ours" above 1 means that ours is faster or smaller. Weights are random.

Symbols: B images in a batch, S image side.
"""

import contextlib
import copy
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.collect_env import get_pretty_env_info

import iml_gcn
import run
import tresnet
from backbones import efficientnet_lite
from runtime import lean
from runtime.memory import keep_freed_memory

try:
    import timm
except (ImportError, RuntimeError):  # RuntimeError: torchvision is for another torch
    timm = None

LABELS, ROUNDS = 80, 5  # COCO's; two disturbed rounds do not move a median
INFERENCE = [(8, 448), (16, 224)]  # B, S; run.py's size and ASL's
TRAINING = 16, 224  # B, S: fits 8 GB of memory
LAST = torch.channels_last
KINDS = ["ours, deploy", "ours, lean", "ours, plain", "ours, compiled"]
PEERS = ["timm, deploy", "timm, deploy, NCHW", "timm", "timm, NCHW"]
CARD = {"sizes": (224, 448), "batches": (64, 128), "steps": 4}  # steps in each round
LARGE = "--phase backbone --backbone tresnet_m --weights none --image-size 448 --batch-size 64"


def seconds_of(functions: dict[str, Callable], steps: int = 1) -> dict[str, float]:
    """Median seconds of a call of each function; in every round each function has its turn. Timer
    makes two calls before those that it counts, and waits for a GPU."""
    threads = torch.get_num_threads()
    timers = [Timer("f()", globals={"f": f}, num_threads=threads) for f in functions.values()]
    rounds = [[timer.timeit(steps).median for timer in timers] for _ in range(ROUNDS)]
    return dict(zip(functions, np.median(rounds, 0).tolist(), strict=True))


def saved_bytes(forward: Callable, left_out: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that `forward` keeps for backward. A storage counts once, one of `left_out` never."""
    known = {tensor.untyped_storage().data_ptr() for tensor in left_out}
    storages = {}  # pointer -> storage, which is kept so that its pointer is not reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for key, storage in storages.items() if key not in known)


def model_of(name: str) -> torch.nn.Module:
    """TResNet-M with a linear head, ours or timm's. In ours every block is made to do work: at the
    start of training, blocks are only their shortcuts."""
    if name == "timm":
        return timm.create_model("tresnet_m", num_classes=LABELS)
    backbone = tresnet.tresnet_m()
    for module in backbone.modules():
        if isinstance(module, tresnet.ABN):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, LABELS))


def drawn(B: int, S: int, device: str, dtype=torch.float32, layout=LAST) -> tuple:
    """Random images (B, 3, S, S), and targets (B, n) of which about as many are 1 as in COCO."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(B, 3, S, S, generator=generator)
    targets = torch.rand(B, LABELS, generator=generator) < 2.9 / 80
    return images.to(device, dtype, memory_format=layout), targets.to(device, dtype)


def training(
    model, B: int, S: int, device="cpu", amp=False, layout=LAST, dtype=torch.float32
) -> tuple:
    """Two functions: loss(), the asymmetric loss of random or given images; and step(), which adds
    backward and fused Adam."""
    drawn_images, targets = drawn(B, S, device, dtype, layout)
    model.train().to(device, dtype, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss(images: torch.Tensor = drawn_images) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            logits = model(images)
        return iml_gcn.asymmetric_loss(logits, targets)

    def step(images: torch.Tensor = drawn_images) -> None:
        optimizer.zero_grad()
        loss(images).backward()
        optimizer.step()

    return loss, step


def work(kind: str, B: int, S: int, device="cpu", amp=False) -> Callable:
    """The function to time for a kind: a training step, or for "deploy" the logits, ours in the
    deploy form. The layout is channels_last unless the kind says NCHW."""
    name, _, how = kind.partition(", ")
    lean.on = how != "plain"
    model = model_of(name)
    torch.compiler.reset()  # or else the second size is compiled for any size
    model = torch.compile(model) if how == "compiled" else model
    layout = torch.contiguous_format if "NCHW" in how else LAST
    if "deploy" not in how:
        return training(model, B, S, device, amp, layout)[1]
    images, _ = drawn(B, S, device, layout=layout)
    model = (model.fold() if name == "ours" else model.eval()).to(device, memory_format=layout)

    @torch.inference_mode()
    def logits() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            return model(images)

    return logits


def row(what: str, figures: dict[str, float]) -> None:
    """A line of a Markdown table."""
    ours, *peer = figures.values()
    print(f"| {what} | {ours:.2f} |", *[f"{p:.2f} | {p / ours:.2f} |" for p in peer], flush=True)


def table() -> None:
    version = timm.__version__ if timm else "not there"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, timm {version}\n")
    print("| | ours | timm | timm / ours |\n| --- | --- | --- | --- |")
    for B, S in INFERENCE:
        kinds = ["ours, deploy"]
        if timm:
            kinds.append("timm, deploy, NCHW")
        seconds = seconds_of({kind.split(",")[0]: work(kind, B, S) for kind in kinds})
        ms = {name: 1000 * each / B for name, each in seconds.items()}
        row(f"inference, {B} x {S} px, ms per image (ours folded)", ms)
    B, S = TRAINING
    steps, kept = {}, {}
    for name in ["ours", "timm"] if timm else ["ours"]:
        model = model_of(name)
        loss, steps[name] = training(model, B, S)
        constants = [*model.parameters(), *model.buffers()]
        kept[name] = saved_bytes(loss, constants) / B / 2**20
    row(f"training, {B} x {S} px, MiB kept for backward per image", kept)
    row(f"training, {B} x {S} px, s a step", seconds_of(steps))


# Memory that is freed (runtime/memory.py)

# glibc's default; what run.py sets; and torch's own remedy, huge pages.
ALLOCATORS = {"given back": {}, "kept": {}, "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"}}
# As --recipe small computes its features.
PASS = {"side": 384, "batches": (1, 8, 16, 32), "images": 32, "rounds": 3}


def feature_pass(kind: str, B: int) -> tuple[float, float]:
    """ms per image of EfficientNet-Lite2's deploy form, and this process's peak memory in MB."""
    import resource  # not on Windows

    if kind == "kept":
        keep_freed_memory()
    backbone = efficientnet_lite.efficientnet_lite2("avg").eval().fold()
    images, _ = drawn(B, PASS["side"], "cpu")
    with torch.inference_mode():
        timer = Timer(
            "f(x)", globals={"f": backbone, "x": images}, num_threads=torch.get_num_threads()
        )
        seconds = timer.timeit(max(PASS["images"] // B, 1)).median
    return 1000 * seconds / B, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def memory() -> None:
    """Time the feature pass, each in a process of its own since an allocator's setting cannot be
    taken back. The processes take turns."""
    print("| ms per image (peak MB) |", *[f"{kind} |" for kind in ALLOCATORS], flush=True)
    print("| --- |" + " --- |" * len(ALLOCATORS))
    for B in PASS["batches"]:
        figures = {kind: [] for kind in ALLOCATORS}
        for _, kind in itertools.product(range(PASS["rounds"]), ALLOCATORS):
            command = [sys.executable, "-m", "experiments.bench", "pass", kind, str(B)]
            environment = os.environ | ALLOCATORS[kind]
            printed = subprocess.run(command, env=environment, check=True, capture_output=True)
            figures[kind].append([float(word) for word in printed.stdout.split()])
        medians = [np.median(rounds, 0) for rounds in figures.values()]
        print(f"| batch {B} |", *[f"{ms:.1f} ({MB:.0f}) |" for ms, MB in medians], flush=True)


# A GPU


def differences(device: str, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Largest relative differences between device and CPU, between lean and plain, and between two
    runs: of the loss, the gradients, the deploy form's logits and F_I's sums of a TResNet-M."""
    torch.manual_seed(0)
    start = model_of("ours")

    def results_on(where: str, lean_on: bool = True) -> dict[str, torch.Tensor]:
        lean.on = lean_on
        model = copy.deepcopy(start)
        images, targets = drawn(2, 64, where, dtype)
        loss = training(model, 2, 64, where, dtype=dtype)[0]()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        means = iml_gcn.LabelMeans(LABELS, model.backbone.num_features)
        with torch.inference_mode():
            means.update(model.eval().backbone(images), targets)
            parts = {"loss": loss, "gradients": gradients, "deploy form": model.fold()(images)}
        return {name: part.cpu() for name, part in parts.items()} | {"F_I": means.sums}

    def between(a: dict, b: dict) -> dict[str, float]:
        return {k: ((a[k] - b[k]).abs().max() / b[k].abs().max()).item() for k in a}

    plain = results_on(device, lean_on=False)
    on_cpu, on_device = results_on("cpu"), results_on(device)
    return {
        "device - CPU": between(on_device, on_cpu),
        "lean - plain": between(on_device, plain),
        "run - run": between(results_on(device), on_device),
    }


def pace(kind: str, B: int, S: int, device: str, amp: bool) -> dict[str, float | str]:
    """Images a second and peak memory in GiB, or the error where memory is short."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        images = B / seconds_of({kind: work(kind, B, S, device, amp)}, CARD["steps"])[kind]
    except RuntimeError as error:  # too little memory, or torch.compile fails
        return {"error": str(error)[:200]}
    return {"images/s": images, "GiB": torch.cuda.max_memory_allocated() / 2**30}


def output_of(options: str) -> str:
    """What run.py prints, with these options."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        run.main(options.split())
    return text.getvalue()


def card(device: str = "cuda") -> None:
    report = {"about": get_pretty_env_info().splitlines(), "timm": timm and timm.__version__}
    precise = {str(dtype): differences(device, dtype) for dtype in (torch.float64, torch.float32)}
    report |= {"differences": precise, "pace": []}
    kinds = KINDS + PEERS if timm else KINDS
    for S, B, amp, kind in itertools.product(CARD["sizes"], CARD["batches"], (False, True), kinds):
        if kind == "ours, compiled" and (B > min(CARD["batches"]) or not amp):
            continue  # each takes a minute
        measured = pace(kind, B, S, device, amp)
        report["pace"].append({"kind": kind, "S": S, "B": B, "bfloat16": amp} | measured)
        print(report["pace"][-1], flush=True)
        Path("gpu.json").write_text(json.dumps(report, indent=1))  # kept, whatever happens next
    start = f"--device {device} --fresh --out runs/bench"
    report["demo"] = output_of(start)
    report["TResNet-M"] = output_of(f"{start}-448 --memory lean {LARGE}")  # with a loader
    Path("gpu.json").write_text(json.dumps(report, indent=1))
    print(report["demo"], report["TResNet-M"])


if __name__ == "__main__":
    if sys.argv[1:] == ["gpu"]:
        card()
    elif sys.argv[1:] == ["memory"]:
        memory()
    elif sys.argv[1:2] == ["pass"]:
        print(*feature_pass(sys.argv[2], int(sys.argv[3])))
    else:
        table()
