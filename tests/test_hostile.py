"""What comes from outside is taken as it is, or refused in one sentence that says where and what;
and what the program writes can be read by others.

Oracles: files spoilt on purpose, one way each, and what the sentence has to name.
"""

import functools
import json
import math
import re
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import coco_document, write_coco
from PIL import Image
from torch import nn

import data
from runtime import checkpoints, reading, text

LONG = "x" * 10**7
DEEP = functools.reduce(lambda inner, _: [inner], range(200), 1)


def assert_sentence(error, words=""):
    message = str(error)
    assert words in message, message[:500]
    assert re.match(r"/?\S", message)
    assert message.isprintable(), message[:500]
    assert len(message) <= 450, message[:500]  # 300, and 150 for pytest's long folders


OUTSIDE = ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\..\\..\\x.jpg", "\\\\server\\x.jpg"]
OUTSIDE += ["\\x.jpg", "C:\\x.jpg", "c:x.jpg", "x.jpg\0.png", "", ".", "..", "a/..", "x" * 5000]
INSIDE = ["x.jpg", "a/x.jpg", "./x.jpg", "a/../x.jpg", "..x.jpg", "a..b/x..jpg", "x\udc80.jpg"]


def write_vg500(folder, test="8.jpg", labels="[0]", more=""):
    (folder / "train_list_500.txt").write_text("7.jpg")
    (folder / "test_list_500.txt").write_text(test)
    index = f'{{"7.jpg": [2], {json.dumps(test)}: {labels}{more}}}'
    (folder / "vg_category_500_labels_index.json").write_text(index)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_photo_name_leads_out_of_the_image_folder(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match=r"instances\.json: images\[1\]\.file_name is ") as error:
        data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert_sentence(error.value, "expected a path inside the image folder")
    if name.split() == [name]:  # a line of a list is split at blanks, and of NUL it is one name
        write_vg500(tmp_path, name)
        with pytest.raises(ValueError, match=r"test_list_500\.txt: \[0\] is ") as error:
            data.load_vg500(tmp_path)
        assert_sentence(error.value, "expected a path inside the image folder")


@pytest.mark.parametrize("name", INSIDE)
def test_photo_names_that_stay_inside_are_taken_as_they_are(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.paths == ["photos/40.jpg", f"photos/{name}", "photos/7.jpg"]


def test_links_may_lead_anywhere_inside_and_nowhere_outside(tmp_path):
    real, other = tmp_path / "disk/photos", tmp_path / "other"
    for folder in (real / "sub", other, tmp_path / "photos-2"):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    photos = tmp_path / "photos"
    links = {
        photos: real,  # the folder itself
        real / "in.jpg": "sub/x.jpg",
        real / "in": "sub",
        real / "out.jpg": other / "x.jpg",
        real / "up.jpg": "../../other/x.jpg",
        real / "chain.jpg": "out.jpg",
        real / "out": other,
        real / "beside": tmp_path / "photos-2",  # begins like the folder's name
        real / "loop.jpg": "loop.jpg",
        real / "cut.jpg": "absent.jpg",
    }
    for link, target in links.items():
        link.symlink_to(target)
    inside = ["in.jpg", "in/x.jpg", "sub/x.jpg", "absent.jpg", "cut.jpg", "loop.jpg", "a\0b"]
    inside = [f"{photos}/{name}" for name in [*inside, "in/../sub/x.jpg"]]
    reading.check_links(inside, photos)
    outside = ["out.jpg", "up.jpg", "chain.jpg", "out/x.jpg", "beside/x.jpg", "out/../other/x.jpg"]
    for name in outside:
        path = f"{photos}/{name}"
        with pytest.raises(ValueError, match=re.escape(f"photo {path} is a link")) as error:
            reading.check_links([*inside, path], photos)
        assert_sentence(error.value)
    reading.check_links([f"{photos}/out.jpg", f"{photos}/x.jpg"], photos, other)  # one of two
    reading.check_links([f"{real}/in.jpg"], photos)


@pytest.mark.parametrize(
    ("value", "width", "expected"),
    [
        ("traffic light", 80, "traffic light"),
        ("café 信号 🚦", 80, "café 信号 🚦"),
        ("\x1b[31mred\x07", 80, "\\x1b[31mred\\x07"),
        ("gpj.\u202eexe", 80, "gpj.\\u202eexe"),
        ("cat\u200b", 80, "cat\\u200b"),
        ("lone \ud800", 80, "lone \\ud800"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123...89a"),
        ("a" * 10**7 + "tail.jpg", 14, "aaaaaa...l.jpg"),
        ("\x00" * 10**7, 12, "\\x00\\...\\x00"),
    ],
)
def test_printable_by_hand(value, width, expected):
    assert text.printable(value, width) == expected


def test_label_names_are_kept_as_they_are_and_blank_ones_refused(tmp_path):
    names = ["cat", "cat\u200b", "\x1b[31mcat", "lone \ud800"]  # four labels, not one
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    assert data.load_coco(write_coco(tmp_path, document), "").classes == names
    for name in ("", "  \t", "\u3000", "x" * 1001, None, ["cat"]):
        document["categories"][2]["name"] = name
        with pytest.raises(ValueError, match=r"categories\[2\]\.name is .* text of 1 to") as error:
            data.load_coco(write_coco(tmp_path, document), "")
        assert_sentence(error.value)


NO_WHOLE = [LONG, 1e300, 1.5, math.nan, -math.inf, True, None, {}, [7], DEEP, "7", "\x1b[2J\ud800"]
NO_OBJECT = [LONG, 7, None, DEEP, True, []]
IMAGE, CATEGORY = {"id": 7, "file_name": "7.jpg"}, {"id": 9, "name": "horse"}
MARK = {"image_id": 7, "category_id": 2}
SPOILT = [  # key, what is put at the end of its list, what the sentence says
    *[("images", IMAGE | {"id": v}, "images[3].id is ") for v in NO_WHOLE],
    *[("categories", CATEGORY | {"id": v}, "categories[2].id is ") for v in NO_WHOLE],
    *[("annotations", MARK | {"image_id": v}, "annotations[4].image_id is ") for v in NO_WHOLE],
    *[("annotations", MARK | {"category_id": v}, ".category_id is ") for v in NO_WHOLE],
    *[("images", v, "images[3] is ") for v in NO_OBJECT],
    *[("annotations", v, "annotations[4] is ") for v in NO_OBJECT],
    ("images", {"id": 10**4000, "file_name": 7}, "images[3].file_name is 7, expected a path"),
    ("images", {"id": 5, "file_name": DEEP}, "images[3].file_name is [[[[[[[...]]]]]]], expected"),
    ("images", {"id": 5, LONG: 1}, "images[3] has no 'file_name'"),
    ("images", {"file_name": "11.jpg"}, "images[3] has no 'id'"),
    ("images", IMAGE, "image id 7 is there twice"),
    ("categories", {"id": 11}, "categories[2] has no 'name'"),
    ("categories", CATEGORY, "category id 9 is there twice"),
    ("categories", {"id": 11, "name": "zebra"}, "category 'zebra' is there twice"),
    ("annotations", {"image_id": 7, "caption": "a horse"}, "annotations[4] has no 'category_id'"),
    ("annotations", MARK | {"image_id": 8}, "image_id 8 is not among the 3 there are"),
    ("annotations", MARK | {"category_id": 5}, "category_id 5 is not among the 2 there are"),
    ("annotations", MARK | {"image_id": 10**4000}, "image_id 1000"),
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
    document["info"] = {"year": math.nan}
    path = write_coco(tmp_path, document)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as Windows likes it
    split = data.load_coco(path, tmp_path)
    assert split.classes == ["apple", "zebra"]
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


COCO_TEXT = json.dumps(coco_document())


NO_JSON = [COCO_TEXT.encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32")]
NO_JSON += [COCO_TEXT.replace("apple", "pomme \u00e0 point").encode("latin-1"), b"", b"\0" * 1000]
NO_JSON += [COCO_TEXT.replace("40", each).encode() for each in ("4" * 5000, "-", "[" * 5000)]
NO_JSON += [COCO_TEXT.replace("}]", "},]").encode(), COCO_TEXT[:-40].encode()]
NO_JSON += [COCO_TEXT.encode() + b"]", b'{"info": ' + b"[" * 100_000, b'"' + b"x" * 10**7]
NO_JSON += [COCO_TEXT.replace('"apple"', "\x1b[31m").encode()]
NO_COCO = [
    (COCO_TEXT[:-1].encode() + b', "images": []}', "'images' is there twice"),
    (COCO_TEXT.replace('"id": 9', '"id": 9, "id": 9').encode(), "'id' is there twice"),
    (b"[]", "it is [], expected an object"),
    (b"{}", "it has no 'images'"),
    (COCO_TEXT.replace('"images": ', '"images": null, "x": ').encode(), "images is None"),
    (COCO_TEXT.replace('"categories": ', '"categories": {}, "x": ').encode(), "categories is {}"),
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


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("objects", [{"image_id": 1, "objects": [{"names": [LONG, 7]}]}], ".names[1] is 7"),
        ("objects", [{"image_id": 1, "objects": []}] * 2, "image id 1 is there twice"),
        ("image_data", [{"image_id": 1}] * 2, "image id 1 is there twice"),
        ("image_data", [{"image_id": 3}, {"image_id": True}], "[1].image_id is True"),
    ],
)
def test_visual_genomes_files_of_the_wrong_kind_are_one_sentence(tmp_path, file, content, words):
    (tmp_path / "objects.json").write_text("[]")
    (tmp_path / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file}\.json: ") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value, words)


@pytest.mark.parametrize(
    "labels", ["[true]", "[1.0]", "[-1]", "[500]", "[[1]]", "7", "[NaN]", '"12"']
)
def test_released_labels_are_whole_numbers_and_a_photo_has_them_once(tmp_path, labels):
    write_vg500(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=r"labels_index\.json: 8\.jpg") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value, "a label number" if "[" in labels else "expected a list")
    write_vg500(tmp_path, more=', "7.jpg": [1]')
    with pytest.raises(ValueError, match=r"'7\.jpg' is there twice"):
        data.load_vg500(tmp_path)


def glove(tmp_path, content):
    (tmp_path / "glove.txt").write_bytes(content)
    return data.load_glove(tmp_path / "glove.txt", ["cat"])[0].tolist()


def test_glove_text_as_it_is_found(tmp_path):
    assert glove(tmp_path, b"cat 1 2\ncat 3 4\n") == [[1, 2]]  # the first counts, gensim's rule
    assert glove(tmp_path, b"\xef\xbb\xbfcat 1 2\n") == [[1, 2]]  # a byte order mark
    assert glove(tmp_path, b"cat 1 2\r\ndog 3 4\r\n") == [[1, 2]]
    assert glove(tmp_path, b"a\rb 5 6\ncat 1 2\n") == [[1, 2]]  # one line, one word
    assert glove(tmp_path, b"dog nan 1e999\ncat 1 2\n") == [[1, 2]]  # of no label


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cat 1 nan", "line 1: holds a number that is not finite"),
        (b"cat 1 1e999", "line 1: holds"),
        (b"cat 1 1e39", "line 1: holds"),  # float32 ends at 3.4e38
        (b"dog 1 2\ncat 1", "line 2: has 1 numbers, line 1 has 2"),
        (b"dog 1 2\n\ncat 1 2", "line 2: has 0"),
        (b"dog 1 2\ncat 1 \x1b[31m", r"line 2: could not convert string to float: '\\x1b"),
        (b"dog 1 2\ncat " + b"1" * 10**7, "line 2: is longer than 1,048,575"),
        (b"dog" * 10**6, "line 1: is longer"),
        (b"dog 1 2\nca\xff 1 2", "not UTF-8"),
        (b"dog 1 2", "none of the 1 words"),
        (b"", "none of the 1 words"),
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
    images = data.MultiLabelImages(data.Split([f"{tmp_path}/a.png"], np.zeros((1, 1)), []), 8)
    filters = list(warnings.filters)
    # Pillow itself only warns up to twice its limit.
    for limit, readable in [(120, True), (119, False), (59, False), (None, True)]:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        image, _, _, error = images[0, 0]
        assert (image is not None) == (error is None) == readable
        if error:
            assert_sentence(error, "120 pixels")
    assert len(recwarn) == 0
    assert warnings.filters == filters


def test_photos_are_data_not_programs(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", "EPS")  # Ghostscript would run it
    called = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: called.append(a))
    with pytest.raises(ValueError, match="cannot identify"):
        data.read_image(tmp_path / "photo.jpg", 8)
    assert called == []


@pytest.mark.parametrize("name", ["\x1b[31m\u202egpj.exe", "x" * 300, "lone \ud800", "absent.jpg"])
def test_photo_names_reach_a_message_in_one_clean_line(tmp_path, name):
    split = data.Split([f"{tmp_path}/{name}"], np.zeros((1, 1)), [])
    image, _, _, error = data.MultiLabelImages(split, 8)[0, 0]
    assert image is None
    assert_sentence(error)
    assert error.startswith("cannot read photo ")


def test_a_checkpoint_holds_no_more_than_its_size(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # 4 MB in some KB, or TB in GB
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in members.items():
                file.writestr(name, content)
        if method == zipfile.ZIP_STORED:
            assert checkpoints.read_checkpoint(path)["a"].shape == (10**6,)
    with pytest.raises(ValueError, match=r"bomb\.pt is not a checkpoint"):
        checkpoints.read_checkpoint(path)


def odd_tensors():
    yield torch.zeros(1).expand(10**12)  # a terabyte over four bytes
    yield torch.empty(10**12, device="meta")
    yield torch.zeros(2, 3).to_sparse()
    yield torch.zeros(2, 3).to_sparse_csr()
    yield torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", range(5))
def test_tensors_that_are_not_what_they_claim_are_refused_wherever_they_are(tmp_path, case):
    tensor = list(odd_tensors())[case]
    for i, value in enumerate([tensor, [1, (tensor,)], {"b": {"c": tensor}}]):
        torch.save({"a": value}, tmp_path / f"{i}.pt")
        with pytest.raises(ValueError, match=rf"{i}\.pt is not a checkpoint of plain tensors"):
            checkpoints.read_checkpoint(tmp_path / f"{i}.pt")


def test_tensors_that_share_their_storage_and_lists_that_hold_themselves_are_read(tmp_path):
    whole, loop = torch.arange(12.0).view(3, 4), [1]
    loop.append(loop)
    good = {"a": whole.T, "b": whole[1:, 2:], "c": nn.Parameter(whole), "loop": loop}
    torch.save(good, tmp_path / "good.pt")
    good = checkpoints.read_checkpoint(tmp_path / "good.pt")
    assert good["a"].tolist() == whole.T.tolist()
    assert good["b"].tolist() == [[6, 7], [10, 11]]
    assert good["loop"][1][0] == 1


def test_json_that_is_written_has_null_where_there_is_no_number(tmp_path):
    value = {"mAP": math.nan, "AP": {"cat": math.inf, "dog": 50.5}, "path": tmp_path, "none": None}
    value["list"] = [1.5, -math.inf, {"x": math.nan}]
    checkpoints.save_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    expected = {"mAP": None, "AP": {"cat": None, "dog": 50.5}, "path": str(tmp_path), "none": None}
    assert found == expected | {"list": [1.5, None, {"x": None}]}


@pytest.mark.parametrize("done", [0, 3])
def test_progress_is_shown_and_closed_with_nothing_done(monkeypatch, capsys, done):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("time.monotonic", lambda: 5.0)  # and no time gone by
    progress = text.Progress("epoch 1/2", 12)
    progress.due(done)
    progress.show("loss 3.00  ")
    assert progress.close().endswith(" images/s  0.0 s")
    output = capsys.readouterr().out
    assert output.startswith(f"\repoch 1/2  {done}/12 images  loss 3.00  ")
    assert ("left" in output) == (done > 0)
    assert output.endswith("\r\033[K")  # the line is cleared
