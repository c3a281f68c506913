"""What run.py refuses, in one sentence that names the file and the way out: data and options that
cannot be, and files in --out that were made from something else than what is given now.

Oracles: a data set or a finished run that was changed in one way.
"""

import collections
import json
import re
import shutil

import pytest
import torch
from conftest import ROOT, argv, refused
from torch._inductor.exc import InductorError

import run
import tresnet
from runtime import checkpoints, download, journal, signals


def full_disk(*_):
    raise OSError("no space left")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(root, change, splits=("train", "val")):
    """change(the document) of both JSON files of a data set."""
    for name in splits:
        path = root / f"annotations/instances_{name}2014.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


def rename_a_label(document):
    document["categories"][0]["name"] = "pedestrian"


def swap_labels(document):
    first, second, *_ = document["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def mark_every_label(document):
    first, categories = document["annotations"][0], document["categories"]
    document["annotations"] += [first | {"category_id": label["id"]} for label in categories]


JSON, PHOTO = "annotations/instances_train2014.json", "val2014/demo_val2014_000001000003.jpg"
EMBED = "out/embeddings.pt run --phase embed again"
BAD_INPUT = [  # what happens to data/ or the finished run in out/, arguments, words of the message
    (lambda d: shutil.rmtree(d / "data"), "", f"{JSON} instances_val2014.json train2014/"),
    (lambda d: (d / "data" / PHOTO).unlink(), "", f"missing {PHOTO}"),
    (lambda d: truncate(d / "data" / PHOTO), "--phase eval", f"{PHOTO} --skip-bad-images"),
    (lambda d: None, "--image-size 102", "102 multiple"),
    (lambda d: (d / "out/embeddings.pt").unlink(), "--phase gcn", "out/embeddings.pt embed"),
    (lambda d: None, "--phase gcn --limit 8", f"{EMBED} training photos"),
    (lambda d: None, "--phase gcn --image-size 64", "out/backbone.pt image-size 32 64"),
    (lambda d: None, "--phase embed gcn eval --limit 8 --fresh", "out/backbone.pt other photos"),
    (lambda d: edit(d / "data", swap_labels), "--phase eval", "out/backbone.pt in another order"),
    (lambda d: (d / "out/lock").unlink(), "", "out has a file args.json that no run wrote"),
    (lambda d: edit(d / "data", mark_every_label), "--phase gcn", f"{EMBED} labels"),
    (lambda d: edit(d / "data", rename_a_label), "--phase gcn", "out/backbone.pt labels --fresh"),
    (lambda d: None, "--lr 0.002", "out/backbone.pt lr 0.001 0.002 --fresh"),
    (lambda d: None, "--tau 0.3", "out/gcn-image.pt --tau --fresh"),
    (lambda d: truncate(d / "out/backbone.pt"), "--phase eval", "out/backbone.pt"),
    (lambda d: None, "--phase eval --weights none", "--evaluate none"),
    (lambda d: None, "--dataset vg500 --year 2017", "--year belongs to COCO, not to vg500"),
    (lambda d: None, "--nodes word", "--glove"),
    (lambda d: None, "--weights timm:resnet18", "same model in both"),
    (lambda d: None, "--freeze --weights x.pth --backbone-lr 0.1", "--backbone-lr has no effect"),
    (lambda d: None, "--evaluate x.pt --phase gcn", "--evaluate trains nothing"),
    (
        lambda d: torch.save({"x": torch.zeros(3)}, d / "w.pth"),
        "--fresh --weights {d}/w.pth",
        "w.pth 101 of 101 tensors missing",
    ),
    (lambda d: None, "--phase gcn --pool max", "out/backbone.pt pool avg max"),
    (lambda d: None, "--phase gcn --nodes random --pool max", "out/backbone.pt pool avg max"),
    (lambda d: None, "--phase embed --backbone tresnet_m", "out/backbone.pt backbone tresnet_tiny"),
    (lambda d: None, "--adjacency mlgcn --p 0.5", "--p has no effect with --adjacency mlgcn"),
    (lambda d: None, "--adjacency none --tau 0.5", "--tau has no effect with --adjacency none"),
    (lambda d: None, "--backbone none --weights none", "--backbone none is none of tresnet_m"),
    (lambda d: None, "--download --dataset vg500", "--download fetches COCO alone"),
    (
        lambda d: None,
        "--dataset vg500 --val-json v.json",
        "--val-json belongs to COCO, not to vg500",
    ),
    (lambda d: None, "--freeze", "a frozen tresnet_tiny would keep its random weights"),
    (lambda d: None, "--batch-size 1 --out {d}/new", "one photo batch norm larger --batch-size"),
    (lambda d: None, "--device meta", "--device meta is not available: --device cpu"),
    (lambda d: truncate(d / "out/backbone.pt"), "", "out/backbone.pt remove it same command"),
    (lambda d: truncate(d / "out/embeddings.pt"), "--phase gcn", "out/embeddings.pt remove it"),
    (
        lambda d: (d / "file").touch(),
        "--data x --out {d}/file/out",
        "(Not a directory); file/out choose",
    ),
    (lambda d: (d / "file").touch(), "--data x --out {d}/file", "file is a file; choose a folder"),
]


@pytest.mark.parametrize(("spoil", "more", "words"), BAD_INPUT)
def test_bad_input_ends_with_code_2_and_a_sentence_that_names_it(
    demo, out, tmp_path, capsys, spoil, more, words
):
    data_dir = shutil.copytree(demo, tmp_path / "data")
    spoil(tmp_path)
    before = {path: path.read_bytes() for path in out.glob("*.p*")}  # models and graph.png
    sentence = refused(capsys, argv(data_dir, out, more.format(d=tmp_path)))
    assert [word for word in words.split() if word not in sentence] == []
    assert {path: path.read_bytes() for path in out.glob("*.p*")} == before


@pytest.mark.parametrize("content", [b"[]", b"x", b"\xff", b'{"info": 3}'])
def test_a_file_that_is_of_no_demo_is_not_taken_for_its_labels(content, tmp_path, capsys):
    (tmp_path / "annotations").mkdir()
    (tmp_path / JSON).write_bytes(content)
    sentence = refused(
        capsys, ["--data", str(tmp_path), "--dataset", "demo", "--out", f"{tmp_path}/o"]
    )
    assert f"{tmp_path / JSON} is not of this demo; move it" in sentence


def test_an_error_of_torch_compile_is_one_sentence():
    error = InductorError(RuntimeError("No working C++ compiler found"), None)
    assert "--compile failed: " in signals.sentence_for(error)
    assert signals.sentence_for(RuntimeError("No working C++ compiler found")) is None


def test_models_of_different_runs_are_not_put_side_by_side(demo, out, capsys):
    (out / "gcn-pca.pt").unlink()  # gcn-image.pt is enough
    random = "--nodes random --fresh --epochs 1 --eval-every 0"
    assert run.main(argv(demo, out, "--phase gcn --gcn-from weights", random)) == 0
    assert run.main(argv(demo, out, "--phase eval")) == 0  # began where backbone.pt began
    assert run.main(argv(demo, out, "--phase gcn --limit 8", random)) == 0
    sentence = refused(capsys, argv(demo, out, "--phase eval"))
    assert f"{out}/gcn-random.pt and backbone.pt" in sentence
    (out / "gcn-random.pt").unlink()
    assert run.main(argv(demo, out, "--phase backbone --fresh --seed 1 --epochs 1")) == 0
    sentence = refused(capsys, argv(demo, out, "--phase eval"))
    assert f"{out}/gcn-image.pt and backbone.pt" in sentence
    assert "another backbone" in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--phase gcn --nodes word --glove", "gcn-word.pt another node features"),
        ("--phase backbone --fresh --weights", "backbone.pt another starting weights"),
    ],
)
def test_what_a_model_was_made_from_is_known_by_content(
    demo, out, tmp_path, capsys, options, words
):
    contents = [b"cup 1 2 3\ncar 2 1 0\n", b"cup 1 2 3\ncar 2 1 1\n"]
    if "weights" in options:
        contents = [(out / f"{name}.pt").read_bytes() for name in ("backbone", "gcn-pca")]
    file, same = tmp_path / "file", tmp_path / "same"
    file.write_bytes(contents[0])
    same.write_bytes(contents[0])
    assert run.main(argv(demo, out, "--epochs 1", options, file)) == 0
    model = out / words.split()[0]
    before = model.read_bytes()
    options = options.replace("--fresh", "")
    assert run.main(argv(demo, out, "--epochs 1", options, same)) == 0
    assert "done before" in capsys.readouterr().out
    file.write_bytes(contents[1])
    sentence = refused(capsys, argv(demo, out, "--epochs 1", options, file))
    assert [word for word in words.split() if word not in sentence] == []
    assert model.read_bytes() == before


def test_code_that_does_something_else_is_another_run(demo, tmp_path, capsys, monkeypatch):
    code = tmp_path / "code.py"
    options = argv(demo, tmp_path / "out", "--phase backbone --epochs 1 --limit 8")
    code.write_text("x = 1")
    for _ in range(2):
        monkeypatch.setattr(run, "CODE_ID", checkpoints.code_id(code))
        assert run.main(options) == 0
    code.write_text("x = 2")
    monkeypatch.setattr(run, "CODE_ID", checkpoints.code_id(code))
    sentence = refused(capsys, options)
    assert f"{tmp_path}/out/backbone.pt was made with other code" in sentence


def test_the_code_that_is_compared_is_what_the_page_says():
    text = (ROOT / "docs/long-runs.md").read_text()
    sentence = re.search(r"- the code that makes numbers: (.*?)\. A changed", text, re.S)[1]
    above, _, below = sentence.partition("`runtime/`: ")
    named = set()
    for name in re.findall("`([^`]+)`", above.removesuffix("and of\n  ")):
        if name.endswith("/"):
            named |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{name}*.py")}
        else:
            named.add(name)
    named |= {f"runtime/{name}.py" for name in re.findall("`([^`]+)`", below)}
    assert {path.relative_to(ROOT).as_posix() for path in run.code_files()} == named


def one_label(document):
    document["categories"] = document["categories"][:1]
    for mark in document["annotations"]:
        mark["category_id"] = document["categories"][0]["id"]


def always_together(document):
    first, second = [category["id"] for category in document["categories"][:2]]
    document["categories"] = document["categories"][:2]
    marks = [mark | {"category_id": first} for mark in document["annotations"]]
    document["annotations"] = marks + [mark | {"category_id": second} for mark in marks]


def test_labels_that_always_occur_together_have_no_f_pca(demo, tmp_path, capsys):
    demo = shutil.copytree(demo, tmp_path / "demo")
    edit(demo, always_together)
    assert "F_PCA is 0" in refused(capsys, argv(demo, tmp_path / "out", "--nodes pca"))


def test_one_label_has_no_f_pca_and_trains_with_f_i(demo, tmp_path, capsys):
    demo, out = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "out"
    edit(demo, one_label)
    sentence = refused(capsys, argv(demo, out, "--epochs 1 --nodes pca"))
    assert "F_PCA is 0" in sentence
    assert "--nodes image" in sentence
    assert not list(out.glob("*.pt"))  # before anything was trained
    assert run.main(argv(demo, out, "--epochs 1 --nodes image --limit 8")) == 0
    text = (out / "metrics-gcn-image.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_names_of_odd_characters_reach_no_report_raw(demo, finished, tmp_path):
    demo, out = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "out"
    AP = json.loads((finished / "metrics-backbone.json").read_text())["AP"]
    shown = max(AP, key=lambda name: AP[name] or 0)  # among the labels with the highest AP

    def rename(document):
        for category in document["categories"]:
            if category["name"] == shown:
                category["name"] = "a|b\x1b[2J\n\u202e"

    edit(demo, rename)
    assert run.main(argv(demo, out, "--phase backbone eval --epochs 1")) == 0
    lines = (out / "results.md").read_text().splitlines()
    assert all(line.isprintable() for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    name = r"a\|b\\x1b\[2J\\n\\u202e"  # escaped for the terminal, then for Markdown
    assert name in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--weights gone.pth", "there is no file gone.pth"),
        ("--weights none --nodes word --glove gone.txt", "--glove gone.txt is not there"),
        ("--evaluate gone.pt", "there is no file gone.pt"),
        ("--device cuda:9", "; choose --device cpu, or auto"),
    ],
)
def test_what_is_missing_is_said_before_a_label_is_read_or_a_photo_fetched(
    tmp_path, capsys, options, sentence
):
    data = tmp_path / "not-there"  # would be the next error
    assert sentence in refused(capsys, argv(data, tmp_path / "out", "--download", options))
    assert not data.exists()


def test_a_disk_without_room_is_said_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * 10**10))
    options = argv(tmp_path / "data", tmp_path / "out", "--download")
    # 13.5 + 6.7 + 0.3 GB to download; most is needed while train2014 is unpacked, or val2014.
    sentence = refused(capsys, options)
    assert "GB in " in sentence
    assert "(20.4 GB to download" in sentence
    assert "but only 20.0 GB are free" in sentence
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10**7))
    sentence = refused(capsys, argv(tmp_path / "data", tmp_path / "out"))
    # Three models, and two files of four copies each of one in training; float32.
    megabytes = 4 * (3 + 2 * 4) * sum(p.numel() for p in tresnet.tresnet_tiny().parameters()) / 1e6
    assert f"--out {tmp_path}/out needs about {megabytes:.1f} MB for 3 models" in sentence
    assert "but only 10.0 MB are free" in sentence


def test_a_model_is_not_evaluated_on_photos_that_it_was_trained_on(
    demo, finished, tmp_path, capsys
):
    own = f"--val-json {demo}/annotations/instances_train2014.json --val-images {demo}/train2014"
    options = argv(demo, tmp_path, "--evaluate", finished / "backbone.pt")
    sentence = refused(capsys, [*options, *own.split()])
    assert "backbone.pt was trained on 24 of the 24 val photos" in sentence
    assert run.main(options) == 0


def test_weights_of_an_unfinished_training_or_behind_a_url_have_seen_its_photos_too(
    demo, finished, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "finish", full_disk)
        assert run.main(argv(demo, tmp_path / "begun", "--phase backbone --epochs 1")) == 2
    own = f"--val-json {demo}/annotations/instances_train2014.json --val-images {demo}/train2014"
    options = [*argv(demo, tmp_path / "out", "--phase backbone"), *own.split()]
    last = tmp_path / "begun/last-backbone.pt"
    sentence = refused(capsys, [*options, "--weights", str(last)])
    assert f"{last} was trained on 24 of the 24 val photos" in sentence
    url = "https://example.org/backbone.pt"
    monkeypatch.setattr(download, "cached", lambda *_: finished / "backbone.pt")
    sentence = refused(capsys, [*options, "--weights", url])
    assert f"{url} was trained on 24 of the 24 val photos" in sentence
    assert not (tmp_path / "out/backbone.pt").exists()
