"""Table 3 with seeds and spreads, and a fair rival for its direct model; see docs/evidence.md.

    python -m experiments.evidence --data DIR --glove FILE    # -> runs/evidence, results/table.csv
    ... --epochs 40 40 --out runs/full --csv runs/full -- --image-size 448 \\
        --weights tresnet_m_21k --batch-size 64 --recipe paper --ema 0     # the paper's, on a GPU

For every seed: the direct model; from its weights IML-GCN with word, image and PCA nodes and, the
fair rival, the direct model again for as many epochs with a new head [ours]. What follows -- goes
to run.py. Interrupted, the same command goes on.

The score is the mean AP of the labels with 10 val photos or more, without the most frequent one.
Symbols: M images in a split, n labels.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

import metrics
from extras import table
from runtime import checkpoints

HERE = Path(__file__).parent
# Chosen on seed 0 and held-out training photos; docs/evidence.md.
RECIPE = "--dataset coco --weights none --image-size 64 --batch-size 32 --recipe asl --lr 1e-3"
RECIPE += " --weight-decay 5e-4 --ema 0.98 --eval-every 2"
FIELDS = ["part", "setting", "model", "seed", "epochs", "mAP_10", "mAP", "mAP_without", "labels_10"]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="COCO tree, as for run.py")
    add("--glove", required=True, metavar="FILE", help="word vectors, as for run.py")
    add("--out", type=Path, default=Path("runs/evidence"), help="(%(default)s)")
    add("--csv", type=Path, default=HERE / "results", help="folder of the figures (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    text = "of the backbone and, from its weights, of every other model (6 4)"
    add("--epochs", nargs=2, default=["6", "4"], metavar=("FIRST", "THEN"), help=text)
    add("more", nargs="*", metavar="-- ...", help=f"more arguments for run.py, after {RECIPE}")
    return parser.parse_args(argv)


# Runs of run.py


def call(args, out: Path, text: str, *more: str) -> None:
    """One run of run.py, which goes on where it was; its output goes to <out>.log."""
    command = ["--data", args.data, "--glove", args.glove, *RECIPE.split(), *args.more]
    command += [*text.split(), *more, "--out", str(out)]
    print("python run.py", *command, flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{out}.log", "a", encoding="utf-8") as log:
        program = [sys.executable, str(HERE.parent / "run.py"), *command]
        code = subprocess.run(program, stdout=log, stderr=log).returncode
    if code:
        last = Path(f"{out}.log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise ValueError(f"run.py ended with code {code}, {out}.log with: {last}")


def table_runs(args, seed: int) -> list[dict]:
    first, then = args.epochs
    out, longer = args.out / f"seed{seed}", args.out / f"seed{seed}-longer"
    call(args, out, f"--phase backbone embed --epochs {first} --seed {seed}")
    text = f"--phase gcn eval --nodes word image pca --epochs {then} --seed {seed}"
    call(args, out, text)
    again = f"--phase backbone eval --epochs {then} --seed {seed}"
    call(args, longer, again, "--weights", str(out / "backbone.pt"))
    return collect(out, "", seed) + collect(longer, "longer", seed)


# Figures


def figures(logits: np.ndarray, targets: np.ndarray) -> dict:
    """mAP in percent: labels of 10 positives or more without the most frequent, all, all but it."""
    ap = metrics.average_precision(logits, targets)  # (n,)
    counts = targets.astype(int).sum(0)  # (n,)
    most = counts.argmax()
    often = (counts >= 10) & (np.arange(len(counts)) != most)
    mAP = metrics.mean_average_precision
    values = {"mAP_10": mAP(ap[often]), "mAP": mAP(ap), "mAP_without": mAP(np.delete(ap, most))}
    return {k: round(v, 3) for k, v in values.items()} | {"labels_10": int(often.sum())}


def collect(folder: Path, setting: str, seed: int) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("scores-*.npz")):
        with np.load(path, allow_pickle=False) as scores:
            values = figures(scores["logits"], scores["targets"])
        model = path.stem.removeprefix("scores-")
        checkpoint = checkpoints.read_checkpoint(folder / f"{model}.pt")
        about = {"part": "table", "setting": setting, "seed": seed, "epochs": checkpoint["epochs"]}
        rows.append(about | {"model": table.MODELS[model]} | values)
    return rows


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of a few seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} +- {np.std(values, ddof=1):.2f}"


def show(rows: list[dict], reference: str) -> None:
    """One line a setting: its score, and its difference from `reference` seed by seed."""
    settings = {}
    for row in rows:
        name = ", ".join(filter(None, (row.get("model"), row["setting"])))
        settings.setdefault(name, {})[row["seed"]] = row["mAP_10"]
    print(f"\n| | mAP | minus {reference} |\n| --- | --- | --- |")
    for name, scores in settings.items():
        both = [seed for seed in scores if seed in settings[reference]]
        minus = [scores[seed] - settings[reference][seed] for seed in both]
        print(f"| {name} | {spread(list(scores.values()))} | {spread(minus)} |")


def main(argv=None) -> int:
    args = parse_args(argv)
    rows = []
    try:
        for seed in args.seeds:
            rows += table_runs(args, seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    args.csv.mkdir(parents=True, exist_ok=True)
    with open(args.csv / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    show(rows, "direct (ASL), longer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
