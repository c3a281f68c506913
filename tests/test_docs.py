"""README.md and docs/: what they name is there, their commands are taken by the programs, and their
examples work.

Oracle: the files and programs themselves; of the examples, a data set of six photos made by hand.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, drawn_photo, scores_of, state_of

import iml_gcn
import predict
import run
import tresnet
from datasets import label_files
from experiments import bootstrap, claims, evidence, frozen, scores

PAGES = [Path("README.md"), *(path.relative_to(ROOT) for path in sorted(ROOT.glob("docs/*.md")))]
PAGES = {str(page): (ROOT / page).read_text() for page in PAGES}
SOURCES = {path: path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]}
ALL = "\n".join(PAGES.values())
MODULES = ["iml_gcn", "tresnet", "data", "metrics", "run", "predict", "backbones"]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_that_a_page_speaks_of_exist(page):
    spoken = re.findall(r"`([\w./]+)(?:\(\))?`", PAGES[page])
    folders = "docs/", *{f"{path.parent.name}/" for path in SOURCES}
    files = [name for name in spoken if name.endswith(".py") or name.startswith(folders)]
    files = [ROOT / name for name in files]
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page])
    files += [(ROOT / page).parent / link for link in links if not link.startswith("http")]
    assert [path for path in files if not path.exists()] == []
    names = [name.split(".") for name in spoken if name.startswith(tuple(f"{m}." for m in MODULES))]
    for module, *attributes in names:
        if attributes != ["py"]:
            assert hasattr(importlib.import_module(module), attributes[0]), (module, attributes)


def test_the_readmes_line_counts_are_right_within_a_tenth():
    counts = re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", PAGES["README.md"], re.M)
    assert {name for name, _ in counts} >= {path.name for path in ROOT.glob("*.py")}
    for name, count in counts:
        lines = len((ROOT / name).read_text().splitlines())
        assert abs(int(count) - lines) <= lines / 10, f"{name} has {lines} lines"


def test_every_difference_that_the_code_refers_to_is_listed():
    listed = re.findall(r"^(\d+)\. ", PAGES["docs/differences.md"], re.M)
    assert listed == [str(i + 1) for i in range(len(listed))]
    used = re.findall(r"[Dd]ifferences? (\d+)(?: (?:to|and) (\d+))?", "".join(SOURCES.values()))
    assert {number for pair in used for number in pair if number} <= set(listed)


# Options and commands


OTHERS = "--nproc-per-node --nnodes --max-restarts --rdzv-backend --rdzv-endpoint"  # torchrun's
OTHERS += " --local-addr --rdzv-conf --ipc --index-url"  # Docker's and pip's
OTHERS = {*OTHERS.split(), "--fuzz", "--fuzz-case", "--two-hosts", "--rehearsal"}  # and the tests'
OTHERS.add("--max-norm")  # docs/change-it.md's


@pytest.fixture
def programs(monkeypatch):
    """What takes each program's arguments."""
    monkeypatch.setitem(run.DATASETS, "mine", None)  # docs/change-it.md's
    monkeypatch.setitem(run.BACKBONES, "small", (None, "none"))
    run.KNOWN.append("mine")
    yield {
        "run.py": run.parse_args,
        "predict.py": predict.parse_args,
        "-m experiments.claims": claims.parse_args,
        "-m experiments.evidence": evidence.parse_args,
        "-m experiments.frozen": frozen.parse_args,
        "-m experiments.bootstrap": bootstrap.parse_args,
        "-m experiments.scores": scores.parse_args,
    }
    run.KNOWN.remove("mine")


def test_every_option_in_the_pages_is_one_of_a_program(programs, capsys):
    for parse in programs.values():
        with pytest.raises(SystemExit):
            parse(["--help-all" if parse is run.parse_args else "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | OTHERS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ALL)) <= known


def code_of(parse, arguments):
    try:
        parse(shlex.split(arguments, comments=True))
    except SystemExit as stop:
        return stop.code
    except ValueError:  # options that contradict each other
        return 2
    return 0


def test_every_command_in_the_pages_and_in_the_programs_docstrings_is_taken(programs):
    calls, start = [], rf"(?:python|torchrun [^`\n]*?) ({'|'.join(map(re.escape, programs))})"
    usage = [ast.get_docstring(ast.parse(x)) for x in SOURCES.values() if "__main__" in x]
    for text in [*PAGES.values(), *map(str, usage)]:
        text = re.sub(r"\\\n *", "", text)
        for variable, value in re.findall(r'^(\w+)="([^"]*)"', text, re.M):
            text = text.replace(f"${variable}", " ".join(value.split()))
        calls += re.findall(rf"{start}(?= |`|$)([^`\n]*)", text, re.M)
    assert len(calls) > 20
    alone = re.findall(r"`(--[^`]* [^`]*)`", ALL)  # options without their program
    assert len(alone) > 5
    calls += [("run.py", options) for options in alone if "--fuzz" not in options]
    assert [call for call in calls if code_of(programs[call[0]], call[1])] == []


# docs/change-it.md


def write_changed(root):
    """A copy of the program with every example of the page where the page says it goes."""
    for path in SOURCES:
        if path.parent.name != "tests":
            target = root / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    places = {  # the beginning of an example -> file, and the line that it follows or replaces
        "PRESETS[": ("run.py", r"(?s)\nPRESETS = {.*?\n}\n", r"\g<0>{}"),
        "head =": ("run.py", r" *head = iml_gcn\.linear_head.*\n", "{}"),
        "elif": ("backbones/__init__.py", r" *else:\n *head = nn\.Linear", r"{}\g<0>"),
        'Option("--max-norm"': ("run.py", r' *Option\("--seed".*\n.*\n', r"\g<0>{}"),
        "if args.max_norm": ("run.py", r".*\.backward\(\).*\n", r"\g<0>{}"),
        '"one_error"': ("reports/metrics_files.py", r' *"mAP": .*\n', r"\g<0>{}"),
    }
    parts = re.split("```python\n(.*?)```", PAGES["docs/change-it.md"], flags=re.S)
    for text, example in zip(parts[::2], parts[1::2], strict=False):
        key = next((key for key in places if example.strip().startswith(key)), None)
        if key:
            file, line, new = places.pop(key)
        else:
            file, line, new = re.findall(r"end of `(\S+\.py)`", text)[-1], r"\Z", "\n\n{}"
        code, new = (root / file).read_text(), new.replace("{}", example)
        code, count = re.subn(line, new, code, count=1)
        assert count == 1, f"no place for {example}"
        (root / file).write_text(code)
    assert not places


OWN = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in SOURCES}


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """run.py and predict.py of that copy, imported in place of ours for as long as the test."""

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] in OWN]

    write_changed(tmp_path / "program")
    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path / "program")
    monkeypatch.syspath_prepend(tmp_path / "program")
    yield importlib.import_module("run"), importlib.import_module("predict")
    for name in loaded():
        del sys.modules[name]  # monkeypatch puts ours back


def test_the_examples_of_a_data_set_backbone_head_metric_and_option_train_and_label(
    tmp_path, changed
):
    shown = {"train": ["cat;dog", "cat", "dog", "cat"], "val": ["cat;fire hydrant", "dog;bird"]}
    for name, labels in shown.items():
        rows = [f"{name}{i}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
        for i in range(len(rows)):
            drawn_photo(i).save(tmp_path / f"{name}{i}.png")
    changed_run, changed_predict = changed
    assert Path(changed_run.__file__) == tmp_path / "program/run.py"
    options = "--dataset mine --data .. --backbone small --epochs 1 --nodes image --workers 0"
    options += " --max-norm 1e-6"
    assert changed_run.main(f"{options} --device cpu --out ../out".split()) == 0
    options = "../out/backbone.pt ../val0.png --save ../labelled --device cpu"
    assert changed_predict.main(options.split()) == 0
    out = tmp_path / "out"
    assert (tmp_path / "labelled" / "val0.jpg").is_file()
    assert json.loads((out / "args.json").read_text())["image_size"] == 224  # the preset
    state = state_of(out / "backbone.pt")
    assert state["backbone.conv.weight"].shape == (64, 3, 8, 8)
    assert state["head.0.weight"].shape == (512, 64)
    settings = torch.load(out / "backbone.pt", weights_only=True)["settings"]
    assert settings["max-norm"] == 1e-6  # decides=True: stored, and compared before it is used
    for name in ("backbone", "gcn-image"):
        logits, targets = (array.tolist() for array in scores_of(out, name))
        assert targets == [[1, 0, 1], [0, 1, 0]]  # cat, dog, fire hydrant; bird is no class
        wrong = sum(
            truth[row.index(max(row))] == 0 for row, truth in zip(logits, targets, strict=True)
        )
        report = json.loads((out / f"metrics-{name}.json").read_text())
        assert report["one_error"] == 100 * wrong / 2


# docs/voc.md


def test_the_lines_for_pascal_voc_write_csv_files_that_are_read_as_meant(tmp_path, monkeypatch):
    root = tmp_path / "VOCdevkit/VOC2007"
    photos = {  # split -> photo -> objects and whether they are difficult
        "trainval": {"000005": [("dog", 0), ("dog", 1), ("tvmonitor", 0)], "000007": [("cat", 1)]},
        "test": {"000001": [("person", 0), ("dog", 0)]},
    }
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, objects_of in photos.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{n}\n" for n in objects_of))
        for name, objects in objects_of.items():
            marks = "".join(
                f"<object><name>{label}</name><difficult>{hard}</difficult></object>"
                for label, hard in objects
            )
            (root / f"Annotations/{name}.xml").write_text(f"<annotation>{marks}</annotation>")
            drawn_photo(int(name)).save(root / f"JPEGImages/{name}.jpg")
    monkeypatch.chdir(tmp_path)
    exec(re.findall("```python\n(.*?)```", PAGES["docs/voc.md"], re.S)[0], {})
    labels = {}
    for split in photos:
        read = label_files.read_labels(f"{split}.csv", root / "JPEGImages")
        for path, row in zip(read.paths, read.targets, strict=True):
            labels[Path(path).stem] = {read.classes[j] for j in np.flatnonzero(row)}
    assert labels == {"000005": {"dog", "tvmonitor"}, "000007": set(), "000001": {"dog", "person"}}


# README.md


def test_the_five_lines_of_the_readme_are_the_method():
    torch.manual_seed(0)
    n, targets = 4, torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]])
    names = {name: getattr(iml_gcn, name) for name in dir(iml_gcn)} | {
        "tresnet_m": tresnet.tresnet_tiny,
        "images": torch.rand(2, 3, 64, 64),
        "targets": targets,
        "F_I": torch.rand(n, 512),
        "n": n,
    }
    lines = re.findall("```python\n(.*?)```", PAGES["README.md"], re.S)[0]
    exec(lines.replace("2048", "512"), names)
    assert names["logits"].shape == (2, n)
    # By hand: labels 0, 1 and 2 are on 3, 3 and 2 photos, label 3 on 1; they are together on
    # (0, 1) 2, (0, 2) 1, (1, 2) 1, (1, 3) 1 and (2, 3) 1. No P(j | i) is below 0.1 but 0.
    neighbours = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]).double()
    A = 0.8 * torch.eye(n) + 0.2 * neighbours / neighbours.sum(1, keepdim=True)
    root = A.sum(1).pow(-0.5)
    torch.testing.assert_close(names["A_hat"].double(), root[:, None] * A * root)
    deployed, images = names["deployed"], names["images"]
    torch.testing.assert_close(
        deployed(images), names["model"].eval()(images), rtol=1e-3, atol=1e-5
    )
