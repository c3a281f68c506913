"""Label photos with a trained model, or export it for other programs.  Typical use:

    python predict.py runs/demo/gcn-pca.pt photo.jpg folder/            # a line a photo
    python predict.py runs/demo/gcn-pca.pt folder/ --save labelled      # and pictures with labels
    ... --save labelled --where                                         # and where each is seen
    python predict.py runs/demo/gcn-pca.pt folder/ --export model.onnx  # or model.pt2

The checkpoint says all else: classes, image size, backbone. Photos become pixels as in evaluation,
and always upright where EXIF says how the camera was held. So are those of run.py --photos; COCO
and Visual Genome are trained on without, as ASL's code does (docs/differences.md, 22).

Exit code 1: some photos could not be read, all others were labelled. 2: a wrong call or file.
Symbols: B images in a batch, n labels, S the side images are squashed to.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import data
from backbones import load_model
from iml_gcn import Model
from reports import export, pictures
from reports.calibration import Calibrated
from reports.pictures import activation_maps, maps_exist
from runtime import device, options, signals
from runtime.loading import collate
from runtime.reading import LABEL, WHOLE, Kind, check, walk
from runtime.terminal import printable

THRESHOLD = 0.8  # of a file that says none: ASL's; difference 6
SHOWN = 3  # labels of --where
NUMBER = Kind("a number", lambda value: isinstance(value, int | float))
SAID = {"classes": [LABEL], "image_size": WHOLE, "threshold": NUMBER, "calibration": [NUMBER]}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python predict.py CHECKPOINT [photo or folder ...] [option ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", help="backbone.pt or gcn-*.pt of run.py")
    add("photos", nargs="*", help="photos, and folders that are walked; hidden files are left out")
    either = parser.add_mutually_exclusive_group()
    text = f"labels with a calibrated score above it (the checkpoint's, else {THRESHOLD})"
    either.add_argument("--threshold", type=options.between(0, 1), metavar="P", help=text)
    either.add_argument("--top", type=options.whole(1), metavar="K", help="the K highest instead")
    add("--json", action="store_true", help="print a line of JSON a photo")
    add("--save", type=Path, metavar="DIR", help="folder to write the photos with labels into")
    text = f"with --save: where the {SHOWN} highest labels are seen; good for large things alone"
    add("--where", action="store_true", help=f"{text} [docs/scores.md]")
    add("--font", metavar="FILE", help="TrueType font for --save (Pillow's own, of ASCII only)")
    add("--export", type=Path, metavar="FILE", help="write the model here, as .onnx or .pt2")
    add("--batch-size", type=options.whole(1), default=16, metavar="N", help="(%(default)s)")
    add("--device", default="auto", help="cuda, mps or cpu (auto: the first there is)")
    args = parser.parse_intermixed_args(argv)  # photos may stand before and after options
    given = sorted([args.checkpoint, *args.photos], key=lambda path: not path.endswith(".pt"))
    args.checkpoint, *args.photos = given  # in either order
    if args.export and args.export.suffix not in (".onnx", ".pt2"):
        parser.error(f"--export {args.export} ends neither in .onnx nor in .pt2")
    if args.export and (args.json or args.save or args.top):
        parser.error("--export writes a model and labels nothing: not with --json, --save, --top")
    if not args.photos and not args.export:
        parser.error("name photos or folders to label, or a file to --export the model to")
    if args.where and not args.save:
        parser.error("--where draws pictures, give the folder for them: --save DIR")
    args.device = "cpu" if args.export else device.choose(args.device)
    return args


def load(path: str) -> tuple[Model, dict]:
    """The model, with calibrated logits, and its checkpoint, which is checked."""
    model, about = load_model(path)
    about = {"threshold": THRESHOLD, "calibration": [1.0, 0.0]} | about
    check(about, SAID, path)
    model.head = Calibrated(model.head, *about["calibration"])
    return model, about


def find_photos(paths: list[str], save: Path | None) -> Iterator[Path]:
    """The photos named, and those in the folders named, in order of name; not those in `save`."""
    own = save.resolve() if save else None
    for path in map(Path, paths):
        if own in (path.resolve(), path.resolve().parent):
            raise ValueError(f"--save {save} is where photos are read from; give it another folder")
        names, left_out = walk(path) if path.is_dir() else ([""], "")
        if left_out:
            note = f"left out {left_out}, which are not read as photos"
            print(f"{printable(path, 200)}: {note}", file=sys.stderr)
        yield from (path / name for name in names if own not in (path / name).resolve().parents)


def photos_in_batches(
    args, paths: list[Path], S: int, failed: list[str]
) -> Iterator[tuple[list[Path], torch.Tensor]]:
    """Paths and images (B, 3, S, S) in [0, 1]. What cannot be read is named, and is in `failed`."""
    split = data.Split(paths, np.zeros((len(paths), 0), np.uint8), [], upright=True)
    photos, keys = data.MultiLabelImages(split, S), [(0, row) for row in range(len(paths))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(paths), args.batch_size):
            items = pool.map(photos.__getitem__, keys[i : i + args.batch_size])
            images, _, rows, errors = collate(list(items))
            for error in errors:
                print(f"{error}; skipped", file=sys.stderr)
            failed += errors
            if len(rows):
                yield [paths[row] for row in rows], images.to(args.device).float().div_(255)


@torch.inference_mode()
def label(args, model: Model, about: dict, photos: Iterable) -> None:
    """Print every photo's labels, highest first, and save its picture if wanted."""
    model = model.fold().to(args.device)
    classes, threshold, found = about["classes"], about["threshold"], []
    if args.where and not maps_exist(model):
        raise ValueError("--where needs a backbone of ours, mean pooling and a linear head")
    if args.save:
        pictures.begin(args.save, args.font)
    for paths, images in photos:
        maps = activation_maps(model, images).cpu() if args.where else None  # (B, n, h, w)
        logits = maps.mean((2, 3)) if args.where else model(images).float().cpu()  # (B, n)
        order = logits.argsort(dim=1, descending=True, stable=True)[:, : args.top]  # (B, n or K)
        scores = logits.sigmoid()  # (B, n); ranked by logits: sigmoids round into ties
        for i, path in enumerate(paths):
            ranked, row = order[i].tolist(), scores[i].tolist()
            kept = [(classes[j], row[j]) for j in ranked if args.top or row[j] > threshold]
            found.append(len(kept))
            items = [{"label": name, "score": round(score, 6)} for name, score in kept]
            as_json = json.dumps({"photo": str(path), "labels": items})
            shown = [(name, f"{score:.2f}") for name, score in kept]
            if not kept:
                highest = (f"highest: {classes[ranked[0]]}", f"{row[ranked[0]]:.2f}")
                shown = [("no label above", f"{threshold:g}"), highest]
            line = ", ".join(f"{printable(name)} {score}" for name, score in shown)
            print(as_json if args.json else f"{printable(path, 200)}: {line}", flush=True)
            if args.save:
                seen = ranked[: min(SHOWN, len(kept))] if args.where else []
                heat = [maps[i, j].numpy() for j in seen]
                pictures.add(args.save, args.font, path, shown, as_json, heat)
    if found and not any(found):
        lower = f"no label is above {threshold:g}; give a lower --threshold, or --top 3"
        print(lower, file=sys.stderr)


def run(args) -> int:
    device.check(args.device)
    model, about = load(args.checkpoint)
    if args.threshold is not None:
        about["threshold"] = args.threshold
    S, failed = about["image_size"], []
    paths = list(find_photos(args.photos, args.save))
    if args.photos and not paths:
        raise FileNotFoundError(f"no photo in {', '.join(args.photos)}; name another folder")
    photos = photos_in_batches(args, paths, S, failed) if paths else []
    if args.export:
        drawn = torch.rand(3, 3, S, S, generator=torch.Generator().manual_seed(0))
        images = (images for _, images in photos) if args.photos else [drawn]
        export.export(args.export, model, about, images)
    else:
        label(args, model, about, photos)
    return 1 if failed else 0


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        return signals.code_of(lambda: run(args))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # letters that the terminal does not have
    sys.exit(main())
