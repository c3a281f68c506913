"""Table 3 with seeds and spreads, and the GCN alone on frozen features; see docs/evidence.md.

    python -m experiments.evidence --data DIR --glove FILE    # all -> runs/evidence, results/*.csv
    ... --graph-json FILE                                     # and a label graph of more images
    ... --epochs 40 40 --out runs/full --csv runs/full -- --image-size 448 \\
        --weights tresnet_m_21k --batch-size 64 --recipe paper --ema 0     # the paper's, on a GPU

What follows -- goes to run.py. Interrupted, the same command goes on. Two parts, both [ours]:

    table    for every seed: the direct model; from its weights IML-GCN with word, image and PCA
             nodes and, the fair rival, the direct model again for as many epochs with a new head
    frozen   for every seed, the GCN alone on features of the table's direct model: graph and nodes

The score is the mean AP of the labels with 10 val photos or more, without the most frequent one.

Symbols: M images in a split, n labels, D image feature size, B images in a batch.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import data
import iml_gcn
import metrics
import run
from backbones import load_model
from extras import table
from runtime import checkpoints
from runtime.journal import Pass

HERE = Path(__file__).parent
# Chosen on seed 0 and held-out training photos; docs/evidence.md.
RECIPE = "--dataset coco --weights none --image-size 64 --batch-size 32 --recipe asl --lr 1e-3"
RECIPE += " --weight-decay 5e-4 --ema 0.98 --eval-every 2"
FROZEN = {  # what differs from the first
    "F_PCA": {"nodes": "F_PCA", "graph": "own", "tau": 0.1, "reading": "paper", "lr": 1e-3},
    "F_PCA, no graph": {"reading": "none"},
    "F_PCA, tau 0.05": {"tau": 0.05},
    "F_PCA, tau 0.2": {"tau": 0.2},
    "F_PCA, tau 0.4": {"tau": 0.4},
    "F_PCA, tau 0.6": {"tau": 0.6},
    "F_PCA, mlgcn": {"reading": "mlgcn"},
    "F_PCA, mlgcn, tau 0.4": {"reading": "mlgcn", "tau": 0.4},
    "F_PCA, graph of more images": {"graph": "more"},
    "F_PCA, graph of more images, tau 0.4": {"graph": "more", "tau": 0.4},
    "F_PCA, learning rate 0.0003": {"lr": 3e-4},
    "F_PCA, learning rate 0.003": {"lr": 3e-3},
    "F_PCA, not scaled": {"nodes": "raw F_PCA"},
    "F_I": {"nodes": "F_I"},
    "F_I, no graph": {"nodes": "F_I", "reading": "none"},
    "F_I, not scaled": {"nodes": "raw F_I"},
    "F_I, centred": {"nodes": "centred"},
    "F_W": {"nodes": "F_W"},
    "F_W, no graph": {"nodes": "F_W", "reading": "none"},
    "random nodes": {"nodes": "random"},
    "random nodes, no graph": {"nodes": "random", "reading": "none"},
    "one-hot nodes": {"nodes": "one-hot"},
}
FIELDS = ["part", "setting", "model", "seed", "epochs", "mAP_10", "mAP", "mAP_without", "labels_10"]
PARTS = ["table", "frozen"]
FROZEN_EPOCHS = 8  # a second each


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="COCO tree, as for run.py")
    add("--glove", required=True, metavar="FILE", help="word vectors, as for run.py")
    add("--graph-json", metavar="FILE", help="COCO-format JSON of more images, for the label graph")
    add("--out", type=Path, default=Path("runs/evidence"), help="(%(default)s)")
    add("--csv", type=Path, default=HERE / "results", help="folder of the figures (%(default)s)")
    add("--part", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of table and frozen (1 2 3)")
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
    return collect(args, out, "table", "", seed) + collect(args, longer, "table", "longer", seed)


# The GCN alone, on features that were computed once


@torch.inference_mode()
def features(args, folder: Path, split) -> tuple[torch.Tensor, torch.Tensor]:
    """F_GAP (M, D) of a split, not augmented, by <folder>/backbone.pt, and the targets (M, n)."""
    backbone = load_model(folder / "backbone.pt")[0].fold().backbone.to(args.device)
    result = torch.empty(len(split), backbone.num_features)  # (M, D)
    for images, _, rows in Pass(run.loader(args, split), "frozen", skip_bad=False):
        result[rows] = backbone(images).float().cpu()
    return result, torch.from_numpy(split.targets)


def fit(head: torch.nn.Module, train, val, seed: int, lr: float, epochs: int) -> dict:
    """A head trained on features instead of photos by the paper's recipe; its val figures."""
    X, Y = train  # (M, D), (M, n)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr, weight_decay=5e-4)
    steps = epochs * (len(X) // 32)
    scheduler = run.schedule("paper", optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(X), generator=generator)
        for rows in order[: len(X) // 32 * 32].split(32):
            optimizer.zero_grad()
            iml_gcn.asymmetric_loss(head(X[rows]), Y[rows]).backward()
            optimizer.step()
            scheduler.step()
    with torch.inference_mode():
        return figures(head(val[0]).numpy(), val[1].numpy())


def frozen_runs(args, seed: int) -> list[dict]:
    """Heads on the features of seed<seed>/backbone.pt, each trained for FROZEN_EPOCHS."""
    folder = args.out / f"seed{seed}"
    command = [*RECIPE.split(), *args.more, "--data", args.data, "--out", str(folder)]
    settings = run.parse_args(command)
    splits = run.load_data(settings)
    train, val = (features(settings, folder, split) for split in splits)
    n, D = train[1].shape[1], train[0].shape[1]
    graphs = {"own": run.label_counts(settings, splits.train)}
    if args.graph_json:
        settings.graph_json = args.graph_json
        graphs["more"] = run.label_counts(settings, splits.train)
    embeddings = torch.load(folder / "embeddings.pt", weights_only=True)
    F_I, F_PCA = embeddings["image"], embeddings["pca"]
    generator = torch.Generator().manual_seed(seed)
    nodes = {"F_PCA": F_PCA, "F_I": F_I, "centred": F_I - F_I.mean(0), "one-hot": torch.eye(n)}
    nodes["random"] = torch.randn(n, n, generator=generator)
    nodes = {kind: run.scaled(settings, matrix) for kind, matrix in nodes.items()}
    nodes |= {"raw F_PCA": F_PCA, "raw F_I": F_I}
    nodes["F_W"] = data.load_glove(args.glove, splits.train.classes)[0]
    rows = []

    def keep(name: str, head: torch.nn.Module, lr: float) -> None:
        values = fit(head, train, val, seed, lr, FROZEN_EPOCHS)
        about = {"part": "frozen", "setting": name, "seed": seed, "epochs": FROZEN_EPOCHS}
        rows.append(about | values)

    for lr in (1e-3, 3e-3, 1e-2):
        torch.manual_seed(seed)
        name = "linear head" if lr == 1e-3 else f"linear head, learning rate {lr:g}"
        keep(name, iml_gcn.linear_head(D, n), lr)
    first = next(iter(FROZEN.values()))
    for name, change in FROZEN.items():
        setting = first | change
        if setting["graph"] in graphs:
            counts = graphs[setting["graph"]]
            A = iml_gcn.adjacency(*counts, setting["tau"], 0.2, setting["reading"])
            A_hat = iml_gcn.normalise(A, setting["reading"])
            torch.manual_seed(seed)
            keep(name, iml_gcn.LabelGCN(nodes[setting["nodes"]], A_hat, D), setting["lr"])
    return rows


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


def collect(args, folder: Path, part: str, setting: str, seed: int) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("scores-*.npz")):
        with np.load(path, allow_pickle=False) as scores:
            values = figures(scores["logits"], scores["targets"])
        model = path.stem.removeprefix("scores-")
        checkpoint = checkpoints.read_checkpoint(folder / f"{model}.pt")
        about = {"part": part, "setting": setting, "seed": seed, "epochs": checkpoint["epochs"]}
        rows.append(about | {"model": table.MODELS[model]} | values)
    return rows


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of a few seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} +- {np.std(values, ddof=1):.2f}"


def show(part: str, rows: list[dict], reference: str) -> None:
    """One line a setting: its score, and its difference from `reference` seed by seed."""
    settings = {}
    for row in rows:
        name = ", ".join(filter(None, (row.get("model"), row["setting"])))
        settings.setdefault(name, {})[row["seed"]] = row["mAP_10"]
    print(f"\n| {part} | mAP | minus {reference} |\n| --- | --- | --- |")
    for name, scores in settings.items():
        both = [seed for seed in scores if seed in settings[reference]]
        minus = [scores[seed] - settings[reference][seed] for seed in both]
        print(f"| {name} | {spread(list(scores.values()))} | {spread(minus)} |")


def main(argv=None) -> int:
    args = parse_args(argv)
    rows = {part: [] for part in PARTS}
    try:
        for seed in args.seeds if "table" in args.part else ():
            rows["table"] += table_runs(args, seed)
        for seed in args.seeds if "frozen" in args.part else ():
            rows["frozen"] += frozen_runs(args, seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    args.csv.mkdir(parents=True, exist_ok=True)
    references = {"table": "direct (ASL), longer", "frozen": "linear head"}
    for part in args.part:
        with open(args.csv / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[part])
        show(part, rows[part], references[part])
    return 0


if __name__ == "__main__":
    sys.exit(main())
