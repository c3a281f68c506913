"""Heads on the features of a frozen backbone, many settings and seeds.
docs/evidence-tables.md has the commands.

    python -m experiments.frozen --csv FILE.csv -- --glove FILE OPTIONS-OF-RUN

run.py's own code computes the features once, into its --out. A line of SETTINGS is a row of the
table, a row of the CSV one seed of it; the same command resumes. With --held-out, where choices are
made, a fifth of the training photos takes the place of val; --held-out 1 draws another fifth.

Symbols: M images of a split, B others, n labels, D feature size.
"""

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import iml_gcn
import metrics
import run
from backbones.unit_features import signed_roots
from datasets.own_photos import stratified
from experiments import evidence
from runtime import signals
from runtime.folder import Folder
from runtime.loading import FeatureLoader, Rows

AT = ["OP", "OR", "OF1", "CP", "CR", "CF1_h", "N+"]  # at run.py's first --threshold, else 0.5


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
        shown = self.image.any(1)  # (n,)
        self.centred = self.image.clone()  # F_I without what PCA takes away, the labels' mean
        self.centred[shown] -= self.image[shown].mean(0)
        self.pairs, self.counts = iml_gcn.cooccurrence(Y)

    def gcn(self, nodes, length=1.0, hidden=1024, reading="paper", tau=0.1, p=0.2, rare=False):
        """A GCN head. Its nodes (n, d) are scaled to the mean length `length`; 0 leaves them as
        they are. With `rare` only the rarer half of the labels gets neighbours."""
        nodes = run.scaled(nodes, length)
        A = iml_gcn.adjacency(self.pairs, self.counts, tau, p, reading)  # (n, n)
        A_hat = iml_gcn.normalise(A, reading)
        if rare:
            alone = (self.counts > self.counts.median()).unsqueeze(1)  # (n, 1)
            A_hat = torch.where(alone, torch.eye(self.n), A_hat)
        return iml_gcn.LabelGCN(nodes, A_hat, self.D, hidden)

    def linear(self, bias: bool = True) -> nn.Linear:
        head = iml_gcn.linear_head(self.D, self.n)
        if not bias:
            head.bias = None
        return head


def kernel_ridge(split: data.Split, features: torch.Tensor, roots: bool = True) -> torch.Tensor:
    """(B, n) of features (B, D): ridge regression in closed form, fitted to a split, with the
    kernel exp(-|x - x'|^2) of the features' roots, centred and of length 1.

    Positive scores mean "predicted". Each label's threshold is set by leave-one-out, so that as
    many training photos are predicted as have it (PCut of Y. Yang, SIGIR 2001, on these photos).
    The means alone include the photo that is left out.
    """
    Y = torch.from_numpy(split.targets).float()  # (M, n)
    X, x = split.features, features  # (M, D), (B, D)
    if roots:
        X, x = signed_roots(X), signed_roots(x)
    known = F.normalize(X - X.mean(0))  # (M, D)
    points = F.normalize(x - X.mean(0))  # (B, D)
    K = torch.exp(2 * known @ known.T - 2)  # (M, M)
    k = torch.exp(2 * points @ known.T - 2)  # (B, M)
    inverse = torch.linalg.inv(K + 0.1 * torch.eye(len(Y)))  # 0.1, as the kernel's width: [ours]
    weights = inverse @ (Y - Y.mean(0))  # (M, n)
    left_out = Y - Y.mean(0) - weights / inverse.diagonal()[:, None]  # (M, n)
    next_place = Y.sum(0, keepdim=True).long().clamp(max=len(Y) - 1)  # (1, n)
    return k @ weights - left_out.sort(0, descending=True).values.gather(0, next_place)


class Sum(nn.ModuleList):
    """Heads whose logits are added: a linear one, and what a GCN adds to it."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return sum(head(features) for head in self)


SETTINGS = {
    "linear head": Task.linear,
    "linear head, no bias": lambda t: t.linear(bias=False),
    "kernel ridge": lambda t: functools.partial(kernel_ridge, t.train),
    "kernel ridge, no roots": lambda t: functools.partial(kernel_ridge, t.train, roots=False),
    "F_W": lambda t: t.gcn(t.words),
    "F_I": lambda t: t.gcn(t.image),
    "F_I, centred": lambda t: t.gcn(t.centred),
    "F_PCA": lambda t: t.gcn(t.pca),
    "random nodes": lambda t: t.gcn(torch.randn(t.n, t.n)),
    "F_PCA, no graph": lambda t: t.gcn(t.pca, reading="none"),
    "F_W, no graph": lambda t: t.gcn(t.words, reading="none"),
    "random nodes, no graph": lambda t: t.gcn(torch.randn(t.n, t.n), reading="none"),
    "F_W, not scaled": lambda t: t.gcn(t.words, length=0),  # the literal paper
    "F_I, not scaled": lambda t: t.gcn(t.image, length=0),
    "F_PCA, not scaled": lambda t: t.gcn(t.pca, length=0),
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
    "linear + F_PCA": lambda t: Sum([t.linear(), t.gcn(t.pca)]),
    "linear + F_PCA, no graph": lambda t: Sum([t.linear(), t.gcn(t.pca, reading="none")]),
    "linear + F_W": lambda t: Sum([t.linear(), t.gcn(t.words)]),
    "F_PCA, then linear": lambda t: t.gcn(t.pca),  # half of the epochs each
}


def figures(logits: np.ndarray, task: Task, threshold: float = 0.5) -> dict:
    """The figures of a row from val logits (M, n): percentages, except N+, a number of labels, and
    `best`, the threshold of the highest OF1."""
    targets = task.val.targets
    ap = metrics.average_precision(logits, targets)  # (n,)
    row = {"mAP": metrics.mean_average_precision(ap)}
    order = np.argsort(-task.train.targets.sum(0), kind="stable")  # by their training photos
    for name, labels in zip(("often", "middle", "rare"), np.array_split(order, 3), strict=True):
        row[name] = metrics.mean_average_precision(ap[labels])
    row["best"] = metrics.best_threshold(logits, targets)
    at = metrics.precision_recall_f1(logits, targets, metrics.logit(threshold))
    row |= {name: at[name] for name in AT}
    return {name: round(value, 3) for name, value in row.items()}


def fit(head: nn.Module, split: data.Split, options, epochs: int, seed: int) -> None:
    """Train a head in place, as run.py does on features, but without a moving average."""
    optimizer = run.adam(options, iml_gcn.Model(nn.Identity(), head))
    batch_size = run.with_batch_size(options, split).batch_size
    rows = Rows(len(split), batch_size, shuffle=True, seed=seed)
    batches = FeatureLoader(split.features, split.targets, rows, "cpu")
    scheduler = run.schedule(options.recipe, optimizer, epochs * len(batches))
    for epoch in range(epochs):
        batches.rows.epoch = epoch
        for features, targets, _, _ in batches:
            loss = iml_gcn.asymmetric_loss(
                head(features), targets, options.gamma_neg, options.gamma_pos, options.clip
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def logits_of(task: Task, options, setting: str, epochs: int, seed: int) -> np.ndarray:
    """(M, n) of the val photos, by a head that is trained here."""
    torch.set_num_threads(1)  # heads and batches are so small that more threads are slower
    torch.manual_seed(seed)
    head = SETTINGS[setting](task)
    if setting.endswith(", then linear"):
        fit(head, task.train, options, epochs // 2, seed)
        head, epochs, seed = head.to_linear(), epochs - epochs // 2, seed + 1000
    if isinstance(head, nn.Module):  # a kernel ridge is fitted when called
        fit(head, task.train, options, epochs, seed)
    with torch.inference_mode():
        return head(task.val.features).numpy()


def trained(
    task: Task,
    options,
    scores: Path | None,
    setting: str,
    lr: float,
    epochs: int,
    photos: int,
    seed: int,
) -> dict:
    """The figures of a row, trained on `photos` training photos drawn by the seed, or all (0).

    The folder `scores`, if there is one, gets its logits and targets (M, n).
    """
    options = argparse.Namespace(**vars(options) | {"lr": lr})
    if photos:
        rows = np.random.default_rng(seed).permutation(len(task.train))[:photos]
        task = Task(task.train.select(rows), task.val, task.words)
    threshold = options.threshold[0] if options.threshold else 0.5
    logits = logits_of(task, options, setting, epochs, seed)
    if scores:
        name = f"{setting}, lr {lr}, epochs {epochs}"
        if photos:
            name += f", photos {photos}"
        evidence.keep_scores(scores, name, seed, logits, task.val.targets)
    return figures(logits, task, threshold)


def parse_args(argv=None) -> argparse.Namespace:
    parser = evidence.parser_of(SETTINGS, range(10))
    parser.set_defaults(settings=[name for name in SETTINGS if not name.startswith("kernel")])
    add = parser.add_argument
    add("--held-out", type=int, nargs="?", const=0, help="a draw of a fifth of the training photos")
    add("--lr", type=float, nargs="+", default=[1e-3], help="(1e-3)")
    add("--epochs", type=int, nargs="+", default=[20], help="(20)")
    add("--photos", type=int, nargs="+", default=[0], help="training photos, 0: all (0)")
    add("--scores", type=Path, metavar="DIR", help=evidence.SCORES)
    return parser.parse_args(argv)


def features(options, held_out: int | None = None) -> Task:
    """run.py's features of its photos; val is a draw of a fifth of the training ones if wanted."""
    if not options.glove:
        raise ValueError("F_W needs --glove FILE, word vectors as GloVe text or .npy, after --")
    options = run.on_device(options)
    options.out.mkdir(parents=True, exist_ok=True)
    splits = run.load_data(options)
    options = run.with_batch_size(options, splits.train)
    folder = Folder(options.out, splits.train.classes)
    train, val = run.frozen(options, splits, run.feature_store(options, splits, folder))
    if held_out is not None:
        held = stratified(train.targets, 0.2, held_out)
        train, val = train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))
    return Task(train, val, data.load_glove(options.glove, train.classes)[0])


def work(args) -> None:
    options = run.parse_args([*args.run_options, "--freeze"])
    task = features(options, args.held_out)
    columns = {"setting": args.settings, "lr": args.lr, "epochs": args.epochs}
    columns |= {"photos": args.photos, "seed": args.seeds}
    measured = functools.partial(trained, task, options, args.scores)
    inputs = [*args.run_options, f"held out: {args.held_out}", task.train.id(), task.val.id()]
    evidence.fill(args.csv, measured, inputs, **columns)
    print(*evidence.table(evidence.read(args.csv)), sep="\n")


if __name__ == "__main__":
    signals.run(lambda: signals.code_of(lambda: work(parse_args())))
