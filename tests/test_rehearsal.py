"""The paper's command at COCO's size, from nothing to results.md, killed on the way at many places
and started again: it ends as a run that nothing disturbed, to the last bit.

    python -m pytest tests/test_rehearsal.py --rehearsal 1        # Linux; 25 minutes, 8 GB in /tmp
    python -m pytest tests/test_rehearsal.py --rehearsal 0.02     # with 2% of the photos

It prints the tables of docs/performance.md. What is COCO's in the data, `rehearsal_coco.py` says;
what is wrong with the server, `rehearsal_server.py`.
Oracles: the photos and labels as they were drawn; the undisturbed run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rehearsal_coco
import rehearsal_server
import torch
from conftest import ROOT, assert_same_run, scores_of

import tresnet

SECONDS = 3  # that the server takes for a whole file
LONGEST = 1500  # seconds of one start, after which it is killed and the test fails
HUB = "/timm/tresnet_m.miil_in21k/resolve/main/model.safetensors"
CLASSES_21K = 11_221
FOR_PEOPLE = "results.md", "verdict.json", "labels.csv", "results.jpg", "mistakes.jpg", "graph.png"

# What is running when a run is killed, and how much of it is done then.
KILLS_OF_FEW_STEPS = [
    ("model.safetensors", 0.4),
    ("annotations_trainval2014.zip", 0.5),
    ("unpacking annotations_trainval2014.zip", 0.3),
    ("train2014.zip", 0.3),
    ("unpacking train2014.zip", 0.5),
    ("val2014.zip", 0.6),
    ("unpacking val2014.zip", 0.2),
    ("backbone  epoch", 0.5),
]
KILLS_OF_AN_EPOCH = [
    ("reading instances_train2014.json", 0),
    ("backbone  epoch", 0.6),
    ("backbone  val", 0.5),
    ("embed", 0.4),
    ("gcn-image  epoch", 0.3),
    ("gcn-pca  epoch", 0.8),
    ("eval gcn-image", 0.5),
    ("verdict", 0),
]


class Start(NamedTuple):
    """One start of the program, to its end or until it was killed."""

    lines: list[dict]  # as rehearsal_run.py tells them
    output: str
    code: int
    kill: tuple | None  # of the list of kills
    done: float  # of what it was killed in, from 0 to 1
    left: str  # unfinished files on the disk
    seconds: float


def start(arguments: str, server, hub_folder: Path, kills: list[tuple]) -> Start:
    """Run the program, and kill it at the first of `kills` that comes."""
    reader, writer = os.pipe()
    environment = os.environ | {
        "REHEARSAL_SERVER": server.url,
        "REHEARSAL_PIPE": str(writer),
        "HF_ENDPOINT": server.url,
        "TORCH_HOME": str(hub_folder),
        "no_proxy": "127.0.0.1",
    }
    began, lines, kill, done = time.monotonic(), [], None, 0.0
    log = hub_folder.with_suffix(".log")
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/rehearsal_run.py", *arguments.split()],
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            env=environment,
            start_new_session=True,
        )
    os.close(writer)
    timer = threading.Timer(LONGEST, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    with open(reader) as pipe:  # it ends when the run and all of its workers are gone
        for text in pipe:
            line = json.loads(text)
            lines.append(line)
            if kill is None and "done" in line:
                for each in kills:
                    if line["at"].startswith(each[0]) and line["done"] >= each[1]:
                        process.kill()
                        kill, done = each, line["done"]
                        break
    code = process.wait()
    timer.cancel()
    seconds = time.monotonic() - began
    return Start(lines, log.read_text(), code, kill, done, unfinished(hub_folder.parent), seconds)


def unfinished(folder: Path) -> str:
    """The files that are not there at the end of a run, and how large they are."""
    texts = []
    for place in ("*", "*/hub/checkpoints"):
        for end in ("*.part", "*.part.new", "*.whole", "last-*.pt"):
            for path in sorted(folder.glob(f"{place}/{end}")):
                name = path.name.replace("tresnet_m.miil_in21k", "model")
                texts.append(f"{name} {path.stat().st_size / 1e6:,.1f} MB")
    for path in sorted(folder.glob("*/*.tmp")):
        if path.is_dir():
            files = sum(each.is_file() for each in path.rglob("*"))
            texts.append(f"{path.name}/ {files:,} files")
    return ", ".join(texts)


def run_to_the_end(
    arguments: str, server, hub_folder: Path, kills: list[tuple] = ()
) -> list[Start]:
    """The same command again after each kill; each is dealt once."""
    left, starts = list(kills), []
    while not starts or starts[-1].kill:
        starts.append(start(arguments, server, hub_folder, left))
        if starts[-1].kill:
            assert starts[-1].code == -signal.SIGKILL, starts[-1].output
            left.remove(starts[-1].kill)
    assert starts[-1].code == 0, starts[-1].output
    assert left == [], "these were never reached"
    return starts


def save_weights(path: Path) -> None:
    """Random weights under the names and in the shapes of timm's tresnet_m.miil_in21k."""
    torch.manual_seed(1)
    backbone = tresnet.tresnet_m()
    state = {f"body.{name}": value for name, value in backbone.state_dict().items()}
    state["head.fc.weight"] = torch.randn(CLASSES_21K, backbone.num_features) / 100
    state["head.fc.bias"] = torch.zeros(CLASSES_21K)
    pytest.importorskip("safetensors.torch").save_file(state, path, metadata={"format": "pt"})


def assert_unpacked(data: Path, zips: Path) -> None:
    """All that the zips have, by CRC-32, and nothing else."""
    expected = {}
    for path in zips.glob("*.zip"):
        with zipfile.ZipFile(path) as file:
            entries = (entry for entry in file.infolist() if not entry.is_dir())
            expected |= {entry.filename: entry.CRC for entry in entries}
    files = [path for path in data.rglob("*") if path.is_file()]
    unpacked = {str(path.relative_to(data)): zlib.crc32(path.read_bytes()) for path in files}
    assert unpacked == expected


def assert_same_results(out: Path, other: Path) -> None:
    assert_same_run(out, other)
    for name in FOR_PEOPLE:
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("backbone", "gcn-image", "gcn-pca"):
        for ours, theirs in zip(scores_of(out, name), scores_of(other, name), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.fixture
def factor(request) -> float:
    """How much of COCO there is."""
    factor = request.config.getoption("--rehearsal")
    if not factor:
        pytest.skip("takes long: --rehearsal 1, or less of COCO: --rehearsal 0.02")
    if sys.platform != "linux":
        pytest.skip("memory is read from Linux's /proc")
    return factor


def test_killed_runs_at_cocos_size_end_as_undisturbed_ones(factor, tmp_path, capsys):
    def say(text):
        with capsys.disabled():
            print(text, flush=True)

    began = time.monotonic()
    zips, cache = tmp_path / "zips", {name: tmp_path / f"hub-{name}" for name in "ab"}
    zips.mkdir()
    drawn = rehearsal_coco.draw(zips, factor)
    save_weights(zips / "model.safetensors")
    files = {HUB: zips / "model.safetensors"}
    files["/annotations/annotations_trainval2014.zip"] = zips / "annotations_trainval2014.zip"
    files |= {f"/zips/{name}.zip": zips / f"{name}.zip" for name in drawn}
    say(f"\ndrawn in {time.monotonic() - began:.0f} s")

    # a: disturbed, b: undisturbed.
    paper = "--dataset coco --download --data {0}/data-{1} --epochs 1 --device cpu"
    few_steps = f"{paper} --out {{0}}/few-{{1}} --limit 64 --image-size 32 --batch-size 16"
    epoch = f"{paper} --out {{0}}/epoch-{{1}} --backbone tresnet_tiny --weights none"
    epoch += f" --image-size 32 --batch-size 256 --save-every {0.25 * factor}"
    starts = {}
    with (
        rehearsal_server.serving(files, SECONDS, seed=28) as bad,
        rehearsal_server.serving(files, SECONDS) as good,
    ):
        for what, arguments, server, kills in [
            ("few-b", few_steps, good, []),
            ("epoch-b", epoch, good, []),
            ("few-a", few_steps, bad, KILLS_OF_FEW_STEPS),
            ("epoch-a", epoch, bad, KILLS_OF_AN_EPOCH),
        ]:
            before, end = time.monotonic(), what[-1]
            command = arguments.format(tmp_path, end)
            starts[what] = run_to_the_end(command, server, cache[end], kills)
            say(f"{what}: {len(starts[what])} starts, {time.monotonic() - before:.0f} s")

    told = {what: [each._asdict() for each in starts[what]] for what in starts}
    (tmp_path / "starts.json").write_text(json.dumps(told))
    for end in "ab":
        assert_unpacked(tmp_path / f"data-{end}", zips)
        weights = [path for path in cache[end].rglob("*") if path.is_file()]
        assert [path.read_bytes() == files[HUB].read_bytes() for path in weights] == [True]
    for what in ("few", "epoch"):
        assert_same_results(tmp_path / f"{what}-a", tmp_path / f"{what}-b")
    tensors = len(tresnet.tresnet_m().state_dict())
    tensors -= sum("num_batches" in name for name in tresnet.tresnet_m().state_dict())
    assert f"loaded {tensors} of {tensors} backbone tensors" in starts["few-b"][0].output
    assert {trouble for _, trouble in bad.happened} == set(rehearsal_server.TROUBLES)
    lines = starts["epoch-b"][0].lines
    graph = next(each for each in lines if each["at"] == "label graph" and "peak" in each)
    assert graph["peak"] < 700  # MB: what reading took was given back
    targets = drawn["val2014"].targets
    labelled = targets.any(1)
    assert np.array_equal(scores_of(tmp_path / "epoch-a", "gcn-pca")[1], targets[labelled])
    mAP = json.loads((tmp_path / "epoch-a/metrics-gcn-pca.json").read_text())["mAP"]
    chance = 100 * targets[labelled].mean(0)
    assert mAP > 1.3 * chance[chance > 0].mean()

    say(measured(tmp_path, starts, drawn))
    say(log_of_kills(starts))
    troubles = [f"{name} {trouble}" for name, trouble in bad.happened]
    say(f"\nThe server, in this order: {'; '.join(troubles)}.")
    say(f"\n{time.monotonic() - began:.0f} s in all")
    shutil.rmtree(tmp_path / "data-a")
    shutil.rmtree(tmp_path / "data-b")


# The tables of docs/performance.md


def size_of(folder: Path) -> tuple[int, float, float]:
    """Files, MB of them, and MB that they take on the disk."""
    sizes = [path.stat() for path in folder.rglob("*") if path.is_file()]
    taken = sum(512 * each.st_blocks for each in sizes)
    return len(sizes), sum(each.st_size for each in sizes) / 1e6, taken / 1e6


def measured(folder: Path, starts: dict[str, list[Start]], drawn: dict) -> str:
    """The table of the undisturbed runs."""
    few, epoch = starts["few-b"][0], starts["epoch-b"][0]
    rows = ["| what | s | CPU s | peak of the run, MB | of each worker, MB |"]
    rows.append("| --- | --- | --- | --- | --- |")

    def total(at: str, run: Start) -> np.ndarray:
        """Seconds, CPU seconds and the highest peak of all that is told under this name."""
        told = [line for line in run.lines if line["at"] == at and "peak" in line]
        sums = [sum(line[key] for line in told) for key in ("seconds", "cpu")]
        return np.array([*sums, max(line["peak"] for line in told)])

    def add(text: str, numbers: np.ndarray, passes: str = "") -> None:
        workers = [line["workers"] for line in epoch.lines if line["at"] == f"{passes}, all"]
        of_workers = f"{max(max(each) for each in workers):,.0f}" if workers else ""
        seconds, cpu, peak = numbers
        rows.append(f"| {text} | {seconds:,.1f} | {cpu:,.1f} | {peak:,.0f} | {of_workers} |")

    train, val = drawn["train2014"], drawn["val2014"]
    embedded, evaluated = (int(split.targets.any(1).sum()) for split in (train, val))
    add("unpack the annotations", total("unpacking annotations_trainval2014.zip.whole", few))
    for split in (train, val):
        size = (folder / f"zips/{split.name}.zip").stat().st_size / 1e6
        text = f"unpack {split.name}.zip, {len(split.ids):,} photos, {size:,.0f} MB"
        add(text, total(f"unpacking {split.name}.zip.whole", few))
    for split in (train, val):
        name = f"instances_{split.name}.json"
        size = (folder / f"data-b/annotations/{name}").stat().st_size / 1e6
        text = f"read {name}, {size:,.0f} MB, {len(split.rows):,} annotations"
        add(text, total(f"reading {name}", epoch))
    add("all before training, with both", total("all before training", epoch))
    add("label graph", total("label graph", epoch))
    text = f"phase backbone, {embedded:,} photos, then val"
    add(text, total("phase backbone", epoch), "backbone  epoch 1/1")
    add("of which threshold, calibration, operating points", total("thresholds", epoch))
    add(f"phase embed, {embedded:,} photos", total("phase embed", epoch), "embed")
    add("phase gcn, F_I and F_PCA", total("phase gcn", epoch), "gcn-pca  epoch 1/1")
    text = f"phase eval, 3 models, {evaluated:,} photos x 80 labels"
    add(text, total("phase eval", epoch), "eval gcn-pca")
    numbers = [total(f"numbers {name}", epoch) for name in ("backbone", "gcn-image", "gcn-pca")]
    add("of which all metrics and scores-*.npz", np.array([*sum(numbers)[:2], numbers[-1][2]]))
    results, verdict = (total(at, epoch) for at in ("results", "verdict"))
    add("of which verdict.json", verdict)
    rest = np.array([*(results - verdict)[:2], results[2]])
    add("of which results.md, labels.csv and pictures", rest)
    for text, run in (("TResNet-M, few steps", few), ("tresnet_tiny, an epoch", epoch)):
        foretold = re.search(r"expected: about (\d+):(\d+):(\d+)", run.output)
        hours, minutes, seconds = (int(part) for part in foretold.groups())
        foretold = 3600 * hours + 60 * minutes + seconds
        at = next(each["time"] for each in run.lines if each["at"] == "forecast" and "peak" in each)
        took = run.lines[-1]["time"] - at
        rows.append(f"| {text}: `expected:` said {foretold} s, it took | {took:.0f} | | | |")
    peak = max(line["peak"] for line in epoch.lines if "peak" in line)
    workers = max(max(line["workers"]) for line in epoch.lines if line.get("workers"))
    rows.append(f"| the whole run | {epoch.seconds:.0f} | | {peak:,.0f} | {workers:,.0f} |")
    sizes = []
    for name, what in (
        ("data-b", "--data"),
        ("few-b", "--out of the first"),
        ("epoch-b", "second"),
    ):
        count, content, taken = size_of(folder / name)
        sizes.append(f"{what}: {count:,} files, {content:,.0f} MB, {taken:,.0f} MB of disk")
    return "\n" + "\n".join(rows) + "\n\n" + "; ".join(sizes)


GOES_ON = re.compile(r".*(?:resumes after|done before).*")
FETCHES = re.compile(r".* to come|unpacking .*")


def log_of_kills(starts: dict[str, list[Start]]) -> str:
    """Where each run was killed, and what the next start says of it."""
    rows = ["", "| run | killed in | of it done | left unfinished | next start says |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for what, name in (("few-a", "TResNet-M"), ("epoch-a", "tresnet_tiny")):
        for before, after in zip(starts[what], starts[what][1:], strict=False):
            last, first = GOES_ON.findall(after.output)[-1:], FETCHES.findall(after.output)[:1]
            says = (last or first or ["starts with the labels"])[0]
            says = re.sub(r"[^\s(]*/", "", says)  # folders of this machine
            killed = before.kill[0].replace("  ", " ")
            rows.append(f"| {name} | {killed} | {before.done:.0%} | {before.left} | {says} |")
    return "\n".join(rows)
