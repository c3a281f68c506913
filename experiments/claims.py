"""What the paper claims, held against the stored figures: the verdict of docs/evidence.md.

    python -m experiments.claims                               # the table of the paper's claims
    python -m experiments.claims FILE.csv                      # a CSV of experiments/ as a table
    python -m experiments.claims FILE.csv --figure rare --minus F_PCA

Differences are taken seed by seed, and have a 95% interval over the seeds. A second one covers the
choice of the val photos too (`bootstrap.py`). A claim is "seen" if both intervals are above 0,
"reversed" if both are below 0, and otherwise "undecided". Nothing is trained here.
"""

import argparse
import sys
from pathlib import Path

from experiments import evidence
from runtime import signals

RESULTS = Path(__file__).with_name("results")

# Column of the table -> its CSV; and for models that were run at more than one rate, the row to
# take: the one at the rate and epochs that the search chose.
COLUMNS = {
    "coco-mini, frozen": (
        "frozen-coco.csv",
        {
            "direct": "linear head, lr 0.0003, epochs 24",
            "F_W": "F_W, lr 0.0003, epochs 12",
            "F_I": "F_I, lr 0.0003, epochs 24",
            "random nodes": "random nodes, lr 0.0003, epochs 12",
            "F_PCA, no graph": "F_PCA, no graph, lr 0.0003, epochs 12",
        },
    ),
    "Corel-5k, frozen": (
        "frozen-corel.csv",
        {"direct": "linear head, lr 0.0003, epochs 24"},
    ),
    "coco-mini, fine-tuned": ("finetuned-coco.csv", {"direct": "direct, longer"}),
    "Corel-5k, fine-tuned": ("finetuned-corel.csv", {"direct": "direct, longer"}),
}
# The claim -> what is ahead, of what, and by how much in the paper on COCO (Tables 1 and 3) and on
# VG-500 (Tables 2 and 3, which differ on F_I: difference 31).
CLAIMS = {
    "F_PCA is ahead of the direct model": ("F_PCA", "direct", "4.8", "0.9"),
    "F_I is ahead of the direct model": ("F_I", "direct", "4.1", "0.4"),
    "F_PCA is ahead of F_I": ("F_PCA", "F_I", "0.7", "0.5 or 1.1"),
    "F_PCA is ahead of F_W": ("F_PCA", "F_W", "5.0", "1.9"),
    "F_I is ahead of F_W": ("F_I", "F_W", "4.3", "1.4 or 0.8"),
    "F_PCA is ahead of random nodes": ("F_PCA", "random nodes", "not tried", "not tried"),
    "F_PCA is ahead of F_PCA without the graph": (
        "F_PCA",
        "F_PCA, no graph",
        "not tried",
        "not tried",
    ),
}


def verdict(differences: list[float], with_photos: tuple[float, float]) -> str:
    """The verdict in a word, the mean difference with its interval over the seeds, and the interval
    over val photos and seeds."""
    intervals = evidence.interval(differences), with_photos
    word = "undecided"
    if all(low > 0 for low, _ in intervals):
        word = "seen"
    elif all(high < 0 for _, high in intervals):
        word = "reversed"
    low, high = with_photos
    return f"**{word}** {evidence.with_interval(differences)}; photos too [{low:.2f}, {high:.2f}]"


def over_photos(column: str, ahead: str, behind: str) -> tuple[float, float]:
    """The stored interval over val photos and seeds of a difference."""
    direct = "linear head" if "frozen" in column else "direct, longer"
    wanted = [direct if name == "direct" else name for name in (ahead, behind)]
    for row in evidence.read(RESULTS / "photos-and-seeds.csv"):
        heads = [row[key].split(", lr ")[0] for key in ("head", "minus")]  # without rate and epochs
        if row["data"] == column and heads == wanted:
            return float(row["low"]), float(row["high"])
    raise ValueError(f"photos-and-seeds.csv has no interval of {ahead} minus {behind}, {column}")


def claims() -> list[str]:
    """Lines of Markdown, one per claim."""
    lines = [f"| claim | paper, COCO | paper, VG-500 | {' | '.join(COLUMNS)} |"]
    lines.append(f"| {' | '.join(['---'] * (3 + len(COLUMNS)))} |")
    for claim, (ahead, behind, *of_paper) in CLAIMS.items():
        cells = [claim, *of_paper]
        for column, (file, names) in COLUMNS.items():
            settings = evidence.by_setting(evidence.read(RESULTS / file))
            ours, theirs = (settings[names.get(name, name)] for name in (ahead, behind))
            differences = evidence.differences(ours, theirs)
            cells.append(verdict(differences, over_photos(column, ahead, behind)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    text = "show this CSV as a table (without one: the paper's claims)"
    add("csv", type=Path, nargs="?", metavar="FILE.csv", help=text)
    figures = ["mAP", "often", "middle", "rare"]
    text = "mAP of all labels, or of a third of them (mAP)"
    add("--figure", default="mAP", choices=figures, help=text)
    add("--minus", default="", metavar="NAME", help="row that others are compared with (the first)")
    return parser.parse_args(argv)


def stored_table(args) -> list[str]:
    """Lines of Markdown for a CSV; an error if there is no such file, row or column."""
    if not args.csv.is_file():
        raise FileNotFoundError(
            f"no file {args.csv}; pass a CSV that a program of experiments/ wrote"
        )
    rows = evidence.read(args.csv)
    if not rows or not {"setting", "seed", args.figure} <= rows[0].keys():
        raise ValueError(f"{args.csv} has no rows with a setting, a seed and {args.figure}")
    names = evidence.by_setting(rows, args.figure).keys()
    if args.minus and args.minus not in names:
        raise ValueError(f"{args.csv} has no row {args.minus}; choose one of {'; '.join(names)}")
    return evidence.table(rows, args.minus, args.figure)


def work(args) -> None:
    lines = stored_table(args) if args.csv else claims()
    print(*lines, sep="\n")


if __name__ == "__main__":
    sys.exit(signals.code_of(lambda: work(parse_args())))
