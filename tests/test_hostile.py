"""What comes from outside is taken as it is, or refused in one sentence that says where and what;
and what the program writes can be read by others.

Oracles: files spoilt on purpose, one way each, and what the sentence has to name.
"""

import functools
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from conftest import coco_document, state_of, write_coco, write_vg
from PIL import Image

import backbones
import data
import run
from runtime import checkpoints, terminal, writing
from runtime.folder import Folder

LONG = "x" * 10**7
DEEP = functools.reduce(lambda inner, _: [inner], range(200), 1)


def assert_sentence(error, words=""):
    message = str(error)
    assert words in message, message[:500]
    assert re.match(r"/?\S", message)
    assert message.isprintable(), message[:500]
    assert len(message) <= 450, message[:500]  # 300, and 150 for pytest's long folders


def test_photo_names_lead_to_no_place_outside_their_folder(tmp_path):
    names = ["a/x.jpg", "..x.jpg", "a..b/x..jpg", "x\udc80.jpg"]  # taken as they are
    inside = {name: name for name in names}
    inside |= dict.fromkeys(["x.jpg", "./x.jpg", "a/../x.jpg", "../x.jpg", "C:\\x.jpg"], "x.jpg")
    inside |= {"/etc/passwd": "etc/passwd", "a/../../x.jpg": "x.jpg", "b\\..\\..\\x.jpg": "x.jpg"}
    inside |= {"\\\\server\\y.jpg": "server/y.jpg", "file:///etc/../../y.jpg": "y.jpg"}
    images = [{"id": i, "file_name": name} for i, name in enumerate(inside)]
    document = {"images": images, "annotations": [], "categories": []}
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.paths == [f"photos/{name}" for name in dict.fromkeys(inside.values())]


@pytest.mark.parametrize(
    ("value", "width", "expected"),
    [
        ("café 信号 🚦", 80, "café 信号 🚦"),
        ("\x1b[31mred gpj.\u202eexe", 80, "\\x1b[31mred gpj.\\u202eexe"),
        ("cat\u200b \ud800", 80, "cat\\u200b \\ud800"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123...89a"),
        ("\x00" * 10**7, 12, "\\x00\\...\\x00"),
    ],
)
def test_printable_by_hand(value, width, expected):
    assert terminal.printable(value, width) == expected


def test_label_names_are_kept_as_they_are_and_blank_ones_refused(tmp_path):
    names = ["cat", "cat\u200b", "\x1b[31mcat", "lone \ud800"]  # four labels, not one
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    assert data.load_coco(write_coco(tmp_path, document), "").classes == names
    for name in ("", " \t\u3000", None):
        document["categories"][2]["name"] = name
        with pytest.raises(
            ValueError, match=r"categories\[2\]\.name is .* text, not blank"
        ) as error:
            data.load_coco(write_coco(tmp_path, document), "")
        assert_sentence(error.value)


IMAGE, CATEGORY = {"id": 7, "file_name": "7.jpg"}, {"id": 9, "name": "horse"}
MARK = {"image_id": 7, "category_id": 2}
NO_WHOLE = [LONG, 1e300, math.nan, True, None, {}, DEEP, "7.0", "", "\u0667", "\x1b[2J\ud800"]
NO_NAME = ["x.jpg\0.png", "", "a/..", "../..", "C:\\", "/", "https://"]
SPOILT = [  # key, what is put at the end of its list, what the sentence says
    *[("images", IMAGE | {"id": value}, "images[3].id is ") for value in NO_WHOLE],
    *[("images", {"id": 5, "file_name": name}, "expected the path of a pho") for name in NO_NAME],
    *[("annotations", value, "annotations[4] is ") for value in (LONG, None, DEEP)],
    ("categories", CATEGORY | {"id": 1.5}, "categories[2].id is 1.5, expected a whole number"),
    ("annotations", MARK | {"image_id": [7]}, "annotations[4].image_id is [7], expected a whole"),
    ("annotations", MARK | {"category_id": "x"}, "annotations[4].category_id is 'x', expected a"),
    ("images", {"id": 10**4000, "file_name": 7}, "images[3].file_name is 7, expected the"),
    ("images", {"id": 5, LONG: 1}, "images[3] has no 'file_name'"),
    ("images", IMAGE | {"file_name": "8.jpg"}, "image id 7 is there twice"),
    ("categories", CATEGORY, "category id 9 is there twice"),
    ("annotations", {"image_id": 7, "caption": "a horse"}, "annotations[4] has no 'category_id'"),
    ("annotations", MARK | {"image_id": 10**4000}, "image_id 1000"),
    ("annotations", MARK | {"category_id": 5}, "category_id 5 is not among the 2 there are"),
]


@pytest.mark.parametrize(("key", "item", "words"), SPOILT)
def test_coco_json_spoilt_in_one_place_is_refused_by_that_place(tmp_path, key, item, words):
    document = coco_document()
    document[key].append(item)
    with pytest.raises(ValueError, match=r"instances\.json: ") as error:
        data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert_sentence(error.value, words)


def test_numbers_that_no_reader_uses_may_be_anything(tmp_path):
    document = coco_document()
    document["annotations"][0] |= {"area": math.nan, "bbox": [math.inf] * 4}
    path = write_coco(tmp_path, document | {"info": {"year": math.nan}})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as Windows likes it
    assert data.load_coco(path, tmp_path).targets.tolist() == [[1, 1], [0, 0], [0, 1]]


COCO_TEXT = json.dumps(coco_document())
NO_JSON = [COCO_TEXT.encode("utf-16")[:-1], COCO_TEXT.replace("apple", "\u00e0").encode("latin-1")]
NO_JSON += [b"", b"\0" * 1000, COCO_TEXT[:-40].encode(), COCO_TEXT.encode() + b"]"]
NO_JSON += [COCO_TEXT.replace("40", each).encode() for each in ("4" * 5000, "[" * 100_000)]
NO_JSON += [COCO_TEXT.replace('"apple"', "\x1b[31m").encode(), b'"' + b"x" * 10**7]
NO_COCO = [
    (b"[]", "it is [], expected an object"),
    (b"{}", "it has no 'images'"),
    (COCO_TEXT.replace('"images": ', '"images": null, "x": ').encode(), "images is None"),
]


@pytest.mark.parametrize(
    ("content", "words"), [*((content, "not valid JSON") for content in NO_JSON), *NO_COCO]
)
def test_json_of_another_encoding_kind_or_damaged_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"instances\.json") as error:
        data.load_coco(path, tmp_path)
    assert_sentence(error.value, words)


INDEX = "vg_category_500_labels_index.json"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (INDEX, '{"7.jpg": [2, true]}', "7.jpg[1] is True, expected a label number, 0 to 499"),
        (INDEX, '{"7.jpg": [500]}', "7.jpg[0] is 500, expected a label number, 0 to 499"),
        ("test_list_500.txt", "8.jpg ../9.jpg", "[1] is '../9.jpg', expected a path inside the"),
        (INDEX, '{"7.jpg": 7}', "7.jpg is 7, expected a list"),
    ],
)
def test_vg500_files_of_the_wrong_kind_are_one_sentence(tmp_path, file, content, words):
    write_vg(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=file) as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value, words)


def glove(tmp_path, content):
    (tmp_path / "glove.txt").write_bytes(content)
    return data.load_glove(tmp_path / "glove.txt", ["cat"])[0].tolist()


def test_glove_text_as_it_is_found(tmp_path):
    for content in (
        b"cat 1 2\ncat 3 4\n",  # the first counts, gensim's rule
        b"\xef\xbb\xbfcat 1 2\n",  # a byte order mark
        b"cat 1 2\r\na\rb 3 4\r\n",  # two lines
        b"dog nan 1e999\ncat 1 2\n",  # of no label
    ):
        assert glove(tmp_path, content) == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cat 1 nan", "line 1: holds a number that is not finite"),
        (b"cat 1 1e39", "line 1: holds a number that is not finite"),  # in float32
        (b"dog 1 2\ncat 1", "line 2: has 1 numbers, line 1 has 2"),
        (b"dog 1 2\ncat 1 \x1b[31m", r"line 2: could not convert string to float: '\\x1b"),
        (b"dog 1 2\nca\xff 1 2", "expected UTF-8 text"),
        (b"dog 1 2", "none of the 1 words"),
    ],
)
def test_damaged_glove_text_is_one_sentence_that_names_the_line(tmp_path, content, words):
    with pytest.raises(ValueError, match=rf"glove\.txt.*{words}") as error:
        glove(tmp_path, content)
    assert_sentence(error.value)


def test_a_photo_over_pillows_limit_is_an_error_that_says_why_and_no_warning(
    tmp_path, monkeypatch, recwarn
):
    Image.new("RGB", (12, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow only warns, up to twice its limit
    assert data.read_image(tmp_path / "a.png", 8).size == (8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59)
    with pytest.raises(ValueError, match="120 pixels") as error:
        data.read_image(tmp_path / "a.png", 8)
    assert_sentence(error.value)
    assert len(recwarn) == 0


def test_photos_are_data_not_programs(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", "EPS")  # Ghostscript would run it
    with pytest.raises(ValueError, match="cannot identify"):
        data.read_image(tmp_path / "photo.jpg", 8)


@pytest.mark.parametrize("name", ["\x1b[31m\u202egpj.exe", "x" * 300, "lone \ud800"])
def test_photo_names_reach_a_message_in_one_clean_line(tmp_path, name):
    with pytest.raises(ValueError, match="cannot read photo ") as error:
        data.read_image(f"{tmp_path}/{name}", 8)
    assert_sentence(error.value)


def test_json_that_is_written_has_null_where_there_is_no_number(tmp_path):
    value = {"mAP": math.nan, "AP": {"cat": math.inf, "dog": 50.5}, "path": tmp_path, "none": None}
    value["list"] = [1.5, -math.inf, {"x": math.nan}]
    writing.save_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    expected = {"mAP": None, "AP": {"cat": None, "dog": 50.5}, "path": str(tmp_path), "none": None}
    assert found == expected | {"list": [1.5, None, {"x": None}]}


def test_a_matrix_of_word_vectors_has_a_row_of_finite_numbers_a_label(tmp_path):
    path, rows = tmp_path / "vectors.npy", np.arange(6.0).reshape(3, 2)
    np.save(path, rows)
    nodes, unknown = data.load_glove(path, ["label 0", "label 1", "label 2"])
    assert (nodes.tolist(), unknown) == (rows.tolist(), [])
    with pytest.raises(ValueError, match=r"vectors\.npy is not a .* of shape \(2, d\)"):
        data.load_glove(path, ["label 0", "label 1"])
    for number in (np.inf, np.nan, -1e39):  # the last is infinite in float32
        rows[1, 1] = number
        np.save(path, rows)
        with pytest.raises(ValueError, match="npy file of finite numbers"):
            data.load_glove(path, ["label 0", "label 1", "label 2"])
    np.save(path, [["cat", "dog"]])
    for _ in range(2):
        with pytest.raises(ValueError, match="npy file of finite numbers"):
            data.load_glove(path, ["label 0"])
        path.write_bytes(b"text")


def test_a_progress_line_with_nothing_done_yet_has_no_rate(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(terminal, "clock", terminal.Clock())  # of no run
    progress = terminal.Progress("eval", 7)
    progress.show()
    assert capsys.readouterr().out == "\r" + "eval  0/7 images" + "\033[K"
    assert progress.close().startswith("0.0 images/s")


@pytest.mark.parametrize("name", ["label {}", "{}"])
def test_numbers_have_no_word_vectors(tmp_path, name):
    (tmp_path / "glove.txt").write_text("label 1 2\n0 3 4\n1 5 6\n")
    with pytest.raises(ValueError, match=r"the labels are numbers .*; pass a \.npy file"):
        data.load_glove(tmp_path / "glove.txt", [name.format(k) for k in range(2)])


def test_a_rank_chooses_its_gpu_before_it_touches_one(monkeypatch):
    calls = []

    def begin(where):
        calls.append(("begin", where))
        return "cuda:1"

    def check(where):
        calls.append(("check", where))

    monkeypatch.setattr(run.ranks, "begin", begin)
    monkeypatch.setattr(run.device, "check", check)
    monkeypatch.setattr(run.device, "native_bfloat16", lambda where: True)
    args = run.on_device(run.parse_args(["--device", "cuda"]))
    assert calls == [("begin", "cuda"), ("check", "cuda:1")]
    assert (args.device, args.amp) == ("cuda:1", True)


def test_a_checkpoint_that_lost_its_first_bytes_is_refused(finished, tmp_path):
    content, path = (finished / "gcn-pca.pt").read_bytes(), tmp_path / "cut.pt"
    for first in (1, 200, len(content) // 2):
        path.write_bytes(content[first:])
        with pytest.raises(ValueError, match="has changed since it was written"):
            backbones.load_model(path)


def test_of_single_flipped_bits_none_changes_a_weight_in_silence(finished, tmp_path):
    content = (finished / "gcn-pca.pt").read_bytes()
    state, refusals = state_of(finished / "gcn-pca.pt"), 0
    rng, path = np.random.default_rng(0), tmp_path / "flipped.pt"
    for place, bit in zip(
        rng.integers(len(content), size=60), rng.integers(8, size=60), strict=True
    ):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            model, _ = backbones.load_model(path)
        except ValueError:
            refusals += 1
            continue
        ours = model.state_dict()
        assert all(torch.equal(ours[key], value) for key, value in state.items())
    assert refusals > 30


@pytest.mark.parametrize("method", [8, 12, 14, 99])  # zlib's, bzip2's, lzma's, and none
def test_a_checkpoint_that_says_that_it_is_compressed_is_one_sentence(tmp_path, method):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(9)}, path)
    content, entry = path.read_bytes(), b"PK\1\2"  # of the zip's directory, with the method at 10
    name, *entries = content.split(entry)
    said = [method.to_bytes(2, "little").join([each[:6], each[8:]]) for each in entries]
    path.write_bytes(entry.join([name, *said]))
    with pytest.raises(ValueError, match="is damaged") as error:
        checkpoints.read_checkpoint(path)
    assert_sentence(error.value, str(path))


@pytest.mark.parametrize("settings", ["lr", [1], torch.ones(2), None, {}, {"lr": torch.ones(2)}])
def test_settings_of_a_file_that_are_no_settings_are_other_ones(tmp_path, settings):
    torch.save({"classes": ["cat"], "settings": settings}, tmp_path / "embeddings.pt")
    with pytest.raises(ValueError, match=r"was made with lr .*, now it is 1") as error:
        Folder(tmp_path, ["cat"]).load("embeddings.pt", "embed", {"lr": 1})
    assert_sentence(error.value)
