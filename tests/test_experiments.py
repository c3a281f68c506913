"""The programs behind docs/evidence.md, docs/evidence-tables.md and docs/performance.md: figures by
hand, and short runs."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import metrics
import run
import tresnet
from datasets import own_photos
from experiments import bench, bootstrap, claims, evidence, frozen, scores
from runtime import checkpoints, lean
from runtime.folder import START

RESULTS = Path(evidence.__file__).with_name("results")


def test_a_table_of_evidence_pairs_the_seeds():
    rows = [("a", 1, 10.0), ("a", 2, 12.0), ("b", 1, 11.0), ("b", 2, 14.0), ("b", 3, 11.0)]
    rows = [dict(zip(("setting", "seed", "mAP"), row, strict=True)) for row in rows]
    # b - a is 1 and 2: mean 1.5, standard error 0.5, and t of one degree is 12.706; b itself has 12
    # and sqrt(3); seed 3 has no partner.
    assert evidence.table(rows, "a") == [
        "| a | 11.00 ± 1.41 |  |  |",
        "| b | 12.00 ± 1.73 | 1.50 [-4.85, 7.85] | 2 of 2 |",
    ]


@pytest.mark.parametrize("seeds", range(2, 11))
def test_the_interval_of_the_seeds_is_students_by_its_density(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    error = values.std(ddof=1) / math.sqrt(seeds)
    low, high = ((end - values.mean()) / error for end in evidence.interval(values))
    assert low == pytest.approx(-high)
    degrees = seeds - 1
    scale = math.gamma(seeds / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    t = np.linspace(low, high, 100_001)
    density = scale * (1 + t**2 / degrees) ** (-seeds / 2)
    assert density.mean() * (high - low) == pytest.approx(0.95, abs=1e-4)


def test_a_claim_is_worded_by_its_interval():
    # Three seeds: t of two degrees is 4.303, and the standard error of 1, 2, 3 is 1 / sqrt(3).
    ahead, behind, unclear = [4.0, 5.0, 6.0], [-4.0, -5.0, -6.0], [1.0, 2.0, 3.0]
    above, below, around = (0.5, 9.0), (-9.0, -0.5), (-0.5, 9.0)
    assert claims.verdict(ahead, above) == ("**seen** 5.00 [2.52, 7.48]; photos too [0.50, 9.00]")
    assert claims.verdict(behind, below) == (
        "**reversed** -5.00 [-7.48, -2.52]; photos too [-9.00, -0.50]"
    )
    assert claims.verdict(unclear, above) == (
        "**undecided** 2.00 [-0.48, 4.48]; photos too [0.50, 9.00]"
    )
    assert claims.verdict(ahead, around).startswith("**undecided**")  # both must agree
    assert claims.verdict(behind, around).startswith("**undecided**")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.csv", "no file nowhere.csv"),
        ("photos.csv", "no rows with a setting, a seed and mAP"),
        ("finetuned-coco.csv --figure rare", "no rows with a setting, a seed and rare"),
        (
            "finetuned-coco.csv --minus direkt",
            "no row direkt; choose one of direct; direct, longer",
        ),
    ],
)
def test_a_table_of_a_csv_that_cannot_be_is_a_sentence(monkeypatch, arguments, message):
    monkeypatch.chdir(RESULTS)
    with pytest.raises((ValueError, OSError), match=message):
        claims.work(claims.parse_args(arguments.split()))


def test_evidence_trains_its_rows_and_goes_on_where_it_was(demo, tmp_path):
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\n")
    command = ["--out", tmp_path / "out", "--csv", tmp_path / "t.csv"]
    command += ["--seeds", "3", "--epochs", "2", "1", "MORE"]
    command += ["--", "--dataset", "coco", "--data", demo, "--glove", tmp_path / "glove.txt"]
    command += "--backbone tresnet_tiny --image-size 32 --batch-size 4 --device cpu".split()
    command += "--workers 0 --limit 8 --eval-every 0".split()
    at = command.index("MORE")
    trained = []
    # A row of each kind; then one again, and with an option that it is not there with.
    first = ["direct", "direct, longer", "F_W", "F_PCA"]
    then = ["direct", "F_PCA", "--then", "", "--lr 1e-5"]
    for more in (["--settings", *first], ["--settings", *then]):
        args = evidence.parse_args(
            [str(part) for part in [*command[:at], *more, *command[at + 1 :]]]
        )
        evidence.work(args)
        trained.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("out/*/*/*.pt")})
    assert trained[0].items() <= trained[1].items()  # none twice
    other = [str(part) for part in [*command[:at], *command[at + 1 :], "--pool", "max"]]
    with pytest.raises(ValueError, match="made from other options or photos"):
        evidence.work(evidence.parse_args(other))
    rows = evidence.read(tmp_path / "t.csv")
    names = [(name, "") for name in first] + [("F_PCA", "--lr 1e-5")]
    assert [(row["setting"], row["options"]) for row in rows] == names
    for options in evidence.SETTINGS.values():  # run.py knows the options of all rows
        run.parse_args([*map(str, command[at + 2 :]), *options.split()])
    starts = set()
    for row in rows:
        folder = tmp_path / "out/seed3" / re.sub(r"[^\w.-]", "_", row["setting"] + row["options"])
        (kind,) = re.findall(r"--nodes (\w+)", evidence.SETTINGS[row["setting"]]) or [""]
        name = f"gcn-{kind}" if kind else "backbone"
        stored = json.loads((folder / f"metrics-{name}.json").read_text())
        assert float(row["mAP"]) == pytest.approx(stored["mAP"], abs=1e-3)
        settings = stored["settings"]
        epochs = 2 if row["setting"] == "direct" else 1
        assert settings["epochs"] == epochs == int(row["epochs"])
        assert settings["lr"] == (1e-5 if row["options"] else 1e-3)
        starts |= {settings[START]} if kind else set()
    direct = checkpoints.read_checkpoint(tmp_path / "out/seed3/direct/backbone.pt")
    assert starts == {direct["backbone_id"]}  # every row of IML-GCN begins where that one ended


def test_evidence_begins_nothing_after_an_error(tmp_path, monkeypatch):
    began = []

    def fail(command):
        began.append(command[command.index("--seed") + 1])
        return 2

    monkeypatch.setattr(evidence.run, "main", fail)
    command = f"--csv {tmp_path}/t.csv --out {tmp_path}/out --seeds 1 2 3 4 5 -- x"
    with pytest.raises(SystemExit, match="2"):
        evidence.work(evidence.parse_args(command.split()))
    assert began == ["1"]
    assert not (tmp_path / "t.csv").exists()


def frozen_task(seed: int = 0) -> frozen.Task:
    """40 photos, 6 features, 4 labels; what a label shows is seen in one feature."""
    rng = np.random.default_rng(seed)
    splits = []
    for _ in range(2):
        targets = (rng.random((40, 4)) < 0.4).astype(np.uint8)
        noise = rng.normal(size=(40, 6)) / 4
        features = torch.tensor(noise + np.pad(targets, ((0, 0), (0, 2))), dtype=torch.float32)
        paths = [f"{row}.jpg" for row in range(40)]
        splits.append(data.Split(paths, targets, list("abcd"), features=features))
    return frozen.Task(*splits, words=torch.randn(4, 5))


def test_every_head_of_the_frozen_table_learns_and_a_seed_gives_the_same_again():
    task, options = frozen_task(), run.parse_args(["--batch-size", "32"])
    for name in frozen.SETTINGS:
        row = frozen.trained(task, options, None, name, 0.1, 20, 0, 1)
        assert row["mAP"] > 70, name  # by lot: 40
    again = frozen.trained(frozen_task(), options, None, name, 0.1, 20, 0, 1)
    assert again == row != frozen.trained(frozen_task(), options, None, name, 0.1, 20, 0, 2)


def test_precision_and_recall_of_the_frozen_table_are_at_the_threshold_that_is_given():
    task = frozen_task()
    all_at_073 = np.ones(task.val.targets.shape)  # logits: sigmoid(1) = 0.73
    recall = [frozen.figures(all_at_073, task, *at)["OR"] for at in ([], [0.7], [0.75])]
    assert recall == [100, 100, 0]
    row = frozen.figures(2 * task.val.targets - 1.0, task)  # right ones at 0.73, wrong ones at 0.27
    assert 0.27 <= row["best"] < 0.73


def test_kernel_ridge_is_the_fit_by_hand_and_its_line_that_of_fits_without_each_photo():
    task = frozen_task()
    features = task.train.features.numpy(), task.val.features.numpy()
    roots = [np.sign(f) * np.sqrt(np.abs(f)) for f in features]
    points = [r - roots[0].mean(0) for r in roots]
    points = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in points]
    targets = task.train.targets.astype(float)

    def told(known, shown, places):
        def kernel(a, b):
            return np.exp(-((a[:, None] - b[None]) ** 2).sum(2))

        ridge = 0.1 * np.eye(len(known))
        found = np.linalg.solve(kernel(known, known) + ridge, shown - targets.mean(0))
        return kernel(places, known) @ found

    others = [np.arange(40) != row for row in range(40)]
    alone = np.array([told(points[0][o], targets[o], points[0][~o])[0] for o in others])
    scores = frozen.kernel_ridge(task.train, task.val.features).numpy()
    line = told(points[0], targets, points[1]) - scores
    np.testing.assert_allclose(line, line[:1].repeat(40, 0), atol=1e-4)
    assert ((alone > line[0] + 1e-4).sum(0) == targets.sum(0)).all()


def test_heads_of_the_frozen_table_are_what_their_names_say():
    task = frozen_task()
    heads = {name: make(task) for name, make in frozen.SETTINGS.items()}
    shown = torch.from_numpy(task.train.targets).bool()
    by_hand = torch.stack([task.train.features[shown[:, j]].mean(0) for j in range(4)])  # F_I
    centred = by_hand - by_hand.mean(0)
    torch.testing.assert_close(
        heads["F_I, centred"].nodes, centred / centred.norm(dim=1).mean(), rtol=1e-4, atol=1e-5
    )
    assert heads["F_PCA, length 3"].nodes.norm(dim=1).mean() == pytest.approx(3, abs=1e-4)
    assert torch.equal(heads["F_PCA, no graph"].A_hat, torch.eye(4))
    few = heads["F_PCA, graph for rare labels"].A_hat
    often = task.counts.argmax()
    assert torch.equal(few[often], torch.eye(4)[often])
    assert not torch.equal(few, torch.eye(4))
    both, x = heads["linear + F_PCA"], task.val.features
    torch.testing.assert_close(both(x), both[0](x) + both[1](x))


def test_the_interval_over_photos_and_seeds_is_the_spread_of_samples_drawn_anew():
    # Scores of a known spread over photos and seeds: samples drawn anew, hundreds of times, say how
    # far a mean difference lies from the true one.
    def sample(rng, photos=150, seeds=5):
        targets = (rng.random((photos, 3)) < 0.4).astype(np.uint8)
        shared = targets + rng.normal(size=targets.shape)  # what photos do to both
        luck = [rng.normal(0, 0.3), *rng.normal(0, 0.3, seeds - 1)]
        first = [shared + 0.8 * (1 + e) * targets for e in luck]
        second = [shared + rng.normal(0, 0.5, targets.shape) for _ in range(seeds)]
        return first, second, targets

    def mAP(scores, targets):
        return metrics.mean_average_precision(metrics.average_precision(scores, targets))

    def mean_difference(first, second, targets):
        pairs = zip(first, second, strict=True)
        return np.mean([mAP(ours, targets) - mAP(theirs, targets) for ours, theirs in pairs])

    rng = np.random.default_rng(0)
    truth = np.std([mean_difference(*sample(rng)) for _ in range(300)])
    widths = []
    for _ in range(12):
        drawn = sample(rng)
        mean, low, high = bootstrap.difference(*drawn)
        assert mean == pytest.approx(mean_difference(*drawn))
        widths.append((high - low) / 2 / 1.96)
    assert np.mean(widths) == pytest.approx(truth, rel=0.2)


def test_the_interval_over_photos_lies_around_the_difference_where_labels_are_rare():
    # Each of 40 labels is on two of 60 photos. The first head ranks them first, the second behind
    # one wrong photo. In draws copies of the right ones count more: without a correction the whole
    # interval is below the difference, 22 to 36.
    targets = np.zeros((60, 40), np.uint8)
    wrong = np.zeros((60, 40))
    for label in range(40):
        targets[[label, (label + 7) % 60], label] = 1
        wrong[(label + 20) % 60, label] = 2
    first = targets + np.linspace(0, 0.1, 60)[:, None]  # (60, 40), no equal scores
    difference, low, high = bootstrap.difference([first], [first + wrong], targets)
    assert difference == pytest.approx(100 - 100 * (1 / 2 + 2 / 3) / 2)
    assert (low + high) / 2 == pytest.approx(difference, abs=1)


def test_frozen_evidence_goes_on_where_it_was(demo, tmp_path):
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\n")
    torch.save(tresnet.tresnet_tiny().state_dict(), tmp_path / "weights.pth")
    command = ["--csv", tmp_path / "f.csv", "--settings", "linear head", "F_PCA", "--epochs", "1"]
    command += ["--seeds", "0", "--", "--dataset", "coco", "--data", demo, "--workers", "0"]
    command += ["--glove", tmp_path / "glove.txt", "--out", tmp_path / "out", "--batch-size", "4"]
    command += "--backbone tresnet_tiny --image-size 32 --device cpu --weights".split()
    command.append(tmp_path / "weights.pth")
    tables = []
    for seeds in ("0", "0", "1"):
        command[command.index("--seeds") + 1] = seeds
        frozen.work(frozen.parse_args(list(map(str, command))))
        tables.append(evidence.read(tmp_path / "f.csv"))
    assert [len(rows) for rows in tables] == [2, 2, 4]  # the same rows are not trained again
    command = ["--csv", tmp_path / "s.csv", "--seeds", "0", *command[command.index("--") :]]
    for _ in range(2):
        scores.work(scores.parse_args(list(map(str, command))))
        rows = [(row["head"], row["fold"]) for row in evidence.read(tmp_path / "s.csv")]
        assert rows == [(head, fold) for head in scores.HEADS for fold in "01"]


def test_the_calibration_error_is_the_mean_distance_of_score_and_share_that_is_right():
    # Two bins: 0.2, 0.4 with one of two right; 0.6, 0.8, 0.9 with three of three. Distances of the
    # means: |0.3 - 0.5| and |2.3 / 3 - 1|; weighed by 2/5 and 3/5.
    scored, targets = np.array([[0.2, 0.4, 0.6, 0.8, 0.9]]), np.array([[0, 1, 1, 1, 1]])
    expected = 2 / 5 * 0.2 + 3 / 5 * (1 - 2.3 / 3)
    assert scores.expected_error(scored, targets, bins=2) == pytest.approx(expected)


def test_what_is_measured_of_scores_comes_from_the_photos_that_nothing_was_fitted_on():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(400, 5)) * 2
    targets = (rng.random((400, 5)) < 1 / (1 + np.exp(3 - 2 * logits))) * 1
    fit = np.arange(400) < 200
    row = scores.measured(logits, targets, fit)
    assert (row["slope"], row["offset"]) == pytest.approx((2, -3), rel=0.15)
    assert row["true"] == pytest.approx(targets[200:].sum(1).mean(), abs=1e-4)
    assert row["above_raw"] == pytest.approx((logits[200:] > 0).sum(1).mean(), abs=1e-4)
    assert row["ece"] < row["ece_raw"] / 3
    logits[200:] = -9  # the threshold and the line stay; nothing is found any more
    blind = scores.measured(logits, targets, fit)
    assert (blind["slope"], blind["OF1"]) == (row["slope"], 0)


def test_the_evidences_photos_are_taken_from_both_parts_of_coco_by_their_ids(tmp_path):
    with open(RESULTS / "photos.csv") as file:
        rows = [(row["split"], int(row["id"])) for row in csv.DictReader(file)]
    train, val = ([i for split, i in rows if split == name] for name in ("train", "val"))
    assert (len(train), len(val), len(set(train + val))) == (2118, 705, 2823)
    # Of either official part: one of our train, one of our val, one of neither photos.
    photos = {"train": [train[0], val[0], 10**7], "val": [train[1], val[1], 10**7 + 1]}
    (tmp_path / "annotations").mkdir()
    for name, part in photos.items():
        (tmp_path / f"{name}2014").mkdir()
        images = [{"id": i, "file_name": f"COCO_{name}2014_{i:012d}.jpg"} for i in part]
        for image in images:
            (tmp_path / f"{name}2014" / image["file_name"]).write_text(str(image["id"]))
        marks = [{"image_id": i, "category_id": 1} for i in part]
        document = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / f"annotations/instances_{name}2014.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "experiments.subset", "."]
    path = {"PYTHONPATH": str(RESULTS.parent.parent)}
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | path)
    for name, expected in (("train", train[:2]), ("val", val[:2])):
        split = own_photos.read(str(tmp_path), str(tmp_path / f"subset/{name}.json"))
        assert [int(Path(path).read_text()) for path in split.paths] == expected
        assert split.targets.tolist() == [[1], [1]]


class Stored:
    """What the pages of evidence may say, from every CSV of experiments/results."""

    def __init__(self):
        self.lines, self.seven_figures = set(claims.claims()), set()
        self.means, self.intervals, self.over_photos = set(), set(), set()
        for row in evidence.read(RESULTS / "photos-and-seeds.csv"):
            low, high = float(row["low"]), float(row["high"])
            self.over_photos |= {f"[{low:.2f}, {high:.2f}]", f"[{-high:.2f}, {-low:.2f}]"}
        for path in RESULTS.rglob("*.csv"):
            rows = [row for row in evidence.read(path) if row.get("setting")]
            for figure in {"mAP", "often", "middle", "rare"} & set(rows[0] if rows else []):
                references = list(evidence.by_setting(rows, figure))
                if "search" in path.stem:  # printed as differences from this head, if at all
                    linear = [name for name in references if name.startswith("linear head")]
                    references = linear or references[:1]
                self.add_differences(rows, figure, references)
            if rows and "OF1" in rows[0]:
                self.add_seven_figures(rows)

    def add_differences(self, rows, figure, references):
        for name in references:
            lines = evidence.table(rows, name, figure)
            cells = [line.split(" | ") for line in lines]
            self.lines |= set(lines)
            self.intervals |= {minus for _, _, minus, *_ in cells if "[" in minus}
            if figure == "mAP":
                self.means |= {spread.split()[0] for _, spread, *_ in cells}

    def add_seven_figures(self, rows):
        columns = [evidence.by_setting(rows, name) for name in frozen.AT]
        for setting in columns[0]:
            means = [np.mean(list(column[setting].values())) for column in columns]
            self.seven_figures.add(" | ".join(f"{mean:.1f}" for mean in means))


@pytest.fixture(scope="module")
def stored():
    return Stored()


def page(name):
    return (RESULTS.parent.parent / "docs" / name).read_text()


@pytest.mark.parametrize(("name", "least"), [("evidence.md", 6), ("evidence-tables.md", 110)])
def test_every_row_and_interval_of_the_pages_of_evidence_is_that_of_a_stored_csv(
    stored, name, least
):
    checked = 0
    for line in page(name).splitlines():
        seven = re.search(r"((?: \| \d+\.\d){7}) \|$", line)
        moves = re.search(r" \| (\d+\.\d\d) \| (\d+\.\d\d) \| ([+-]\d+\.\d\d) \|$", line)
        if moves:  # of "What moves mAP"
            first, then, points = moves.groups()
            assert {first, then} <= stored.means, line
            assert float(points) == pytest.approx(float(then) - float(first), abs=0.011), line
        elif seven:
            assert seven[1].removeprefix(" | ") in stored.seven_figures, line
        elif not re.match(r"\|.*\d\.\d\d", line):
            continue
        elif not re.match(r"\| (rarest|middle|most frequent) \|", line):  # made of intervals only
            assert line in stored.lines
        checked += 1
    assert checked >= least
    intervals = re.findall(r"(-?\d+\.\d\d)\s\[(-?\d+\.\d\d),\s(-?\d+\.\d\d)\]", page(name))
    assert {f"{mean} [{low}, {high}]" for mean, low, high in intervals} <= stored.intervals
    over_photos = re.findall(r"photos\s+too\s+(\[.*?\])", page(name), re.S)
    assert {" ".join(interval.split()) for interval in over_photos} <= stored.over_photos


def test_the_other_figures_in_the_text_of_docs_evidence_are_those_of_the_csvs():
    text = re.sub(r"(-?\d+\.\d\d|photos too)\s\[.*?\]", "", page("evidence.md"), flags=re.S)
    points = re.findall(r"\+(\d+\.\d\d) \|$", page("evidence-tables.md"), re.M)
    closest = {"2.14": [], "1.67": []}  # as printed: what is behind the linear head by at least it
    for file, linear in (
        ("coco", "linear head, lr 0.0003, epochs 24"),
        ("corel", "linear head, lr 0.0003, epochs 24"),
    ):
        settings = evidence.by_setting(evidence.read(RESULTS / f"frozen-{file}.csv"))
        for name, values in settings.items():
            kind = re.sub(r", lr .*", "", name)
            minus = evidence.differences(values, settings[linear])
            if kind in ("F_W", "F_I", "F_PCA"):
                closest["2.14"] += minus
            elif kind in ("random nodes", "F_PCA, no graph"):
                closest["1.67"] += minus
    for printed, minus in closest.items():
        assert f"{-max(minus):.2f}" == printed
    assert set(re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.])", text)) <= {*points, *closest}
    beside = re.findall(r"(\d+\.\d)\s+against\s+(\d+\.\d)", text)
    assert len(beside) == 2
    for ours, published in beside:
        rows = page("evidence-tables.md").splitlines()
        assert any("| published |" in row and f"| {published} |" in row for row in rows)
        assert any("384 px, kernel ridge |" in row and f"| {ours} |" in row for row in rows)
    rows = evidence.read(RESULTS / "frozen-coco.csv")
    collapsed = evidence.by_setting(rows)["F_I, lr 0.001, epochs 6"].values()
    five = [f"{value:.1f}" for value in collapsed]
    assert f"{', '.join(five[:4])} and {five[4]}" in " ".join(text.split())
    rows = evidence.read(RESULTS / "frozen-coco-search.csv")
    searched = [(float(row["mAP"]), row["lr"]) for row in rows if row["setting"] == "F_I"]
    low_rates = [lr for mAP, lr in searched if mAP < 10]
    assert f"{len(low_rates)} of {len(searched)} runs" in text
    assert set(low_rates) == {"0.003"}


@pytest.fixture
def small_bench(monkeypatch):
    """The benchmark of a small network at sizes that take seconds, without its peer."""
    monkeypatch.setattr(tresnet, "tresnet_m", tresnet.tresnet_tiny)
    monkeypatch.setattr(bench, "timm", None)
    monkeypatch.setattr(bench, "INFERENCE", [(1, 32)])
    monkeypatch.setattr(bench, "TRAINING", (2, 32))
    monkeypatch.setattr(bench, "CARD", {"sizes": (64,), "batches": (2,), "steps": 1})
    monkeypatch.setattr(bench, "ROUNDS", 1)


def test_bench_measures_without_its_peer_and_says_so(small_bench, capsys):
    bench.table()
    about, *rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert about.endswith("timm not there")
    whats = ["inference, 1 x 32 px, ms", "training, 2 x 32 px, MiB", "training, 2 x 32 px, s"]
    for what, row in zip(whats, rows[2:], strict=True):
        assert re.fullmatch(rf"\| {what}.*\| \d+\.\d\d \|", row)


def test_every_weight_of_the_benchmarks_model_is_at_work(small_bench):
    model = bench.model_of("ours")
    bench.training(model, 2, 64)[0]().backward()
    assert all(p.grad.any() for p in model.parameters())


def test_the_benchmark_of_a_card_runs_on_a_cpu_too(small_bench, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda model: model)  # C++ takes a minute
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(run, "main", lambda arguments: print(arguments))
    monkeypatch.setattr(lean, "on", True)  # and again after it
    monkeypatch.chdir(tmp_path)
    bench.card("cpu")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert any(torch.__version__ in line for line in report["about"])
    for name, more in (("demo", ""), ("TResNet-M", "-448")):
        assert f"'runs/bench{more}'" in report[name]
    for precision, rounding in (("torch.float64", 1e-12), ("torch.float32", 1e-3)):
        found = report["differences"][precision]
        assert set(found["run - run"]) == {"loss", "gradients", "deploy form", "F_I"}
        assert set([*found["device - CPU"].values(), *found["run - run"].values()]) == {0}
        assert 0 < found["lean - plain"]["gradients"] < rounding  # in place: equal but for it
    rows = [(row["kind"], row["bfloat16"]) for row in report["pace"]]
    kinds = ["ours, deploy", "ours, lean", "ours, plain"]
    assert rows == [(k, False) for k in kinds] + [(k, True) for k in [*kinds, "ours, compiled"]]
    assert all(row["images/s"] > 0 for row in report["pace"])


def test_saved_bytes_are_those_of_each_stored_activation_once():
    weight, x = torch.ones(5, requires_grad=True), torch.ones(4, 5)

    def forward():  # (4, 5) float32 is 80 bytes
        y = (x * weight).exp()  # keeps x, the weight (left out), the result of exp
        y = y.view(20).sin()  # keeps its argument, exp's result once more: not counted again
        return (y.double() * 2).square().sum()  # keeps square's argument in float64: 160 bytes

    assert bench.saved_bytes(forward, [weight]) == 80 + 80 + 160
    assert bench.saved_bytes(forward, [weight, x]) == 80 + 160
