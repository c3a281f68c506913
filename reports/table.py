"""Ours beside the paper's: the models of a run, the numbers of each, and the table of all of them.

Symbols: M images in the evaluated split, n labels. Everything is in percent, as in the paper.
"""

import math
from pathlib import Path

import numpy as np

import data
import metrics
from backbones import fetch_weights, load_model, load_released
from iml_gcn import Model, count_parameters
from runtime import checkpoints, ranks
from runtime.folder import PHOTOS, START, Folder, check_settings
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
PUBLISHED = {  # data set -> label, parameters, mAP, the six of COLUMNS
    "coco": [
        ("ResNet101", "44.5 M", 77.3, 80.2, 66.7, 72.8, 83.9, 70.8, 76.8),
        ("ML-GCN", "44.9 M", 83.0, 85.1, 72.0, 78.0, 85.8, 75.4, 80.3),
        ("ASL (TResNetM)", "29.5 M", 81.8, 82.1, 72.6, 76.4, 83.1, 76.1, 79.4),
        ("ASL (TResNetL)", "53.8 M", 86.6, 87.4, 76.4, 81.4, 88.1, 79.2, 81.8),
        ("IML-GCN, F_W", "", 81.6),
        ("IML-GCN, F_I", "33.5 M", 85.9, 82.7, 78.9, 80.5, 84.6, 82.1, 83.3),
        ("IML-GCN, F_PCA", "31.5 M", 86.6, 78.8, 82.6, 80.2, 79.0, 85.1, 81.9),
    ],
    "vg500": [
        ("ResNet-101", "44.5 M", 30.9),
        ("ML-GCN", "44.9 M", 32.6),
        ("ASL (TResNetM)", "29.5 M", 33.6),
        ("IML-GCN, F_I", "33.5 M", 34.0),
        ("IML-GCN, F_PCA", "32.1 M", 34.5),
    ],
}


def models(
    folder: Folder, image_size: int, path: str | None, backbone: str
) -> dict[str, tuple[Model, dict]]:
    """Name -> model and what is told of it: those of a run, or the one of `path`.

    Rows of one table are of one run: of the same labels, size and training photos, and a GCN of
    the backbone beside it. Else it is a ValueError.
    """
    names = [name for name in MODELS if (folder / f"{name}.pt").is_file()]
    names = ["evaluated"] if path else names
    if not names:
        raise FileNotFoundError(f"no model in {folder.path}; run --phase backbone or all first")
    found, starts, photos = {}, None, None
    for name in names:
        file = path or folder / f"{name}.pt"
        if path and "classes" not in checkpoints.read_checkpoint(fetch_weights(path)):
            model = load_released(backbone, path, folder.classes)
            checkpoint = {"classes": folder.classes, "image_size": image_size}
        else:
            model, checkpoint = load_model(file, backbone)
        same = {"image-size": image_size} if "settings" in checkpoint else {}
        check_settings(file, checkpoint, folder.classes, same, "give that: rows are of one size")
        settings = checkpoint.get("settings") or {}
        if starts is None:  # the first, phase backbone's: where it began, and where it ended
            starts = settings.get(START), checkpoint.get("backbone_id")
            photos = settings.get(PHOTOS)
        if settings.get(START) not in starts or settings.get(PHOTOS) != photos:
            raise ValueError(
                f"{file} and {names[0]}.pt are of different runs: other training photos, "
                "or another backbone to start from; train one of them again, with --fresh"
            )
        about = {"label": MODELS.get(name, str(file)), "parameters": count_parameters(model)}
        keys = "image_size", "epochs", "settings", "backbone_id", "calibration", "threshold"
        found[name] = model, about | {key: checkpoint[key] for key in keys if key in checkpoint}
    return found


def save_numbers(
    folder: Folder, name: str, logits: np.ndarray, split: data.Split, about: dict, thresholds: list
) -> dict:
    """Write scores-<name>.npz and metrics-<name>.json of logits (M, n); returns the latter.

    `thresholds` are probabilities. The AP of a label that no image shows is None.
    """
    targets = split.targets  # (M, n)
    ap = metrics.average_precision(logits, targets)  # (n,), logits ranked: sigmoids would tie
    percent = [None if np.isnan(a) else 100 * float(a) for a in ap]
    report = about | {
        "mAP": metrics.mean_average_precision(ap),
        "images": len(targets),
        "left_out": int(np.isnan(ap).sum()),  # labels without a positive
        "thresholds": {},
        "top3": metrics.precision_recall_f1(logits, targets, top_k=3),
        "AP": dict(zip(split.classes, percent, strict=True)),
    }
    for t in sorted(set(thresholds)):
        logit = math.log(t / (1 - t))  # p > t, on the scale of the scores
        report["thresholds"][f"{t:g}"] = metrics.precision_recall_f1(logits, targets, logit)
    if "calibration" in about:  # where predict.py draws the line
        (slope, offset), p = about["calibration"], about["threshold"]
        logit = (math.log(p / (1 - p)) - offset) / slope
        report["predict"] = metrics.precision_recall_f1(logits, targets, logit)
    if ranks.rank() == 0:
        with checkpoints.replacing(folder / f"scores-{name}.npz") as file:
            classes = np.array(split.classes)
            np.savez_compressed(file, logits=logits, targets=targets, classes=classes)
        checkpoints.save_json(folder / f"metrics-{name}.json", report)
    return report


def save(path: Path, dataset: str, image_size: int, targets: np.ndarray, reports: dict) -> None:
    """Write and print a table: chance, our rows (`reports` by model name), then the paper's."""
    if ranks.rank():
        return
    columns = [*COLUMNS[:3], "CF1_h", *COLUMNS[3:]]
    lines = [["model", "parameters", "mAP", "predicted", *columns]]
    prevalence = targets.mean(0)  # (n,); its mean is the mAP of ranking at random
    chance = 100 * prevalence[prevalence > 0].mean()
    lines.append(["chance", "", f"{chance:.2f}", *[""] * 8])
    for report in reports.values():
        first = [report["label"], f"{report['parameters']:,}", f"{report['mAP']:.2f}"]
        predictions = {f"p > {t}": v for t, v in report["thresholds"].items()}
        predictions["top 3"] = report["top3"]
        if "predict" in report:
            how = f"predict.py, fitted on its val: {report['threshold']:.2f}"
            predictions[how] = report["predict"]
        for how, values in predictions.items():
            lines.append([*first, how, *(f"{values[c]:.2f}" for c in columns)])
            first = [""] * len(first)
    for label, parameters, mAP, *rest in PUBLISHED.get(dataset, []):
        values = dict(zip(COLUMNS, rest, strict=False))  # Table 3 gives mAP alone
        how = "not stated" if rest else ""
        row = [str(values.get(c, "")) for c in columns]
        lines.append([f"paper: {label}", parameters, str(mAP), how, *row])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    rows = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    title = f"{dataset}, {len(targets):,} val images at {image_size} px, percent"
    if unreadable := max(report["unreadable"] for report in reports.values()):
        title += f"; {unreadable:,} more could not be read"
    best = max(reports.values(), key=lambda report: report["mAP"])
    ranked = sorted((-ap, name) for name, ap in best["AP"].items() if ap is not None)
    ends = [f"{printable(name)} {-ap:.0f}" for ap, name in ranked]
    note = f"{best['label']}, highest AP: {', '.join(ends[:8])}; lowest: {', '.join(ends[-8:])}."
    text = f"{title}\n\n" + "".join(f"| {row} |\n" for row in rows) + f"\n{note}\n"
    checkpoints.save_text(path, text)
    print(f"\n{text}\nwritten to {path}")
