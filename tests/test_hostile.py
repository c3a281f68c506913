"""TODO"""

import functools
import json
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import coco_document, write_coco
from PIL import Image
from torch import nn

import backbones
import data
import tresnet
from runtime import checkpoints, reading

OUTSIDE = [
    "/etc/passwd",
    "../x.jpg",
    "a/../../x.jpg",
    "a\\..\\..\\x.jpg",
    "\\\\server\\x.jpg",
    "\\x.jpg",
    "C:\\x.jpg",
    "c:x.jpg",
    "x.jpg\0.png",
    "",
    ".",
    "..",
    "a/..",
    "x" * 5000,
]
INSIDE = ["x.jpg", "a/x.jpg", "./x.jpg", "a/../x.jpg", "..x.jpg", "a..b/x..jpg", "x\udc80.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_photo_name_leads_out_of_the_image_folder(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    path = write_coco(tmp_path, document)
    with pytest.raises(ValueError, match=r"instances\.json: photo '.*' is not a file in") as error:
        data.load_coco(path, tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize("name", INSIDE)
def test_photo_names_that_stay_inside_are_taken_as_they_are(tmp_path, name):
    document = coco_document()
    document["images"][1]["file_name"] = name
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.paths == ["photos/40.jpg", f"photos/{name}", "photos/7.jpg"]


@pytest.mark.parametrize("name", ["../8.jpg", "/etc/8.jpg", "C:8.jpg", "a\\..\\..\\8.jpg"])
def test_no_name_of_vg500s_lists_leads_out(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    (tmp_path / "train_list_500.txt").write_text("7.jpg")
    (tmp_path / "test_list_500.txt").write_text(name)
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text(json.dumps({"7.jpg": [1], name: [0]}))
    with pytest.raises(ValueError, match=r"test_list_500\.txt: photo"):
        data.load_vg500(tmp_path)


def test_a_kept_split_cannot_bring_in_what_the_json_may_not(tmp_path):
    path, cache = write_coco(tmp_path, coco_document()), tmp_path / "train.npz"
    good = data.load_coco(path, "photos", cache)
    with np.load(cache) as file:
        kept = dict(file)
    key, paths, classes = json.loads(kept["names"].tobytes())
    # Where the file is in order it is used, or the rest of the test would test nothing.
    for names, found in [
        ([key, ["40.jpg", "other.jpg", "7.jpg"], classes], ["40.jpg", "other.jpg", "7.jpg"]),
        ([key, ["40.jpg", "../3.jpg", "7.jpg"], classes], paths),
        ([key, ["40.jpg", "/etc/passwd", "7.jpg"], classes], paths),
        ([key, ["40.jpg", 3, "7.jpg"], classes], paths),
        ([key, paths[:2], classes], paths),
        ([key, paths, ["apple", None]], paths),
        ([key, paths, [f"label {j}" for j in range(9)]], paths),
    ]:
        text = np.frombuffer(json.dumps(names).encode(), np.uint8)
        np.savez_compressed(cache, names=text, targets=kept["targets"])
        split = data.load_coco(path, "photos", cache)
        assert split.paths == [f"photos/{name}" for name in found]
        assert split.classes == good.classes
        assert split.targets.tolist() == good.targets.tolist()


def test_a_split_is_kept_whatever_the_folder_of_its_photos(tmp_path, monkeypatch):
    path, cache = write_coco(tmp_path, coco_document()), tmp_path / "train.npz"
    data.load_coco(path, "/here", cache)
    monkeypatch.setattr(data, "read_lists", None)  # it is not parsed again
    assert data.load_coco(path, "/there", cache).paths[0] == "/there/40.jpg"


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
    for name in (
        "out.jpg",
        "up.jpg",
        "chain.jpg",
        "out/x.jpg",
        "beside/x.jpg",
        "out/../other/x.jpg",
    ):
        path = f"{photos}/{name}"
        with pytest.raises(ValueError, match=re.escape(f"photo {path} is a link")) as error:
            reading.check_links([*inside, path], photos)
        assert_sentence(error.value)
    reading.check_links([f"{photos}/out.jpg", f"{photos}/x.jpg"], photos, other)  # one of two
    reading.check_links([f"{real}/in.jpg"], photos)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("traffic light", 80, "traffic light"),
        ("café 信号 🚦", 80, "café 信号 🚦"),
        ("\x1b[31mred\x07", 80, "\\x1b[31mred\\x07"),
        ("two\nlines\r\t", 80, "two\\nlines\\r\\t"),
        ("gpj.\u202eexe", 80, "gpj.\\u202eexe"),
        ("cat\u200b", 80, "cat\\u200b"),
        ("lone \ud800", 80, "lone \\ud800"),
        ("\U000e0041", 80, "\\U000e0041"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123...89a"),
        ("a" * 10**7 + "tail.jpg", 14, "aaaaaa...l.jpg"),
        ("\x00" * 10**7, 12, "\\x00\\...\\x00"),
        (7, 80, "7"),
    ],
)
def test_printable_by_hand(text, width, expected):
    assert text.printable(text, width) == expected


def test_label_names_are_kept_as_they_are_and_blank_ones_refused(tmp_path):
    names = ["cat", "cat\u200b", "\x1b[31mcat", "lone \ud800"]  # four labels, not one
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    assert data.load_coco(write_coco(tmp_path, document), "").classes == names
    for name in ("", "  \t", "\u3000", "x" * 1001, None, ["cat"]):
        document["categories"][2]["name"] = name
        with pytest.raises(ValueError, match="the name of category 2 is") as error:
            data.load_coco(write_coco(tmp_path, document), "")
        assert_sentence(error.value)


def assert_sentence(error, length=300, folder=None):
    text = str(error).replace(str(folder), "") if folder else str(error)
    assert re.match(r"/?\S", text)
    assert text.isprintable(), text[:500]
    assert len(text) <= length + 150, text[:500]  # 150 for pytest's long folders


LONG = "x" * 10**7
DEEP = functools.reduce(lambda inner, _: [inner], range(200), 1)


@pytest.mark.parametrize(
    ("key", "item", "words"),
    [
        ("images", {"id": LONG, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": 10**4000, "file_name": 7}, "expected a text"),
        ("images", {"id": 1e300, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": float("nan"), "file_name": "a.jpg"}, "id nan is not"),
        ("images", {"id": float("-inf"), "file_name": "a.jpg"}, "id -inf is not"),
        ("images", {"id": True, "file_name": "a.jpg"}, "id True is not"),
        ("images", {"id": DEEP, "file_name": "a.jpg"}, "not a whole number"),
        ("images", {"id": 5, "file_name": DEEP}, "expected a text"),
        ("images", {"id": 5, LONG: 1}, "lacks what it should hold"),
        ("images", LONG, "lacks what it should hold"),
        ("images", 7, "lacks what it should hold"),
        ("images", None, "lacks what it should hold"),
        ("images", DEEP, "lacks what it should hold"),
        ("categories", {"id": 5, "name": LONG}, "expected a text"),
        ("categories", {"id": LONG, "name": "a"}, "not a whole number"),
        ("annotations", {"image_id": LONG, "category_id": 2}, "names image id"),
        ("annotations", {"image_id": 7, "category_id": LONG}, "names category id"),
        ("annotations", {"image_id": 7, "category_id": DEEP}, "names category id"),
        ("annotations", {"image_id": True, "category_id": 2}, "names image id True"),
        ("annotations", {"image_id": 7, "category_id": float("nan")}, "category id nan"),
        ("annotations", {"image_id": "\x1b[2J\ud800", "category_id": 2}, r"id '\\x1b\[2J\\ud800'"),
    ],
)
def test_values_of_the_wrong_kind_are_shown_in_one_short_sentence(tmp_path, key, item, words):
    document = coco_document()
    document["images"].append({"id": 1, "file_name": "one.jpg"})  # equal to True
    document[key].append(item)
    with pytest.raises(ValueError, match=words) as error:
        data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert_sentence(error.value)


def test_numbers_that_no_reader_uses_may_be_anything(tmp_path):
    document = coco_document()
    document["annotations"][0] |= {"area": float("nan"), "bbox": [float("inf")] * 4}
    document["info"] = {"year": float("nan")}
    split = data.load_coco(write_coco(tmp_path, document), tmp_path)
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


COCO_TEXT = json.dumps(coco_document())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (COCO_TEXT.encode("utf-16"), "not valid JSON"),
        (COCO_TEXT.encode("utf-16-le"), "not valid JSON"),
        (COCO_TEXT.encode("utf-32"), "not valid JSON"),
        (
            COCO_TEXT.replace("apple", "pomme cuite \u00e0 point").encode("latin-1"),
            "not valid JSON",
        ),
        (COCO_TEXT.replace('"apple"', "\x1b[31m").encode(), "not valid JSON"),
        (COCO_TEXT.replace("40", "4" * 5000).encode(), "not valid JSON"),
        (COCO_TEXT.replace("40", "-").encode(), "not valid JSON"),
        (COCO_TEXT[:-1].encode() + b', "images": []}', "'images' is there twice"),
        (COCO_TEXT.replace('"images": [', '"images": [' + "[" * 5000).encode(), "not valid JSON"),
        (b"\x00" * 1000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b'"' + b"x" * 10**7, "not valid JSON"),
    ],
)
def test_json_of_another_encoding_or_damaged_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        data.load_coco(path, tmp_path)
    assert_sentence(error.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(COCO_TEXT.encode("utf-8-sig"))
    assert data.load_coco(path, "").classes == ["apple", "zebra"]


def test_many_categories_take_no_quadratic_time(tmp_path):
    document = {"images": [], "annotations": []}
    document["categories"] = [{"id": i, "name": f"label {i}"} for i in range(50_000)]
    with time_limit(10):  # a search through all the names before would take longer
        assert len(data.load_coco(write_coco(tmp_path, document), "").classes) == 50_000


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_numbers_cut_by_the_window_are_whole_again(piece):
    text = '{"a": [1.5e3, -2.25, 1E+2, 0.5e-1, 12], "b": -7e-2, "c": 1.5}'
    assert walk(text, piece) == json.loads(text)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"image_id": 1, "objects": [{"names": "dog"}]}], "names is no list"),
        ([{"image_id": 1, "objects": 7}], "lacks what"),
        ([{"image_id": LONG, "objects": []}] * 2, "lacks what"),
        ([{"image_id": 1, "objects": [{"names": [LONG, 7]}]}], "lacks what"),
        ([{"image_id": 1.5, "objects": []}], "not a whole number"),
        ({"images": []}, "not a list of images"),
    ],
)
def test_visual_genomes_objects_of_the_wrong_kind_are_one_sentence(tmp_path, items, words):
    (tmp_path / "objects.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=rf"objects\.json.*{words}") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"image_id": 1}, {"image_id": 1}], "twice"),
        ([{"image_id": True}], "not a whole number"),
        ({"images": []}, "not a list of images"),
    ],
)
def test_visual_genomes_image_data_of_the_wrong_kind_is_one_sentence(tmp_path, items, words):
    (tmp_path / "objects.json").write_text("[]")
    (tmp_path / "image_data.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=rf"image_data\.json.*{words}") as error:
        data.load_vg500(tmp_path)
    assert_sentence(error.value)


@pytest.mark.parametrize("labels", ["[true]", "[1.0]", "[-1]", "[[1]]", "7", "[NaN]", '"12"'])
def test_released_labels_are_whole_numbers(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    (tmp_path / "train_list_500.txt").write_text("7.jpg")
    (tmp_path / "test_list_500.txt").write_text("8.jpg")
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text(f'{{"7.jpg": [2], "8.jpg": {labels}}}')
    with pytest.raises(ValueError, match=r"labels_index\.json.*8\.jpg"):
        data.load_vg500(tmp_path)
    index.write_text('{"7.jpg": [2], "8.jpg": [0], "7.jpg": [1]}')
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
        (b"cat 1 -inf", "line 1: holds"),
        (b"cat 1 1e999", "line 1: holds"),
        (b"cat 1 1e39", "line 1: holds"),  # float32 ends at 3.4e38
        (b"dog 1 2\ncat 1", "line 2: has 1 numbers, line 1 has 2"),
        (b"dog 1 2\n\ncat 1 2", "line 2: has 0"),
        (b"dog 1 2\ncat 1 \x1b[31m", r"line 2: could not convert string to float: '\\x1b"),
        (b"dog 1 2\ncat 1 " + b"x" * 10**5, "line 2: could not convert"),
        (b"dog 1 2\ncat " + b"1" * 10**7, "line 2: is longer than 1,048,575"),
        (b"dog" * 10**6, "line 1: is longer"),
        (b"dog 1 2\nca\xff 1 2", "not UTF-8"),
        (b"dog 1 2", "none of the words"),
        (b"", "none of the words"),
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
        assert (image is not None) == readable
        assert readable == (error is None)
        if error:
            assert f"{tmp_path}/a.png" in error
            assert "120 pixels" in error
    assert len(recwarn) == 0
    assert warnings.filters == filters
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):  # as ever, outside our reading
        Image.open(tmp_path / "a.png").close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("draft", [False, True])
def test_a_truncated_photo_is_an_error(tmp_path, kind, draft):
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo", kind)
    data.read_image(tmp_path / "photo", 16, draft)
    truncate(tmp_path / "photo")
    with pytest.raises(ValueError, match=r"cannot read photo .*; replace the file") as error:
        data.read_image(tmp_path / "photo", 16, draft)
    assert_sentence(error.value)


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


def zipped(path, compression, change=lambda name, content: content):
    """The archive of torch.save again, some members changed, every checksum right."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            content = change(name, content)
            if content is not None:
                file.writestr(name, content)


def test_a_checkpoint_holds_no_more_than_its_size(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    zipped(path, zipfile.ZIP_STORED)
    assert checkpoints.read_checkpoint(path)["a"].shape == (10**6,)
    zipped(path, zipfile.ZIP_DEFLATED)  # 4 MB in some KB; it could be TB in GB
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
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole.T, "b": whole[1:, 2:], "c": nn.Parameter(whole)}, tmp_path / "good.pt")
    good = checkpoints.read_checkpoint(tmp_path / "good.pt")
    assert good["a"].tolist() == whole.T.tolist()
    assert good["b"].tolist() == [[6, 7], [10, 11]]
    loop = [1]
    loop.append(loop)
    torch.save({"loop": loop}, tmp_path / "loop.pt")
    assert checkpoints.read_checkpoint(tmp_path / "loop.pt")["loop"][1][0] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (7, torch.zeros(1)),
        (None, torch.zeros(1)),
        ("\x1b[31m\n", torch.zeros(1)),
        ("x" * 10**6, torch.zeros(1)),
        ("y" * 10**6, "text"),
        ("body.conv1.0.weight", torch.zeros(16, 48, 3, 3, dtype=torch.complex64)),
        ("body.conv1.1.weight", torch.zeros((1,) * 60)),
        ("body.conv1.1.weight", torch.ones(16, dtype=torch.bool)),  # no abs() of these
        ("body.conv1.0.weight", torch.zeros(16, 48, 3, 3, dtype=torch.int8)),
        ("conv1.1.weight", torch.ones(16)),  # body.conv1.1.weight is there, too
        ("body.conv1.1.weight", [[]]),
    ],
)
def test_odd_entries_of_a_file_of_weights_are_one_sentence(tmp_path, key, value, recwarn):
    torch.save(released_network(*TINY, IMAGES)[0] | {key: value}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt") as error:
        backbones.load_weights(tresnet.tresnet_tiny(), tmp_path / "odd.pt")
    assert_sentence(error.value)
    assert len(recwarn) == 0
