"""TODO"""

import shutil

import pytest
from conftest import argv

import run


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename_a_label(annotations):
    for path in annotations.iterdir():
        path.write_text(path.read_text().replace('"person"', '"pedestrian"'))


JSON, PHOTO = "annotations/instances_train2014.json", "val2014/demo_val2014_000001000003.jpg"
BAD_INPUT = [  # what happens to data/ or the finished run in out/, arguments, words of the message
    (lambda d: shutil.rmtree(d / "data"), "", f"{JSON} instances_val2014.json train2014/"),
    (lambda d: truncate(d / "data" / JSON), "", JSON),
    (lambda d: (d / "data" / PHOTO).unlink(), "", f"missing {PHOTO}"),
    (lambda d: truncate(d / "data" / PHOTO), "--phase eval", PHOTO),
    (lambda d: None, "--image-size 102", "102 multiple"),
    (lambda d: (d / "out/embeddings.pt").unlink(), "--phase gcn", "out/embeddings.pt --phase"),
    (lambda d: None, "--lr 0.002", "out/backbone.pt lr 0.001 0.002 --fresh"),
    (lambda d: None, "--tau 0.3", "out/gcn-image.pt tau 0.1 0.3 --fresh"),
    (lambda d: rename_a_label(d / "data/annotations"), "--phase embed", "out/backbone.pt labels"),
    (lambda d: truncate(d / "out/backbone.pt"), "--phase eval", "out/backbone.pt"),
    (
        lambda d: (d / "g").write_text("cup 1 2\ncar 1\n"),
        "--nodes word --glove {d}/g",
        "/g, line 2",
    ),
]


@pytest.mark.parametrize(("spoil", "more", "words"), BAD_INPUT)
def test_bad_input_ends_with_code_2_and_a_sentence_that_names_it(
    demo, finished, tmp_path, capsys, spoil, more, words
):
    data_dir = shutil.copytree(demo, tmp_path / "data")
    out = shutil.copytree(finished, tmp_path / "out")
    spoil(tmp_path)
    try:
        code = run.main(argv(data_dir, out, more.format(d=tmp_path)))
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    sentence = error[error.index("error: ") :].strip()  # after argparse's usage
    assert len(sentence.splitlines()) == (3 if "val2014.json" in words else 1)  # 2 for the tree
    assert [word for word in words.split() if word not in sentence] == []
