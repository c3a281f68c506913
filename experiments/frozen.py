"""Heads on the features of a frozen backbone, many settings and seeds; docs/evidence.md has the
commands.

    python -m experiments.frozen --csv FILE.csv -- --glove FILE OPTIONS-OF-RUN

run.py's part computes the features once, into its --out. A line of SETTINGS is a row of the table,
a row of the CSV a seed of it; the same command goes on where it was. With --held-out a fifth of the
training photos takes the place of val: there a choice is made, not on val.

Symbols: M images, n labels, D feature size.
"""

import argparse
import itertools
import math
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
import iml_gcn
import metrics
import run
from experiments import evidence
from extras.own_data import stratified
from runtime import signals
from runtime.folder import Folder
from runtime.loading import FeatureLoader, Rows

KEYS = ["setting", "lr", "epochs", "photos", "seed"]
GROUPS = ["often", "middle", "rare"]  # thirds of the labels by the training photos that show them
AT = ["OP", "OR", "OF1", "CP", "CR", "CF1_h", "N+"]  # at run.py's first --threshold
FIGURES = ["mAP", "mAP_10", "mAP_without", *GROUPS, "best", *AT]


@dataclass
class Task:
    """Features and targets of both splits, and what heads are made of."""

    train: data.Split
    val: data.Split
    words: torch.Tensor  # F_W (n, 300)

    def __post_init__(self):
        X, Y = self.train.features, torch.from_numpy(self.train.targets)
        self.n, self.D = Y.shape[1], X.shape[1]
        means = iml_gcn.LabelMeans(self.n, self.D)
        means.update(X, Y)
        self.image = means.mean()  # F_I (n, D)
        self.pca = iml_gcn.pca(self.image, min(self.image.shape))  # F_PCA (n, n)
        self.pairs, self.counts = iml_gcn.cooccurrence(Y)

    def random(self) -> torch.Tensor:
        return torch.randn(self.n, self.n)

    def centred(self) -> torch.Tensor:
        """F_I without its mean over the labels, which is what PCA takes away."""
        shown = self.image.any(1, keepdim=True)  # (n, 1)
        return torch.where(shown, self.image - self.image[shown[:, 0]].mean(0), 0)

    def gcn(self, nodes, length=1.0, hidden=1024, reading="paper", tau=0.1, p=0.2, rare=False):
        """A GCN head, its nodes `length` long in the mean, 0: as they are. `rare`: only the rarer
        half of the labels gets neighbours."""
        norms = nodes.norm(dim=1)  # (n,)
        nodes = nodes * (length / norms[norms > 0].mean()) if length else nodes
        A = iml_gcn.adjacency(self.pairs, self.counts, tau, p, reading)  # (n, n)
        A_hat = iml_gcn.normalise(A, reading)
        if rare:
            alone = (self.counts > self.counts.median()).unsqueeze(1)  # (n, 1)
            A_hat = torch.where(alone, torch.eye(self.n), A_hat)
        return iml_gcn.LabelGCN(nodes, A_hat, self.D, hidden)

    def linear(self) -> nn.Linear:
        return iml_gcn.linear_head(self.D, self.n)


class Sum(nn.Module):
    """Two heads whose logits are added: a linear one, and what a GCN adds to it."""

    def __init__(self, *heads: nn.Module):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return sum(head(features) for head in self.heads)


SETTINGS = {
    "linear head": Task.linear,
    "F_W": lambda t: t.gcn(t.words),
    "F_I": lambda t: t.gcn(t.image),
    "F_I, centred": lambda t: t.gcn(t.centred()),
    "F_PCA": lambda t: t.gcn(t.pca),
    "random nodes": lambda t: t.gcn(t.random()),
    "F_PCA, no graph": lambda t: t.gcn(t.pca, reading="none"),
    "F_W, no graph": lambda t: t.gcn(t.words, reading="none"),
    "random nodes, no graph": lambda t: t.gcn(t.random(), reading="none"),
    "F_W, length as it is": lambda t: t.gcn(t.words, length=0),
    "F_PCA, length 0.3": lambda t: t.gcn(t.pca, length=0.3),
    "F_PCA, length 3": lambda t: t.gcn(t.pca, length=3),
    "F_PCA, tau 0.05": lambda t: t.gcn(t.pca, tau=0.05),
    "F_PCA, tau 0.2": lambda t: t.gcn(t.pca, tau=0.2),
    "F_PCA, tau 0.4": lambda t: t.gcn(t.pca, tau=0.4),
    "F_PCA, p 0.1": lambda t: t.gcn(t.pca, p=0.1),
    "F_PCA, p 0.5": lambda t: t.gcn(t.pca, p=0.5),
    "F_PCA, mlgcn": lambda t: t.gcn(t.pca, reading="mlgcn"),
    "F_PCA, mlgcn, tau 0.4": lambda t: t.gcn(t.pca, reading="mlgcn", tau=0.4),
    "F_PCA, hidden 256": lambda t: t.gcn(t.pca, hidden=256),
    "F_PCA, graph for rare labels": lambda t: t.gcn(t.pca, rare=True),
    "linear + F_PCA": lambda t: Sum(t.linear(), t.gcn(t.pca)),
    "linear + F_PCA, no graph": lambda t: Sum(t.linear(), t.gcn(t.pca, reading="none")),
    "linear + F_W": lambda t: Sum(t.linear(), t.gcn(t.words)),
    "F_PCA, then linear": lambda t: t.gcn(t.pca),  # half of the epochs each
}


def figures(logits: np.ndarray, task: Task, threshold: float) -> dict:
    """In percent, N+ as a number of labels; `best` is the threshold of the highest OF1 here."""
    targets = task.val.targets
    found = evidence.figures(logits, targets)
    ap = metrics.average_precision(logits, targets)  # (n,)
    order = np.argsort(-task.train.targets.sum(0), kind="stable")
    for name, labels in zip(GROUPS, np.array_split(order, 3), strict=True):
        found[name] = metrics.mean_average_precision(ap[labels])
    found["best"] = metrics.best_threshold(logits, targets)
    at = metrics.precision_recall_f1(logits, targets, math.log(threshold / (1 - threshold)))
    return {name: round(value, 3) for name, value in (found | {k: at[k] for k in AT}).items()}


def fit(head: nn.Module, split: data.Split, options, epochs: int, seed: int) -> None:
    """Train as run.py does on features."""
    optimizer = run.adam(options, iml_gcn.Model(nn.Identity(), head))
    rows = Rows(len(split), options.batch_size, shuffle=True, seed=seed)
    batches = FeatureLoader(split.features, split.targets, rows, "cpu")
    scheduler = run.schedule(options.recipe, optimizer, epochs * len(batches))
    for batches.rows.epoch in range(epochs):
        for features, targets, _, _ in batches:
            loss = iml_gcn.asymmetric_loss(head(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def trained(task: Task, options, setting: str, lr: float, epochs: int, photos: int, seed: int):
    """A row of the CSV. Of `photos` training photos drawn by the seed, or of all (0)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    options.lr = lr
    if photos:
        rows = np.random.default_rng(seed).permutation(len(task.train))[:photos]
        task = Task(task.train.select(rows), task.val, task.words)
    head, then = SETTINGS[setting](task), setting.endswith(", then linear")
    fit(head, task.train, options, epochs // 2 if then else epochs, seed)
    if then:
        head = head.to_linear()
        fit(head, task.train, options, epochs - epochs // 2, seed + 1000)
    with torch.inference_mode():
        logits = head(task.val.features).numpy()
    about = dict(zip(KEYS, (setting, lr, epochs, photos, seed), strict=True))
    return about | figures(logits, task, options.threshold[0])


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, required=True, metavar="FILE", help="where the figures are added")
    add("--held-out", action="store_true", help="evaluate on a fifth of the training photos")
    add("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help="(all)", default=SETTINGS)
    add("--seeds", type=int, nargs="+", default=[*range(10)], help="(0 to 9)")
    add("--lr", type=float, nargs="+", default=[1e-3], help="(1e-3)")
    add("--epochs", type=int, nargs="+", default=[20], help="(20)")
    add("--photos", type=int, nargs="+", default=[0], help="training photos, 0: all (0)")
    add("--processes", type=int, default=2, help="(%(default)s)")
    add("more", nargs="+", metavar="-- ...", help="run.py's options, --glove FILE among them")
    return parser.parse_args(argv)


def features(options, held_out: bool = False) -> Task:
    """run.py's features of its photos; `held_out`: a fifth of the training photos is val."""
    options.amp = bool(options.amp)
    options.out.mkdir(parents=True, exist_ok=True)
    splits = run.load_data(options)
    folder = Folder(options.out, splits.train.classes)
    train, val = run.with_features(options, splits, folder)
    if held_out:
        held = stratified(train.targets, 0.2)
        train, val = train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))
    return Task(train, val, data.load_glove(options.glove, train.classes)[0])


def work(args) -> None:
    options = run.parse_args(["--threshold", "0.5", *args.more, "--freeze"])
    task = features(options, args.held_out)
    known = {tuple(row[key] for key in KEYS) for row in evidence.read(args.csv)}
    wanted = itertools.product(args.seeds, args.settings, args.lr, args.epochs, args.photos)
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        futures = []
        for seed, *about in wanted:
            if tuple(map(str, (*about, seed))) not in known:
                futures.append(pool.submit(trained, task, options, *about, seed))
        for future in as_completed(futures):
            evidence.add_row(args.csv, [*KEYS, *FIGURES], future.result())
    rows = evidence.read(args.csv)
    print(*evidence.table(rows, evidence.named(rows[0], rows)), sep="\n")


if __name__ == "__main__":
    arguments = parse_args()
    sys.exit(signals.code_of(lambda: work(arguments)))
