"""What the phases of a run will train, load and replace, from its options."""

from pathlib import Path

from backbones import RELEASED, fetch_weights
from runtime import fresh

NODE_KINDS = ["word", "image", "pca", "random"]  # the order of Table 3


def trained_models(args) -> list[str]:
    """The names of the models that the phases of this run train, in their order."""
    names = []
    if "backbone" in args.phase:
        names.append("backbone")
    if "gcn" in args.phase:
        names += [f"gcn-{kind}" for kind in args.nodes]
    return names


def needs_weights(args) -> bool:
    """Whether this run loads --weights: to start from them, or, with --freeze, to compute
    features."""
    if args.evaluate:
        return False
    gcn_starts_from_them = "gcn" in args.phase and args.gcn_from == "weights"
    return args.freeze or "backbone" in args.phase or gcn_starts_from_them


def file_of_weights(args) -> Path | None:
    """The file of --weights, which is downloaded if it is a URL and not here yet; None where it
    cannot be a model of ours: random weights, timm's and released ones."""
    if args.weights == "none" or args.weights in RELEASED or args.weights.startswith("timm:"):
        return None
    return Path(fetch_weights(args.weights))


def moved_by_fresh(args) -> list[str]:
    """The names of all files that --fresh moves."""
    return fresh.old_files(models_made_anew(args), "embed" in args.phase, args.out)


def models_made_anew(args) -> list[str]:
    """The models whose old files --fresh moves: those that this run trains, or with a new backbone
    all, since phase eval would refuse GCNs of the old one, of whatever nodes."""
    others = {"gcn"} if args.freeze else {"gcn", "eval"}
    if "backbone" in args.phase and others & set(args.phase):
        return ["backbone", *(f"gcn-{kind}" for kind in NODE_KINDS)]
    return trained_models(args)
