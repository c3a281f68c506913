"""Table 3 fine-tuned, with seeds and spreads, and fair rivals; docs/evidence.md has the commands.

    python -m experiments.evidence --csv FILE.csv --out DIR [--epochs 40 40] -- OPTIONS-OF-RUN

For every seed the direct model; then, each from its weights and in a folder of its own, a line of
SETTINGS. A row of the CSV is a seed of one of them. Interrupted, the same command goes on.

Symbols: M images in a split, n labels.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

import metrics
from runtime import signals

FIRST = "direct"
SETTINGS = {  # name -> options of run.py; the model that is measured is the last one it evaluates
    FIRST: "--phase backbone embed eval",
    "direct, longer": "--phase backbone eval --weights FIRST/backbone.pt",
    "F_W": "--phase gcn eval --nodes word",
    "F_I": "--phase gcn eval --nodes image",
    "F_PCA": "--phase gcn eval --nodes pca",
    "random nodes": "--phase gcn eval --nodes random",
    "F_PCA, no graph": "--phase gcn eval --nodes pca --adjacency none",
}
FIELDS = ["setting", "options", "epochs", "seed", "mAP", "mAP_10", "mAP_without"]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="where the figures are added")
    add("--out", type=Path, required=True, metavar="DIR", help="of the runs")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    add("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help="(all)", default=SETTINGS)
    text = "of the direct model and, from its weights, of every other (10 5)"
    add("--epochs", nargs=2, default=["10", "5"], metavar=("FIRST", "THEN"), help=text)
    text = "options of the direct model, a text a row; the others go on from the first of them"
    add("--first", nargs="+", default=[""], metavar="TEXT", help=text)
    add(
        "--then",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="options of the others, a text a row",
    )
    add("--processes", type=int, default=2, help="(%(default)s)")
    add("more", nargs="+", metavar="-- ...", help="run.py's options")
    return parser.parse_args(argv)


# Runs of run.py


def folder_of(args, setting: str, more: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in setting + more)
    return args.out / f"seed{seed}" / name


def trained(args, setting: str, more: str, seed: int) -> dict:
    """A row of the CSV: one run of run.py, which goes on where it was; its output in <out>.log."""
    first, out = (folder_of(args, *x, seed) for x in ((FIRST, args.first[0]), (setting, more)))
    out.mkdir(parents=True, exist_ok=True)
    options = SETTINGS[setting].replace("FIRST", str(first)).split() + more.split()
    if "gcn" in options:
        for file in ("backbone.pt", "embeddings.pt"):
            shutil.copyfile(first / file, out / file)
    epochs = args.epochs[setting != FIRST]
    command = [*args.more, *options, "--epochs", epochs, "--seed", str(seed), "--out", str(out)]
    print("python run.py", *command, flush=True)
    with open(f"{out}.log", "a", encoding="utf-8") as log:
        program = [sys.executable, str(Path(__file__).parent.parent / "run.py"), *command]
        threads = max((os.cpu_count() or 1) // args.processes, 1)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(program, stdout=log, stderr=log, env=environment).returncode
    if code:
        last = Path(f"{out}.log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise ValueError(f"run.py ended with code {code}, {out}.log with: {last}")
    model = f"gcn-{options[options.index('--nodes') + 1]}" if "gcn" in options else "backbone"
    with np.load(out / f"scores-{model}.npz", allow_pickle=False) as scores:
        values = figures(scores["logits"], scores["targets"])
    return {"setting": setting, "options": more, "epochs": epochs, "seed": seed} | values


# Figures


def figures(logits: np.ndarray, targets: np.ndarray) -> dict:
    """mAP in percent: of all labels; of those with 10 positives or more but the most frequent; of
    all but that one."""
    ap = metrics.average_precision(logits, targets)  # (n,)
    counts = targets.astype(int).sum(0)  # (n,)
    most = np.arange(len(counts)) == counts.argmax()
    groups = {"mAP": ..., "mAP_10": (counts >= 10) & ~most, "mAP_without": ~most}
    return {k: round(metrics.mean_average_precision(ap[g]), 3) for k, g in groups.items()}


def read(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, fields: list[str], row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), sep="  ", flush=True)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of a few seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def named(row: dict, rows: list[dict]) -> str:
    """A row's setting, and what else tells it from rows of the same setting."""
    others = [other for other in rows if other["setting"] == row["setting"]]
    more = [k for k in ("options", "lr", "epochs", "photos") if len({o.get(k) for o in others}) > 1]
    return ", ".join([row["setting"], *(f"{k} {row[k]}".removeprefix("options ") for k in more)])


def table(rows: list[dict], reference: str, figure: str = "mAP") -> list[str]:
    """Lines of Markdown, one a setting: its figure, its difference from `reference` seed by seed,
    and in how many of the seeds it is above."""
    settings, lines = {}, []
    for row in rows:
        settings.setdefault(named(row, rows), {})[row["seed"]] = float(row[figure])
    for name, values in settings.items():
        cells = [name, spread(list(values.values())), "", ""]
        both = [seed for seed in values if seed in settings[reference]]
        if name != reference and both:
            minus = [values[seed] - settings[reference][seed] for seed in both]
            cells[2:] = spread(minus), f"{sum(d > 0 for d in minus)} of {len(minus)}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def work(args) -> None:
    known = {(row["setting"], row["options"], row["seed"]) for row in read(args.csv)}
    rest = [name for name in args.settings if name != FIRST]
    pool = ThreadPoolExecutor(args.processes)
    try:
        for tasks in (
            [(FIRST, more, seed) for seed in args.seeds for more in args.first],
            [(name, more, seed) for seed in args.seeds for more in args.then for name in rest],
        ):
            wanted = [task for task in tasks if tuple(map(str, task)) not in known]
            for future in as_completed([pool.submit(trained, args, *task) for task in wanted]):
                add_row(args.csv, FIELDS, future.result())  # raises what a run of it raised
    finally:
        pool.shutdown(cancel_futures=True)
    rows = read(args.csv)
    print(*table(rows, named(rows[0], rows)), sep="\n")


def main(argv=None) -> int:
    args = parse_args(argv)
    return signals.code_of(lambda: work(args))


if __name__ == "__main__":
    signals.run(main)
