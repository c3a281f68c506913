"""Reproduce IML-GCN: train the backbone, embed the labels, train the GCN, evaluate.  Typical use:

    python run.py                                # demo scenes, drawn on the spot -> runs/demo
    python run.py --photos DIR --labels FILE     # your own photos                -> runs/own
    python run.py --dataset coco --data DIR      # the paper's Tables 1 and 3     -> runs/coco
    python run.py --dataset coco --data DIR --limit 64 --epochs 1 --out runs/try  # a dry run
    torchrun --nproc-per-node 8 run.py --dataset coco --data DIR                  # 8 GPUs

Three phases (Section "Proposed Approach") and eval, which speak to each other through files in
--out only:

    backbone   TResNet + linear head, ASL     -> backbone.pt, the paper's "ASL (TResNetM)" row
    embed      backbone.pt, training photos   -> embeddings.pt: F_I and F_PCA
    gcn        backbone.pt, embeddings.pt     -> gcn-<nodes>.pt, one a kind of node feature
    eval       every *.pt above, val photos   -> metrics-*.json, scores-*.npz, results.md, .jpg

Symbols: B images in a batch, M images in a split, n labels, D image feature size.
"""

import argparse
import copy
import math
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import data
import iml_gcn
import metrics
from backbones import (
    BACKBONES,
    RELEASED,
    build,
    default_weights,
    features,
    load_model,
    load_weights,
)
from datasets.catalogue import DATASETS, Splits, load
from reports import calibration, graph_picture, pictures, table
from reports.forecast import seconds_a_photo
from runtime import checkpoints, device, lean, options, ranks, signals
from runtime.folder import PHOTOS, START, Folder, lock
from runtime.journal import Journal, Pass
from runtime.loading import FeatureLoader, Loader, Rows
from runtime.terminal import listed

# The phases


def phase_backbone(args, splits: Splits, folder: Folder) -> None:
    """Phase 1: CNN and linear head, trained to convergence. This is the ASL row of Table 1."""
    torch.manual_seed(args.seed)
    backbone = pretrained_backbone(args)
    head = iml_gcn.linear_head(backbone.num_features, len(folder.classes))
    train(args, "backbone", iml_gcn.Model(backbone, head), splits, folder)


@torch.inference_mode()
def phase_embed(args, splits: Splits, folder: Folder) -> None:
    """Phase 2: one pass over the training photos, not augmented, in eval mode. Eq. 5 and 6."""
    settings = embedding_settings(args, splits, folder)
    if folder.done("embeddings.pt", settings, remake=True):
        return
    model, about = load_model(folder / "backbone.pt")
    split = splits.train.of(about["backbone_id"] == args.frozen)
    backbone = learner(model, split).fold().backbone.to(args.device)
    means = iml_gcn.LabelMeans(len(folder.classes), model.backbone.num_features)
    for images, targets, _ in Pass(loader(args, split), "embed", args.skip_bad_images):
        with autocast(args):
            means.update(backbone(images), targets)  # (B, D), (B, n)
    ranks.total(means.sums, means.counts)  # each rank saw its part of the photos
    F_I = means.mean()  # (n, D), Eq. 5
    F_PCA = iml_gcn.pca(F_I, min(F_I.shape))  # (n, n), Eq. 6; fewer columns where D < n
    print(f"embed: F_I {tuple(F_I.shape)}, F_PCA {tuple(F_PCA.shape)}")
    folder.save("embeddings.pt", {"image": F_I, "pca": F_PCA}, settings)


def phase_gcn(args, splits: Splits, folder: Folder) -> None:
    """Phase 3: CNN and GCN trained jointly, once for every kind of node features (Table 3)."""
    *_, A = label_graph(args, splits.train)  # (n, n), Eq. 3 and 4
    A_hat = iml_gcn.normalise(A, args.adjacency)  # (n, n), Eq. 2
    for kind in args.nodes:
        nodes = node_features(args, kind, splits, folder)  # (n, d): F_W, F_I or F_PCA
        torch.manual_seed(args.seed)
        backbone = starting_backbone(args, folder)  # difference 13
        head = iml_gcn.LabelGCN(nodes, A_hat, backbone.num_features)
        train(args, f"gcn-{kind}", iml_gcn.Model(backbone, head), splits, folder)


def phase_eval(args, splits: Splits, folder: Folder) -> None:
    """Every model in --out, or the one of --evaluate, on the val photos: the paper's tables."""
    found, reports = table.models(folder, args.image_size, args.evaluate, args.backbone), {}
    scored = {}
    for name, (model, about) in found.items():
        val = splits.val.of(about.pop("backbone_id", None) == args.frozen)
        model = learner(model, val).to(args.device, memory_format=torch.channels_last)
        logits, seen = logits_of(args, model, loader(args, val), val, f"eval {name}")
        about |= {"dataset": args.dataset, "unreadable": args.val_photos - len(seen)}
        thresholds = [0.5, 0.8, *args.threshold]  # ML-GCN's and ASL's; difference 6
        reports[name] = table.save_numbers(folder, name, logits, seen, about, thresholds)
        scored[name] = logits
    name = "results-evaluated.md" if args.evaluate else "results.md"
    dataset = "own" if args.train_json or args.val_json else args.dataset
    table.save(folder / name, dataset, args.image_size, seen.targets, reports)
    best = max(reports, key=lambda name: reports[name]["mAP"])
    if "calibration" in reports[best] and ranks.rank() == 0:
        scores = calibration.scores(scored[best], *reports[best]["calibration"])
        path = folder / name.replace(".md", ".jpg")
        pictures.save_judged(seen, scores, reports[best]["threshold"], path)


# What the phases are made of


def label_graph(args, split: data.Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pairs (n, n) and counts (n,) of the training photos; A (n, n), Eq. 3 and 4."""
    pairs, counts = iml_gcn.cooccurrence(torch.from_numpy(split.targets))
    return pairs, counts, iml_gcn.adjacency(pairs, counts, args.tau, args.p, args.adjacency)


def node_features(args, kind: str, splits: Splits, folder: Folder) -> torch.Tensor:
    """(n, d): F_W from --glove, F_I or F_PCA from embeddings.pt, or random numbers, a control."""
    if kind == "word":
        return data.load_glove(args.glove, folder.classes)[0]  # (n, 300)
    if kind == "random":  # F_PCA's shape and scale, and nothing in it
        n, generator = len(folder.classes), torch.Generator().manual_seed(args.seed)
        return scaled(args, torch.randn(n, n, generator=generator))
    settings = embedding_settings(args, splits, folder)
    return scaled(args, folder.load("embeddings.pt", "embed", settings)[kind])


def scaled(args, nodes: torch.Tensor) -> torch.Tensor:
    """nodes (n, d) times one number: their mean length becomes --node-norm (difference 25)."""
    lengths = nodes.norm(dim=1)  # (n,); those of 0 do not count: difference 26
    if not lengths.any():
        raise ValueError("node features are all zero; give other --nodes")
    return nodes * (args.node_norm / lengths[lengths > 0].mean()) if args.node_norm else nodes


def pretrained_backbone(args) -> torch.nn.Module:
    """The backbone with --weights, or random ones."""
    backbone = build(args.backbone, args.pool)
    if args.weights != "none":
        with ranks.in_turn():
            load_weights(backbone, args.weights)
    return backbone


def with_features(args, splits: Splits, folder: Folder) -> Splits:
    """--freeze: the splits with F_GAP (M, D) of their photos by the backbone of --weights."""
    torch.manual_seed(args.seed)
    backbone = pretrained_backbone(args)
    args.frozen = checkpoints.content_id(*backbone.state_dict().values())
    keys = "image_size", "pool", "amp", "code"
    made_with = {START: args.frozen} | {key: getattr(args, key) for key in keys}
    batches = [loader(args, split) for split in splits]
    with autocast(args):
        found = features.features(
            backbone, splits, batches, folder, made_with, args.skip_bad_images
        )
    return Splits(*found)


def starting_backbone(args, folder: Folder) -> torch.nn.Module:
    """Phase backbone's, or with --gcn-from weights what that one started from (difference 13)."""
    if args.gcn_from == "weights":
        return pretrained_backbone(args)
    folder.load("backbone.pt", "backbone")  # or a sentence: it is not there, or of other labels
    return load_model(folder / "backbone.pt")[0].backbone


# Training and evaluation


def train(args, name: str, model: iml_gcn.Model, splits: Splits, folder: Folder) -> None:
    """Train `model` to the last epoch and write <name>.pt (differences 9 to 14).

    A step: forward, asymmetric loss, backward, Adam, schedule, moving average; nothing in it waits
    for the device. The journal knows where to go on, saves and logs.
    """
    settings = model_settings(args, model, splits)
    if folder.done(f"{name}.pt", settings):
        return
    if args.freeze and settings[START] != args.frozen:
        raise ValueError(
            f"--freeze trains heads on features of --weights, and {folder / 'backbone.pt'} has "
            "another backbone; redo phase backbone too, or leave --freeze out"
        )
    whole = model  # --freeze trains its head alone
    model = learner(whole, splits.train).to(args.device, memory_format=torch.channels_last)
    batches, val_batches = loader(args, splits.train, train=True), loader(args, splits.val)
    optimizer = adam(args, model)
    scheduler = schedule(args.recipe, optimizer, len(batches) * args.epochs)
    average = copy.deepcopy(model) if args.ema else None
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    journal = Journal(folder, name, parts, settings, len(batches), args.save_every)
    few = len(batches) * args.epochs < (5000 if args.weights == "none" else 500)  # [ours]
    photos = name == "backbone" and not args.freeze and args.dataset != "demo"  # all weights, of
    if few and photos:  # said before hours are spent
        print("few steps: expect low mAP; --freeze and pretrained weights give more: docs/data.md")
    forward = ranks.parallel(model, args.device)
    forward = torch.compile(forward) if args.compile else forward
    final = average or model

    for epoch in journal.epochs(args.epochs):
        model.train()
        model.backbone.train(any(p.requires_grad for p in model.backbone.parameters()))
        for images, targets in journal.steps(batches, epoch):
            with autocast(args):
                logits = forward(images)  # (B, n)
            loss = iml_gcn.asymmetric_loss(
                logits, targets, args.gamma_neg, args.gamma_pos, args.clip
            )
            optimizer.zero_grad()
            (loss * ranks.size()).backward()  # of ranks, gradients are averaged, losses summed
            optimizer.step()
            scheduler.step()
            if average:
                follow(average, model, args.ema)
            journal.loss = loss
        mAP = None
        if epoch + 1 == args.epochs or (args.eval_every and (epoch + 1) % args.eval_every == 0):
            logits, seen = logits_of(args, final, val_batches, splits.val, f"{name}  val")
            mAP = metrics.mean_average_precision(metrics.average_precision(logits, seen.targets))
        journal.close_epoch(mAP)

    whole = iml_gcn.Model(whole.backbone, final.head) if args.freeze else final
    slope, offset = calibration.fit(logits, seen.targets)  # of the last epoch; difference 6
    journal.finish(
        {
            "name": name,
            "backbone": args.backbone,
            "pool": args.pool,
            "image_size": args.image_size,
            "epochs": args.epochs,
            "calibration": [slope, offset],
            "threshold": metrics.best_threshold(slope * logits + offset, seen.targets),
            "operating_points": metrics.operating_points(
                slope * logits + offset, seen.targets
            ).tolist(),
            "backbone_id": checkpoints.content_id(*whole.backbone.state_dict().values()),
            "state_dict": whole.state_dict(),
        }
    )


def adam(args, model: iml_gcn.Model) -> torch.optim.Optimizer:
    """Adam on head and backbone, the latter at its part of the rate, at 0 frozen."""
    model.backbone.requires_grad_(args.backbone_lr > 0)
    groups = []
    for module, lr in ((model.head, args.lr), (model.backbone, args.lr * args.backbone_lr)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim >= 2]  # difference 12
        groups.append({"params": decay, "weight_decay": args.weight_decay, "lr": lr})
        groups.append({"params": [p for p in parameters if p.ndim < 2], "lr": lr})
    groups = [group for group in groups if group["params"]]
    return torch.optim.Adam(groups, fused=args.device.startswith(("cuda", "cpu")))


def schedule(recipe: str, optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """x0.1 after each quarter of the steps, epochs 10, 20 and 30 of 40; or one cycle, ASL's
    (difference 18) or to its end."""
    peaks, OneCycle = [g["lr"] for g in optimizer.param_groups], torch.optim.lr_scheduler.OneCycleLR
    if recipe == "asl":  # a cycle of twice the epochs, 80, left after the first half, 40 [ASL]
        return OneCycle(optimizer, peaks, total_steps=2 * steps, pct_start=0.2)
    if recipe == "cycle":
        return OneCycle(optimizer, peaks, total_steps=steps + 1)  # torch's own shape
    quarters = [math.ceil(steps * k / 4) for k in (1, 2, 3)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, quarters, gamma=0.1)


def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """A step of the moving average of weights and running statistics, from where they began.
    torch's AveragedModel counts its steps on the device, and so waits for it at each."""
    pairs = zip(*([*m.parameters(), *m.buffers()] for m in (average, model)), strict=True)
    pairs = [pair for pair in pairs if pair[0].is_floating_point()]  # not batch norm's counters
    get_ema_multi_avg_fn(decay)(*zip(*pairs, strict=True), None)


def autocast(args) -> torch.autocast:
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=bool(args.amp))


def learner(model: iml_gcn.Model, split: data.Split) -> iml_gcn.Model:
    """What of a model takes what a split has: all of it photos, the head alone features."""
    return model if split.features is None else iml_gcn.Model(torch.nn.Identity(), model.head)


def loader(args, split: data.Split, train: bool = False) -> Loader | FeatureLoader:
    rows = Rows(len(split), args.batch_size, train, args.seed)
    if split.features is not None:
        return FeatureLoader(split.features, split.targets, rows, args.device)
    images = data.MultiLabelImages(split, args.image_size, train, args.seed)
    return Loader(images, rows, args.device, args.workers)


@torch.inference_mode()
def logits_of(
    args, model: iml_gcn.Model, batches: Loader | FeatureLoader, split: data.Split, what: str
) -> tuple[np.ndarray, data.Split]:
    """Logits (M, n) in float32 of a split's photos in their order, and the split of those: all of
    it, but photos that cannot be read where --skip-bad-images leaves them out."""
    model = model.fold()
    logits = torch.zeros(split.targets.shape)  # (M, n)
    photos = Pass(batches, what, args.skip_bad_images)
    for images, _, rows in photos:
        with autocast(args):
            logits[rows] = model(images).float().cpu()
    read = np.flatnonzero(photos.read)
    return ranks.total(logits).numpy()[read], split.select(read)


# What decides the numbers in a file of --out, compared before it is used again: options by their
# values, all else by content, a photo by name and size. Not compared are device, --compile,
# --memory and the number of processes, which change numbers by rounding and batch norm.

HERE, CODE = Path(__file__).parent, ["iml_gcn", "tresnet", "data", "metrics", "run", "backbones/*"]
CODE += ["reports/calibration"]
CODE += [f"runtime/{name}" for name in ("lean", "loading", "reading", "journal")]


def model_settings(args, model: iml_gcn.Model, splits: Splits) -> dict:
    """Of a model that is about to be trained on these photos."""
    found = {name.replace("_", "-"): getattr(args, name) for name in args.decisive}
    found |= {PHOTOS: splits.train.id(), "val photos and labels": splits.val.id()}
    found["code"] = args.code
    found[START] = checkpoints.content_id(*model.backbone.state_dict().values())
    if isinstance(model.head, iml_gcn.LabelGCN):
        graph, nodes = model.head.A_hat, model.head.nodes
        found["label graph (--tau, --p, --adjacency)"] = checkpoints.content_id(graph)
        found["node features (--glove, --node-norm)"] = checkpoints.content_id(nodes)
    return found


def embedding_settings(args, splits: Splits, folder: Folder) -> dict:
    backbone = folder.load("backbone.pt", "backbone")["backbone_id"]
    found = {"backbone.pt": backbone, PHOTOS: splits.train.id(), "amp": args.amp}
    return found | {"image-size": args.image_size, "code": args.code}


# Options

# What differs from the command line's defaults, the paper's, in ASL's training script [ASL] ...
RECIPES = {
    "paper": {},
    "asl": {"lr": 1e-4, "weight_decay": 1e-4, "ema": 0.9997, "image_size": 224},
    "cycle": {"lr": 3e-3, "weight_decay": 1e-4},  # [ours] learns to the end, however few epochs
    # [ours] for few photos: docs/data.md has how it was chosen; batch 0: by their number
    "small": dict(backbone="efficientnet_lite2", freeze=True, image_size=384, batch_size=0),
}
# ... and for a data set [ours].
PRESETS = {"own": {"recipe": "small"}, "demo": {"recipe": "cycle", "epochs": 12, "lr": 4e-3}}
PRESETS["demo"] |= dict(backbone="tresnet_tiny", image_size=64, batch_size=32, memory="plain")

# What --help shows: the options most people use.
SHORT = """\
    python run.py                                   a first look: demo scenes, 3 minutes
    python run.py --photos DIR --labels FILE        your own photos
    python run.py --dataset coco --data DIR         the paper's Tables 1 and 3"""
COMMON = """help_all photos labels val_photos val_labels dataset data download phase nodes glove
    out fresh limit evaluate backbone weights freeze recipe image_size epochs batch_size lr seed
    device amp""".split()

PHASES = {"backbone": phase_backbone, "embed": phase_embed, "gcn": phase_gcn, "eval": phase_eval}
NODES = ["word", "image", "pca", "random"]  # the order of Table 3


def parse_args(argv=None) -> argparse.Namespace:
    """Every default but RECIPES' and PRESETS'; a help text ends in its source.

    What `decides` the numbers of a trained model is compared by value before a file is used again;
    of the others that matter, what they make is compared by content (`model_settings`).
    """
    parser = argparse.ArgumentParser(
        usage="python run.py [option ...]",
        description=__doc__,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 27, 100),
        allow_abbrev=False,
        add_help=False,
    )
    add, group, decisive = options.Adder(), parser.add_argument_group, []
    shown = {"nargs": 0, "const": (SHORT, COMMON), "help": argparse.SUPPRESS}
    parser.add_argument("-h", "--help", action=options.ShortHelp, **shown)
    parser.add_argument("--help-all", action="help", help="every option, with its source")
    whole, between = options.whole, options.between

    def decides(*arguments, **more) -> None:
        decisive.append(add(*arguments, **more))

    add.group = group("what to run")
    add("--photos", "folder of your own photos [ours]", "DIR")
    add("--labels", "theirs: JSON, CSV or XML (the folders they are in) [docs/data.md]", "FILE")
    add("--val-photos", "folder of photos to validate on (a fifth of --photos) [ours]", "DIR")
    add("--val-labels", "and their labels [ours]", "FILE")
    known = [name for name in DATASETS if name != "own"]
    add("--dataset", f"or a known one: {', '.join(known)} (demo) [Table 1, 2]", known)
    add("--data", "root folder of the data set (data/<dataset>) [ours]", "DIR")
    add("--download", "fetch what --data lacks of COCO, some 20 GB [ours]", bool)
    text = "what to do: all, or some of backbone embed gcn eval (all) [Proposed Approach]"
    add("--phase", text, ["all", *PHASES], ["all"], nargs="+")
    text = "what the GCN knows of a label: some of word image pca random (image pca) [F_W, F_I, "
    text += "F_PCA: Table 3; random: a control]"
    add("--nodes", text, NODES, ["image", "pca"], nargs="+")
    add("--evaluate", "train nothing, evaluate this model of ours or released file [ours]", "FILE")
    add("--out", "folder of all that is written (runs/<dataset>) [ours]", "DIR")
    add("--fresh", "do again what is done there; else a run goes on [ours]", bool)
    add("--limit", "use N photos of each split, evenly spaced: a dry run [ours]", whole(1))

    add.group = group("data")
    add("--year", "of COCO: 2014 or 2017 (2014) [Table 1]", ["2014", "2017"], "2014")
    for split in ("train", "val"):
        add(f"--{split}-json", f"labels for {split} in place of --data's [ours]", "FILE")
        add(f"--{split}-images", "and the folder its file names are relative to [ours]", "DIR")
    add("--keep-unlabelled", "keep images without a label (--photos does) [difference 7]", bool)
    add("--glove", "word vectors for --nodes word: GloVe text, or .npy [ML-GCN: 840B]", "FILE")
    text = "pixels a side (448; asl 224, small 384, demo 64) [difference 9]"
    decides("--image-size", text, whole(1), 448)
    cores = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    add("--workers", "processes that load photos, a GPU (one a core) [ours]", whole(0), cores)
    text = "go on without photos that are missing, or that evaluation cannot read [ours]"
    add("--skip-bad-images", text, bool)

    add.group = group("model")
    text = "the network, or timm:NAME (tresnet_m; small efficientnet_lite2, demo tresnet_tiny) "
    text += f"[{', '.join(BACKBONES)}]"
    decides("--backbone", text, "NAME", "tresnet_m")
    decides("--pool", "avg or max (avg) [paper: GAP; ML-GCN: max]", ["avg", "max"], "avg")
    text = "it starts from: name, file, URL, or none: random (ImageNet's if known) [difference 23; "
    text += f"{', '.join(RELEASED)}]"
    add("--weights", text, "NAME")
    decides("--freeze", "train only heads on it, on features made once (small) [ours]", bool)
    text = "where phase gcn starts: from backbone.pt, or --weights (backbone) [difference 13]"
    add("--gcn-from", text, ["backbone", "weights"], "backbone")
    text = "label graph as the paper has it, as mlgcn, or none: no edges (paper) [difference 3]"
    add("--adjacency", text, ["paper", "mlgcn", "none"], "paper")
    add("--tau", "labels a, b are joined if P(a | b) is at least (0.1) [Eq. 3]", between(0, 1), 0.1)
    add("--p", "weight of all neighbours of a label (0.2) [difference 1]", between(0, 1), 0.2)
    text = "mean length that F_I and F_PCA are scaled to, 0: not (1) [difference 25]"
    add("--node-norm", text, between(0, 1e6), 1.0)

    add.group = group("training")
    text = "paper, asl, cycle, or small: few photos, on a CPU (paper; --photos small, demo cycle)"
    decides("--recipe", f"{text} [differences 9 to 18; docs/data.md]", RECIPES)
    decides("--epochs", "of each training (40; demo 12) [Impl. details]", whole(1), 40)
    text = "photos a step, of all processes together (64; demo 32, small 4 to 32) [ours]"
    decides("--batch-size", text, whole(1), 64)
    text = "peak learning rate (1e-3; asl 1e-4, cycle 3e-3, demo 4e-3) [Impl. details]"
    decides("--lr", text, between(0, 1e3), 1e-3)
    decides("--backbone-lr", "backbone's part of it (1) [ML-GCN: 0.1]", between(0, 1), 1.0)
    decides("--weight-decay", "L2 (5e-4; asl, cycle 1e-4) [difference 12]", between(0, 1e3), 5e-4)
    decides("--gamma-neg", "focus on hard negatives, 0: none (4) [ASL]", between(0, 100), 4.0)
    decides("--gamma-pos", "and on hard positives (0) [ASL]", between(0, 100), 0.0)
    decides("--clip", "negatives below this score cost nothing (0.05) [ASL]", between(0, 1), 0.05)
    decides("--ema", "decay of a moving average, 0: off (0; asl 0.9997) [ASL]", between(0, 1), 0.0)
    decides("--seed", "of weights, order and augmentation (0) [ours]", whole(0), 0)
    add("--eval-every", "val after N epochs, and the last; 0: only then (1) [ours]", whole(0), 1)
    add("--save-every", "minutes between saves within an epoch (15) [ours]", between(0, 1e6), 15)

    add.group = group("machine and report")
    add("--device", "cuda, mps or cpu (auto: the first there is) [ours]", "NAME", "auto")
    text = "bfloat16 autocast; loss and head stay float32 (on cards that have it) [ours]"
    decides("--amp", text, "", action=argparse.BooleanOptionalAction)
    text = "lean: half the memory, a little slower; plain (lean; demo plain) [docs/performance.md]"
    add("--memory", text, ["lean", "plain"], "lean")
    add("--compile", "torch.compile the model [ours]", bool)
    add("--threshold", "besides 0.5 and 0.8 [difference 6]", between(0.001, 0.999), [], nargs="+")

    known, _ = parser.parse_known_args(argv)
    other = "coco" if known.train_json or known.val_json else "demo"
    name = "own" if known.photos else known.dataset or other
    preset = {"recipe": "paper"} | PRESETS.get(name, {})
    recipe = RECIPES[known.recipe or preset["recipe"]]
    parser.set_defaults(**(preset | recipe if known.recipe else recipe | preset))  # given, it wins
    args = parser.parse_args(argv)
    own = [args.photos, args.labels, args.val_photos, args.val_labels]
    paths = args.train_json or args.val_json  # of COCO's form
    if any(own) and (not args.photos or args.dataset or args.data or paths):
        parser.error("--labels, --val-photos, --val-labels need --photos, it no --dataset, --data")
    if paths and name != "coco":
        parser.error(f"--train-json and --val-json take the place of COCO's files, not of {name}'s")
    args.dataset, args.keep_unlabelled = name, args.keep_unlabelled or bool(args.photos)
    args.phase = [p for p in PHASES if p in args.phase or "all" in args.phase]
    if args.weights and args.phase == ["eval"] and not args.freeze:
        parser.error(f"--weights is what training starts from; --evaluate {args.weights} tests it")
    args.phase = ["eval"] if args.evaluate else args.phase
    start = default_weights(args.backbone)  # or a sentence: there is no such backbone
    args.weights = args.weights or start
    if args.freeze and args.weights == "none":
        parser.error(f"--freeze keeps {args.backbone}'s random weights; give --weights too")
    args.nodes = [kind for kind in NODES if kind in args.nodes]
    if "word" in args.nodes and not args.glove and "gcn" in args.phase:
        parser.error("--nodes word needs --glove FILE, a GloVe-format text file of word vectors")
    if args.download and (args.dataset != "coco" or paths):
        parser.error("--download fetches COCO only: give --dataset coco, and no paths but --data's")
    args.data = args.photos or args.data or f"data/{args.dataset}"
    args.out = Path(args.out or f"runs/{args.dataset}")
    args.device, args.decisive = device.choose(args.device), decisive
    paths = [path for name in CODE for path in sorted(HERE.glob(f"{name}.py"))]
    args.code = checkpoints.code_id(*paths)  # that is running, whatever becomes of the files
    return args


# Main


def load_data(args) -> Splits:
    """Both splits; what would go wrong hours later goes wrong here."""
    keys = "year", "train_json", "train_images", "val_json", "val_images"
    where = {key: getattr(args, key) for key in (*keys, "labels", "val_photos", "val_labels")}
    where |= {"fetch": args.download, "kept": args.out / "val-photos.json"}
    skip_missing = args.skip_bad_images
    splits = load(args.dataset, args.data, args.keep_unlabelled, args.limit, skip_missing, **where)
    args.batch_size = args.batch_size or min(max(len(splits.train) // 30, 4), 32)
    shown = splits.train.targets[:, splits.train.targets.any(0)]  # (M, labels in some photo)
    if "gcn" in args.phase and "pca" in args.nodes and (shown == shown[:, :1]).all():
        raise ValueError("all labels are in the same photos, so F_PCA is 0; give --nodes image")
    return splits


def foretell(args, splits: Splits, folder: Folder) -> None:
    """Say how long training will take, so that nobody finds out after a day."""
    names = ["backbone"] * ("backbone" in args.phase)
    names += [f"gcn-{kind}" for kind in args.nodes] * ("gcn" in args.phase)
    left = [name for name in names if args.fresh or not (folder / f"{name}.pt").is_file()]
    if left and not (args.freeze and (folder / "features-val.pt").is_file()):
        backbone = build(args.backbone, args.pool)
        backbone = backbone.to(args.device, memory_format=torch.channels_last)
        images = data.MultiLabelImages(splits.train, args.image_size, augment=not args.freeze)
        seconds = seconds_a_photo(backbone, images, args.workers, autocast(args)) / ranks.size()
        train, val = len(splits.train), len(splits.val)  # in eval: a third of the time of a step
        seconds *= train + val if args.freeze else (train + val / 3) * len(left) * args.epochs
        print(f"expected: about {timedelta(seconds=round(seconds))} (h:mm:ss)")


def run(args) -> None:
    """The phases in their order, in a folder that no other run writes to."""
    args.device = ranks.begin(args.device)
    device.check(args.device)
    if args.amp is None:
        args.amp = device.native_bfloat16(args.device)
    elif args.amp and args.device.startswith("cuda") and not device.native_bfloat16(args.device):
        print("--amp: this card only imitates bfloat16, which is slow; leave it out")
    lean.on = args.memory == "lean"
    if args.backbone == "tresnet_tiny":
        torch.set_num_threads(1)  # with two and the loaders an epoch takes 5.6 s, not 3.6
    with torch.device("meta"):  # the backbone's own word on the size, before anything is read
        images = torch.zeros(1, 3, args.image_size, args.image_size)
        build(args.backbone, args.pool).eval()(images)
    with lock(args.out):
        print(f"{args.dataset} on {args.device}, phases {', '.join(args.phase)}, into {args.out}")
        splits = load_data(args)
        graph = label_graph(args, splits.train)
        graph_picture.describe(graph[2], args.tau, args.adjacency)
        if "word" in args.nodes and "gcn" in args.phase:
            _, unknown = data.load_glove(args.glove, splits.train.classes)
            print(f"{args.glove}: {len(unknown)} words not found{listed(unknown)}")
        folder = Folder(args.out, splits.train.classes, args.fresh and not ranks.restarted())
        if ranks.rank() == 0:
            checkpoints.save_json(args.out / "args.json", vars(args))
            if args.phase != ["eval"]:
                graph_picture.save(folder / "graph.png", graph, splits.train.classes, args.tau)
        args.frozen, args.val_photos = None, len(splits.val)
        foretell(args, splits, folder)
        if args.freeze and not args.evaluate:
            splits = with_features(args, splits, folder)
        for name in args.phase:
            signals.stop_if_asked(f"front of phase {name}")
            PHASES[name](args, splits, folder)
    ranks.end()


def main(argv=None) -> int:
    return signals.code_of(lambda: run(parse_args(argv)))


if __name__ == "__main__":
    signals.run(main)
