"""Label photos with a trained model, or export it for other programs.

    python predict.py runs/mine photos/                   # one line per photo
    python predict.py runs/mine photos/ --csv out.csv     # a spreadsheet
    python predict.py runs/mine photos/ --precision 0.8   # 80% of them right
    python predict.py runs/mine photos/ --save labelled   # pictures
    ... --save labelled --where                           # where labels are
    python predict.py runs/mine --export model.onnx       # or model.pt2

The model is a backbone.pt or gcn-*.pt, or a folder of run.py, whose best model
is used. The checkpoint says everything else: classes, image size, backbone.
From Python: docs/python.md.

Photos become pixels as in evaluation, and are always turned upright if EXIF
says how the camera was held. run.py turns those of --photos, too, but not those
of COCO and Visual Genome, as in ASL's code (docs/differences.md, 22).

Exit code 1: some photos could not be read; all others were labelled. 2: a wrong
call or file.

Symbols: B images in a batch, M photos, n labels, S the side in pixels.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
from datasets.predicted_labels import header_of, is_table_of_ours, row_of, row_of_scores
from reports import export
from reports.labelled_folder import LabelledFolder
from reports.operating_points import OperatingPoint, point_for
from reports.pictures import Caption, activation_maps, maps_exist
from reports.trained_model import THRESHOLD, load, model_file, models_in
from runtime import options, signals
from runtime.csv_table import csv_table
from runtime.device import check as check_device
from runtime.device import choose as choose_device
from runtime.memory import keep_freed_memory
from runtime.photo_files import walk
from runtime.terminal import Progress, end_progress, printable, tell

# From photos to scores


class Predictor:
    """A trained model as a function: paths of photos -> scores (M, n), calibrated probabilities.

    `path` is a checkpoint of run.py, or the folder of a run, whose best model is used.
    """

    def __init__(self, path: str | Path, device: str = "auto", batch_size: int = 16):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        self.path, _ = model_file(path)
        self.device, self.batch_size = choose_device(device), batch_size
        check_device(self.device)
        model, self.checkpoint = load(self.path)
        self.model = model.fold().to(self.device)  # its logits are calibrated
        self.classes: list[str] = self.checkpoint["classes"]  # n
        self.threshold: float = self.checkpoint["threshold"]
        self.image_size: int = self.checkpoint["image_size"]  # S

    def __call__(self, paths: Iterable[str | Path], allow_unreadable: bool = False) -> np.ndarray:
        """Scores (M, n), float32, a row for each path, in their order.

        A photo that cannot be read is a ValueError; with `allow_unreadable` its row is NaN.
        """
        check_paths(paths)
        paths = list(paths)
        scores = np.full((len(paths), len(self.classes)), np.nan, np.float32)  # (M, n)
        for batch in self.batches(paths):
            if batch.errors and not allow_unreadable:
                raise ValueError(batch.errors[0])
            scores[batch.rows] = batch.logits.sigmoid().numpy()
        return scores

    def batches(self, paths: Iterable[str | Path], with_maps: bool = False) -> Iterator["Batch"]:
        """Like calling the predictor, but yields logits by batch: memory does not grow with M.

        With `with_maps`, the batches also say where in the photos the logits come from.
        """
        check_paths(paths)
        photos = photos_in_batches(paths, self.image_size, self.batch_size)
        for rows, images, errors in photos:
            batch = Batch(rows, torch.empty(0, len(self.classes)), None, errors)
            if rows:
                batch.logits, batch.maps = self.compute(images, with_maps)
            if not batch.logits.isfinite().all():
                raise ValueError(
                    f"{self.path} gives scores that are not finite; its weights are damaged, or "
                    "its training diverged: train again"
                )
            yield batch

    @torch.inference_mode()
    def compute(self, images: torch.Tensor, with_maps: bool) -> tuple:
        """Logits (B, n), and maps (B, n, h, w) or None, of images (B, 3, S, S) in uint8."""
        images = images.to(self.device).float().div_(255)
        if not with_maps:
            return self.model(images).float().cpu(), None
        maps = activation_maps(self.model, images).cpu()  # (B, n, h, w)
        return maps.mean((2, 3)), maps

    def operating_point(self, precision: float) -> OperatingPoint:
        """Of the thresholds that reached this precision on val, the one that found most labels. A
        precision that no threshold reached is a ValueError, which names the highest one."""
        points = [OperatingPoint(*row) for row in self.checkpoint["operating_points"]]
        if not points:
            raise ValueError(
                f"{self.path} does not say which precision its thresholds reached: it is from an "
                "older version; train again, or choose a threshold yourself"
            )
        point = point_for(points, precision)
        if point is None:
            best = max(points, key=lambda point: (point.precision, point.recall))
            highest = math.floor(1000 * best.precision) / 1000
            raise ValueError(
                f"{self.path}: no threshold reached a precision of {precision:g} on val; the "
                f"highest was {highest:g}, at the threshold {best.threshold:g}"
            )
        return point


@dataclass
class Batch:
    """Consecutive photos: those that could be read, and a sentence for each that could not."""

    rows: list[int]  # (B,), which of all photos
    logits: torch.Tensor  # (B, n), calibrated
    maps: torch.Tensor | None  # (B, n, h, w), whose means are the logits
    errors: list[str]


def check_paths(paths: Iterable[str | Path]) -> None:
    """A ValueError for one path: its letters would be taken for paths."""
    if isinstance(paths, str | Path):
        raise ValueError(f"paths is {paths!r}, expected a list of paths; pass [{paths!r}]")


def photos_in_batches(
    paths: Iterable[str | Path], S: int, batch_size: int
) -> Iterator[tuple[list[int], torch.Tensor, list[str]]]:
    """Yields, per batch, rows and images (B, 3, S, S) uint8 of the photos that can be read, and a
    sentence for each that cannot."""

    def read(path: str | Path) -> tuple[np.ndarray | None, str]:
        try:
            return np.asarray(data.read_image(path, S, upright=True)), ""  # (S, S, 3)
        except ValueError as error:
            return None, str(error)

    numbered = enumerate(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(itertools.islice(numbered, batch_size)):
            results = list(pool.map(read, [path for _, path in chunk]))
            rows, pixels, errors = [], [], []
            for (row, _), (image, error) in zip(chunk, results, strict=True):
                if error:
                    errors.append(error)
                else:
                    rows.append(row)
                    pixels.append(image)
            images = torch.empty(0, 3, S, S, dtype=torch.uint8)
            if pixels:
                images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (B, 3, S, S)
            yield rows, images, errors


# From scores to labels

WHERE = 3  # labels of --where


class Photo(NamedTuple):
    """A photo: the folder named on the command line, and the path below it.

    If the photo itself was named, `root` is the folder that it is in.
    """

    root: str
    relative: str

    @property
    def path(self) -> Path:
        return Path(self.root, self.relative)

    def in_table(self) -> str:
        """The path for --csv: as it was typed, or absolute if it contains `..`, which a label file
        may not."""
        root = Path(self.root)
        return str((root.resolve() if ".." in root.parts else root) / self.relative)


@dataclass
class Prediction:
    """A photo and the labels to show for it."""

    photo: Photo
    scores: list[float]  # (n,), of all labels
    labels: list[tuple[str, float]]  # labels to show and their scores, highest first
    highest: tuple[str, float]  # highest-scoring label, shown or not
    maps: list[np.ndarray]  # (h, w) each, maps of the first WHERE labels, with --where


def predictions(
    predictor: Predictor, photos: list[Photo], top: int | None, where: bool
) -> Iterator[Prediction]:
    """The photos that can be read, with the labels whose score is above the threshold, or the `top`
    highest. The others are named on stderr."""
    for batch in predictor.batches((photo.path for photo in photos), where):
        for error in batch.errors:
            end_progress()
            tell(f"{error}; skipped", sys.stderr)
        for i, row in enumerate(batch.rows):
            # Logits are ranked, not scores, which round into ties.
            ranked = batch.logits[i].argsort(descending=True, stable=True).tolist()
            scores = batch.logits[i].sigmoid().tolist()
            kept = [j for j in ranked if scores[j] > predictor.threshold]
            if top:
                kept = ranked[:top]
            pairs = [(predictor.classes[j], scores[j]) for j in kept]
            highest = predictor.classes[ranked[0]], scores[ranked[0]]
            maps = [batch.maps[i, j].numpy() for j in kept[:WHERE]] if where else []
            yield Prediction(photos[row], scores, pairs, highest, maps)


def captions(prediction: Prediction, threshold: float) -> list[Caption]:
    """Names and scores as a person reads them; without a label above the threshold it says so."""
    if prediction.labels:
        return [Caption(name, f"{score:.2f}") for name, score in prediction.labels]
    name, score = prediction.highest
    return [
        Caption("no label above", f"{threshold:g}"),
        Caption(f"highest: {name}", f"{score:.2f}"),
    ]


def line_of(prediction: Prediction, threshold: float) -> str:
    labels = captions(prediction, threshold)
    texts = [f"{printable(label.text)} {label.score}" for label in labels]
    return f"{printable(prediction.photo.path, 200)}: {', '.join(texts)}"


def json_of(prediction: Prediction) -> str:
    """A line of JSON. Letters of all languages stand for themselves; what moves a cursor, turns
    the direction of writing or cannot be seen is escaped."""
    labels = [{"label": name, "score": round(score, 6)} for name, score in prediction.labels]
    content = {"photo": str(prediction.photo.path), "labels": labels}
    text = json.dumps(content, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


# Main


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python predict.py MODEL [photo or folder ...] [option ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="MODEL", help="backbone.pt or gcn-*.pt of run.py, or its folder")
    add("photos", nargs="*", help="photos, and folders that are walked; hidden files are left out")
    add_one_of = parser.add_mutually_exclusive_group().add_argument
    add_one_of(
        "--threshold",
        type=options.between(0, 1),
        metavar="P",
        help=f"show labels with a calibrated score above P (the checkpoint's, else {THRESHOLD})",
    )
    add_one_of(
        "--precision",
        type=options.between(0, 1),
        metavar="P",
        help="choose the threshold above which this share of labels was right on val, 0.8 for 80%%",
    )
    add_one_of(
        "--top",
        type=options.whole(1),
        metavar="K",
        help="show the K labels with the highest scores",
    )
    add("--json", action="store_true", help="print a line of JSON for each photo, in UTF-8")
    add(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write a table for spreadsheets: photo, labels, scores; in place of lines on the "
        "terminal [docs/scores.md]",
    )
    add(
        "--columns",
        action="store_true",
        help="with --csv: a column for each label, with the scores of all photos",
    )
    add("--save", type=Path, metavar="DIR", help="folder to write the photos with labels into")
    add(
        "--where",
        action="store_true",
        help=f"with --save: where the {WHERE} highest labels are seen; good for large things only "
        "[docs/scores.md]",
    )
    add(
        "--font",
        metavar="FILE",
        help="TrueType font for --save; without it, a font of the system that has the letters of "
        "your labels",
    )
    add("--export", type=Path, metavar="FILE", help="write the model here, as .onnx or .pt2")
    add(
        "--batch-size",
        type=options.whole(1),
        default=16,
        metavar="N",
        help="photos that are computed at once (%(default)s)",
    )
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="cuda, mps or cpu (auto: the first that is available)",
    )
    args = parser.parse_intermixed_args(argv)  # photos may stand before and after options

    def is_photo(path: str) -> bool:
        return not path.endswith(".pt") and not models_in(path)

    paths = sorted([args.checkpoint, *args.photos], key=is_photo)  # the model may be in any place
    args.checkpoint, *args.photos = paths
    if "" in paths:
        parser.error("a path is empty; name a model, and photos or folders")
    models = [path for path in paths if not is_photo(path)]
    if len(models) > 1:
        parser.error(f"{models[0]} and {models[1]} are two models; name one")
    if args.export and args.export.suffix not in (".onnx", ".pt2"):
        parser.error(f"--export {args.export} ends neither in .onnx nor in .pt2")
    if args.export and (args.json or args.csv or args.save or args.top):
        parser.error("--export writes a model: use it without --json, --csv, --save and --top")
    if not args.photos and not args.export:
        parser.error("name photos or folders to label, or a file to --export the model to")
    if args.columns and not args.csv:
        parser.error("--columns is a form of the table; name a file for it: --csv FILE")
    if args.where and not args.save:
        parser.error("--where draws pictures; name a folder for them: --save DIR")
    return args


def find_photos(paths: list[str], save: Path | None) -> list[Photo]:
    """The photos named, and those in the folders named, in order of name; but none in `save`."""
    photos, own = [], save.resolve() if save else None
    for path in map(Path, paths):
        if own in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"--save {save} is where photos are read from; choose another folder")
        if not path.is_dir():
            photos.append(Photo(str(path.parent), path.name))
            continue
        names, left_out = walk(path)
        if left_out:
            note = f"left out {left_out}, which are not read as photos"
            tell(f"{printable(path, 200)}: {note}", sys.stderr)
        for name in names:
            if own is None or own not in (path / name).resolve().parents:
                photos.append(Photo(str(path), name))
    if photos and not any(photo.path.exists() for photo in photos):
        missing = printable(photos[0].path, 200)
        raise FileNotFoundError(f"there is no {missing}; name photos or folders")
    if paths and not photos:
        raise FileNotFoundError(f"no photo in {', '.join(paths)}; name another folder")
    return photos


def check_table(path: Path) -> None:
    """A ValueError if --csv names a spreadsheet's kind of file, or would replace another file than
    such a table."""
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise ValueError(
            f"--csv {printable(path, 200)} would be text under a spreadsheet's name; call it "
            "NAME.csv, which spreadsheets open too"
        )
    if path.is_file() and not is_table_of_ours(path):
        raise ValueError(
            f"--csv {printable(path, 200)} exists and is not a table of predict.py; choose another "
            "name, or remove it"
        )


def write_predictions(args, predictor: Predictor, photos: list[Photo]) -> int:
    """Print every photo's labels, but not beside a table, which has them; write the table and the
    pictures that were asked for. Returns the number of photos that could be read."""
    threshold, readable, any_label = predictor.threshold, 0, False
    header = header_of(predictor.classes, args.columns) if args.csv else []
    progress = Progress("labelling", len(photos), "photos")
    with contextlib.ExitStack() as files:
        if args.save:
            folder = files.enter_context(LabelledFolder(args.save, args.font))
        if args.csv:
            add_row = files.enter_context(csv_table(args.csv, header))
        for prediction in predictions(predictor, photos, args.top, args.where):
            photo = prediction.photo
            readable += 1
            any_label = any_label or bool(prediction.labels)
            if args.json:
                print(json_of(prediction), flush=True)
            elif not args.csv:
                tell(line_of(prediction, threshold))
            elif progress.advance(1):
                progress.show()
            if args.csv and args.columns:
                add_row(row_of_scores(photo.in_table(), prediction.scores))
            elif args.csv:
                add_row(row_of(photo.in_table(), prediction.labels))
            if args.save:
                labels = captions(prediction, threshold)
                folder.add(*photo, labels, json_of(prediction), prediction.maps)
        if not readable and (args.csv or args.save):
            raise ValueError("no photo could be read, so nothing was written; name other photos")
    end_progress()
    for written in (args.csv, args.save):
        if written:
            tell(f"{printable(written, 200)}: {readable:,} photos", sys.stderr)
    if readable and not any_label:
        advice = "choose a lower --threshold, or --top 3"
        tell(f"no label is above {threshold:g}; {advice}", sys.stderr)
    return readable


def tell_operating_point(point: OperatingPoint, val_photos: int) -> None:
    """Say what a threshold gave on val; 0 photos of val stand for a number that is not known."""
    count = round(point.labels_per_photo * val_photos)
    labels = f"{count:,} labels" if count else "labels"
    tell(
        f"at {point.threshold:g}: {100 * point.precision:.0f}% of {labels} right on val, "
        f"{100 * point.recall:.0f}% found, {point.labels_per_photo:.1f} per photo",
        sys.stderr,
    )


def run(args) -> int:
    path, reason = model_file(args.checkpoint)
    if reason:
        tell(f"{printable(path, 200)}: {reason}", sys.stderr)
    if args.csv:
        check_table(args.csv)
    photos = find_photos(args.photos, args.save)
    predictor = Predictor(path, "cpu" if args.export else args.device, args.batch_size)
    if args.where and not maps_exist(predictor.model):
        raise ValueError("--where needs a backbone of ours, mean pooling and a linear head")
    if args.threshold is not None:
        predictor.threshold = args.threshold
    if args.precision is not None:
        point = predictor.operating_point(args.precision)
        predictor.threshold = point.threshold
        tell_operating_point(point, predictor.checkpoint["val_photos"])
    if args.export:
        readable = export_model(args.export, predictor, photos)
    else:
        try:
            readable = write_predictions(args, predictor, photos)
        except (KeyboardInterrupt, SystemExit, BrokenPipeError):
            if args.csv:
                tell(f"stopped; {printable(args.csv, 200)} was not written", sys.stderr)
            raise
    return 0 if readable == len(photos) else 1


def export_model(path: Path, predictor: Predictor, photos: list[Photo]) -> int:
    """Write the model for other programs. Its scores are checked on the photos; without photos, on
    noise.

    Returns the number of photos that could be read.
    """
    S, readable = predictor.image_size, 0

    def images() -> Iterator[torch.Tensor]:
        nonlocal readable
        if not photos:
            yield torch.rand(3, 3, S, S, generator=torch.Generator().manual_seed(0))
        paths = (photo.path for photo in photos)
        for rows, pixels, errors in photos_in_batches(paths, S, predictor.batch_size):
            for error in errors:
                tell(f"{error}; skipped", sys.stderr)
            if rows:
                readable += len(rows)
                yield pixels.float().div_(255)

    checkpoint = predictor.checkpoint | {"threshold": predictor.threshold}
    export.export(path, predictor.model, checkpoint, images())
    return readable


def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    if args.json:
        sys.stdout.reconfigure(encoding="utf-8")  # as JSON has to be, whatever the terminal uses
    try:
        return signals.code_of(lambda: run(args))
    except KeyboardInterrupt:
        return 130


def stop(number: int, frame: object) -> None:
    """Handle a signal by a normal exit, so that temporary files are removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signals.prepare_streams()
    for name in ("SIGTERM", "SIGHUP"):  # Windows has one of them, nohup ignores the other
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    sys.exit(main())
