"""Reproduce IML-GCN: train the backbone, embed the labels, train the GCN, evaluate.  Typical use:

    python run.py                                # demo scenes, drawn on the spot -> runs/demo
    python run.py --dataset coco --data DIR      # the paper's Tables 1 and 3     -> runs/coco
    python run.py --dataset coco --data DIR --limit 64 --epochs 1                 # a dry run
    python run.py --dataset coco --data DIR --phase backbone eval                 # the ASL row
    torchrun --nproc-per-node 8 run.py --dataset coco --data DIR                  # 8 GPUs

Three phases (Section "Proposed Approach"), which speak to each other through files in --out only:

    backbone   TResNet + linear head, ASL     -> backbone.pt, the paper's "ASL (TResNetM)" row
    embed      backbone.pt, training photos   -> embeddings.pt: F_I, F_PCA, co-occurrence counts;
                                                 graph.png: label graph and embeddings
    gcn        backbone.pt, embeddings.pt     -> gcn-<nodes>.pt, one a kind of node feature
    eval       every *.pt above, val photos   -> metrics-*.json, scores-*.npz, results.md

Symbols: B images in a batch, M images in a split, n labels, D image feature size.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

import data
import download
import files
import heatmap
import iml_gcn
import process
import report
import resnet
import tresnet
from board import Board, writer_class
from train import make_loader, predict_logits, train, whole_pass

BACKBONES = {  # name -> how to build it, the released weights it starts from
    "tresnet_m": (tresnet.tresnet_m, "tresnet_m_21k"),  # the first author's later code: 21K too
    "tresnet_l": (tresnet.tresnet_l, "tresnet_l_1k"),
    "tresnet_xl": (tresnet.tresnet_xl, "none"),
    "tresnet_tiny": (tresnet.tresnet_tiny, "none"),
    "resnet101": (resnet.resnet101, "resnet101_1k"),
}
RELEASED = tresnet.RELEASED | resnet.RELEASED


def load_demo(args) -> tuple[data.Split, data.Split]:
    data.make_demo(args.data, seed=0)
    return load_coco(args)


def load_coco(args) -> tuple[data.Split, data.Split]:
    """Train and val of the COCO tree of --year, or of any four paths given."""
    if args.download:
        download.coco(Path(args.data), args.year)
    splits = []
    for split in ("train", "val"):
        name = f"{split}{args.year}"
        json_path = getattr(args, f"{split}_json")
        images = getattr(args, f"{split}_images")
        json_path = Path(json_path or f"{args.data}/annotations/instances_{name}.json")
        images = Path(images or f"{args.data}/{name}")
        if not json_path.is_file() or not images.is_dir():
            raise FileNotFoundError(
                f"{images if json_path.is_file() else json_path} is not there; expected under "
                f"--data {args.data} (or given by --{split}-json and --{split}-images):\n"
                f"  annotations/instances_train{args.year}.json  train{args.year}/*.jpg\n"
                f"  annotations/instances_val{args.year}.json    val{args.year}/*.jpg"
            )
        splits.append(data.load_coco(json_path, images, args.out / f"{split}.npz"))
        data.check_inside(splits[-1].paths, images)
    return splits[0], splits[1]


def load_vg500(args) -> tuple[data.Split, data.Split]:
    splits = data.load_vg500(args.data, args.out / "objects.npz")
    for split in splits:
        data.check_inside(
            split.paths, *(Path(args.data, name) for name in ("VG_100K", "VG_100K_2"))
        )
    return splits


DATASETS = {"demo": load_demo, "coco": load_coco, "vg500": load_vg500}

# What differs from the command line's defaults, the paper's, in ASL's training script [ASL] ...
RECIPES = {
    "paper": {},
    "asl": {"lr": 1e-4, "weight_decay": 1e-4, "ema": 0.9997, "image_size": 224},
}
# ... and for a data set. All of demo's: ours.
PRESETS = {
    "demo": {
        "backbone": "tresnet_tiny",
        "image_size": 96,
        "batch_size": 32,
        "epochs": 12,
    },
    "coco": {},
    "vg500": {},
}


def parse_args(argv=None) -> argparse.Namespace:
    """Every default in one place; each help text ends in its source."""

    def whole(low: int):
        def convert(text: str) -> int:
            if int(text) < low:
                raise argparse.ArgumentTypeError(f"{text} is below {low}")
            return int(text)

        convert.__name__ = "whole number"  # argparse's own word for it in its error
        return convert

    def between(low: float, high: float):
        def convert(text: str) -> float:
            if not low <= float(text) <= high:
                raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}")
            return float(text)

        convert.__name__ = "number"
        return convert

    parser = argparse.ArgumentParser(
        usage="python run.py [--dataset NAME] [--phase NAME] [option ...]",
        description=__doc__,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 27),
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to run").add_argument
    text = f"one of {', '.join(DATASETS)} (demo)"
    add("--dataset", choices=DATASETS, default="demo", metavar="NAME", help=text)
    phases = ["all", "backbone", "embed", "gcn", "eval"]
    text = "all, or some of backbone embed gcn eval (all) [Proposed Approach]"
    add("--phase", nargs="+", choices=phases, default=["all"], metavar="NAME", help=text)
    nodes = ["word", "image", "pca", "random"]
    text = "some of word image pca random (image pca) [F_W, F_I, F_PCA: Table 3; random: ours]"
    add("--nodes", nargs="+", choices=nodes, default=["image", "pca"], metavar="KIND", help=text)
    add("--out", metavar="DIR", help="folder of all that is written (runs/<dataset>) [ours]")
    add("--fresh", action="store_true", help="redo phases that are done or begun [ours]")
    add("--limit", type=whole(1), metavar="N", help="first N photos of a split: a dry run [ours]")

    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="DIR", help="root folder of the data set (data/<dataset>)")
    add("--year", choices=["2014", "2017"], default="2014", help="(%(default)s) [Table 1]")
    text = "fetch what --data lacks of COCO, some 20 GB [ours]"
    add("--download", action="store_true", help=text)
    for split in ("train", "val"):
        text = f"COCO-format JSON for {split}, instead of --data's"
        add(f"--{split}-json", metavar="FILE", help=text)
        text = "and the folder its file names are relative to"
        add(f"--{split}-images", metavar="DIR", help=text)
    text = "do not drop images without a label [difference 7]"
    add("--keep-unlabelled", action="store_true", help=text)
    add("--glove", metavar="FILE", help="GloVe-format text for --nodes word [ML-GCN: 840B, 300-d]")
    text = "side of the square (448; asl 224; demo 96) [difference 9]"
    add("--image-size", type=whole(32), default=448, metavar="PX", help=text)
    text = "processes that load photos, for each GPU (up to 8) [ours]"
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    add("--workers", type=whole(0), default=max(min(8, cores), 1), metavar="N", help=text)
    text = "evaluate and embed without photos that cannot be read [ours]"
    add("--skip-bad-images", action="store_true", help=text)

    add = parser.add_argument_group("model").add_argument
    text = f"one of {', '.join(BACKBONES)} (tresnet_m; demo tiny) [paper]"
    add("--backbone", choices=BACKBONES, default="tresnet_m", metavar="NAME", help=text)
    add("--pool", choices=["avg", "max"], default="avg", help="(avg) [paper: GAP; ML-GCN: max]")
    text = f"file, URL, none (random) or one of {', '.join(RELEASED)} (M: "
    text += "tresnet_m_21k, L: tresnet_l_1k, demo: none) [paper: ImageNet; difference 23]"
    add("--weights", metavar="NAME", help=text)
    text = "phase gcn starts from backbone.pt, or imagenet: from --weights (backbone) "
    text += "[difference 13]"
    start = ["backbone", "imagenet"]
    add("--init", choices=start, default="backbone", metavar="NAME", help=text)
    readings = ["paper", "mlgcn", "none"]
    text = "reading of Eq. 4: paper, mlgcn, or none: no edges (paper) [difference 3]"
    add("--adjacency", choices=readings, default="paper", metavar="NAME", help=text)
    text = "edges from P >= tau (0.1) [Eq. 3]"
    add("--tau", type=between(0, 1), default=0.1, metavar="P", help=text)
    text = "weight of neighbours (0.2) [difference 1]"
    add("--p", type=between(0, 1), default=0.2, metavar="PART", help=text)
    text = "COCO-format JSON that gives the label graph (the training one) [ours]"
    add("--graph-json", metavar="FILE", help=text)
    text = "mean length of image and pca nodes, 0: raw (1) [difference 25]"
    add("--node-norm", type=between(0, 1e6), default=1.0, metavar="X", help=text)

    add = parser.add_argument_group("training").add_argument
    text = "of each training (40; demo 12) [Impl. details]"
    add("--epochs", type=whole(1), default=40, metavar="N", help=text)
    text = "images, over all processes (64; demo 32) [ours, paper is silent]"
    add("--batch-size", type=whole(1), default=64, metavar="N", help=text)
    text = "Adam, x0.1 after epochs 10, 20, 30 of 40; or ASL's one-cycle (paper) [difference 18]"
    add("--recipe", choices=RECIPES, default="paper", help=text)
    text = "peak learning rate (1e-3; asl 1e-4) [Impl. details]"
    add("--lr", type=between(0, 1e3), default=1e-3, metavar="X", help=text)
    text = "the backbone's part of it in gcn, 0: frozen (1) [paper; ML-GCN: 0.1]"
    add("--backbone-lr", type=between(0, 1), default=1.0, metavar="PART", help=text)
    text = "L2, on tensors of 2+ dimensions (5e-4; asl 1e-4) [Impl. details; difference 12]"
    add("--weight-decay", type=between(0, 1e3), default=5e-4, metavar="X", help=text)
    text = "focusing power of negatives (4) [ASL]"
    add("--gamma-neg", type=between(0, 100), default=4.0, metavar="X", help=text)
    text = "and of positives (0) [ASL]"
    add("--gamma-pos", type=between(0, 100), default=0.0, metavar="X", help=text)
    text = "probability shift of negatives (0.05) [ASL]"
    add("--clip", type=between(0, 1), default=0.05, metavar="P", help=text)
    text = "decay of the weights' moving average (0: off; asl 0.9997) [paper: none]"
    add("--ema", type=between(0, 1), default=0.0, metavar="X", help=text)
    text = "of weights, order and augmentation (0) [ours]"
    add("--seed", type=whole(0), default=0, metavar="N", help=text)
    text = "evaluate after every N epochs, 0: at the end (1) [ours]"
    add("--eval-every", type=whole(0), default=1, metavar="N", help=text)
    text = "minutes between saves within an epoch (15) [ours]"
    add("--save-every", type=between(0, 1e6), default=15, metavar="MIN", help=text)

    add = parser.add_argument_group("machine and report").add_argument
    text = "cuda, mps or cpu (auto: the first there is) [ours]"
    add("--device", default="auto", metavar="NAME", help=text)
    add("--amp", action="store_true", help="bfloat16 autocast; loss and head stay float32 [ours]")
    add("--compile", action="store_true", help="torch.compile the model [ours]")
    text = "curves, photos, label embeddings in --out/tensorboard [ours]"
    add("--tensorboard", action="store_true", help=text)
    text = "probabilities to report at besides 0.5 and 0.8 [difference 6]"
    add("--threshold", type=between(0.001, 0.999), nargs="+", default=[], metavar="P", help=text)

    known, _ = parser.parse_known_args(argv)
    parser.set_defaults(**RECIPES[known.recipe] | PRESETS[known.dataset])
    args = parser.parse_args(argv)
    args.phase = phases[1:] if "all" in args.phase else [p for p in phases if p in args.phase]
    # Only a file that was asked for is evaluated as it stands; a default would download for it.
    args.evaluate = args.weights if args.phase == ["eval"] else None
    args.weights = args.weights or BACKBONES[args.backbone][1]
    if args.image_size % 4:
        parser.error(f"--image-size {args.image_size} is not a multiple of 4, as TResNet needs")
    if "word" in args.nodes and not args.glove and "gcn" in args.phase:
        parser.error("--nodes word needs --glove FILE, a GloVe-format text file of word vectors")
    if args.download and args.dataset == "vg500":
        parser.error(
            "--download fetches COCO only, VG-500 has no one place: take the photos from "
            "visualgenome.org, the lists from data/VG of github.com/HCPLab-SYSU/SSGRL, and lay "
            "them out as README's Data shows"
        )
    given = [args.train_json, args.train_images, args.val_json, args.val_images]
    if args.download and (args.dataset != "coco" or any(given)):
        parser.error("--download fetches COCO only: give --dataset coco, and no paths but --data's")
    args.data = args.data or f"data/{args.dataset}"
    args.out = Path(args.out or f"runs/{args.dataset}")
    if args.device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        args.device = "cuda" if torch.cuda.is_available() else mps
    if args.tensorboard:
        try:
            writer_class()
        except ImportError as error:
            parser.error(f"--tensorboard needs the package tensorboard ({error}): install it")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # torch's, for no such device or no driver
        parser.error(f"--device {args.device} is not to be had: {str(error).splitlines()[0]}")
    args.nodes = [kind for kind in nodes if kind in args.nodes]  # the order of Table 3
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        args.fresh = False  # torchrun starts a run again to go on with it
    return args


def load_model(path: str | Path) -> tuple[iml_gcn.Classifier, dict]:
    """Any backbone.pt or gcn-*.pt as a Classifier in eval mode, and what else the file says."""
    checkpoint = tresnet.read_checkpoint(path)
    try:
        backbone = BACKBONES[checkpoint["backbone"]][0](checkpoint["pool"])
        state, n = checkpoint["state_dict"], len(checkpoint["classes"])
        if "head.nodes" in state:
            hidden = state["head.W0"].shape[1]
            head = iml_gcn.LabelGCN(
                state["head.nodes"], state["head.A_hat"], backbone.num_features, hidden
            )
        else:
            head = torch.nn.Linear(backbone.num_features, n)
        model = iml_gcn.Classifier(backbone, head)
        model.load_state_dict(state)
    except Exception as error:  # of a dozen kinds: anyone may have written the file
        reason = data.printable(str(error).split("\n")[0], 120)
        raise ValueError(f"{path} is not a model this program wrote ({reason})") from error
    return model.eval(), checkpoint


def load_data(args) -> tuple[data.Split, data.Split]:
    """Both splits, checked and described; what would go wrong hours later goes wrong here."""
    splits = []
    for name, split in zip(("train", "val"), DATASETS[args.dataset](args), strict=True):
        labelled = split.targets.any(1)  # (M,)
        note = f"{len(split):,} images, {(~labelled).sum():,} of them without a label"
        if not args.keep_unlabelled:
            split = split.select(np.flatnonzero(labelled))  # difference 7
            note += " dropped"
        if args.limit:
            split = split.select(np.arange(min(args.limit, len(split))))
            note += f", first {len(split):,} taken"
        absent = [split.classes[j] for j in np.flatnonzero(split.targets.sum(0) == 0)]
        note += f"; {len(split.classes)} labels, {len(absent)} of them in no image"
        print(f"{name}: {note}{listed(absent)}")
        if not len(split):
            raise ValueError(f"no {name} image is left; check --limit and the annotations")
        missing = [path for path in split.paths if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {len(split):,} {name} photos are missing"
                f"{listed(missing)}; unpack them there, or give the folder they are in"
            )
        splits.append(split)
    if splits[0].classes != splits[1].classes:
        raise ValueError("the train and val JSON name different categories; they must be the same")
    return splits[0], splits[1]


def listed(names: list[str]) -> str:
    """The first three of some names or paths, which come from files, for a line of text."""
    first = ", ".join(data.printable(name, 120) for name in names[:3])
    return f": {first}{' ...' if len(names) > 3 else ''}" if names else ""


def label_graph(args, split: data.Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pairs (n, n), counts (n,) and A (n, n), Eq. 3 and 4, of training or --graph-json's images."""
    targets = split.targets
    if args.graph_json:
        other = data.load_coco(args.graph_json, "", args.out / "graph.npz")
        if sorted(other.classes) != sorted(split.classes):
            raise ValueError(
                f"{args.graph_json} has {len(other.classes)} categories, the data set "
                f"{len(split.classes)}, and their names differ; the label graph needs the same"
            )
        targets = other.targets[:, [other.classes.index(name) for name in split.classes]]
    pairs, counts = iml_gcn.cooccurrence(torch.from_numpy(targets))
    return pairs, counts, iml_gcn.adjacency(pairs, counts, args.tau, args.p, args.adjacency)


def describe_graph(args, split: data.Split) -> None:
    _, _, A = label_graph(args, split)
    edges = (A > 0).fill_diagonal_(False)  # (n, n)
    isolated = int((~(edges.any(0) | edges.any(1))).sum())
    print(
        f"label graph ({args.adjacency}, tau {args.tau}): {int(edges.sum()):,} edges of "
        f"{len(A) * (len(A) - 1):,}, {isolated} isolated labels"
    )


def new_backbone(args) -> tuple[torch.nn.Module, dict]:
    """The backbone with --weights, and the classifier that came with them, if any."""
    backbone = BACKBONES[args.backbone][0](args.pool)
    if args.weights == "none":
        return backbone, {}
    with process.in_turn():
        return backbone, tresnet.load_weights(backbone, RELEASED.get(args.weights, args.weights))


# The phases


def phase_backbone(args, splits) -> None:
    """Phase 1: CNN and linear head, trained to convergence. This is the ASL row of Table 1."""
    current = files.settings(args, "backbone", splits[0])
    if files.trained_before(args, "backbone", current, splits[0].classes):
        return
    torch.manual_seed(args.seed)
    backbone, _ = new_backbone(args)
    head = iml_gcn.linear_head(backbone.num_features, len(splits[0].classes))
    train(args, "backbone", iml_gcn.Classifier(backbone, head), splits, current)


@torch.inference_mode()
def phase_embed(args, splits) -> None:
    """Phase 2: one pass over the training photos, not augmented, in eval mode. Eq. 5 and 6.

    Ranks see parts of the photos; sums and counts are added up, so each photo counts once.
    """
    split = splits[0]
    backbone_id = files.load(args, "backbone.pt", split.classes, "backbone")["backbone_id"]
    current = {"backbone_id": backbone_id, "training_data": files.split_id(split)}
    current |= {"image_size": args.image_size, "amp": args.amp}
    path = args.out / "embeddings.pt"
    if path.is_file() and not args.fresh:
        stored = tresnet.read_checkpoint(path)
        if stored.get("settings") == current:
            print("embed: done before (embeddings.pt); --fresh does it again")
            draw_graph(args, split, stored)
            return
    model, _ = load_model(args.out / "backbone.pt")
    backbone = tresnet.fold(model.backbone).to(args.device)
    means = iml_gcn.LabelMeans(len(split.classes), backbone.num_features)

    def add(images, targets, rows):
        means.update(backbone(images), targets)  # (B, D), (B, n)

    read = whole_pass(args, make_loader(args, split, train=False), "embed", add)
    process.total(means.sums), process.total(means.counts)
    F_I = means.mean()  # (n, D), Eq. 5
    F_PCA = iml_gcn.pca(F_I, min(F_I.shape))  # (n, n), Eq. 6; fewer columns where D < n
    pairs, counts = iml_gcn.cooccurrence(torch.from_numpy(split.targets))
    print(f"embed: F_I {tuple(F_I.shape)}, F_PCA {tuple(F_PCA.shape)} of {len(read):,} photos")
    if process.rank() == 0:
        checkpoint = {"classes": split.classes, "settings": current, "image": F_I, "pca": F_PCA}
        checkpoint |= {"pairs": pairs, "counts": counts}
        files.save(path, checkpoint)
        draw_graph(args, split, checkpoint)
    process.wait()


def draw_graph(args, split: data.Split, embeddings: dict) -> None:
    """graph.png: the label graph that phase gcn uses, and F_PCA."""
    if process.rank() > 0:
        return
    arrays = [array.numpy() for array in (*label_graph(args, split), embeddings["pca"])]
    image = heatmap.graph(*arrays, embeddings["classes"], args.tau, args.adjacency)
    with files.replacing(args.out / "graph.png") as file:
        image.save(file, "PNG")
    print(f"embed: the label graph is drawn in {args.out / 'graph.png'}")


def phase_gcn(args, splits) -> None:
    """Phase 3: CNN and GCN trained jointly, once for every kind of node features (Table 3)."""
    classes = splits[0].classes
    start = None
    if args.init == "backbone":
        start = files.load(args, "backbone.pt", classes, "backbone")["backbone_id"]
    _, _, A = label_graph(args, splits[0])  # (n, n), Eq. 3 and 4
    A_hat = iml_gcn.normalise(A, args.adjacency)  # (n, n)
    board = Board(args, "labels")
    board.graph(A, classes)
    for kind in args.nodes:
        name, source = f"gcn-{kind}", start
        if kind == "word":
            nodes, _ = data.load_glove(args.glove, classes)  # (n, 300)
        elif kind == "random":  # F_PCA's shape and scale, and nothing in it
            generator = torch.Generator().manual_seed(args.seed)
            nodes = torch.randn(len(classes), len(classes), generator=generator)  # (n, n)
            nodes = scaled(args, nodes)
        else:
            embeddings = files.load(args, "embeddings.pt", classes, "embed")
            nodes = scaled(args, embeddings[kind])  # (n, D) or (n, n)
            source = embeddings["settings"]["backbone_id"]
            if start not in (None, source):
                raise ValueError(
                    f"{args.out}/embeddings.pt was made from another backbone.pt; "
                    "run --phase embed again"
                )
        board.nodes(kind, nodes, classes)
        current = files.settings(args, name, splits[0], source)
        if files.trained_before(args, name, current, classes):
            continue
        torch.manual_seed(args.seed)
        if args.init == "backbone":  # difference 13
            backbone = load_model(args.out / "backbone.pt")[0].backbone
        else:
            backbone, _ = new_backbone(args)
        head = iml_gcn.LabelGCN(nodes, A_hat, backbone.num_features)
        train(args, name, iml_gcn.Classifier(backbone, head), splits, current)
    board.close()


def scaled(args, nodes: torch.Tensor) -> torch.Tensor:
    """nodes (n, d) times one number, so that their mean length is --node-norm (difference 25)."""
    return nodes * (args.node_norm / nodes.norm(dim=1).mean()) if args.node_norm else nodes


def phase_eval(args, splits) -> None:
    """Every model in --out, or the one of --weights, on the val photos: scores-*.npz,
    metrics-*.json and the table, results.md."""
    split, reports = splits[1], {}
    paths = {name: args.out / f"{name}.pt" for name in report.MODELS}
    models = {name: load_model(path) for name, path in paths.items() if path.is_file()}
    if args.evaluate:
        models = {"weights": given_model(args, split.classes)}
    if not models:
        raise FileNotFoundError(f"no model in {args.out}; run --phase backbone or all first")
    for name, (model, checkpoint) in models.items():
        path = paths.get(name, args.weights)
        files.check_classes(path, checkpoint, split.classes)
        if checkpoint["image_size"] != args.image_size:
            raise ValueError(
                f"{path} was trained at {checkpoint['image_size']} px, now it is "
                f"{args.image_size}; rows are compared at one size: give that --image-size"
            )
        model = model.to(args.device, memory_format=torch.channels_last)
        loader = make_loader(args, split, train=False)
        logits, read = predict_logits(args, model, loader, f"eval {name}")
        if process.rank() > 0:
            continue
        logits, targets = logits[read], split.targets[read]
        scores = {"logits": logits, "targets": targets, "classes": np.array(split.classes)}
        with files.replacing(args.out / f"scores-{name}.npz") as file:
            np.savez_compressed(file, **scores)
        about = {"label": report.MODELS.get(name, str(path)), "dataset": args.dataset}
        about |= {"image_size": args.image_size, "parameters": count_parameters(model)}
        about |= {"epochs": checkpoint["epochs"], "settings": checkpoint["settings"]}
        about |= {"unreadable": len(split) - len(targets)}
        thresholds = [0.5, 0.8, *args.threshold]  # ML-GCN's and ASL's; difference 6
        reports[name] = about | report.summarise(logits, targets, split.classes, thresholds)
        text = json.dumps(reports[name], indent=1, default=str)
        files.save_text(args.out / f"metrics-{name}.json", text)
    if process.rank() > 0:
        return
    table = report.table(args.dataset, args.image_size, targets, reports)
    path = args.out / ("results-weights.md" if args.evaluate else "results.md")
    files.save_text(path, table)
    print(f"\n{table}\nwritten to {path}")


def given_model(args, classes: list[str]) -> tuple[iml_gcn.Classifier, dict]:
    """--phase eval --weights FILE: a checkpoint of ours, or a released file with its classifier,
    whose labels are taken to be the data set's in category id order (ASL's COCO files)."""
    source = RELEASED.get(args.weights, args.weights)
    if "classes" in tresnet.read_checkpoint(source):
        return load_model(source)
    backbone, state = new_backbone(args)
    expected = (len(classes), backbone.num_features)
    if "weight" not in state or state["weight"].shape != expected:
        found = f"one of {tuple(state['weight'].shape)}" if "weight" in state else "none"
        raise ValueError(
            f"{source} should hold a classifier of {expected} to be evaluated, it has {found}; "
            "use it as --weights of --phase backbone"
        )
    head = torch.nn.Linear(backbone.num_features, len(classes), bias="bias" in state)
    head.load_state_dict(state)
    about = {"classes": classes, "image_size": args.image_size, "epochs": None, "settings": None}
    return iml_gcn.Classifier(backbone, head).eval(), about


def count_parameters(model: torch.nn.Module) -> int:
    """As the paper counts: trained weights and the n x n adjacency (difference 16)."""
    graph = getattr(model.head, "A_hat", torch.empty(0))
    return sum(p.numel() for p in model.parameters()) + graph.numel()


def run(args) -> None:
    """The phases in their order, in a folder that no other run writes to."""
    phases = {
        "backbone": phase_backbone,
        "embed": phase_embed,
        "gcn": phase_gcn,
        "eval": phase_eval,
    }
    print(f"{args.dataset} on {args.device}, phases {', '.join(args.phase)}, into {args.out}")
    if args.batch_size < process.size():
        raise ValueError(f"--batch-size {args.batch_size} is for all {process.size()} processes")
    with process.in_turn():
        splits = load_data(args)
    describe_graph(args, splits[0])
    if "word" in args.nodes and "gcn" in args.phase:
        nodes, unknown = data.load_glove(args.glove, splits[0].classes)
        width = nodes.shape[1]
        print(f"{args.glove}: {width}-d, {len(unknown)} words not found{listed(unknown)}")
    if process.rank() == 0:
        files.save_text(args.out / "args.json", json.dumps(vars(args), indent=1, default=str))
    for name, phase in phases.items():
        if name in args.phase:
            if process.received:
                raise process.Stopped(f"front of phase {name}")
            phase(args, splits)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        args.device = process.begin(args.device)
        if process.rank() == 0:
            with files.lock(args.out):
                run(args)
        else:
            sys.stdout = open(os.devnull, "w")  # one rank speaks for all
            run(args)
    except process.Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except torch.OutOfMemoryError:
        print("error: out of memory; use a smaller --batch-size or --image-size", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if process.size() == 1:
            raise
        print(f"error: another rank was lost, or {error}", file=sys.stderr)
        return 2
    process.end()
    return 0


if __name__ == "__main__":
    process.handle_signals()
    sys.exit(main())
