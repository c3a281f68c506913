"""Ours beside the paper's: the models of a run, the numbers of each, and the table of all of them.

The table has two forms: the full one in Markdown, and one that fits a terminal of 80 columns.

Symbols: M images in the evaluated split, n labels. Everything is in percent, as in the paper.
"""

import math
from pathlib import Path

import numpy as np
import torch

import data
import metrics
from backbones import fetch_weights, load_released
from iml_gcn import Model, count_parameters
from reports import markdown
from reports.trained_model import THRESHOLD, load_checked
from runtime import checkpoints, ranks, writing
from runtime.folder import PHOTOS, START, VAL_PHOTOS, Folder, check_settings
from runtime.terminal import printable

MODELS = {  # our models' file names, in the order of the tables
    "backbone": "direct (ASL)",
    "gcn-word": "IML-GCN, F_W",
    "gcn-image": "IML-GCN, F_I",
    "gcn-pca": "IML-GCN, F_PCA",
    "gcn-random": "IML-GCN, random nodes",  # ours, a control
}

# The paper's rows that share their parts with ours, from Tables 1 to 3; their commands are in
# docs/results.md.
COLUMNS = ["CP", "CR", "CF1", "OP", "OR", "OF1"]
PUBLISHED = {  # data set, as `run.title_of` names it -> label, parameters, mAP, the six of COLUMNS
    "COCO 2014": [
        ("ResNet101", "44.5 M", 77.3, 80.2, 66.7, 72.8, 83.9, 70.8, 76.8),
        ("ML-GCN", "44.9 M", 83.0, 85.1, 72.0, 78.0, 85.8, 75.4, 80.3),
        ("ASL (TResNetM)", "29.5 M", 81.8, 82.1, 72.6, 76.4, 83.1, 76.1, 79.4),
        ("ASL (TResNetL)", "53.8 M", 86.6, 87.4, 76.4, 81.4, 88.1, 79.2, 81.8),
        ("IML-GCN, F_W", "", 81.6),
        ("IML-GCN, F_I", "33.5 M", 85.9, 82.7, 78.9, 80.5, 84.6, 82.1, 83.3),
        ("IML-GCN, F_PCA", "31.5 M", 86.6, 78.8, 82.6, 80.2, 79.0, 85.1, 81.9),
    ],
    "VG-500": [
        ("ResNet-101", "44.5 M", 30.9),
        ("ML-GCN", "44.9 M", 32.6),
        ("ASL (TResNetM)", "29.5 M", 33.6),
        ("IML-GCN, F_I", "33.5 M", 34.0),
        ("IML-GCN, F_PCA", "32.1 M", 34.5),
    ],
}


def models(
    folder: Folder, val: data.Split, image_size: int, path: str | None, backbone: str, pool: str
) -> dict[str, tuple[Model, dict]]:
    """Name -> model and the start of its report: those of a run, or the one of `path`.

    The rows of a table have to be of one run, or it is a ValueError: they have the same labels,
    image size and training photos, a GCN started where the backbone beside it began or ended, and
    none was trained on photos of `val`.
    """
    names = [name for name in MODELS if (folder / f"{name}.pt").is_file()]
    if path:
        names = ["evaluated"]
    if not names:
        raise FileNotFoundError(f"no model in {folder.path}; run --phase backbone or all first")
    loaded, first_settings, first_backbones = {}, {}, ()
    for name in names:
        file = path or folder / f"{name}.pt"
        model, checkpoint = load(file, folder, image_size, backbone, pool, released=bool(path))
        settings = checkpoint.get("settings")
        if not isinstance(settings, dict):  # of a released file, or a crafted one
            settings = {}
        advice = "choose --val-photos that it has not seen, or train it again with --fresh"
        check_unseen(file, checkpoint, val, advice)
        if not loaded:  # the first is phase backbone's: where it began, and where it ended
            first_settings = settings
            first_backbones = settings.get(START), checkpoint.get("backbone_id")
        same_photos = settings.get(PHOTOS) == first_settings.get(PHOTOS)
        if settings.get(START) not in first_backbones or not same_photos:
            raise ValueError(
                f"{file} and {names[0]}.pt are of different runs: other training photos, "
                "or another backbone to start from; train one of them again, with --fresh"
            )
        report = {"label": MODELS.get(name, str(file)), "parameters": count_parameters(model)}
        keys = "image_size", "epochs", "settings", "backbone_id", "calibration", "threshold"
        report |= {key: checkpoint[key] for key in keys if key in checkpoint}
        loaded[name] = model, report
    return loaded


def load(
    file: str | Path, folder: Folder, image_size: int, backbone: str, pool: str, released: bool
) -> tuple[Model, dict]:
    """A model of ours for these labels and this image size, and its checkpoint. With `released`,
    the file may also be a released one for `backbone` with `pool`."""
    if released and "classes" not in checkpoints.read_checkpoint(fetch_weights(file)):
        model = load_released(backbone, pool, str(file), folder.classes)
        return model, {"classes": folder.classes, "image_size": image_size}
    model, checkpoint = load_checked(file, backbone)
    expected = {}
    if "settings" in checkpoint:
        expected["image-size"] = image_size
    advice = f"pass --image-size {checkpoint.get('image_size')}, as all rows are of one size"
    check_settings(file, checkpoint, folder.classes, expected, advice)
    return model, checkpoint


def was_trained_on(split: data.Split, report: dict) -> bool:
    """Whether a model, by the report of `models`, was trained on these photos and labels."""
    settings = report.get("settings")
    return isinstance(settings, dict) and settings.get(PHOTOS) == split.id()


def check_unseen(file: str | Path, checkpoint: dict, val: data.Split, advice: str) -> None:
    """A ValueError, which ends with the advice, if a model was trained on photos of val. A run that
    itself had photos in both train and val (it warned) is accepted."""
    training_photos, settings = checkpoint.get("training_photos"), checkpoint.get("settings")
    if not isinstance(training_photos, torch.Tensor):
        return
    if isinstance(settings, dict) and settings.get(VAL_PHOTOS) == val.id():
        return
    ids, by_content = val.photo_ids, checkpoint.get("known_by_content")
    if by_content is (not val.known_by_content):  # older files do not say how they know photos
        ids = data.ids_of(val.paths, by_content)
    count = int(torch.isin(ids, training_photos).sum())
    if count:
        raise ValueError(
            f"{file} was trained on {count:,} of the {len(val):,} val photos, so its numbers would "
            f"be too high; {advice}"
        )


def save_numbers(
    folder: Folder, name: str, logits: np.ndarray, split: data.Split, start: dict, thresholds: list
) -> dict:
    """Write scores-<name>.npz and metrics-<name>.json of logits (M, n); returns the latter.

    `start` is the report that `models` began. `thresholds` are probabilities. The AP of a label
    that no image shows is None.
    """
    targets = split.targets  # (M, n)
    ap = metrics.average_precision(logits, targets)  # (n,), logits ranked: sigmoids would tie
    percent = [None if np.isnan(a) else 100 * float(a) for a in ap]
    report = start | {
        "mAP": metrics.mean_average_precision(ap),
        "images": len(targets),
        "left_out": int(np.isnan(ap).sum()),  # labels without a positive
        "thresholds": {},
        "top3": metrics.precision_recall_f1(logits, targets, top_k=3),
        "AP": dict(zip(split.classes, percent, strict=True)),
    }
    for p in sorted(set(thresholds)):
        at = metrics.precision_recall_f1(logits, targets, logit_of(p))
        report["thresholds"][f"{p:g}"] = at
    if "calibration" in start:  # where predict.py draws the line
        slope, offset = start["calibration"]
        line = (logit_of(start["threshold"]) - offset) / slope
        report["predict"] = metrics.precision_recall_f1(logits, targets, line)
    if ranks.rank() == 0:
        classes, path = np.array(split.classes), folder / f"scores-{name}.npz"
        with writing.replacing(path) as file, writing.explained(path):
            np.savez_compressed(file, logits=logits, targets=targets, classes=classes)
        writing.save_json(folder / f"metrics-{name}.json", report)
    return report


def logit_of(p: float) -> float:
    """A threshold on probabilities, on the scale of the logits; infinite for 0 and 1."""
    if p in (0, 1):
        return math.inf if p else -math.inf
    return math.log(p / (1 - p))


def short_name(report: dict) -> str:
    """A model's name within a sentence: direct, F_I, F_PCA, or the path of another file."""
    label = report["label"].removeprefix("IML-GCN, ").removesuffix(" (ASL)")
    return printable(label, 40)


def title(dataset: str, image_size: int, reports: dict) -> str:
    """What the table is about, and how many photos are missing or could not be read."""
    images = max(report["images"] for report in reports.values())
    text = f"{dataset}, {images:,} val images at {image_size} px, percent"
    unreadable = max(report["unreadable"] for report in reports.values())
    if unreadable:
        text += f"; {unreadable:,} more missing or unreadable"
    return text


def full(dataset: str, reports: dict, random_mAP: float) -> str:
    """The whole table in Markdown: chance, our rows (`reports` by model name), the paper's."""
    columns = [*COLUMNS[:3], "CF1_h", *COLUMNS[3:]]
    rows = [["model", "parameters", "mAP", "predicted", *columns]]
    rows.append(["chance", "", two_decimals(random_mAP), "", *[""] * len(columns)])
    for report in reports.values():
        label = markdown.escape(printable(report["label"], 200))
        first_cells = [label, f"{report['parameters']:,}", two_decimals(report["mAP"])]
        for predicted, values in all_metrics(report).items():
            rows.append([*first_cells, predicted, *(two_decimals(values[c]) for c in columns)])
            first_cells = ["", "", ""]
    for label, parameters, mAP, values in published(dataset):
        how = "not stated" if values else ""
        cells = [str(values.get(column, "")) for column in columns]
        rows.append([f"paper: {label}", parameters, str(mAP), how, *cells])
    return markdown.table(rows)


def all_metrics(report: dict) -> dict[str, dict]:
    """The metrics in a metrics-<model>.json, by what counts as predicted."""
    rows = {}
    for threshold, values in report["thresholds"].items():
        rows[f"p > {threshold}, not calibrated"] = values
    rows["top 3"] = report["top3"]
    if "predict" in report:
        rows[f"predict.py, fitted on its val: {report['threshold']:.2f}"] = report["predict"]
    return rows


def published(dataset: str) -> list[tuple]:
    """The paper's rows: label, parameters, mAP, and what it has of COLUMNS by name."""
    rows = []
    for label, parameters, mAP, *rest in PUBLISHED.get(dataset, []):
        rows.append((label, parameters, mAP, dict(zip(COLUMNS, rest, strict=False))))
    return rows


def short(dataset: str, reports: dict, random_mAP: float, intervals: dict[str, str]) -> str:
    """The table for a terminal of 80 columns, at predict.py's threshold.

    `intervals` are texts by model name.
    """
    columns = ["CF1", "OP", "OR", "OF1"]
    rows = [["model", "mAP", "95% interval", "above", *columns]]
    rows.append(["chance", two_decimals(random_mAP), "", "", *[""] * len(columns)])
    for name, report in reports.items():
        threshold, values = predicted_by_default(report)
        cells = [two_decimals(report["mAP"]), intervals[name], f"{threshold:.2f}"]
        label = printable(short_name(report), 22)
        rows.append([label, *cells, *(two_decimals(values[column]) for column in columns)])
    for label, _, mAP, values in published(dataset):
        cells = [str(values.get(column, "")) for column in columns]
        rows.append([f"paper: {label}", str(mAP), "", "", *cells])
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def predicted_by_default(report: dict) -> tuple[float, dict]:
    """predict.py's threshold for a model, and the metrics there."""
    if "predict" in report:
        return report["threshold"], report["predict"]
    return THRESHOLD, report["thresholds"][f"{THRESHOLD:g}"]


def two_decimals(number: float) -> str:
    """The number, or nothing for NaN: no photo shows a label."""
    return "" if math.isnan(number) else f"{number:.2f}"
