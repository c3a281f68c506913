"""The table of phase eval: the models of a run beside chance and the paper's.

It has two forms: the full one in Markdown, and one that fits a terminal of 80 columns. Both show
the reports of `metrics_files`; nothing is computed here.

Everything is in percent, as in the paper.
"""

import math

from reports import markdown
from reports.metrics_files import predicted_by_default
from runtime.terminal import printable

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


def two_decimals(number: float) -> str:
    """The number, or nothing for NaN: no photo shows a label."""
    return "" if math.isnan(number) else f"{number:.2f}"
