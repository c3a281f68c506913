"""Runs that are stopped, fail, or lose a rank, a disk or a photo: they end soon, and go on to the
same numbers.

Oracles: an unbroken run of the same command, to the last bit; the bytes of the files before.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import argv, assert_same_run, demo_split, log_of, scores_of, state_of
from torch.distributed import launcher

import iml_gcn
import metrics
import run
from runtime import checkpoints, journal, loading, ranks, signals, terminal

SAVE = checkpoints.save


# Processes come from one in which torch is imported already: that is most of the time of a start.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed"])


def as_a_user_starts_it(arguments, errors):
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # its workers start as a user's do
    with open(errors, "w") as file, redirect_stdout(None):
        os.dup2(file.fileno(), sys.stderr.fileno())
        signals.run(lambda: run.main(arguments))


def started(arguments, errors):
    """run.py in a process of its own, a group of its own, when it has trained an epoch. What it
    says on stderr goes into the file `errors`."""
    process = multiprocessing.get_context("forkserver").Process(
        target=as_a_user_starts_it, args=(arguments, errors)
    )
    process.start()
    while not (Path(arguments[arguments.index("--out") + 1]) / "log.jsonl").exists():
        assert process.is_alive(), errors.read_text()
        time.sleep(0.02)
    return process


def stop_after_saving(monkeypatch, name, stops=None):
    """From now on a run is broken off as soon as it has saved this file."""

    def save(path, checkpoint):
        SAVE(path, checkpoint)
        if path.name.startswith(name):
            if stops is not None:
                stops.append((path.name, checkpoint["epochs"], checkpoint["step"]))
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save)


def test_a_training_stopped_at_every_save_ends_as_an_unbroken_one(demo, tmp_path, monkeypatch):
    # The last photo trained on cannot be read: it is counted across the stops, too.
    demo, stops = shutil.copytree(demo, tmp_path / "demo"), []
    rows = [row for _, row in next(iter(loading.Rows(16, 8, True, 0)))]
    Path(demo_split(demo, "train2014").paths[rows[-1]]).write_bytes(b"no photo")
    options = "--phase backbone --ema 0.9 --limit 16 --skip-bad-images"
    assert run.main(argv(demo, tmp_path / "unbroken", options)) == 0
    stop_after_saving(monkeypatch, "last-", stops)
    for workers in itertools.cycle([0, 2]):
        more = f"--save-every 0 --workers {workers}"
        try:
            assert run.main(argv(demo, tmp_path / "broken", options, more)) == 0
            break
        except KeyboardInterrupt:
            pass
    assert stops == [("last-backbone.pt", *at) for at in itertools.product([0, 1], [1, 2])]
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_an_interrupted_training_waits_while_others_train_in_its_folder(
    demo, finished, out, monkeypatch
):
    last = out / "last-gcn-image.pt"
    with monkeypatch.context() as patch:
        stop_after_saving(patch, last.name)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, out, "--fresh --phase gcn --nodes image"))
    before = last.read_bytes()
    for phase in ("backbone", "gcn --nodes pca"):
        assert run.main(argv(demo, out, "--fresh --phase", phase)) == 0
        assert last.read_bytes() == before
    assert run.main(argv(demo, out)) == 0
    assert_same_run(out, finished)


def test_a_folder_in_use_is_refused_and_ctrl_c_ends_the_step_saves_and_exits_with_its_code(
    demo, tmp_path, capsys
):
    out = tmp_path / "out"
    options = argv(demo, out, "--epochs 500 --eval-every 0 --workers 2")
    process = started(options, tmp_path / "errors.txt")
    before = (out / "args.json").read_bytes()
    assert run.main(argv(demo, out, "--lr 2e-3")) == 2  # a second run
    assert f"{out} is in use by another run" in capsys.readouterr().err
    assert (out / "args.json").read_bytes() == before
    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to all
    process.join(timeout=60)
    assert process.exitcode == 130
    errors = (tmp_path / "errors.txt").read_text()
    assert "Traceback" not in errors
    assert "the same command resumes it" in errors
    assert run.main([*options, "--phase", "embed"]) == 2  # the folder is free again
    assert "in use" not in capsys.readouterr().err


@pytest.fixture
def in_this_process():
    """signals.run takes over the signals of the process: pytest gets them back."""
    numbers = [*signals.STOPPING, signal.SIGCHLD]
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def at_step(count, failure):
    """The loss, which calls `failure` in the step of this number, counted from 1."""
    loss, calls = iml_gcn.asymmetric_loss, itertools.count(1)

    def failing(*arguments):
        if next(calls) == count:
            failure()
        return loss(*arguments)

    return failing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(
    demo, tmp_path, capfd, monkeypatch, in_this_process, number
):
    options = argv(demo, tmp_path, "--phase backbone --limit 16")
    monkeypatch.setattr(signals, "received", None)
    signal.signal(number, signal.SIG_DFL)  # under nohup, a hangup is ignored
    stop = at_step(3, lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(iml_gcn, "asymmetric_loss", stop)
    with pytest.raises(SystemExit) as exit:
        signals.run(lambda: run.main(options))
    assert exit.value.code == 128 + number
    errors = capfd.readouterr().err
    assert "stopping after this step" in errors
    assert "epoch 2/2, step 1 of 2, saved in" in errors
    assert "the same command resumes it" in errors
    assert signal.getsignal(number) == signal.SIG_DFL  # a second one stops at once
    last = torch.load(tmp_path / "last-backbone.pt", weights_only=True)
    assert (last["epochs"], last["step"]) == (1, 1)


def test_an_unexpected_error_is_shown_and_ends_the_run_and_its_workers(
    demo, tmp_path, monkeypatch, in_this_process
):
    workers = []

    def fail():
        workers.extend(multiprocessing.active_children())
        raise RuntimeError("unheard of")

    def kill(worker, original=multiprocessing.process.BaseProcess.kill):
        original(worker)
        # Until it is dead, of which torch's handler is told: it would raise an error here.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", kill)
    monkeypatch.setattr(iml_gcn, "asymmetric_loss", at_step(3, fail))
    # Python shows it and exits with 1, after its children, which ignore that they are asked to end.
    with pytest.raises(RuntimeError, match="unheard of"):
        signals.run(lambda: run.main(argv(demo, tmp_path, "--workers 2")))
    assert len(workers) == 2
    for worker in workers:
        worker.join(timeout=20)
        assert worker.exitcode == -signal.SIGKILL


def test_streams_that_were_closed_are_opened_again(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    signals.prepare_streams()
    with sys.stdout, sys.stderr:
        assert sys.stdout.errors == "backslashreplace"
        assert [sys.stdout.write("人"), sys.stderr.write("nobody reads it")] == [1, 15]


NO_SPACE = (os, "fsync", OSError(28, "No space left on device"))


@pytest.mark.parametrize(("module", "name", "error"), [NO_SPACE, (torch, "save", RuntimeError())])
def test_a_full_disk_leaves_what_was_saved(demo, out, capsys, monkeypatch, module, name, error):
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}

    def full(*_):
        raise error

    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="its old content is kept"):
        checkpoints.save(out / "backbone.pt", {"name": "new"})
    assert run.main(argv(demo, out, "--fresh --phase backbone")) == 2
    assert "cannot write" in capsys.readouterr().err
    kept = [*out.glob("*.pt*"), *out.glob("before-fresh/*.pt")]
    left = {path.name: path.read_bytes() for path in kept}
    assert left == before


def test_photos_that_cannot_be_read_are_counted_in_training_and_stop_evaluation(
    demo, finished, tmp_path, capsys
):
    demo, out = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "out"
    val = demo_split(demo, "val2014")
    for path in [*demo_split(demo, "train2014").paths[:2], val.paths[3]]:
        Path(path).write_bytes(Path(path).read_bytes()[:300])
    options = "--phase backbone --batch-size 4 --skip-bad-images"
    assert run.main(argv(demo, out, options)) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 photos left out of this epoch") == 2
    assert all(path in printed for path in demo_split(demo, "train2014").paths[:2])
    shutil.copytree(finished, out, dirs_exist_ok=True)
    assert run.main(argv(demo, out, "--phase eval --skip-bad-images")) == 0
    table = (out / "results.md").read_text()
    assert f"{len(val) - 1} val images at 32 px, percent; 1 more missing or unreadable" in table
    report = json.loads((out / "metrics-gcn-pca.json").read_text())
    logits, targets = (np.delete(array, 3, 0) for array in scores_of(finished, "gcn-pca"))
    assert report["unreadable"] == 1
    AP = metrics.average_precision(logits, targets)
    assert report["mAP"] == pytest.approx(metrics.mean_average_precision(AP), abs=1e-4)


def set_norms_as_in_evaluation(norm, mode=True):
    """BatchNorm2d.train, where the norms are frozen."""
    torch.nn.Module.train(norm, False)


def run_of_a_rank(arguments, folder):
    """What torchrun starts, twice on each start. The first rank is lost in the third step."""
    torch.nn.BatchNorm2d.train = set_norms_as_in_evaluation
    rank, restarts = (os.environ[name] for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    if (rank, restarts) == ("0", "0"):
        iml_gcn.asymmetric_loss = at_step(3, lambda: os._exit(9))
    with open(folder / f"rank-{rank}-{restarts}.txt", "w") as file, redirect_stdout(file):
        return run.main(arguments)


def test_two_ranks_give_the_numbers_of_one_where_norms_are_frozen(
    demo, tmp_path, monkeypatch, in_this_process
):
    # Each rank norms by its own images; frozen, nothing is left to tell them apart. A rank is lost
    # on the way: torchrun starts again, from last-backbone.pt. 7 images fall to them as 4 and 3.
    def arguments(name):
        options = "--phase backbone embed eval --batch-size 7 --eval-every 0 --lr 1e-4"
        return argv(demo, tmp_path / name, options, "--save-every 0")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.BatchNorm2d, "train", set_norms_as_in_evaluation)
        assert run.main(arguments("one")) == 0
    # What torchrun --standalone --nproc-per-node 2 --max-restarts 1 does.
    config = launcher.LaunchConfig(1, 1, 2, start_method="forkserver", max_restarts=1)
    config.rdzv_backend, config.rdzv_endpoint = "c10d", "localhost:0"
    codes = launcher.elastic_launch(config, run_of_a_rank)(arguments("two"), tmp_path)
    assert codes == {0: 0, 1: 0}
    assert "resumes after epoch 0 and 2 of 3 steps" in (tmp_path / "rank-0-1.txt").read_text()
    numbers = []
    for out in (tmp_path / "one", tmp_path / "two"):
        numbers.append([*state_of(out / "backbone.pt").values()])
        numbers[-1].append(torch.tensor([entry["loss"] for entry in log_of(out)]))
        numbers[-1].append(torch.load(out / "embeddings.pt", weights_only=True)["image"])
        numbers[-1] += map(torch.from_numpy, scores_of(out, "backbone"))
    for one, two in zip(*numbers, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_a_batch_of_fewer_photos_than_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 2)
    with pytest.raises(ValueError, match="1 photos, fewer than the 2 processes"):
        loading.Rows(8, 1, shuffle=True)


def test_what_a_killed_run_was_writing_is_removed_by_the_next(demo, out):
    left, other = out / "last-gcn-pca.pt.0123abcd.tmp", out / "mine.tmp"
    left.write_bytes(b"half")
    other.write_bytes(b"a user's")
    assert run.main(argv(demo, out)) == 0
    assert not left.exists()
    assert other.read_bytes() == b"a user's"


@pytest.mark.parametrize("nodes", ["", "--nodes pca"])  # of the old backbone no GCN may stay
def test_what_fresh_will_redo_is_nowhere_in_the_folder_after_a_kill(
    demo, finished, out, monkeypatch, nodes
):
    (out / "results-evaluated.md").write_text("of gcn-pca.pt, which --evaluate was given")
    monkeypatch.setattr(iml_gcn, "asymmetric_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run.main(argv(demo, out, "--fresh", nodes))
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert files == {"args.json", "graph.png", "lock", "log.jsonl"}  # of this run
    assert (out / "log.jsonl").read_text() == ""
    moved = {path.name for path in (out / "before-fresh").iterdir()}
    assert moved | {"args.json", "graph.png", "lock", "log.jsonl"} == {
        "results-evaluated.md",
        *(path.name for path in finished.iterdir()),
    }


def test_files_of_the_users_stay_where_they_are_when_fresh_moves_a_runs(demo, out):
    names = "resnet-backbone.pth", "notes-evaluated.txt", "my-gcn-pca.csv", "best-backbone.pt"
    for name in names:
        (out / name).write_text("a user's")
    for _ in range(2):  # the second time, what was moved the first time would be removed
        assert run.main(argv(demo, out, "--phase backbone --fresh --epochs 1")) == 0
    assert all((out / name).read_text() == "a user's" for name in names)


def test_what_is_set_aside_is_of_one_run(demo, finished, out):
    # B trains a backbone and stops before eval; then C begins: before-fresh/ holds B alone.
    assert run.main(argv(demo, out, "--phase backbone --fresh --seed 1")) == 0
    assert run.main(argv(demo, out, "--phase backbone eval --fresh --seed 2")) == 0
    moved = {path.name for path in (out / "before-fresh").iterdir()}
    assert {name for name in moved if "backbone" in name} == {"backbone.pt"}
    assert not moved & {"verdict.json", "results.md", "labels.csv"}
    assert {path.name for path in out.glob("*.pt")} == {"backbone.pt", "embeddings.pt"}
    assert (out / "results.md").is_file()  # no GCN of the old backbone kept eval from it


@pytest.mark.parametrize(("launch", "done"), [("", False), ("first", False), ("second", True)])
def test_a_restart_of_torchrun_sets_aside_what_its_lost_start_did_not(
    demo, out, monkeypatch, launch, done
):
    # A rank may be lost before the first one has come to set files aside: --fresh must hold then,
    # too. Once it has, what lies in the folder is of the new training.
    if launch:
        (out / "before-fresh").mkdir()
        (out / "before-fresh" / "launch.txt").write_text(launch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    args = run.parse_args(argv(demo, out, "--fresh"))
    run.set_old_files_aside(args)
    assert (out / "backbone.pt").exists() == done
    assert (out / "before-fresh" / "launch.txt").read_text() == "second"
    (out / "backbone.pt").write_bytes(b"new")
    run.set_old_files_aside(args)  # the next restart
    assert (out / "backbone.pt").read_bytes() == b"new"


@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_a_run_whose_workers_are_stopped_heeds_a_signal(demo, tmp_path):
    options = argv(demo, tmp_path / "out", "--epochs 500 --eval-every 0 --workers 1")
    process = started(options, tmp_path / "errors.txt")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGSTOP)
    time.sleep(0.3)  # what they had read beforehand is used up
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == 143
    assert "the same command resumes it" in (tmp_path / "errors.txt").read_text()
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def killed(*_):
    raise KeyboardInterrupt


def test_a_kill_while_fresh_sets_old_files_aside_is_made_good_by_the_next_start(
    demo, finished, out, monkeypatch
):
    with monkeypatch.context() as patch:
        move, moves = os.replace, itertools.count()
        # The first call writes the list of files, the second moves one, the third is the kill.
        patch.setattr(os, "replace", lambda *paths: killed() if next(moves) == 2 else move(*paths))
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, out, "--fresh"))
    assert run.main(argv(demo, out, "--phase backbone --limit 8 --epochs 1")) == 0
    old = {path.name for path in (out / "before-fresh").iterdir()}
    models = ("backbone", "gcn-image", "gcn-pca")
    assert old >= {f"{name}.pt" for name in models} | {
        "embeddings.pt",
        "results.md",
        "verdict.json",
    }
    assert not (out / "labels.csv").exists()  # of the old models
    assert not (out / "gcn-pca.pt").exists()
    kept = (out / "before-fresh" / "gcn-pca.pt").read_bytes()
    assert kept == (finished / "gcn-pca.pt").read_bytes()


def test_a_damaged_line_of_the_log_is_named_before_an_epoch_is_trained(demo, out, capsys):
    log = out / "log.jsonl"
    log.write_text(log.read_text() + "{\n")
    line = len(log.read_text().splitlines())
    assert run.main(argv(demo, out, "--phase gcn --nodes random")) == 2
    printed, errors = capsys.readouterr()
    assert f"{log}, line {line} is damaged: {{; remove" in errors
    assert "epoch" not in printed


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        '"epoch"',
        "[" * 100_000,
        '{"model": "backbone"}',
        '{"model": ["backbone"], "epoch": 1, "loss": 1}',
        '{"model": "backbone", "epoch": true, "loss": 1}',
        '{"model": "backbone", "epoch": -3, "loss": 1}',
        '{"model": "backbone", "epoch": 1e400, "loss": 1}',
        '{"model": "backbone", "epoch": 1' + "0" * 400 + ', "loss": 1}',
        '{"model": "backbone", "epoch": 1, "lo',
        "\x00\x00\x00",
        "\ufffd",
    ],
)
def test_a_line_of_the_log_that_is_not_an_epoch_is_refused(line, tmp_path):
    path, good = tmp_path / "log.jsonl", '{"model": "backbone", "epoch": 1, "loss": 1}'
    path.write_text(f"{good}\n{good}\n")
    assert len(journal.read_log(path)) == 2
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match="line 2 is damaged: "):
        journal.read_log(path)


def test_the_log_holds_null_where_a_number_is_none(tmp_path):
    entry = {"model": "backbone", "epoch": 1, "loss": 1.5, "mAP": float("nan")}
    journal.log(tmp_path / "log.jsonl", entry)
    assert json.loads((tmp_path / "log.jsonl").read_text()) == entry | {"mAP": None}


def test_a_progress_line_fits_the_window_and_a_pipe_gets_a_line_a_minute(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = terminal.Progress("a training of a long name " * 3, 100)
    progress.advance(50)
    progress.show("loss 3.14")
    line = capsys.readouterr().out
    assert len(line.removeprefix("\r").removesuffix("\033[K")) == 39
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    progress, lines = terminal.Progress("features", 1000), 0
    for now[0] in range(1, 181):  # three minutes, a photo per second
        if progress.advance(1):
            progress.show()
            lines += 1
    assert lines == 2  # after 61 and 122 seconds
    assert "61/1,000 images  1.0/s  939 s left" in capsys.readouterr().out.splitlines()[0]


def test_the_time_left_of_a_run_follows_from_the_work_that_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    clock = terminal.Clock()
    clock.begin(100)
    assert clock.left() == ""
    clock.skip(20)  # 80 are left, of which 20 take 30 s: 60 more take 90 s
    now[0], clock.done = 30.0, 20.0
    assert clock.left() == "0:01:30"
