"""The paper's Table 3 with all weights trained, with seeds, spreads and fair rivals.

docs/evidence-tables.md has the commands.

    python -m experiments.evidence --csv FILE.csv --out DIR [--epochs 40 40] -- OPTIONS-OF-RUN

For every seed the direct model is trained first. The other SETTINGS start from its weights, each in
a folder of its own. A row of the CSV is one setting with one seed. The same command resumes.

Symbols: M images in a split, n labels.
"""

import argparse
import csv
import functools
import hashlib
import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np

import metrics
import run
from runtime import signals

FIRST = "direct"
SCORES = "folder for the logits of each new row, which experiments.bootstrap reads"
SETTINGS = {  # name -> options of run.py; the model that is measured is the last one it evaluates
    FIRST: "--phase backbone embed eval",
    "direct, longer": "--phase backbone eval --weights FIRST/backbone.pt",
    "F_W": "--phase gcn eval --nodes word",
    "F_I": "--phase gcn eval --nodes image",
    "F_PCA": "--phase gcn eval --nodes pca",
    "random nodes": "--phase gcn eval --nodes random",
    "F_PCA, no graph": "--phase gcn eval --nodes pca --adjacency none",
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = parser_of(SETTINGS, [1, 2, 3])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    text = "epochs of the direct model, and of the others, which start from its weights (10 5)"
    add("--epochs", nargs=2, default=["10", "5"], metavar=("FIRST", "THEN"), help=text)
    text = "more options of the direct model, one text per row; the others start from the first"
    add("--first", nargs="+", default=[""], metavar="TEXT", help=text)
    add("--then", nargs="+", default=[""], metavar="TEXT", help="the same for the others")
    add("--scores", type=Path, metavar="DIR", help=SCORES)
    return parser.parse_args(argv)


def trained(args, setting: str, options: str, epochs: str, start: str, seed: int) -> dict:
    """The figures of one run of run.py, which resumes if it was interrupted. `start` says what the
    model starts from."""

    def folder(text: str) -> Path:
        return args.out / f"seed{seed}" / re.sub(r"[^\w.-]", "_", text)

    first, out = folder(FIRST + args.first[0]), folder(setting + options)
    setting_options = [option.replace("FIRST", str(first)) for option in SETTINGS[setting].split()]
    if "gcn" in setting_options:
        out.mkdir(parents=True, exist_ok=True)
        for file in ("backbone.pt", "embeddings.pt"):
            shutil.copyfile(first / file, out / file)
    command = [*args.run_options, *setting_options, *options.split(), "--epochs", epochs]
    command += ["--seed", str(seed), "--out", str(out)]
    print(shlex.join(["python", "run.py", *command]), flush=True)
    if code := run.main(command):
        sys.exit(code)
    files = [*out.glob("scores-gcn-*.npz"), out / "scores-backbone.npz"]
    with np.load(files[0]) as scores:
        logits, targets = scores["logits"], scores["targets"]  # (M, n) each
    ap = metrics.average_precision(logits, targets)  # (n,)
    if args.scores:
        name = re.sub(r"[^\w., -]", "_", f"{setting}, {options}".replace("--", ""))
        keep_scores(args.scores, f"{name}, epochs {epochs}", seed, logits, targets)
    return {"mAP": round(metrics.mean_average_precision(ap), 3)}


def work(args) -> None:
    others = [name for name in args.settings if name != FIRST]
    stages = zip(([FIRST], others), (args.first, args.then), args.epochs, strict=True)
    for seed, (settings, options, epochs) in itertools.product(args.seeds, stages):
        start = "--weights"
        if settings is others:
            start = f"{FIRST} {args.first[0]} --epochs {args.epochs[0]}"
        columns = {"setting": settings, "options": options, "epochs": [epochs]}
        columns |= {"start": [start], "seed": [seed]}
        fill(args.csv, functools.partial(trained, args), args.run_options, **columns)
    print(*table(read(args.csv)), sep="\n")


# What the programs of experiments/ that fill a CSV share


def parser_of(settings: Collection[str], seeds: Iterable[int]) -> argparse.ArgumentParser:
    """Their common options."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="CSV that the figures are added to")
    add("--settings", nargs="+", choices=settings, metavar="NAME", default=settings, help="(all)")
    add("--seeds", type=int, nargs="+", default=[*seeds], help="seeds (%(default)s)")
    text = "options of run.py, including --glove FILE"
    add("run_options", nargs="+", metavar="-- ...", help=text)
    return parser


def keep_scores(
    folder: Path, name: str, seed: int, logits: np.ndarray, targets: np.ndarray
) -> None:
    """Write what experiments.bootstrap reads of a row: logits and targets, (M, n) each."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}, seed {seed}.npz", logits=logits, targets=targets)


def read(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(csv.DictReader(text.splitlines()))


def fill(path: Path, measured: Callable, run_options: list[str], **columns: Iterable) -> None:
    """Add a row to the CSV for each combination of the columns' values that it does not have yet,
    with the figures that measured(**row) returns. A CSV that was filled with other `run_options` is
    a ValueError: its rows may be of other photos, or of another network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = digest_of(run_options)
    if any(not {*columns, "inputs"} <= row.keys() or row["inputs"] != inputs for row in read(path)):
        raise ValueError(
            f"{path} has rows that an older version made, or that were made from other options or "
            "photos; choose another --csv, or move the file away"
        )
    for values in itertools.product(*columns.values()):
        signals.stop_if_asked(f"before a row of {path}")
        row = dict(zip(columns, values, strict=True))
        texts = {name: str(value) for name, value in row.items()}
        if any(texts.items() <= known.items() for known in read(path)):
            continue
        row |= measured(**row) | {"inputs": inputs}
        with open(path, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), sep="  ", flush=True)


def digest_of(run_options: list[str]) -> str:
    """The same for the same options of run.py, whatever their --out."""
    options = list(run_options)
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    return hashlib.sha256(" ".join(options).encode()).hexdigest()[:8]


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of a few seeds."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


# Two-sided 95% quantiles of Student's t with 1, 2, ... 9 degrees of freedom.
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of the mean over two seeds or more (Student's t). It covers the seeds
    only, not the choice of the photos. With more than ten seeds it is a little too wide."""
    quantile = T95[min(len(values) - 2, len(T95) - 1)]
    half = quantile * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def with_interval(values: list[float]) -> str:
    """The mean over the seeds and its interval, as the tables print them."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, high = interval(values)
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"


def by_setting(rows: list[dict], figure: str = "mAP") -> dict[str, dict[str, float]]:
    """The figure of each setting, by seed. A setting's name has whatever tells its rows apart, such
    as "F_PCA, lr 0.001, epochs 6"."""
    rows_of, settings = {}, {}
    for row in rows:
        rows_of.setdefault(row["setting"], []).append(row)
    keys_of = {
        setting: [
            key
            for key in ("options", "lr", "epochs", "photos")
            if len({row.get(key) for row in alike}) > 1
        ]
        for setting, alike in rows_of.items()
    }
    for row in rows:
        telling = [f"{key} {row[key]}".removeprefix("options ") for key in keys_of[row["setting"]]]
        name = ", ".join([row["setting"], *telling])
        settings.setdefault(name, {})[row["seed"]] = float(row[figure])
    return settings


def differences(values: dict[str, float], reference: dict[str, float]) -> list[float]:
    """values - reference, of each seed that both have."""
    return [value - reference[seed] for seed, value in values.items() if seed in reference]


def table(rows: list[dict], reference: str = "", figure: str = "mAP") -> list[str]:
    """Lines of Markdown, one per setting: its figure, its difference from `reference` (the first
    row) seed by seed with the interval, and in how many of the seeds it is ahead."""
    settings, lines = by_setting(rows, figure), []
    reference = settings[reference or next(iter(settings))]
    for name, values in settings.items():
        cells = [name, spread(list(values.values())), "", ""]
        minus = differences(values, reference)
        if values is not reference and minus:
            cells[2:] = with_interval(minus), f"{sum(d > 0 for d in minus)} of {len(minus)}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    signals.run(lambda: signals.code_of(lambda: work(parse_args())))
