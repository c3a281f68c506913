"""What phase eval leaves for people: a page, a verdict, a spreadsheet of labels, and pictures.

The numbers it starts from are in metrics-<model>.json and scores-<model>.npz (`metrics_files`).

Symbols: M val photos, n labels.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass

import numpy as np

import data
import metrics
from reports import (
    calibration,
    labels_table,
    markdown,
    metrics_files,
    mistakes,
    models_of_run,
    operating_points,
    pictures,
    table,
    verdict,
)
from reports.trained_model import number
from runtime import photo_files, writing
from runtime.folder import WHILE_TRAINING, Folder, result_files
from runtime.fresh import ASIDE
from runtime.reading import ANY, read_json
from runtime.terminal import fitted, printable

TERMINAL_WIDTH = 80  # characters


@dataclass
class Evaluation:
    """Models of a run on its val photos: by name their logits (M, n) and their metrics, the
    simplest model first; and how many training photos show each label, (n,), or None where that is
    not known. `seen_in_val`: how many of the val photos the models were trained on. `val_is_drawn`:
    val-photos.json names the val photos, so more photos do not make val larger by themselves."""

    dataset: str
    image_size: int
    split: data.Split
    logits: dict[str, np.ndarray]
    reports: dict[str, dict]
    training_photos: np.ndarray | None
    seen_in_val: int = 0
    val_is_drawn: bool = False

    def file(self, name: str) -> str:
        """What a person names a model by: its file in --out, or the path of --evaluate."""
        return f"{name}.pt" if name in models_of_run.MODELS else self.reports[name]["label"]

    def short_name(self, name: str) -> str:
        """What a sentence calls a model."""
        return table.short_name(self.reports[name])

    def calibrated(self, name: str) -> np.ndarray:
        """Logits (M, n) as predict.py has them."""
        slope, offset = self.reports[name].get("calibration", (1.0, 0.0))
        return slope * self.logits[name] + offset

    def scores(self, name: str) -> np.ndarray:
        """Calibrated probabilities (M, n), as predict.py has them."""
        slope, offset = self.reports[name].get("calibration", (1.0, 0.0))
        return calibration.scores(self.logits[name], slope, offset)

    def threshold(self, name: str) -> float:
        """predict.py's, a calibrated score."""
        return metrics_files.predicted_by_default(self.reports[name])[0]

    def predicted(self, name: str) -> np.ndarray:
        """What predict.py shows of each photo, (M, n) of bool."""
        return self.calibrated(name) > metrics.logit(self.threshold(name))


def save(evaluation: Evaluation, folder: Folder, suffix: str = "", font: str | None = None) -> None:
    """Write all files, their names followed by `suffix`, and print what fits a terminal.

    `font` is a TrueType font for the pictures. Only one rank calls this.
    """
    judgement = judge(evaluation)
    best = next(name for name in evaluation.logits if evaluation.file(name) == judgement["use"])
    rows = label_rows(evaluation, best)
    if not suffix:  # predict.py looks whether these are the models it finds
        for file, model in judgement["models"].items():
            model["sha256"] = photo_files.digest(folder / file)
    writing.save_json(folder / f"verdict{suffix}.json", judgement)
    labels_table.save(folder / f"labels{suffix}.csv", rows)
    paragraphs = findings(evaluation, judgement, best, rows)
    if earlier := before_fresh(evaluation, folder, judgement, best):
        paragraphs.insert(1, (earlier, []))
    page = full_page(evaluation, judgement, paragraphs)
    writing.save_text(folder / f"results{suffix}.md", page)
    print(for_terminal(evaluation, judgement, paragraphs))
    save_pictures(evaluation, judgement, best, folder, suffix, font)
    files = result_files(suffix)
    if not suffix:
        files += [name for name in WHILE_TRAINING if (folder / name).is_file()]
    place = printable(folder.path, 200)
    print(fitted(f"results are in {place}: {', '.join(files)}", TERMINAL_WIDTH - 1))
    if not suffix:
        # A command stays on one line, however long it is, so it can be copied.
        command = f"python predict.py {shlex.quote(printable(folder.path, 4096))} PHOTOS"
        line = f"to label photos: {command}"
        print(line if len(line) < TERMINAL_WIDTH else f"to label photos:\n  {command}")


def save_pictures(
    evaluation: Evaluation,
    judgement: dict,
    best: str,
    folder: Folder,
    suffix: str,
    font: str | None,
) -> None:
    """results.jpg and mistakes.jpg, for the model that the verdict names."""
    split, threshold = evaluation.split, evaluation.threshold(best)
    scores = evaluation.scores(best)  # (M, n)
    model = evaluation.short_name(best)
    mAP = verdict.in_words(judgement["models"][judgement["use"]]["mAP"])
    heading = f"{model}, mAP {mAP} on {len(split):,} val photos; labels above {threshold:.2f}"
    path = folder / f"results{suffix}.jpg"
    pictures.save_judged(split, scores, threshold, path, heading, font)
    mistakes.save(split, scores, threshold, folder / f"mistakes{suffix}.jpg", model, font)


def judge(evaluation: Evaluation) -> dict:
    """What verdict.json holds."""
    logits, names = {}, {}
    for name in evaluation.logits:
        logits[evaluation.file(name)] = evaluation.logits[name]
        names[evaluation.file(name)] = evaluation.short_name(name)
    split = evaluation.split
    more_photos = "label more"
    if evaluation.val_is_drawn:
        more_photos += ", then remove val-photos.json and pass --fresh to draw a larger val"
    judgement = verdict.judge(split.targets, logits, names, split.classes, more_photos)
    if count := evaluation.seen_in_val:
        judgement["warnings"].insert(
            0,
            f"{count:,} of {len(split):,} val photos are among the training photos, so all of "
            "these numbers are too high",
        )
    return judgement | {"val_id": val_id(split)}


def val_id(split: data.Split) -> str:
    """The same for the same photos in the same order with labels of the same names, whatever other
    labels the data set has."""
    digest = hashlib.sha256(split.photo_ids.numpy())
    for row in split.targets:
        names = sorted(split.classes[j] for j in np.flatnonzero(row))
        digest.update(json.dumps(names).encode())
    return digest.hexdigest()[:16]


def before_fresh(evaluation: Evaluation, folder: Folder, judgement: dict, best: str) -> str:
    """The model that --fresh set aside, beside the `best` of now: a sentence, or "" if there is
    none. Only on the same val photos with the same labels are the two compared."""
    split, old, file = evaluation.split, folder.path / ASIDE, evaluation.file(best)
    shown = np.flatnonzero(split.targets.any(0))  # labels of some val photo
    targets, now = split.targets[:, shown], evaluation.logits[best][:, shown]
    schema = {"models": {file: {"mAP": number(0, 100)}}, "val_id": ANY}
    try:
        earlier = read_json(old / "verdict.json", schema)
        mAP = earlier["models"][file]["mAP"]
        text = f"before --fresh, {evaluation.short_name(best)} had an mAP of {mAP:.1f}"
        if earlier["val_id"] != judgement["val_id"]:
            return f"{text}, on other val photos or labels: do not compare"
        names = [split.classes[j] for j in shown]
        then = metrics_files.read_logits(old / f"scores-{best}.npz", names)
    except (OSError, ValueError):  # there is none, or it is damaged
        return ""
    if then.shape != now.shape:
        return ""
    then_mAP = metrics.mean_average_precision(metrics.average_precision(then, targets))
    if abs(then_mAP - mAP) > 1e-6:
        return ""  # the two files are of different runs
    return f"{text}; {verdict.change_in_words(targets, then, now)}"


def label_rows(evaluation: Evaluation, best: str) -> list[labels_table.LabelRow]:
    """The rows of labels.csv, sorted by the model that the verdict names."""
    rows, split = [], evaluation.split
    for name, report in evaluation.reports.items():
        rows += labels_table.rows_of_model(
            evaluation.file(name),
            split.classes,
            evaluation.training_photos,
            split.targets,
            evaluation.predicted(name),
            [report["AP"][label] for label in split.classes],
        )
    return labels_table.worst_first(rows, evaluation.file(best))


LEGEND = (
    "mAP and AP: how far up the photos of a label are when all are ranked by its score; 100 is "
    "perfect. OP: the share of predicted labels that are right; OR: the share of right labels that "
    "are predicted; OF1: their harmonic mean; CF1: the same, taken label by label. Predicted is "
    "what scores above the threshold."
)


def findings(
    evaluation: Evaluation, judgement: dict, best: str, rows: list[labels_table.LabelRow]
) -> list[tuple[str, list[str]]]:
    """Sentences in plain text, each with its points: verdict, warnings, thresholds, labels."""
    model, threshold = evaluation.short_name(best), evaluation.threshold(best)
    paragraphs = [(judgement["sentence"], [])]
    if judgement["warnings"]:
        paragraphs.append(("Before you rely on these numbers:", judgement["warnings"]))
    logits, targets = evaluation.calibrated(best), evaluation.split.targets  # (M, n)
    thresholds = [
        operating_points.in_words(point, threshold)
        for point in operating_points.suggested(logits, targets, threshold)
    ]
    if thresholds:
        heading = f"Thresholds of {model} on these photos (predict.py --threshold):"
        paragraphs.append((heading, thresholds))
    own_rows = [row for row in rows if row.model == evaluation.file(best)]
    points, some_left_out = labels_table.best_and_worst(own_rows)
    if points:
        heading = f"AP of {model}, and in brackets the label's val photos"
        if some_left_out:
            heading += f" (labels with fewer than {labels_table.FEW} left out)"
        paragraphs.append((f"{heading}:", points))
    if evaluation.training_photos is not None:
        rare = labels_table.to_collect(evaluation.split.classes, evaluation.training_photos)
        for advice in (rare, labels_table.never_found(own_rows)):
            if advice:
                paragraphs.append((advice, []))
    paragraphs.append((LEGEND, []))
    return paragraphs


def title(evaluation: Evaluation) -> str:
    return table.title(evaluation.dataset, evaluation.image_size, evaluation.reports)


def full_page(evaluation: Evaluation, judgement: dict, paragraphs: list) -> str:
    """results.md."""
    rows = table.full(evaluation.dataset, evaluation.reports, judgement["chance"])
    first, *others = [markdown.paragraph(sentence, points) for sentence, points in paragraphs]
    return "\n".join([f"{title(evaluation)}\n", first, rows, *others])


def for_terminal(evaluation: Evaluation, judgement: dict, paragraphs: list) -> str:
    """The short table and the same sentences, in lines that fit a terminal."""
    intervals = {}
    for name in evaluation.reports:
        intervals[name] = verdict.interval_in_words(judgement["models"][evaluation.file(name)])
    rows = table.short(evaluation.dataset, evaluation.reports, judgement["chance"], intervals)
    parts = ["", title(evaluation), "", rows, ""]
    for sentence, points in paragraphs:
        lines = [sentence, *(f"  {point}" for point in points)]
        parts += [fitted("\n".join(lines), TERMINAL_WIDTH - 1), ""]
    return "\n".join(parts)
