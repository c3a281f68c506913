"""The phases of run.py on two dozen drawn photos: what they train on, report and keep.

Oracles: loops, hand-worked schedules, published counts, another run; in `finished` a whole run.
"""

import csv
import functools
import io
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import (
    argv,
    assert_same_run,
    demo_split,
    log_of,
    scores_of,
    state_of,
    vg_photos,
    write_vg,
)
from PIL import Image

import backbones
import data
import iml_gcn
import metrics
import run
import tresnet
from backbones import resnet
from datasets.catalogue import Splits
from preflight import forecast
from reports import table
from runtime import terminal
from runtime.folder import Folder


def test_embeddings_are_those_of_the_training_photos_as_they_are(demo, finished):
    model, _ = backbones.load_model(finished / "backbone.pt")
    split = demo_split(demo, "train2014")
    photos = [Image.open(path).resize((32, 32), Image.Resampling.BILINEAR) for path in split.paths]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    features = model.backbone(images).detach().numpy()
    counts = np.maximum(split.targets.sum(0), 1)[:, None]  # zeros for what no photo shows
    expected = split.targets.T.astype(float) @ features / counts
    stored = torch.load(finished / "embeddings.pt", weights_only=True)
    np.testing.assert_allclose(stored["image"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_nodes_reach_the_gcn_at_a_mean_length_or_as_they_come(demo, finished, tmp_path):
    splits = Splits(demo_split(demo, "train2014"), demo_split(demo, "val2014"))
    shown = splits.train.targets.any(0)
    assert 0 < shown.sum() < 16  # a label that no photo shows has no length to count
    folder = Folder(finished, splits.train.classes)
    words = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    words[~shown] = 0
    np.save(tmp_path / "words.npy", words)
    for kind, norm in itertools.product(("word", "image", "pca"), (1, 3, 0)):
        more = "--node-norm", norm, "--glove", tmp_path / "words.npy"
        args = run.on_device(run.parse_args(argv(demo, finished, *more)))
        nodes = run.node_features(args, kind, splits, folder)
        stored = torch.load(finished / "embeddings.pt", weights_only=True)
        raw = (stored | {"word": torch.from_numpy(words)})[kind]
        factor = norm / np.linalg.norm(raw[shown].numpy(), axis=1).mean() if norm else 1
        torch.testing.assert_close(nodes, raw * factor)
        if norm == 1 and kind != "word":  # as a run has it that does not ask for another
            assert torch.equal(nodes, state_of(finished / f"gcn-{kind}.pt")["head.nodes"])


@pytest.mark.parametrize("part", [0.1, 0])
def test_the_backbone_learns_at_its_part_of_the_rate_or_not_at_all(demo, out, part):
    more = f"--phase gcn --nodes random --epochs 1 --limit 8 --lr 1e-3 --backbone-lr {part}"
    assert run.main(argv(demo, out, more)) == 0
    before, after = (state_of(out / f"{name}.pt") for name in ("backbone", "gcn-random"))
    moved = {
        key: float((after[key] - before[key]).abs().max())
        for key in before
        if key.startswith("backbone.") and before[key].is_floating_point()
    }
    if part == 0:  # weights and running statistics
        assert max(moved.values()) == 0
        return
    assert max(v for k, v in moved.items() if k.endswith("running_mean")) > 0
    # One step: Adam's first has the length of the rate in every entry that has a gradient at all.
    weights = [value for key, value in moved.items() if key.endswith("conv.weight")]
    assert max(weights) == pytest.approx(1e-3 * part, rel=0.02)
    assert min(weights) == pytest.approx(1e-3 * part, rel=0.02)


def test_phases_run_apart_with_workers_give_the_numbers_of_one_run_without(
    demo, finished, tmp_path
):
    for phase, workers in {"backbone": 2, "embed": 2, "gcn": 0, "eval": 0}.items():
        more = f"--workers {workers} --phase {phase}"
        assert run.main(argv(demo, tmp_path, more)) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in finished.iterdir()}
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("name", ["backbone", "gcn-pca"])
def test_stored_metrics_are_those_of_the_stored_scores(demo, finished, name):
    report = json.loads((finished / f"metrics-{name}.json").read_text())
    (logits, targets), split = scores_of(finished, name), demo_split(demo, "val2014")
    AP = 100 * metrics.average_precision(logits, split.targets)  # NaN without positives
    AP = [None if math.isnan(ap) else ap for ap in AP]
    assert report["AP"] == pytest.approx(dict(zip(split.classes, AP, strict=True)))
    assert report["left_out"] == AP.count(None)
    predicted = {p: 1 / (1 + np.exp(-logits)) > p for p in (0.5, 0.8)}
    predicted["top3"] = [[score in sorted(row)[-3:] for score in row] for row in logits]
    for key, choice in predicted.items():
        ours = report[key] if key == "top3" else report["thresholds"][str(key)]
        assert ours == pytest.approx(metrics.precision_recall_f1(np.array(choice), targets, 0))


@pytest.mark.parametrize(("every", "measured"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (0, [4])])
def test_val_is_measured_now_and_then_and_after_the_last_epoch(every, measured):
    args = run.parse_args(["--epochs", "4", "--eval-every", str(every)])
    assert [epoch + 1 for epoch in range(4) if run.is_measured(epoch, args)] == measured


def test_the_last_epoch_is_evaluated_and_its_best_threshold_remembered(demo, tmp_path):
    options = "--epochs 3 --eval-every 2 --phase backbone eval"
    assert run.main(argv(demo, tmp_path, options)) == 0
    log = log_of(tmp_path)
    assert [entry["epoch"] for entry in log if "mAP" in entry] == [2, 3]
    report = json.loads((tmp_path / "metrics-backbone.json").read_text())
    assert log[-1]["mAP"] == pytest.approx(report["mAP"])
    logits, targets = scores_of(tmp_path, "backbone")
    stored = torch.load(tmp_path / "backbone.pt", weights_only=True)
    slope, offset = stored["calibration"]
    scores, found = 1 / (1 + np.exp(-slope * logits - offset)), {}
    for p in np.arange(1, 100) / 100:
        predicted = scores > p
        found[p] = 2 * predicted[targets == 1].sum() / (predicted.sum() + targets.sum())
    assert found[stored["threshold"]] == max(found.values()) > found[0.8]
    assert report["predict"]["OF1"] == pytest.approx(100 * max(found.values()))


def test_a_run_that_resumes_foretells_the_epochs_that_are_left(demo, tmp_path, monkeypatch):
    foretold = []
    monkeypatch.setattr(forecast, "seconds_per_photo", lambda *_: 1.0)
    monkeypatch.setattr(forecast, "say", foretold.append)
    args = run.parse_args(argv(demo, tmp_path, "--phase backbone --epochs 3"))
    splits, folder = run.load_data(args), Folder(tmp_path, ["a"])
    args = run.with_batch_size(run.on_device(args), splits.train)
    forecast.announce(args, splits, folder, None, run.autocast(args))
    (tmp_path / "log.jsonl").write_text('{"model": "backbone", "epoch": 1, "loss": 1, "lr": 1}\n')
    (tmp_path / "last-backbone.pt").touch()
    forecast.announce(args, splits, folder, None, run.autocast(args))
    assert foretold[0] - foretold[1] == pytest.approx(len(splits.train))


@pytest.mark.parametrize(
    ("options", "has_papers_rows"),
    [
        ("--dataset coco", True),
        ("--dataset vg500", True),
        ("--dataset coco --year 2017", False),
        ("--dataset coco --limit 64", False),
        ("--dataset coco --keep-unlabelled", False),
        ("--dataset coco --val-json mine.json", False),
        ("--photos mine", False),
        ("", False),
    ],
)
def test_the_papers_rows_stand_beside_its_own_photos_only(options, has_papers_rows):
    val = data.Split([], np.zeros((0, 1), np.uint8), ["a"])
    args = run.parse_args(options.split())
    assert bool(table.published(run.title_of(args, val))) == has_papers_rows
    val.unreadable = 1
    assert not table.published(run.title_of(args, val))


def test_weight_decay_is_on_matrices_and_filters_alone_and_the_backbone_has_its_rate():
    args = run.parse_args("--lr 1e-2 --backbone-lr 0.1 --weight-decay 0.3 --device cpu".split())
    model = iml_gcn.Model(tresnet.tresnet_tiny(), iml_gcn.linear_head(512, 3))
    group_of = {}
    for group in run.adam(args, model).param_groups:
        for parameter in group["params"]:
            assert parameter not in group_of
            group_of[parameter] = group
    for name, parameter in model.named_parameters():
        group = group_of.pop(parameter)
        assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0), name
        assert group["lr"] == pytest.approx(1e-2 if name.startswith("head") else 1e-3), name
    assert not group_of


def rates(recipe, steps):
    """The learning rate of each of so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler, values = run.schedule(recipe, optimizer, steps), []
    for _ in range(steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def test_the_learning_rate_falls_tenfold_after_each_quarter_of_the_steps():
    # 40 epochs, x0.1 at 10, 20 and 30: 8 steps, x0.1 at 2, 4 and 6
    expected = [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7, 1e-7]
    assert rates("paper", 8) == pytest.approx(expected)


def test_images_without_a_label_are_dropped_unless_they_are_wanted(demo, tmp_path):
    root = shutil.copytree(demo, tmp_path / "data")
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    first = document["images"][0]["id"]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != first]
    path.write_text(json.dumps(document))
    _, dropped = run.load_data(run.parse_args(argv(root, tmp_path)))
    _, kept = run.load_data(run.parse_args(argv(root, tmp_path, "--keep-unlabelled")))
    assert kept.paths[1:] == dropped.paths
    assert (kept.targets.any(1).tolist(), len(kept)) == ([False] + [True] * 11, 12)


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    images, targets = torch.rand(8, 3, 32, 32), torch.rand(8, 16) < 0.3
    A_hat = iml_gcn.normalise(iml_gcn.adjacency(*iml_gcn.cooccurrence(targets)))
    head = iml_gcn.LabelGCN(torch.randn(16, 16), A_hat, 512)
    model = iml_gcn.Model(tresnet.tresnet_tiny(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(24):
        logits = model(images)
        optimizer.zero_grad()
        iml_gcn.asymmetric_loss(logits, targets).backward()
        optimizer.step()
    ap = metrics.average_precision(logits.detach().numpy(), targets.numpy())
    assert metrics.mean_average_precision(ap) > 99


def test_logits_keep_float32s_precision_under_mixed_precision(demo, tmp_path):
    assert run.main(argv(demo, tmp_path, "--amp --epochs 1 --nodes pca")) == 0
    for name in ("backbone", "gcn-pca"):
        logits = torch.from_numpy(scores_of(tmp_path, name)[0])
        assert (logits.bfloat16().float() != logits).float().mean() > 0.9
        logits = logits[:, demo_split(demo, "train2014").targets.any(0)]  # others may all be 0
        assert len(logits.unique()) > 0.95 * logits.numel()


def test_a_released_file_or_one_of_ours_is_evaluated_as_it_stands(demo, finished, tmp_path):
    names, state = {"backbone": "body", "head": "head.fc"}, state_of(finished / "backbone.pt")
    renamed = {re.sub(r"^\w+", lambda m: names[m[0]], k): v for k, v in state.items()}
    torch.save({"state_dict": renamed}, tmp_path / "released.pth")
    out = tmp_path / "out"
    for file in (tmp_path / "released.pth", finished / "backbone.pt"):
        assert run.main(argv(demo, out, "--evaluate", file)) == 0
        ours, theirs = scores_of(out, "evaluated"), scores_of(finished, "backbone")
        assert np.array_equal(ours[0], theirs[0])
        page = (out / "results-evaluated.md").read_text()
        assert f"| {file} " in page.replace("\\_", "_")  # Markdown's escapes
    names = {"args.json", "lock", "metrics-evaluated.json", "scores-evaluated.npz"}
    names |= {"results-evaluated.md", "results-evaluated.jpg", "mistakes-evaluated.jpg"}
    names |= {"labels-evaluated.csv", "verdict-evaluated.json"}
    assert {path.name for path in out.iterdir()} == names
    all_of_val = scores_of(finished, "backbone")[1].any(0).sum()
    demo_targets = demo_split(demo, "train2014").targets
    for threshold, count in ((0, all_of_val), (1, 0)):  # the ends are probabilities, too
        checkpoint = torch.load(finished / "backbone.pt", weights_only=True)
        torch.save(checkpoint | {"threshold": threshold}, tmp_path / "end.pt")
        assert run.main(argv(demo, out, "--evaluate", tmp_path / "end.pt")) == 0
        rows = [*csv.DictReader((out / "labels-evaluated.csv").open(encoding="utf-8-sig"))]
        assert sum(float(row["recall"] or 0) > 0 for row in rows) == count
    assert sum(int(row["training photos"]) for row in rows) == demo_targets.sum()
    assert run.main(argv(demo, out, "--evaluate", finished / "backbone.pt", "--limit 9")) == 0
    rows = [*csv.DictReader((out / "labels-evaluated.csv").open(encoding="utf-8-sig"))]
    assert {row["training photos"] for row in rows} == {""}  # it was trained on others


@pytest.mark.parametrize(("recipe", "peak", "last"), [("asl", 7, 39), ("cycle", 5.3, 20)])
def test_one_cycle_warms_up_and_anneals_along_two_cosines(recipe, peak, last):
    # asl: one cycle of 40 steps, left after 20: from 1e-4 / 25 up to 1e-4 at step 0.2 * 40 - 1 = 7,
    # then down to 1e-4 / 25 / 1e4 at step 39, both along half a cosine. cycle: the same over the 20
    # steps, its highest point at 0.3 * 21 - 1.
    low, high, end, expected = 4e-6, 1e-4, 4e-10, []
    for step in range(20):
        if step <= peak:
            expected.append(high + (low - high) * (1 + math.cos(math.pi * step / peak)) / 2)
        else:
            rest = (step - peak) / (last - peak)
            expected.append(end + (high - end) * (1 + math.cos(math.pi * rest)) / 2)
    assert rates(recipe, 20) == pytest.approx(expected, rel=1e-6)


def test_a_recipe_that_is_given_wins_over_what_the_data_set_presets():
    alone, given = run.parse_args([]), run.parse_args(["--recipe", "asl"])
    assert (alone.recipe, alone.lr, alone.image_size) == ("cycle", 4e-3, 64)
    assert (given.recipe, given.lr, given.image_size) == ("asl", 1e-4, 224)
    assert alone.backbone == given.backbone == "tresnet_tiny"


def test_the_moving_average_is_the_mean_of_all_steps_with_falling_weights():
    # decay 3/4, from 0: after steps to 4 and 8 it is 3/4 * (1/4 * 4) + 1/4 * 8 = 2.75.
    average, model = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    torch.nn.init.zeros_(average.weight)
    average.running_mean.zero_()
    for value in (4.0, 8.0):
        torch.nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value)
        run.update_average(average, model, 0.75)
    assert (average.weight.item(), average.running_mean.item()) == (2.75, 2.75)


def test_a_moving_average_that_forgets_nothing_stays_where_it_began(demo, tmp_path):
    torch.manual_seed(0)
    begin = tresnet.tresnet_tiny().state_dict()
    more = "--epochs 2 --ema 1 --phase backbone --limit 8 --batch-size 8 --eval-every 0"
    assert run.main(argv(demo, tmp_path, more)) == 0
    state = state_of(tmp_path / "backbone.pt")
    assert all(state[f"backbone.{key}"].equal(value) for key, value in begin.items())


def test_ml_gcns_row_trains_without_a_backbone_phase(demo, tmp_path, monkeypatch):
    small = functools.partial(resnet.ResNet, (1, 1, 1, 1))  # test_backbones.py counts ResNet-101
    monkeypatch.setitem(backbones.BACKBONES, "resnet101", (small, "none"))
    (tmp_path / "glove.txt").write_text("cup 1 2 3\ncar 2 1 0\nlight 0 0 1\n")
    more = "--backbone resnet101 --pool max --nodes word --node-norm 0 --adjacency mlgcn"
    more += " --tau 0.4 --epochs 1 --gcn-from weights --weights none --limit 4"
    more += f" --glove {tmp_path}/glove.txt"
    assert run.main(argv(demo, tmp_path, more, "--phase gcn eval")) == 0
    checkpoint = torch.load(tmp_path / "gcn-word.pt", weights_only=True)
    nodes = checkpoint["state_dict"]["head.nodes"].tolist()
    nodes = dict(zip(checkpoint["classes"], nodes, strict=True))
    assert [nodes["car"], nodes["traffic light"]] == [[2, 1, 0], [0, 0, 1]]
    report = json.loads((tmp_path / "metrics-gcn-word.json").read_text())
    body = sum(p.numel() for p in small().parameters())  # 3 -> 1024 -> 2048, and a 16 x 16 graph
    assert report["parameters"] == body + 3 * 1024 + 1024 * 2048 + 256


def test_vg500_runs_all_its_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    write_vg(tmp_path)
    vg_photos(tmp_path, ["7.jpg", "8.jpg", "12.jpg"])
    more = "--dataset vg500 --epochs 1 --weights none --keep-unlabelled --nodes pca"
    assert run.main(argv(tmp_path, tmp_path / "out", more)) == 0
    assert scores_of(tmp_path / "out", "gcn-pca")[1].tolist() == [[1, 0, 1]]  # 8.jpg's labels
    assert "34.5" in (tmp_path / "out/results.md").read_text()  # Table 2's last row


def test_every_epoch_draws_its_own_augmentation(demo, tmp_path, monkeypatch):
    epochs, get = set(), data.MultiLabelImages.__getitem__

    def seen(self, key):
        epochs.update([key[0]] if self.augment else [])
        return get(self, key)

    monkeypatch.setattr(data.MultiLabelImages, "__getitem__", seen)
    assert run.main(argv(demo, tmp_path, "--phase backbone --epochs 3 --limit 8")) == 0
    assert epochs == {0, 1, 2}


def test_an_option_that_does_not_exist_is_answered_with_the_one_that_was_meant(capsys):
    close = {"--lr-backbone": "--backbone-lr", "--epoch": "--epochs", "--hlep": "--help"}
    for typed, meant in {**close, "--help_all": "--help-all", "--resume": None}.items():
        with pytest.raises(SystemExit):
            run.parse_args([typed, "1"])
        errors = capsys.readouterr().err
        assert ("did you mean" in errors) == bool(meant)
        assert f"did you mean {meant}?" in errors or not meant


def test_a_word_that_follows_no_option_is_named(capsys):
    with pytest.raises(SystemExit):
        run.parse_args(["photos", "--epochs", "3"])
    assert "error: photos follows no option; a path with blanks" in capsys.readouterr().err


def test_a_line_that_is_too_long_goes_on_indented_and_a_path_stays_whole():
    text = "12345 789 12 x-y\n  1 345 /a/path/of 23 letters\n\n    /a/long-path/that-comes-first"
    assert terminal.fitted(text, 12).split("\n") == [
        "12345 789 12",
        "  x-y",
        "  1 345",
        "    /a/path/of",  # longer than 12 by itself
        "    23",
        "    letters",
        "",
        "    /a/long-path/that-comes-first",
    ]


@pytest.mark.parametrize("columns", [30, 80])
def test_sentences_fit_the_window_of_a_terminal_and_are_whole_elsewhere(monkeypatch, columns):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    text = f"two lines of {'many words and ' * 20}\n  a/path/{'x' * 99}/that-is-long"
    screen, file = Screen(), io.StringIO()
    terminal.tell(text, screen)
    terminal.tell(text, file)
    assert file.getvalue() == text + "\n"
    assert screen.getvalue().split() == text.split()
    assert max(len(line) for line in screen.getvalue().splitlines() if "/" not in line) < columns


def test_the_help_says_what_a_recipe_and_a_data_set_change(capsys):
    with pytest.raises(SystemExit):
        run.parse_args(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    lr = "(0.001; --recipe asl: 0.0001; --recipe cycle: 0.003; --recipe small: 0.01; demo: 0.004)"
    assert f"peak learning rate {lr} [Implementation details]" in text
    # What the help says is what a run gets.
    for typed, expected in (
        ["--recipe asl", 1e-4],
        ["--dataset demo", 4e-3],
        ["--dataset demo --recipe cycle", 4e-3],  # the demo's own
        ["--dataset demo --recipe paper", 1e-3],
        ["--dataset coco", 1e-3],
    ):
        assert run.parse_args(typed.split()).lr == expected
    assert run.parse_args(["--dataset", "demo", "--recipe", "asl"]).lr == 1e-4
    assert run.parse_args(["--dataset", "demo", "--recipe", "asl", "--lr", "5"]).lr == 5


def test_quiet_prints_the_results_and_nothing_else(demo, tmp_path, capsys):
    more = "--quiet --phase backbone eval --epochs 1 --limit 8"
    assert run.main(argv(demo, tmp_path, more)) == 0
    printed = capsys.readouterr().out
    assert printed.lstrip().startswith("part of COCO 2014, ")  # the table's title
    assert "results are in" in printed
    assert "epoch" not in printed


def test_a_model_of_another_precision_is_not_taken_for_this_one(demo, tmp_path, capsys):
    more = "--phase backbone --epochs 1 --limit 8 --no-amp"
    assert run.main(argv(demo, tmp_path, more)) == 0
    assert run.main(argv(demo, tmp_path, more, "--amp")) == 2
    assert "backbone.pt was made with amp False, now it is True" in capsys.readouterr().err
