"""What is refused before the first phase because it would otherwise end the run hours later."""

import contextlib
import io
import shutil
from pathlib import Path

import data
from backbones import build, fetch_weights, load_weights, parameters_of
from datasets import coco_download
from datasets.catalogue import Splits
from preflight.plan import file_of_weights, needs_weights, trained_models
from reports import fonts, models_of_run
from runtime import checkpoints, ranks
from runtime.download import size_of
from runtime.folder import PHOTOS, VAL_PHOTOS, WRITTEN, Folder
from runtime.options import typed_name
from runtime.terminal import listed, tell


def check_out(args) -> None:
    """A ValueError if --out is a file; or a folder of photos, whose pictures would be taken for
    photos; or if a file of the user's lies in --out under a name that the run writes: it would be
    overwritten."""
    out = args.out.resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {args.out} is a file; choose a folder, such as runs/mine")
    for option in ("photos", "val_photos", "train_images", "val_images"):
        folder = getattr(args, option)
        if folder and Path(folder).resolve() == out:
            raise ValueError(
                f"--out {args.out} is the folder of the photos; choose another one, such as "
                "runs/mine"
            )
    for option in ("labels", "val_labels", "train_json", "val_json", "glove"):
        file = getattr(args, option)
        if file and Path(file).resolve().parent == out and is_written(Path(file).name):
            raise ValueError(
                f"the run would write its own {Path(file).name} over {typed_name(option)} {file}; "
                "choose another --out, such as runs/mine"
            )
    if not (out / "lock").exists():  # every run leaves one
        for path in sorted(out.glob("*")):
            if is_written(path.name) and path.name != "val-photos.json":  # that one is read
                raise ValueError(
                    f"--out {args.out} has a file {path.name} that no run wrote, and this run "
                    "would overwrite it; choose another --out, such as runs/mine"
                )


def is_written(name: str) -> bool:
    """Whether a run writes a file of this name into --out; the case counts on some systems only."""
    return name.lower() in WRITTEN


def check_beforehand(args) -> None:
    """Check what can be known before photos are fetched and labels are read, and would otherwise
    end the run hours later: image size, font, weights, word vectors, room on the disks."""
    fonts.check(args.font)
    # The backbone itself knows which sizes it takes.
    size = 4 * parameters_of(args.backbone, args.pool, args.image_size)  # bytes of float32
    trained = trained_models(args)
    if args.weights != "none" and needs_weights(args):
        fetch_weights(args.weights)
    if args.evaluate:
        fetch_weights(args.evaluate)
    if "word" in args.nodes and "gcn" in args.phase and not Path(args.glove).is_file():
        raise FileNotFoundError(f"--glove {args.glove} is not there; pass an existing file")
    if args.download:
        coco_download.check_room(Path(args.data), args.year)
    # A file for each model; and twice, as a new file replaces an old one, the state of the model in
    # training: its weights, Adam's two moments and an average.
    needed = size * (len(trained) + 2 * 4) if trained else 0
    free = shutil.disk_usage(args.out).free
    if needed > free:
        raise OSError(
            f"--out {args.out} needs about {size_of(needed)} for {len(trained)} models and their "
            f"training, but only {size_of(free)} are free; make room, or choose another --out"
        )


def check_nodes(args, split: data.Split) -> None:
    """Read the word vectors once before the hours of phase backbone, so that errors come now."""
    if "word" in args.nodes and "gcn" in args.phase:
        _, unknown = data.load_glove(args.glove, split.classes)
        tell(f"{args.glove}: {len(unknown)} words not found{listed(unknown)}")


def check_starts(args, splits: Splits, folder: Folder, network: dict) -> None:
    """Refuse now the models to start from that phase eval would refuse hours later: those of
    another `network` or other photos, and those that have seen val photos. With --fresh also
    weights that cannot be loaded, before it moves anything."""
    if args.fresh and needs_weights(args) and args.weights != "none":
        # They are loaded again, and then told.
        with contextlib.redirect_stdout(io.StringIO()), ranks.in_turn():
            load_weights(build(args.backbone, args.pool), args.weights)
    if args.phase != ["eval"] and needs_weights(args) and (file := file_of_weights(args)):
        advice = "start from other --weights, or choose val photos that they have not seen"
        checkpoint = checkpoints.read_checkpoint(file)
        models_of_run.check_unseen(args.weights, checkpoint, splits.val, advice)
    if "backbone" in args.phase:
        return
    beside = folder.reusable("backbone.pt", {})
    if beside and {"gcn", "eval"} <= set(args.phase) and not args.skip_bad_images:
        if not models_of_run.was_trained_on(splits.train, beside):
            raise ValueError(
                f"{folder / 'backbone.pt'} was trained on other photos or labels, and phase eval "
                "puts only models of the same ones side by side; run phase backbone again too, "
                "with --fresh, or leave out phase eval"
            )
    if "embed" in args.phase or ("gcn" in args.phase and args.gcn_from == "backbone"):
        trained = folder.load("backbone.pt", "backbone", network)
        advice = "run --phase backbone again, or choose val photos that it has not seen"
        models_of_run.check_unseen(folder / "backbone.pt", trained, splits.val, advice)


def check_old_models(args, folder: Folder, settings: dict) -> None:
    """Refuse models of other settings before features are computed again or anything is written.
    `train` in run.py also compares the backbone, the graph and the nodes."""
    settings = dict(settings)
    if args.skip_bad_images:  # photos that cannot be read are not known yet
        del settings[PHOTOS], settings[VAL_PHOTOS]
    for name in trained_models(args):
        if name == "backbone" or args.freeze:  # otherwise phase gcn looks at other files first
            for file in (f"{name}.pt", f"last-{name}.pt"):
                folder.begun(file, settings)
