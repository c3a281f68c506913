"""Reproduce IML-GCN: train the backbone, embed the labels, train the GCN,
evaluate.  Typical use:

    python run.py                              # demo scenes      -> runs/demo
    python run.py --photos DIR --labels FILE   # your own photos  -> runs/own
    python run.py --dataset coco --data DIR    # Tables 1 and 3   -> runs/coco
    python run.py --dataset coco --data DIR --limit 64 --epochs 1 --out runs/try
    torchrun --nproc-per-node 8 run.py --dataset coco --data DIR  # 8 GPUs

Three phases (Section "Proposed Approach") and eval, which speak to each other
only through files in --out:

    backbone   TResNet + linear head, ASL    -> backbone.pt, "ASL (TResNetM)"
    embed      backbone.pt, training photos  -> embeddings.pt: F_I and F_PCA
    gcn        backbone.pt, embeddings.pt    -> gcn-<nodes>.pt, per kind of node
    eval       every *.pt above, val photos  -> results.md and .jpg, labels.csv,
                                                mistakes.jpg, verdict.json,
                                                metrics-*.json, scores-*.npz

Symbols: B images in a batch, M images in a split, n labels, D feature size.
"""

import argparse
import contextlib
import copy
import math
import os
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
    load_model,
    load_weights,
)
from backbones.features import FeatureStore, id_of, part_for, unit_features
from datasets.catalogue import DATASETS, Sources, Splits, load, to_check
from datasets.check import check
from preflight import checks, forecast, plan
from preflight.plan import NODE_KINDS
from reports import (
    calibration,
    curves,
    graph_picture,
    metrics_files,
    models_of_run,
    results,
)
from runtime import checkpoints, device, fresh, lean, ranks, signals, writing
from runtime.folder import (
    BACKBONE,
    CODE,
    EVALUATED,
    GRAPH,
    NODES,
    PHOTOS,
    START,
    VAL_PHOTOS,
    Folder,
    lock,
)
from runtime.journal import Journal, Pass, forget
from runtime.loading import FeatureLoader, Loader, Rows
from runtime.memory import keep_freed_memory
from runtime.options import Option, between, defaults_of, or_auto, parser_of, typed_name, whole
from runtime.terminal import tell

# The phases


def phase_backbone(args, splits: Splits, folder: Folder) -> None:
    """Phase 1: CNN and linear head, trained to convergence. This is the ASL row of Table 1."""
    torch.manual_seed(args.seed)
    backbone = initial_backbone(args, splits)
    head = iml_gcn.linear_head(backbone.num_features, len(folder.classes))
    train(args, "backbone", iml_gcn.Model(backbone, head), splits, folder)


@torch.inference_mode()
def phase_embed(args, splits: Splits, folder: Folder) -> None:
    """Phase 2: one pass over the training photos, not augmented, in eval mode. Eq. 5 and 6."""
    settings = embedding_settings(args, splits, folder)
    if folder.reusable("embeddings.pt", settings):
        tell("embed: done before (embeddings.pt)")
        return
    model = direct_model(args, folder)
    part, split = part_for(model, splits.train)
    backbone = part.fold().backbone.to(args.device)
    means = iml_gcn.LabelMeans(len(folder.classes), model.backbone.num_features)
    for images, targets, _ in Pass(loader(args, split), "embed", args.skip_bad_images):
        with autocast(args):
            means.update(backbone(images), targets)  # (B, D), (B, n)
    ranks.total(means.sums, means.counts)  # each rank saw its part of the photos
    F_I = means.mean()  # (n, D), Eq. 5
    F_PCA = iml_gcn.pca(F_I, min(F_I.shape))  # (n, n), Eq. 6; fewer columns where D < n
    tell(f"embed: F_I {tuple(F_I.shape)}, F_PCA {tuple(F_PCA.shape)}")
    folder.save("embeddings.pt", {"image": F_I, "pca": F_PCA}, settings)


def phase_gcn(args, splits: Splits, folder: Folder) -> None:
    """Phase 3: CNN and GCN trained jointly, once for every kind of node features (Table 3)."""
    _, _, A = label_graph(args, splits.train)  # (n, n), Eq. 3 and 4
    A_hat = iml_gcn.normalise(A, args.adjacency)  # (n, n), Eq. 2
    for kind in args.nodes:
        nodes = node_features(args, kind, splits, folder)  # (n, d): F_W, F_I or F_PCA
        torch.manual_seed(args.seed)
        backbone = starting_backbone(args, splits, folder)  # difference 13
        head = iml_gcn.LabelGCN(nodes, A_hat, backbone.num_features)
        train(args, f"gcn-{kind}", iml_gcn.Model(backbone, head), splits, folder)


def phase_eval(args, splits: Splits, folder: Folder) -> None:
    """Every model in --out, or the one of --evaluate, on the val photos: the paper's tables."""
    models = models_of_run.models(
        folder, splits.val, args.image_size, args.evaluate, args.backbone, args.pool
    )
    reports, logits, evaluated = {}, {}, None
    for name, (model, report) in models.items():
        part, val = part_for(model, splits.val)
        part = part.to(args.device, memory_format=torch.channels_last)
        logits[name], read = logits_of(args, part, loader(args, val), val, f"eval {name}")
        if evaluated is not None and evaluated.paths != read.paths:
            raise ValueError(
                "some val photos could be read for one model and not for the next; run phase eval "
                "again when all photos are there"
            )
        evaluated = read
        report |= {"dataset": title_of(args, read), "unreadable": read.unreadable}
        thresholds = [0.5, 0.8, *args.threshold]  # ML-GCN's and ASL's; difference 6
        reports[name] = metrics_files.save_numbers(
            folder, name, logits[name], read, report, thresholds
        )
    if ranks.rank() == 0:
        training_photos, seen_in_val = None, 0
        if all(models_of_run.was_trained_on(splits.train, report) for report in reports.values()):
            training_photos = splits.train.targets.sum(0)  # (n,)
            seen_in_val = int(torch.isin(splits.val.photo_ids, splits.train.photo_ids).sum())
        evaluation = results.Evaluation(
            dataset=title_of(args, evaluated),
            image_size=args.image_size,
            split=evaluated,
            logits=logits,
            reports=reports,
            training_photos=training_photos,
            seen_in_val=seen_in_val,
            val_is_drawn=args.dataset == "own" and sources_of(args).val_is_drawn,
        )
        suffix = EVALUATED if args.evaluate else ""
        results.save(evaluation, folder, suffix, args.font)


def title_of(args, val: data.Split) -> str:
    """What the table calls the photos. The paper's rows are beside "COCO 2014" and "VG-500" only,
    so other years, files and parts of them have other names."""
    if args.train_json or args.val_json or args.dataset == "own":
        return "own photos"
    title = args.dataset
    if args.dataset == "coco":
        title = f"COCO {args.year}"
        if args.keep_unlabelled:  # the paper's numbers of photos are those without: difference 7
            title += " with unlabelled photos"
    if args.dataset == "vg500":
        title = "VG-500"
    return f"part of {title}" if args.limit or val.unreadable else title


# What the phases are made of


def label_graph(args, split: data.Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pairs (n, n) and counts (n,) of the training photos; A (n, n), Eq. 3 and 4."""
    pairs, counts = iml_gcn.cooccurrence(torch.from_numpy(split.targets))
    return pairs, counts, iml_gcn.adjacency(pairs, counts, args.tau, args.p, args.adjacency)


def node_features(args, kind: str, splits: Splits, folder: Folder) -> torch.Tensor:
    """(n, d): F_W from --glove, F_I or F_PCA from embeddings.pt, or random numbers, a control."""
    if kind == "word":
        words = data.load_glove(args.glove, folder.classes)[0]  # (n, 300)
        return scaled(words, args.node_norm)
    if kind == "random":  # the shape and scale of F_PCA, without anything learnt
        n, generator = len(folder.classes), torch.Generator().manual_seed(args.seed)
        return scaled(torch.randn(n, n, generator=generator), args.node_norm)
    settings = embedding_settings(args, splits, folder)
    embeddings = folder.load("embeddings.pt", "embed", settings)
    return scaled(embeddings[kind], args.node_norm)


def scaled(nodes: torch.Tensor, length: float) -> torch.Tensor:
    """nodes (n, d) times one number, so that their mean length is `length` (difference 25);
    unchanged if `length` is 0, as in the paper."""
    lengths = nodes.norm(dim=1)  # (n,); those of 0 do not count: difference 26
    if not lengths.any():
        raise ValueError("node features are all zero; choose other --nodes")
    return nodes * (length / lengths[lengths > 0].mean()) if length else nodes


def pretrained_backbone(args) -> torch.nn.Module:
    """The backbone with the weights of --weights, or with random ones."""
    backbone = build(args.backbone, args.pool)
    if args.weights != "none":
        with ranks.in_turn():
            load_weights(backbone, args.weights)
    return backbone


def initial_backbone(args, splits: Splits) -> torch.nn.Module:
    """The backbone that phase backbone starts from; with --freeze the backbone that made the
    features."""
    if splits.train.backbone is not None:
        return splits.train.backbone
    return pretrained_backbone(args)


def starting_backbone(args, splits: Splits, folder: Folder) -> torch.nn.Module:
    """The backbone that phase gcn starts from: phase backbone's, or with --gcn-from weights the one
    that phase started from (difference 13)."""
    if args.gcn_from == "weights":
        return initial_backbone(args, splits)
    return direct_model(args, folder).backbone


def direct_model(args, folder: Folder) -> iml_gcn.Model:
    """Phase backbone's model; an error if it is missing, or is not what this run is about."""
    folder.load("backbone.pt", "backbone", network_of(args))
    return load_model(folder / "backbone.pt", args.backbone)[0]


def network_of(args) -> dict:
    """The settings that models of one table share."""
    return {"backbone": args.backbone, "pool": args.pool, "image-size": args.image_size}


def feature_store(args, splits: Splits, folder: Folder) -> FeatureStore | None:
    """The features that the frozen backbone of --weights computed in earlier runs; None where they
    are of no use: without --freeze, and where phase eval alone would have to compute some."""
    if not args.freeze or args.evaluate:
        return None
    torch.manual_seed(args.seed)
    settings = {key: getattr(args, key) for key in ("image_size", "pool", "amp")}
    settings |= {"upright": splits.train.upright, CODE: CODE_ID}
    backbone, only_eval = pretrained_backbone(args), args.phase == ["eval"]
    if args.fresh and not only_eval:
        FeatureStore.move_others(folder, settings | {START: id_of(backbone)})
    store = FeatureStore(backbone, folder, settings, ignore_others=only_eval)
    if only_eval and any(len(store.missing(split)) for split in splits):
        return None  # whole models that see the val photos are less work
    return store


def frozen(args, splits: Splits, store: FeatureStore) -> Splits:
    """Adds to both splits the features (M, D) of their photos, computed once."""
    with_their_features = []
    for name, split in zip(("train", "val"), splits, strict=True):
        what, missing = f"features {name}", store.missing(split)
        if known := len(split) - len(missing):
            tell(f"{what}: {known:,} of {len(split):,} computed before ({store.FILE})")
        if len(missing):
            batches = loader(args, split.select(missing))
            photos = Pass(batches, what, args.skip_bad_images, args.save_every)
            with autocast(args):
                store.compute(split, missing, photos, args.batch_size)
        with_their_features.append(store.with_features(split))
    if args.unit_features:
        with_their_features = unit_features(*with_their_features)
    return Splits(*with_their_features)


# Training and evaluation


def train(args, name: str, model: iml_gcn.Model, splits: Splits, folder: Folder) -> None:
    """Train `model` to the last epoch and write <name>.pt (differences 9 to 14).

    A step: forward, asymmetric loss, backward, Adam, schedule, moving average; no step synchronises
    with the device. The journal resumes, saves and logs.
    """
    settings = model_settings(args, model, splits)
    if folder.done(f"{name}.pt", settings):
        return
    part, train_split = part_for(model, splits.train)
    _, val_split = part_for(model, splits.val)
    if args.freeze and part is model:
        raise ValueError(
            f"--freeze trains heads on features of --weights, and {folder / 'backbone.pt'} has "
            "another backbone; redo phase backbone too, or leave out --freeze (with --photos: "
            "--recipe paper)"
        )
    part = part.to(args.device, memory_format=torch.channels_last)
    batches, val_batches = loader(args, train_split, train=True), loader(args, val_split)
    optimizer = adam(args, part)
    scheduler = schedule(args.recipe, optimizer, len(batches) * args.epochs)
    average = copy.deepcopy(part) if args.ema else None
    learning = {"model": part, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    seen = photos_seen(args, name, splits.train, folder)
    journal = Journal(folder, name, learning, settings, len(batches), args.save_every, seen)
    forward = ranks.parallel(part, args.device)
    forward = torch.compile(forward) if args.compile else forward
    final = average or part

    for epoch in journal.epochs(args.epochs):
        part.train()
        part.backbone.train(any(p.requires_grad for p in part.backbone.parameters()))
        for images, targets in journal.steps(batches, epoch):
            with autocast(args):
                logits = forward(images)  # (B, n)
            loss = iml_gcn.asymmetric_loss(
                logits, targets, args.gamma_neg, args.gamma_pos, args.clip
            )
            optimizer.zero_grad()
            (loss * ranks.size()).backward()  # ranks average gradients; the loss is a sum
            optimizer.step()
            scheduler.step()
            if average:
                update_average(average, part, args.ema)
            journal.loss = loss
        mAP = None
        if is_measured(epoch, args):
            val_logits, read = logits_of(args, final, val_batches, val_split, f"{name}  val")
            mAP = metrics.mean_average_precision(
                metrics.average_precision(val_logits, read.targets)
            )
        journal.close_epoch(mAP)
        curves.save_curves(folder.path, final=epoch + 1 == args.epochs, font=args.font)

    # The last epoch is always measured, also when a run resumes after its last step.
    whole_model = final if part is model else iml_gcn.Model(model.backbone, final.head)
    content = checkpoint_of(args, name, whole_model, val_logits, read.targets)
    journal.finish(content)


def photos_seen(args, name: str, split: data.Split, folder: Folder) -> dict:
    """What <name>.pt and last-<name>.pt say of the photos that it has learned from: those of this
    run, and those of the model of ours that it started from, if both are known in the same way."""
    start = folder / "backbone.pt"
    if name == "backbone" or args.gcn_from == "weights":
        start = plan.file_of_weights(args)
    ids = split.photo_ids  # (M,)
    if start:
        before = checkpoints.read_checkpoint(start)
        known = before.get("training_photos")
        in_the_same_way = before.get("known_by_content") is split.known_by_content
        if isinstance(known, torch.Tensor) and in_the_same_way:
            ids = torch.cat([ids, known]).unique()
    return {"training_photos": ids, "known_by_content": split.known_by_content}


def is_measured(epoch: int, args) -> bool:
    """Whether val mAP is measured after this epoch, which counts from 0."""
    if epoch + 1 == args.epochs:
        return True
    return args.eval_every > 0 and (epoch + 1) % args.eval_every == 0


def checkpoint_of(
    args, name: str, model: iml_gcn.Model, logits: np.ndarray, targets: np.ndarray
) -> dict:
    """What <name>.pt holds. Calibration and thresholds are fitted to the logits of val after the
    last epoch and its targets, both (M, n) (difference 6)."""
    slope, offset = calibration.fit(logits, targets)
    calibrated = slope * logits + offset  # (M, n)
    return {
        "name": name,
        "backbone": args.backbone,
        "pool": args.pool,
        "image_size": args.image_size,
        "epochs": args.epochs,
        "calibration": [slope, offset],
        "threshold": metrics.best_threshold(calibrated, targets),
        "operating_points": metrics.operating_points(calibrated, targets).tolist(),
        "val_photos": len(targets),
        "backbone_id": id_of(model.backbone),
        "state_dict": model.state_dict(),
    }


def adam(args, model: iml_gcn.Model) -> torch.optim.Adam:
    """Adam on head and backbone. The backbone's rate is --backbone-lr times the head's; if that is
    0, the backbone is frozen."""
    model.backbone.requires_grad_(args.backbone_lr > 0)
    groups = []
    for module, lr in ((model.head, args.lr), (model.backbone, args.lr * args.backbone_lr)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim >= 2]  # difference 12
        groups.append({"params": decay, "weight_decay": args.weight_decay, "lr": lr})
        groups.append({"params": [p for p in parameters if p.ndim < 2], "lr": lr})
    groups = [group for group in groups if group["params"]]
    return torch.optim.Adam(groups, fused=args.device.startswith(("cuda", "cpu")))


def schedule(
    recipe: str, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The paper's schedule: x0.1 after each quarter of the steps, epochs 10, 20 and 30 of 40.

    Or one cycle of the learning rate: recipe asl stops halfway through it, as ASL's code does
    (difference 18); cycle and small run it to its end.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    if recipe == "asl":  # a cycle over twice the epochs, 80, left after the first half, 40 [ASL]
        return one_cycle(optimizer, peaks, total_steps=2 * steps, pct_start=0.2)
    if recipe in ("cycle", "small"):
        return one_cycle(optimizer, peaks, total_steps=steps + 1)  # torch's default shape
    quarters = [math.ceil(steps * k / 4) for k in (1, 2, 3)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, quarters, gamma=0.1)


def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """One step of the moving average of weights and running statistics; it starts at their first
    values. (torch's AveragedModel counts its steps on the device and synchronises at each.)"""
    averages = floating(average)
    get_ema_multi_avg_fn(decay)(averages, floating(model), None)


def floating(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, without batch norm's counters."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def autocast(args) -> torch.autocast:
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)


def loader(args, split: data.Split, train: bool = False) -> Loader | FeatureLoader:
    """Batches of a split's features, if it has them, otherwise of its photos."""
    rows = Rows(len(split), args.batch_size, train, args.seed)
    if split.features is not None:
        return FeatureLoader(split.features, split.targets, rows, args.device)
    images = data.MultiLabelImages(split, args.image_size, train, args.seed)
    return Loader(images, rows, args.device, args.workers)


@torch.inference_mode()
def logits_of(
    args, model: iml_gcn.Model, batches: Loader | FeatureLoader, split: data.Split, what: str
) -> tuple[np.ndarray, data.Split]:
    """Logits (M, n) in float32 of a split's photos in their order, and the split of those photos:
    the whole one, or with --skip-bad-images, the one without photos that cannot be read."""
    model = model.fold()
    logits = torch.zeros(split.targets.shape)  # (M, n)
    photos = Pass(batches, what, args.skip_bad_images)
    for images, _, rows in photos:
        with autocast(args):
            logits[rows] = model(images).float().cpu()
    read = np.flatnonzero(photos.read)
    return ranks.total(logits).numpy()[read], split.select_readable(read)


# What decides the numbers in a file of --out is compared before the file is used again: options by
# their values, everything else by content. Not compared are the device, --compile, --memory and the
# number of processes, which change numbers by rounding and batch norm.

DECISIVE_FILES = ["iml_gcn", "tresnet", "data", "metrics", "run", "backbones/*"]
DECISIVE_FILES += ["reports/calibration", "runtime/lean", "runtime/loading", "runtime/reading"]
DECISIVE_FILES += ["runtime/photo_files", "runtime/journal"]
HERE = Path(__file__).parent


def code_files() -> list[Path]:
    paths = []
    for name in DECISIVE_FILES:
        paths += sorted(HERE.glob(f"{name}.py"))
    return paths


CODE_ID = checkpoints.code_id(*code_files())  # read at once: files may change during a run


def run_settings(args, splits: Splits) -> dict:
    """What decides the numbers of all models of a run."""
    decisive = [option for options in OPTIONS.values() for option in options if option.decides]
    settings = {option.name[2:]: getattr(args, option.key) for option in decisive}
    return settings | {PHOTOS: splits.train.id(), VAL_PHOTOS: splits.val.id(), CODE: CODE_ID}


def model_settings(args, model: iml_gcn.Model, splits: Splits) -> dict:
    """The settings stored with a model, compared before reuse."""
    settings = run_settings(args, splits)
    settings[START] = id_of(model.backbone)
    if isinstance(model.head, iml_gcn.LabelGCN):
        settings[GRAPH] = checkpoints.content_id(model.head.A_hat)
        settings[NODES] = checkpoints.content_id(model.head.nodes)
    return settings


def embedding_settings(args, splits: Splits, folder: Folder) -> dict:
    return {
        BACKBONE: folder.load("backbone.pt", "backbone", network_of(args))["backbone_id"],
        PHOTOS: splits.train.id(),
        CODE: CODE_ID,
        "image-size": args.image_size,
        "amp": args.amp,
    }


# Main


PHASES = {"backbone": phase_backbone, "embed": phase_embed, "gcn": phase_gcn, "eval": phase_eval}


def run(args) -> int:
    """The phases in their order, in a folder that no other run writes to. Returns 0; with --check,
    1 if some photos cannot be used."""
    if args.check:
        unusable = check(to_check(args.dataset, args.data, sources_of(args)))
        return 1 if unusable else 0
    signals.fresh_is_done = False
    args = on_device(args)
    lean.on = args.memory == "lean"
    if args.backbone == "tresnet_tiny":
        torch.set_num_threads(1)  # with two beside the loaders an epoch takes 5.6 s, not 3.6
    silence = contextlib.nullcontext()
    if args.quiet:
        silence = contextlib.redirect_stdout(open(os.devnull, "w"))
    checks.check_out(args)
    if args.fresh:
        fresh.check_weights_stay(args.weights, args.out, plan.moved_by_fresh(args))
    with lock(args.out):
        with silence:
            args, splits, folder = prepared(args)
        for name in args.phase:
            signals.stop_if_asked(f"before phase {name}")
            with contextlib.nullcontext() if name == "eval" else silence:
                PHASES[name](args, splits, folder)
    ranks.end()
    return 0


def prepared(args) -> tuple[argparse.Namespace, Splits, Folder]:
    """Everything that comes before the first phase: checks, photos and labels, the forecast."""
    what = "your photos" if args.dataset == "own" else args.dataset
    tell(f"{what}, computed on {args.device}: phases {', '.join(args.phase)}, into {args.out}")
    with ranks.in_turn():
        checks.check_beforehand(args)
    splits = load_data(args)
    keep_freed_memory()  # only now: what reading took, 1 GB for COCO, has gone back to the system
    args = with_batch_size(args, splits.train)
    pairs, counts, A = label_graph(args, splits.train)
    graph_picture.describe(A, args.tau, args.adjacency)
    checks.check_nodes(args, splits.train)
    folder = Folder(args.out, splits.train.classes)
    checks.check_starts(args, splits, folder, network_of(args))
    if ranks.rank() == 0:
        set_old_files_aside(args)
    ranks.wait()  # for the files that were set aside
    signals.fresh_is_done = args.fresh
    checks.check_old_models(args, folder, run_settings(args, splits))
    if ranks.rank() == 0:
        writing.save_json(args.out / "args.json", vars(args))
        belongs_to_a_gcn = (folder / "graph.png").is_file() and any(args.out.glob("*gcn-*.pt"))
        if args.phase != ["eval"] and not belongs_to_a_gcn:
            path, graph = folder / "graph.png", (pairs, counts, A)
            graph_picture.save(path, graph, folder.classes, args.tau, args.font)
    store = feature_store(args, splits, folder)
    forecast.announce(args, splits, folder, store, autocast(args))
    if store:
        splits = frozen(args, splits, store)
    return args, splits, folder


def set_old_files_aside(args) -> None:
    """With --fresh, move away what this run will make again, before it makes anything."""
    fresh.finish_setting_aside(args.out)
    if not args.fresh or (ranks.restarted() and fresh.is_set_aside(args.out, ranks.launch())):
        return
    fresh.set_aside(args.out, plan.moved_by_fresh(args), ranks.launch())
    forget(args.out / "log.jsonl", plan.models_made_anew(args))


def on_device(args) -> argparse.Namespace:
    """A copy of args with the device of this process and its precision."""
    where = ranks.begin(device.choose(args.device))
    device.check(where)
    native = device.native_bfloat16(where)
    if args.amp and where.startswith("cuda") and not native:
        tell("--amp: this card only imitates bfloat16, which is slow; leave it out")
    amp = native if args.amp is None else args.amp
    return argparse.Namespace(**vars(args) | {"device": where, "amp": amp})


def with_batch_size(args, split: data.Split) -> argparse.Namespace:
    """A copy of args in which the batch size "auto" is a number: a thirtieth of the photos, but at
    least 4 and at most 32."""
    automatic = min(max(len(split) // 30, 4), 32)
    batch_size = automatic if args.batch_size == "auto" else args.batch_size
    return argparse.Namespace(**vars(args) | {"batch_size": batch_size})


def main(argv=None) -> int:
    return signals.code_of(lambda: run(parse_args(argv)))


# Photos and labels


def load_data(args) -> Splits:
    """Both splits; errors that would end the run hours later come here."""
    splits = load(
        args.dataset,
        args.data,
        sources_of(args),
        args.keep_unlabelled,
        args.limit,
        skip_missing=args.skip_bad_images,
    )
    targets = splits.train.targets
    occurring = targets[:, targets.any(0)]  # (M, labels in some photo)
    if "gcn" in args.phase and "pca" in args.nodes and (occurring == occurring[:, :1]).all():
        raise ValueError("all labels are in the same photos, so F_PCA is 0; use --nodes image")
    return splits


def sources_of(args) -> Sources:
    """The options that say where the files of a data set are."""
    return Sources(
        year=args.year,
        download=args.download,
        train_json=args.train_json,
        train_images=args.train_images,
        val_json=args.val_json,
        val_images=args.val_images,
        labels=args.labels,
        val_photos=args.val_photos,
        val_labels=args.val_labels,
        val_list=args.out / "val-photos.json",
    )


# Options


def parse_args(argv=None) -> argparse.Namespace:
    """The value of each option: what was typed; or else the default of the recipe or the data set;
    or else that of the table."""
    changes = {f"--recipe {name}": RECIPES[name] for name in RECIPES if name != "paper"}
    changes |= {"--photos": PRESETS["own"], "demo": PRESETS["demo"]}
    typed = vars(parser_of(OPTIONS, changes, SHORT, __doc__).parse_args(argv))
    check_typed(typed)
    if "photos" in typed:
        name = "own"
    elif "dataset" in typed:
        name = typed["dataset"]
    elif {"train_json", "train_images", "val_json", "val_images", "year"} & typed.keys():
        name = "coco"
    else:
        name = "demo"
    preset = PRESETS.get(name, {})
    recipe = preset.get("recipe", "paper")
    changed = RECIPES[recipe] | preset
    if typed.get("recipe", recipe) != recipe:  # another recipe wins over the data set's defaults
        changed = preset | RECIPES[typed["recipe"]]
    args = argparse.Namespace(**(defaults_of(OPTIONS) | changed | typed | {"dataset": name}))
    return argparse.Namespace(**vars(args) | completed(args))


def check_typed(typed: dict) -> None:
    """A ValueError on options that contradict each other."""
    for name, value in typed.items():
        if value == "":
            raise ValueError(f"{typed_name(name)} is empty; pass a value, or leave it out")
    own = {"photos", "labels", "val_photos", "val_labels"} & typed.keys()
    coco_files = {"train_json", "train_images", "val_json", "val_images"} & typed.keys()
    if "data" in typed and not (coco_files | ({"dataset", "photos", "year"} & typed.keys())):
        raise ValueError(
            "--data is the folder of --dataset; add --dataset coco or another, or name your own "
            "photos with --photos"
        )
    if own and "photos" not in typed:
        raise ValueError(f"{typed_name(min(own))} needs --photos, the folder of the photos")
    if own and (others := coco_files | ({"dataset", "data", "year"} & typed.keys())):
        names = ", ".join(map(typed_name, sorted(others)))
        raise ValueError(f"--photos stands for a data set of your own; leave out {names}")
    if {"labels", "val_photos"} <= typed.keys() and "val_labels" not in typed:
        raise ValueError(
            "--labels names photos of --photos; pass the label file of --val-photos as --val-labels"
        )
    of_coco = sorted(coco_files | ({"year"} & typed.keys()))
    if of_coco and typed.get("dataset", "coco") != "coco":
        raise ValueError(
            f"{typed_name(of_coco[0])} belongs to COCO, not to {typed['dataset']}; use it with "
            "--dataset coco"
        )
    without_effect = {"paper": set(), "mlgcn": {"p"}, "none": {"tau", "p"}}
    typed_in_vain = without_effect[typed.get("adjacency", "paper")] & typed.keys()
    if typed_in_vain:
        raise ValueError(
            f"{typed_name(min(typed_in_vain))} has no effect with --adjacency "
            f"{typed['adjacency']}; leave it out"
        )
    if "evaluate" in typed and typed.get("phase", ["eval"]) != ["eval"]:
        raise ValueError("--evaluate trains nothing and is the only phase; leave out --phase")
    if typed.get("download") and (typed.get("dataset") != "coco" or coco_files):
        raise ValueError(
            "--download fetches COCO alone; use it with --dataset coco, without --train-json and "
            "--val-json"
        )


def completed(args) -> dict:
    """The values that follow from others."""
    start = default_weights(args.backbone)  # a ValueError if there is no such backbone
    phases = [name for name in PHASES if name in args.phase or "all" in args.phase]
    values = {
        "data": args.photos or args.data or f"data/{args.dataset}",
        "out": Path(args.out or f"runs/{args.dataset}"),
        "phase": ["eval"] if args.evaluate else phases,
        "nodes": [kind for kind in NODE_KINDS if kind in args.nodes],
        "weights": args.weights or start,
        "keep_unlabelled": args.keep_unlabelled or args.dataset == "own",
    }
    if args.weights and args.phase == ["eval"] and not args.freeze:
        raise ValueError(
            f"--weights is what training starts from; --evaluate {args.weights} tests a model"
        )
    if values["weights"].startswith("timm:") and values["weights"] != args.backbone:
        raise ValueError(
            f"--weights {values['weights']} are those of --backbone {values['weights']}; name the "
            "same model in both"
        )
    if args.freeze and values["weights"] == "none":
        raise ValueError(
            f"a frozen {args.backbone} would keep its random weights; choose other --weights, or "
            "train all weights: leave out --freeze (with --photos: --recipe paper)"
        )
    if "word" in args.nodes and not args.glove and "gcn" in values["phase"]:
        raise ValueError("--nodes word needs --glove FILE, word vectors as GloVe text or .npy")
    if args.freeze and args.backbone_lr != defaults_of(OPTIONS)["backbone_lr"]:
        raise ValueError(
            "--backbone-lr has no effect on a frozen backbone; leave it out, or train all weights: "
            "leave out --freeze (with --photos: --recipe paper)"
        )
    if args.unit_features and not args.freeze:
        raise ValueError("--unit-features needs --freeze: a trained backbone scales its features")
    return values


SHORT = """\
    python run.py                              a first look: demo scenes, 3 min
    python run.py --photos DIR --labels FILE   your own photos
    python run.py --dataset coco --data DIR    the paper's Tables 1 and 3"""

# What a recipe changes in the table below, whose defaults are the paper's ...
RECIPES = {
    "paper": {"lr": 1e-3, "weight_decay": 5e-4},  # as the table: these win over a data set's
    # ASL's training script
    "asl": {"lr": 1e-4, "weight_decay": 1e-4, "ema": 0.9997, "image_size": 224},
    # ours: learns to the end, however few epochs there are
    "cycle": {"lr": 3e-3, "weight_decay": 1e-4},
    # ours, for few photos: docs/data.md has how it was chosen
    "small": {
        "backbone": "efficientnet_lite2",
        "freeze": True,
        "unit_features": True,
        "image_size": 384,
        "epochs": 10,
        "lr": 1e-2,
        "batch_size": "auto",
    },
}
# ... and a data set. Both are ours.
PRESETS = {
    "own": {"recipe": "small", "nodes": ["pca"]},  # F_I is behind it: docs/data.md
    "demo": {
        "recipe": "cycle",
        "epochs": 12,
        "lr": 4e-3,
        "backbone": "tresnet_tiny",
        "image_size": 64,
        "batch_size": 32,
        "memory": "plain",
    },
}
CORES = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
KNOWN = [name for name in DATASETS if name != "own"]

# A row: name, default, kind of value, help, source. `decides`: another value makes another model,
# so an older one in the folder is not used again. `common`: --help, the short help, shows it too.
# fmt: off
OPTIONS = {
    "what to run": [
        Option("--photos", None, "DIR", "folder of your own photos", "ours", common=True),
        Option("--labels", None, "FILE", "label file of --photos: JSON, CSV or XML; without one, a "
               "photo's label is the folder below --photos that it is in", "docs/data.md",
               common=True),
        Option("--val-photos", None, "DIR", "folder of your own val photos; their labels "
               "come from --val-labels, or from folders if --labels is left out too", "ours",
               default_text="a fifth of --photos", common=True),
        Option("--val-labels", None, "FILE", "label file of --val-photos; without --val-photos, "
               "of the photos in --photos that are val", "ours", common=True),
        Option("--dataset", None, KNOWN, f"known data set: {', '.join(KNOWN)}", "Tables 1 and 2",
               default_text="demo", common=True),
        Option("--data", None, "DIR", "root folder of --dataset", "ours",
               default_text="data/<dataset>", common=True),
        Option("--download", False, bool, "fetch the files of COCO that --data lacks, some 20 GB",
               "ours", common=True),
        Option("--phase", ["all"], ["all", *PHASES], f"what to do: all, or some of "
               f"{' '.join(PHASES)}", "Proposed Approach", several=True, common=True),
        Option("--nodes", ["image", "pca"], NODE_KINDS, "node features of the label graph, some of "
               f"{' '.join(NODE_KINDS)}: F_W, F_I, F_PCA, or random numbers as a control",
               "Table 3", several=True, common=True),
        Option("--evaluate", None, "FILE", "train nothing; evaluate this model on the val photos: "
               "one of ours, or a released file with its classifier", "ours", common=True),
        Option("--check", False, bool, "train nothing; open every photo and say which are missing, "
               "broken or there twice, and which labels are doubtful", "ours", common=True),
        Option("--out", None, "DIR", "folder for everything that is written", "ours",
               default_text="runs/<dataset>", common=True),
        Option("--fresh", False, bool, "train again what is done in --out, whose old files move to "
               "before-fresh/; without it a run resumes", "ours", common=True),
        Option("--limit", None, whole(1), "use only N photos of each split, evenly spaced, for a "
               "dry run", "ours", common=True),
    ],
    "data": [
        Option("--year", "2014", ["2014", "2017"], "year of COCO", "Table 1"),
        Option("--train-json", None, "FILE", "COCO-format labels to train on", "ours"),
        Option("--train-images", None, "DIR", "folder of the photos of --train-json", "ours"),
        Option("--val-json", None, "FILE", "COCO-format labels to validate on", "ours"),
        Option("--val-images", None, "DIR", "folder of the photos of --val-json", "ours"),
        Option("--keep-unlabelled", False, bool, "keep images without a label, as --photos always "
               "does", "difference 7"),
        Option("--glove", None, "FILE", "word vectors for --nodes word, as GloVe text or .npy",
               "ML-GCN: glove.6B.300d"),
        Option("--image-size", 448, whole(1), "pixels per side that photos are squashed to",
               "difference 9", decides=True, common=True),
        Option("--workers", CORES, whole(0), "processes per GPU that load photos", "ours",
               default_text="one per core"),
        Option("--skip-bad-images", False, bool, "leave out photos that are missing or cannot be "
               "read, instead of stopping", "ours", common=True),
    ],
    "model": [
        Option("--backbone", "tresnet_m", "NAME", f"image network: {', '.join(BACKBONES)}, or "
               "timm:NAME", "Direct subnetwork", decides=True, common=True),
        Option("--pool", "avg", ["avg", "max"], "how a feature map becomes features: its mean or "
               "its maximum", "paper: GAP; ML-GCN: max", decides=True),
        Option("--weights", None, "NAME", "starting weights: a file, a URL, none for random ones, "
               f"or {', '.join(RELEASED)}", "difference 23",
               default_text="those from ImageNet", common=True),
        Option("--freeze", False, bool, "keep the backbone as it is and train only heads, on "
               "features computed once", "ours", decides=True, common=True),
        Option("--unit-features", False, argparse.BooleanOptionalAction, "with --freeze: take "
               "roots of the features, centre them on the training photos and scale them to "
               "length 1", "difference 32", decides=True),
        Option("--gcn-from", "backbone", ["backbone", "weights"], "where phase gcn starts: from "
               "phase backbone's result, or from --weights", "difference 13"),
        Option("--adjacency", "paper", ["paper", "mlgcn", "none"], "label graph as in the paper, "
               "as in ML-GCN's code, or without edges", "difference 3"),
        Option("--tau", 0.1, between(0, 1), "label i gathers from label j where P(j | i) is at "
               "least this; with --adjacency mlgcn where P(i | j) is", "Eq. 3"),
        Option("--p", 0.2, between(0, 1), "weight of all neighbours of a label together; "
               "--adjacency mlgcn has its own", "difference 1"),
        Option("--node-norm", 1.0, between(0, 1e6), "mean length that node features are scaled to; "
               "0 leaves them as they are", "difference 25"),
    ],
    "training": [
        Option("--recipe", "paper", list(RECIPES), "defaults for training: paper, asl (the script "
               "of its authors), cycle (one cycle of the learning rate), small (few photos, no "
               "GPU)", "differences 9 to 18; docs/data.md", decides=True, common=True),
        Option("--epochs", 40, whole(1), "epochs of each training", "Implementation details",
               decides=True, common=True),
        Option("--batch-size", 64, or_auto(whole(1)), "photos per step, of all processes; "
               "auto is a thirtieth of the training photos, 4 to 32", "ours", decides=True,
               common=True),
        Option("--lr", 1e-3, between(0, 1e3), "peak learning rate", "Implementation details",
               decides=True, common=True),
        Option("--backbone-lr", 1.0, between(0, 1), "learning rate of the backbone, as a "
               "fraction of --lr", "ML-GCN: 0.1", decides=True),
        Option("--weight-decay", 5e-4, between(0, 1e3), "L2 penalty", "difference 12",
               decides=True),
        Option("--gamma-neg", 4.0, between(0, 100), "focusing power of the loss on negatives",
               "ASL", decides=True),
        Option("--gamma-pos", 0.0, between(0, 100), "focusing power of the loss on positives",
               "ASL", decides=True),
        Option("--clip", 0.05, between(0, 1), "negatives with a score below this have no loss",
               "ASL", decides=True),
        Option("--ema", 0.0, between(0, 1), "decay of a moving average of the weights; 0 is off",
               "ASL", decides=True),
        Option("--seed", 0, whole(0), "seed of new weights, order and augmentation", "ours",
               decides=True, common=True),
        Option("--eval-every", 1, whole(0), "measure val mAP after every N epochs and after the "
               "last; with 0 only after the last", "ours"),
        Option("--save-every", 15.0, between(0, 1e6), "minutes between saves within an epoch",
               "ours"),
    ],
    "machine and report": [
        Option("--device", "auto", "NAME", "cuda, mps or cpu; auto is the first available", "ours",
               common=True),
        Option("--amp", None, argparse.BooleanOptionalAction, "bfloat16 autocast; loss and head "
               "stay float32", "ours", default_text="on where a card computes in bfloat16",
               decides=True, common=True),
        Option("--memory", "lean", ["lean", "plain"], "lean keeps half as much for backward as "
               "plain and is a little slower", "docs/performance.md"),
        Option("--compile", False, bool, "torch.compile the model", "ours"),
        Option("--font", None, "FILE", "TrueType font for the pictures; without it, a font of the "
               "system that has the letters of your labels", "ours"),
        Option("--quiet", False, bool, "print only errors and, at the end, the results", "ours",
               common=True),
        Option("--threshold", [], between(0.001, 0.999), "thresholds of results.md, besides 0.5 "
               "and 0.8", "difference 6", several=True),
    ],
}
# fmt: on


if __name__ == "__main__":
    signals.run(main)
