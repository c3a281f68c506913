"""TODO"""

import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ZIPS, argv, assert_same_run, demo_split, program, torchrun

import metrics
import run
from runtime import checkpoints, loading


def test_a_run_stopped_at_every_save_ends_as_an_unbroken_one(demo, tmp_path, monkeypatch):
    # The last photo trained on cannot be read: it is counted across the stops, too.
    demo = shutil.copytree(demo, tmp_path / "demo")
    rows = [row for _, row in next(iter(loading.Rows(16, 8, True, 0)))]
    Path(demo_split(demo, "train2014").paths[rows[-1]]).write_bytes(b"no photo")
    options = "--nodes pca --ema 0.9 --limit 16 --skip-bad-images"
    assert run.main(argv(demo, tmp_path / "unbroken", options)) == 0
    save, stops = checkpoints.save, []

    def save_and_stop(path, checkpoint):
        save(path, checkpoint)
        if path.name == "last-backbone.pt":
            stops.append((checkpoint["name"], checkpoint["epochs"], checkpoint["step"]))
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", save_and_stop)
    for workers in itertools.cycle([0, 2]):
        more = f"--save-every 0 --workers {workers}"
        try:
            assert run.main(argv(demo, tmp_path / "broken", options, more)) == 0
            break
        except KeyboardInterrupt:
            pass
    assert stops == list(itertools.product(["backbone", "gcn-pca"], [0, 1], [1, 2]))
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.parametrize("damage", [{"step": None}, {"model": {}}, {"losses": [1, 2, 3]}])
def test_a_damaged_last_pt_is_refused_and_kept(demo, tmp_path, capsys, monkeypatch, damage):
    def save_and_stop(path, checkpoint, save=checkpoints.save):
        save(path, {key: damage.get(key, value) for key, value in checkpoint.items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, "--limit 8 --phase backbone"))
    before = (tmp_path / "last-backbone.pt").read_bytes()
    assert run.main(argv(demo, tmp_path, "--limit 8 --phase backbone")) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/last-backbone.pt is not from this version" in error
    assert "--fresh" in error
    assert (tmp_path / "last-backbone.pt").read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(
    demo, finished, tmp_path, number, code
):
    options = argv(demo, tmp_path / "out", "--workers 2")
    started = program("run.py", *options)
    while not (tmp_path / "out" / "log.jsonl").exists():
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    started.send_signal(number)
    output, errors = started.communicate(timeout=60)
    assert started.returncode == code
    assert "Traceback" not in errors
    assert "the same command goes on" in errors
    assert run.main(options) == 0
    assert_same_run(tmp_path / "out", finished)


def test_a_second_run_in_a_folder_in_use_is_refused(demo, tmp_path, capsys):
    hold = "import files, pathlib, sys\nwith folder.lock(pathlib.Path(sys.argv[1])):\n"
    first = program(
        "-c", hold + "    print(flush=True)\n    input()", tmp_path, stdin=subprocess.PIPE
    )
    first.stdout.readline()
    assert run.main(argv(demo, tmp_path)) == 2
    assert f"in use by process {first.pid}" in capsys.readouterr().err
    assert not (tmp_path / "args.json").exists()
    first.kill()  # even so, the folder is free again
    first.wait()
    assert run.main(argv(demo, tmp_path, "--phase backbone --epochs 1 --limit 8")) == 0


def test_an_output_folder_that_cannot_be_is_found_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(argv(tmp_path / "nothing", tmp_path / "file" / "out")) == 2
    assert f"cannot write to {tmp_path}/file/out (Not a directory)" in capsys.readouterr().err


NO_SPACE = (os, "fsync", OSError(28, "No space left on device"))


@pytest.mark.parametrize(("module", "name", "error"), [NO_SPACE, (torch, "save", RuntimeError())])
def test_a_full_disk_leaves_what_was_saved(
    demo, finished, tmp_path, capsys, monkeypatch, module, name, error
):
    out = shutil.copytree(finished, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}

    def full(*_):
        raise error

    monkeypatch.setattr(
        os if isinstance(error, OSError) else torch,
        "fsync" if isinstance(error, OSError) else "save",
        full,
    )
    with pytest.raises(OSError, match="one before is as it was"):
        checkpoints.save(out / "backbone.pt", {"name": "new"})
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before
    assert run.main(argv(demo, out, "--fresh --phase backbone")) == 2
    assert "cannot write" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before


def test_photos_that_cannot_be_read_are_counted_in_training_and_stop_evaluation(
    demo, finished, tmp_path, capsys
):
    demo, out = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "out"
    val = demo_split(demo, "val2014")
    for path in [*demo_split(demo, "train2014").paths[:2], val.paths[3]]:
        Path(path).write_bytes(Path(path).read_bytes()[:300])
    assert run.main(argv(demo, out, "--phase backbone --eval-every 0 --batch-size 4")) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 photos left out of this epoch") == 2
    assert all(path in printed for path in demo_split(demo, "train2014").paths[:2])
    for phase, name in [("embed", "train2014"), ("eval", "val2014")]:
        assert run.main(argv(demo, out, "--phase", phase)) == 2
        error = capsys.readouterr().err
        assert name in error
        assert "--skip-bad-images" in error
    shutil.copytree(finished, out, dirs_exist_ok=True)
    assert run.main(argv(demo, out, "--phase eval --skip-bad-images")) == 0
    table = (out / "results.md").read_text()
    assert f"{len(val) - 1} val images at 32 px, percent; 1 more could not be read" in table
    report = json.loads((out / "metrics-gcn-pca.json").read_text())
    scores = np.load(finished / "scores-gcn-pca.npz")
    others = np.delete(np.arange(len(val)), 3)
    expected = metrics.evaluate(scores["logits"][others], scores["targets"][others], 0)
    assert report["unreadable"] == 1
    assert report["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)


def test_two_ranks_download_once_and_embed_and_evaluate_every_photo_once(web, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    for path in [out / "embeddings.pt", *out.glob("metrics*"), *out.glob("scores*")]:
        path.unlink()
    options = argv(tmp_path / "data", out, "--download --phase embed eval --batch-size 7")
    torchrun(tmp_path, *options, more=[f"import download; download.SERVER = {web.url!r}"])
    assert web.asked == [(address, 0, 200) for address in ZIPS]
    ours, theirs = (torch.load(o / "embeddings.pt", weights_only=True) for o in (out, finished))
    for key in ("image", "pairs", "counts"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6)
    for path in finished.glob("scores-*.npz"):
        ours, theirs = np.load(out / path.name), np.load(path)
        assert (ours["targets"] == theirs["targets"]).all()
        np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-5, atol=1e-5)


FROZEN = "from torch.nn import BatchNorm2d, Module\n"
FROZEN += "BatchNorm2d.train = lambda self, mode=True: Module.train(self, False)"


def test_two_ranks_train_as_one_does_where_norms_are_frozen(demo, tmp_path):
    # Each rank norms by its own images; frozen, nothing is left to tell them apart. A rank is lost
    # on the way: torchrun starts again, from last-backbone.pt. 7 images of a batch fall to them as 4 and 3.
    states = []
    die = """
import os, train, iml_gcn
def loss(*arguments, calls=[], original=iml_gcn.asymmetric_loss):
    calls.append(0)
    if len(calls) == 6 and os.environ["TORCHELASTIC_RESTART_COUNT"] == os.environ["RANK"] == "0":
        os._exit(9)
    return original(*arguments)
iml_gcn.asymmetric_loss = loss
"""
    for ranks, more in [(1, [FROZEN]), (2, [FROZEN, die])]:
        out = tmp_path / f"{ranks}"
        options = "--phase backbone --batch-size 7 --epochs 7 --eval-every 0 --lr 1e-4"
        output = torchrun(
            tmp_path, *argv(demo, out, options, "--save-every 0"), ranks=ranks, more=more
        )
        states.append(torch.load(out / "backbone.pt", weights_only=True)["state_dict"])
        log = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        states[-1]["log"] = torch.tensor(log)
    assert "goes on after epoch 1 and 2 of 3 steps" in output
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-5)
