"""The readers give what the files say, photos their pixels, augmentation its rules; and the ids of
what a run was made from.

Oracles: small files worked out by hand, what labelling tools write, the json module, loops over
Visual Genome's names, Pillow.
"""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import coco_document, demo_split, vg_photos, write_coco, write_vg
from PIL import Image, ImageOps

import data
from datasets import catalogue
from runtime import checkpoints, loading, photo_files, reading

# What labelling tools write as COCO JSON: names of photos a, b and c, ids of the first image and
# label, what else a category, an image and an annotation hold. CVAT by datumaro's exporter, Label
# Studio by label_studio_sdk's converter, Roboflow, FiftyOne by fiftyone.utils.coco.
RLE = {"segmentation": {"counts": [3, 4, 41], "size": [6, 8]}, "iscrowd": 1}
SIZE, EXTRA = {"width": None, "height": None}, {"license": 1, "extra": {"name": "a.png"}}
UNDER = {"supercategory": "pets-Xy1z"}
TOOLS = {
    "cvat": ("day 1/{}.png", 1, 1, {"supercategory": ""}, {"date_captured": 0}, RLE),
    "label studio": ("images\\{}.png", 0, 0, {}, SIZE, {"segmentation": [], "ignore": 0}),
    "roboflow": ("{}_png.rf.0f9.png", 0, 1, UNDER, EXTRA, {"segmentation": [[1.0, 2.0, 4.0]]}),
    "fiftyone": ("{}.png", 1, 0, {"supercategory": None}, {"coco_url": None}, {"score": 0.9}),
}


def write_export(folder, tool):
    """Photo a shows a dog and a cat, photo b two dogs, c none."""
    name, first, cat, about_category, about_image, about_mark = TOOLS[tool]
    marks = [(first, cat + 1), (first, cat), (first + 1, cat + 1), (first + 1, cat + 1)]
    root = [{"id": 0, "name": "pets-Xy1z", "supercategory": "none"}] * (tool == "roboflow")
    labels = [{"id": cat, "name": "cat"}, {"id": cat + 1, "name": "dog"}]
    images = [{"id": first + k, "file_name": name.format("abc"[k])} for k in range(3)]
    mark = {"bbox": [1.5, 2, 3, 4], "area": 12.0, "iscrowd": 0} | about_mark
    document = {
        "info": {"year": "", "contributor": tool},
        "images": [image | about_image for image in images],
        "categories": root + [label | about_category for label in labels],
        "annotations": [mark | {"image_id": i, "category_id": j} for i, j in marks],
    }
    return write_coco(folder, document)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_labelling_tools_write_as_coco_is_read(tmp_path, tool):
    split = data.load_coco(write_export(tmp_path, tool), tmp_path)
    root = ["pets-Xy1z"] if tool == "roboflow" else []
    assert split.classes == [*root, "cat", "dog"]
    assert split.targets[:, len(root) :].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert not split.targets[:, : len(root)].any()
    name = TOOLS[tool][0].replace("\\", "/")
    assert split.paths == [f"{tmp_path}/{name.format(photo)}" for photo in "abc"]


def test_roboflows_root_of_the_name_of_its_only_class_is_one_label_with_it(tmp_path):
    document = coco_document()
    document["categories"] += [
        {"id": 1, "name": "rabbit", "supercategory": "none"},
        {"id": 5, "name": "rabbit", "supercategory": "rabbit"},
    ]
    document["annotations"].append({"image_id": 3, "category_id": 5})
    split = data.load_coco(write_coco(tmp_path, document), "photos")
    assert split.classes == ["rabbit", "apple", "zebra"]  # ids 1 and 5, 2, 9
    assert split.targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 1]]


def test_released_vg500_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    write_vg(tmp_path)
    vg_photos(tmp_path, ["7.jpg", "8.jpg", "12.jpg"])
    train, test = data.load_vg500(tmp_path)
    assert train.paths == [f"{tmp_path}/VG_100K/12.jpg", f"{tmp_path}/VG_100K/7.jpg"]
    assert test.paths == [f"{tmp_path}/VG_100K_2/8.jpg"]
    assert train.targets.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert test.targets.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("sort_keys", [False, True])  # sorted, the polygons end their object
def test_json_is_what_json_reads_but_polygons(tmp_path, indent, sort_keys):
    polygons = [[[1, 2.5, -3, 4e-05]], [[1, 2], [3, 4]], [[5], []]]
    others = [[], {"counts": [4, 2], "size": [2, 3]}, {"counts": "a]b["}, None]
    quoted = '"segmentation": [[1, 2]], "id": 3 } ] \u00e9 \\'
    items = [
        {"segmentation": value, "id": i, "bbox": [1, 2, 3], "name": quoted, "other": {"id": 7}}
        for i, value in enumerate(polygons + others + polygons)
    ]
    document = {"annotations": items, "more": {"segmentation": [7], "x": [1]}, "other": [8.5]}
    text = json.dumps(document, indent=indent, sort_keys=sort_keys)
    (tmp_path / "a.json").write_text(text)

    def without(item):  # 0 in the place of polygons, lists that are not empty
        polygons = isinstance(item.get("segmentation"), list) and item["segmentation"]
        return item | {"segmentation": 0} if polygons else item

    ours = reading.read_json(tmp_path / "a.json", {...: reading.ANY})
    assert ours == json.loads(text, object_hook=without)


def palette_image():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("L", (4, 4), 100), {}, (100, 100, 100)),
        (Image.new("LA", (4, 4), (0, 51)), {}, (204, 204, 204)),  # a fifth black, the rest white
        (Image.new("RGBA", (4, 4), (200, 0, 50, 51)), {}, (244, 204, 214)),  # v / 5 + 204
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (palette_image(), {"transparency": 0}, (10, 20, 30)),
        (palette_image(), {"transparency": 1}, (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), {"format": "TIFF"}, (255, 0, 0)),
        # 100 * 256 + 200: the upper byte counts
        (Image.fromarray(np.full((4, 4), 25800, np.uint16)), {}, (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 25800, np.uint16)), {"format": "TIFF"}, (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 25800, np.int32)), {"format": "PPM"}, (100, 100, 100)),
    ],
)
def test_images_of_every_mode_become_the_right_rgb(tmp_path, image, options, expected):
    image.save(tmp_path / "photo", **{"format": "PNG"} | options)
    for draft in (False, True):
        photo = data.read_image(tmp_path / "photo", 4, draft)
        assert photo.mode == "RGB"
        assert photo.getcolors() == [(16, expected)]


def tiff(bits, photometric, sample_format, pixels):
    """A grey TIFF of one row, written by hand: its tags, little-endian, then its pixels."""
    width = len(pixels) * 8 // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 1}
    tags |= {279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def png_chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(*chunks):
    """A PNG of 16-bit grey, two pixels wide: 1000 and 25800."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HH", 1000, 25800))
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", row), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


LONG_TEXT = b"Comment\0" + b"x" * 2_000_000
PACKED_TEXT = b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)
PROFILE = b"wide\0\0" + zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    ("content", "greys"),
    [
        (tiff(16, 1, 1, struct.pack("<HH", 1000, 25800)), [3, 100]),
        (tiff(16, 0, 1, struct.pack("<HH", 1000, 25800)), [252, 155]),  # 0 is white
        (tiff(12, 1, 1, bytes([0xFF, 0xF0, 0x10])), [255, 1]),  # 4095 and 16
        (tiff(8, 0, 1, bytes([0, 200])), [255, 55]),
        (b"P5 2 1 4095\n" + struct.pack(">HH", 4095, 2048), [255, 128]),
        (png(), [3, 100]),
        (png((b"tRNS", struct.pack(">H", 1000))), [255, 100]),  # transparent
        (png((b"tEXt", LONG_TEXT)), [3, 100]),
        (png((b"zTXt", PACKED_TEXT)), [3, 100]),
        (png((b"iCCP", PROFILE)), [3, 100]),
        (png((b"eXIf", b"no EXIF at all")), [3, 100]),
        (png((b"tEXt", b"Raw profile type exif\0\nexif\n4\nno hex")), [3, 100]),
    ],
)
def test_grey_of_many_bits_and_photos_with_long_or_damaged_texts_are_read(tmp_path, content, greys):
    (tmp_path / "photo").write_bytes(content)
    pixels = np.asarray(data.read_photo(tmp_path / "photo"))
    assert pixels.tolist() == [[[grey] * 3 for grey in greys]]


@pytest.mark.parametrize(
    "content",
    [
        tiff(32, 1, 3, struct.pack("<ff", 0.2, 0.7)),
        tiff(32, 1, 1, struct.pack("<II", 20, 200)),
        tiff(32, 1, 2, struct.pack("<ii", 20, 200)),
        tiff(16, 1, 2, struct.pack("<hh", -20, 200)),
        b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.2, 0.7),
    ],
)
def test_grey_whose_white_is_not_known_is_refused_rather_than_black(tmp_path, content):
    (tmp_path / "photo").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo .*32-bit grey .*save it with 8 or 16 bits"):
        data.read_photo(tmp_path / "photo")


def exif(*entries):
    """EXIF of (tag, type, count, value) entries, little-endian."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


@pytest.mark.parametrize(
    ("content", "turned"),
    [
        (exif((0x112, 3, 1, 6)), True),
        (exif((0x112, 3, 1, 6), (0x128, 9, 1, 2**32 - 1)), True),  # ResolutionUnit -1
        (exif((0x112, 3, 1, 6), (0x11A, 5, 1, 10**6)), True),  # a value behind the end
        (exif((0x10F, 2, 10**9, 8), (0x112, 3, 1, 6)), True),
        (exif((0x112, 4, 1, 6)), True),  # a long
        (exif((0x112, 3, 1, 0)), False),
        (exif((0x112, 3, 1, 9)), False),
        (exif((0x112, 2, 2, ord("6"))), False),  # text
        (exif((0x112, 3, 10**9, 8)), False),
        (exif((0x112, 12, 1, 6)), False),  # a float behind the end
        (exif((0x112, 99, 1, 6)), False),
        (b"Exif\0\0", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (b"Exif\0\0no EXIF at all", False),
    ],
)
def test_only_exifs_orientation_is_read_and_damaged_exif_means_upright(tmp_path, content, turned):
    stored = Image.new("RGB", (16, 8), "blue")
    stored.paste("red", (0, 0, 8, 8))  # the left half; turned by orientation 6 the upper one
    stored.save(tmp_path / "photo.jpg", exif=content, quality=95)
    photo = data.read_photo(tmp_path / "photo.jpg")
    assert photo.size == ((8, 16) if turned else (16, 8))
    first, last = photo.getpixel((1, 1)), photo.getpixel((photo.width - 2, photo.height - 2))
    assert (first[0] > 200 > 50 > first[2], last[2] > 200 > 50 > last[0]) == (True, True)


@pytest.mark.parametrize("number", range(1, 9))
def test_photos_are_turned_as_pillow_turns_them(tmp_path, number):
    drawn = Image.fromarray(np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8))
    metadata = Image.Exif()
    metadata[0x112] = number
    for suffix in ("png", "webp", "tif", "jpg"):
        drawn.save(tmp_path / f"a.{suffix}", exif=metadata, lossless=True)
        with Image.open(tmp_path / f"a.{suffix}") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(data.read_photo(tmp_path / f"a.{suffix}"), expected), suffix


@pytest.mark.parametrize("name", ["a.jpg", "b.HEIC"])
def test_a_photo_that_is_heic_whatever_its_name_has_the_advice_for_heic(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(photo_files, "FORMATS", ["JPEG"])  # as where pillow-heif is not installed
    (tmp_path / name).write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(12))
    with pytest.raises(ValueError, match=f"{name} .*; pip install pillow-heif to read HEIC"):
        data.read_photo(tmp_path / name)
    (tmp_path / "a.jpg").write_bytes(b"no photo at all")
    with pytest.raises(ValueError, match=r"a\.jpg .*; replace the file"):
        data.read_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize(("width", "height", "size"), [(64, 64, 33), (64, 63, 32), (64, 64, 12)])
def test_photos_are_whole_for_evaluation_and_drafts_a_grey_level_off_for_training(
    tmp_path, monkeypatch, width, height, size
):
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    split = data.Split([str(tmp_path / "photo.jpg")], np.zeros((1, 1)), ["label"])
    monkeypatch.setattr(data, "augment", lambda image, rng: image)
    for augment in (False, True):
        with Image.open(tmp_path / "photo.jpg") as image:
            if augment:  # decoded at a half, quarter or eighth: the third photo, at 16 pixels
                image.draft(None, (size, size))
            expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        ours, *_ = data.MultiLabelImages(split, size, augment)[0, 0]
        assert np.abs(ours - expected).max() <= augment


def test_augmentation_at_its_strongest_by_hand():
    rng = np.random.default_rng(0)
    strongest = {name: (f, high) for name, (f, _, high, _) in data.OPERATIONS.items()}

    def apply(name, image):
        operation, magnitude = strongest[name]
        return np.asarray(operation(image, magnitude, rng))

    # Translations, by 150 / 331 of 330, are of 149.55 pixels: the nearest is 150 away, the last
    # 150 are grey.
    pixels = np.random.default_rng(0).integers(256, size=(330, 4, 3), dtype=np.uint8)
    expected = np.concatenate([pixels[150:], np.full((150, 4, 3), 128, np.uint8)])
    assert (apply("TranslateY", Image.fromarray(pixels)) == expected).all()
    across = Image.fromarray(pixels.swapaxes(0, 1).copy())
    assert (apply("TranslateX", across) == expected.swapaxes(0, 1)).all()
    # Half a pixel of shear, bicubic with Pillow's a = -1: -1/8, 5/8, 5/8, -1/8 of a line of 100.
    line = np.full((1, 9, 3), 100, np.uint8)
    line[:, 4] = 200
    for name, turn in [("ShearX", (0, 1)), ("ShearY", (1, 0))]:
        image = Image.fromarray(line.transpose(*turn, 2).copy())
        sheared = np.asarray(strongest[name][0](image, 1, rng)).reshape(9, 3)
        assert sheared[2:6, 0] == pytest.approx([87.5, 162.5, 162.5, 87.5], abs=1)
    colour = Image.new("RGB", (8, 8), (200, 7, 31))
    assert apply("Posterize", colour)[0, 0].tolist() == [192, 0, 16]  # the upper 4 bits
    assert apply("Solarize", colour)[0, 0].tolist() == [55, 248, 224]  # all of it inverted
    assert apply("Brightness", colour)[0, 0].tolist() == [255, 13, 58]  # 1.9 times, cut off
    cut = apply("Cutout", Image.new("RGB", (200, 200)))  # on black, off the border
    hole = cut.any(2)
    assert (cut[hole] == (125, 122, 113)).all()
    rows, columns = np.nonzero(hole)
    assert (hole.sum(), np.ptp(rows), np.ptp(columns)) == (400, 19, 19)


def test_magnitudes_are_those_of_the_randaugment_package():
    # Its table: magnitude at level 0 and at level 9, and whether either sign is drawn.
    package = {
        **{"ShearX": (0, 0.3, True), "ShearY": (0, 0.3, True)},
        **{"TranslateX": (0, 150 / 331, True), "TranslateY": (0, 150 / 331, True)},
        **{"Rotate": (0, 30, False), "Color": (0, 0.9, True), "Posterize": (8, 4, False)},
        **{"Solarize": (256, 0, False), "Contrast": (0, 0.9, True), "Sharpness": (0, 0.9, True)},
        **{"Brightness": (0, 0.9, True), "AutoContrast": (0, 0, False)},
        **{"Equalize": (0, 0, False), "Invert": (0, 0, False), "Cutout": (0, 20, False)},
    }
    assert {name: row[1:] for name, row in data.OPERATIONS.items()} == package


def test_the_first_cutout_is_half_the_side_in_one_random_colour(monkeypatch):
    monkeypatch.setattr(data, "OPERATIONS", {"none": (lambda image, *_: image, 0, 0, False)})
    rng, colours, sides = np.random.default_rng(0), set(), set()
    for _ in range(50):
        pixels = np.asarray(data.augment(Image.new("RGB", (64, 64), (1, 2, 3)), rng))
        hole = (pixels != (1, 2, 3)).any(2)
        (colour,) = {tuple(pixel) for pixel in pixels[hole].tolist()}
        colours.add(colour)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        for places in (rows, columns):
            assert 16 <= len(places) <= 32  # its centre is within the image
            if 0 < places[0] and places[-1] < 63:
                sides.add(len(places))
    assert len(colours) > 40
    assert sides == {32}


def test_two_operations_are_drawn_apart_each_applied_half_the_time(monkeypatch):
    applied, counts, pairs, times = [], np.zeros(3), 0, 4000
    kinds = {"a": (0, 9, True), "b": (18, 0, False), "c": (0, 0, False)}
    operations = {k: (lambda im, m, _, k=k: applied.append((k, m)) or im, *kinds[k]) for k in kinds}
    monkeypatch.setattr(data, "OPERATIONS", operations)
    rng, image = np.random.default_rng(0), Image.new("RGB", (1, 1))
    for _ in range(times):
        before = len(applied)
        data.augment(image, rng)
        new = applied[before:]
        counts[len(new)] += 1
        pairs += len(new) == 2 and new[0][0] == new[1][0]
    assert counts / times == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)
    assert pairs / counts[2] == pytest.approx(1 / 3, abs=0.05)  # drawn with replacement
    levels = {"a": [*range(-9, 0), *range(1, 10)], "b": [*range(0, 18, 2)], "c": [0]}
    for k, expected in levels.items():  # of b: 18 less two a level
        found = [round(magnitude, 9) for kind, magnitude in applied if kind == k]
        shares = [found.count(level) / times for level in expected]
        assert shares == pytest.approx([1 / 3 / len(expected)] * len(expected), abs=0.03)
        assert set(found) == set(expected)


def test_batches_shuffled_hold_an_image_at_most_once_and_depend_on_seed_and_epoch():
    orders = []
    for seed, epoch in [(2, 5), (2, 5), (2, 4), (3, 5)]:
        rows = loading.Rows(11, 4, shuffle=True, seed=seed)
        rows.epoch = epoch
        first, second = rows  # the other 3 of 11 wait for their turn
        orders.append([row for _, row in first + second])
        assert len({*first, *second} & {(epoch, row) for row in range(11)}) == 8
    assert orders[0] == orders[1]
    assert orders[0] not in orders[2:]


def test_the_id_of_a_split_is_of_names_sizes_and_labels_wherever_the_photos_are(tmp_path):
    name = os.fsdecode(b"x\x80.jpg")  # no UTF-8: a lone surrogate in Python

    def id_of(folder, sizes, label=1):
        (tmp_path / folder).mkdir(exist_ok=True)
        paths = [tmp_path / folder / each for each in sizes]
        for path in paths:
            path.write_bytes(b"." * sizes[path.name])
        return data.Split([*map(str, paths)], np.array([[label], [0]], np.uint8), ["cat"]).id()

    here = id_of("here", {name: 3, "b.jpg": 4})
    assert re.fullmatch("[0-9a-f]{16}", here)
    assert id_of("there", {name: 3, "b.jpg": 4}) == here
    others = [id_of("here", {"a.jpg": 3, "b.jpg": 4}), id_of("here", {name: 3, "b.jpg": 5})]
    others += [id_of("here", {"b.jpg": 4, name: 3}), id_of("here", {name: 3, "b.jpg": 4}, 0)]
    assert len({here, *others}) == 5


def test_the_id_of_tensors_is_of_values_shape_dtype_and_order():
    a, b = torch.arange(6.0), torch.ones(2)
    same = [[a, b], [a.clone(), b], [torch.stack([a, a], 1)[:, 0], b.requires_grad_()]]
    assert len({checkpoints.content_id(*tensors) for tensors in same}) == 1
    bits = torch.zeros(6), torch.zeros(6, dtype=torch.int32)  # the same bytes
    others = [[a], [b, a], [a.view(2, 3), b], [a.view(3, 2), b], [a.double(), b], [a + 1e-6, b]]
    others += [[bits[0]], [bits[1]], [a, b.bfloat16()]]
    assert len({checkpoints.content_id(*tensors) for tensors in [same[0], *others]}) == 10


def test_val_has_the_labels_of_train_by_name_and_no_other(capsys):
    val = data.Split(["x.jpg"], np.array([[1, 0]], np.uint8), ["dog", "bird"])
    found = catalogue.aligned(val, ["bird", "cat", "dog"])
    assert (found.classes, found.targets.tolist()) == (["bird", "cat", "dog"], [[0, 0, 1]])
    told = (
        "1 of 3 labels of the training photos are not among those of val, and count as absent from"
    )
    assert f"val: {told} every val photo: cat\n" == capsys.readouterr().out
    with pytest.raises(ValueError, match="not among those of the training photos: dog;"):
        catalogue.aligned(val, ["bird", "cat"])
    catalogue.aligned(val, ["bird", "dog"])  # bird is known, though on no photo
    assert capsys.readouterr().out == ""
    found = catalogue.aligned(val, ["cat", "dog"])  # no photo shows a bird
    assert (found.classes, found.targets.tolist()) == (["cat", "dog"], [[0, 1]])
    assert "val: left out 1 of 2 labels, which no val photo shows" in capsys.readouterr().out


def test_augmentation_depends_on_seed_epoch_and_row_alone(demo):
    split = demo_split(demo, "train2014")

    def pixels(seed, keys):
        images = data.MultiLabelImages(split, 32, augment=True, seed=seed)
        return [images[key][0].tobytes() for key in keys]

    keys = [(epoch, row) for epoch in range(3) for row in range(4)]
    assert pixels(5, keys) == pixels(5, keys[::-1])[::-1]
    assert len({*pixels(5, keys), *pixels(6, keys)}) == 2 * len(keys)


def test_photos_without_any_label_are_refused_with_the_option_that_keeps_them():
    split = data.Split(["a.jpg", "b.jpg"], np.zeros((2, 1), np.uint8), ["cat"])
    with pytest.raises(ValueError, match=r"none of the 2 val photos has a label; .*--keep-unlabel"):
        catalogue.used_part("val", split, keep_unlabelled=False, limit=None)
    assert catalogue.used_part("val", split, keep_unlabelled=True, limit=None) is split
    with pytest.raises(ValueError, match="there are no val photos"):
        catalogue.used_part("val", split.select(np.array([], int)), True, None)
