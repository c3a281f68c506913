"""TODO"""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import coco_document, demo_split, vg_photos, write_coco, write_vg
from PIL import Image

import data
import run
from extras import demo as scenes
from runtime import loading


def test_coco_reader_by_hand(tmp_path):
    split = data.load_coco(write_coco(tmp_path, coco_document()), "photos")
    assert split.classes == ["apple", "zebra"]  # ids 2 and 9
    assert split.paths == ["photos/40.jpg", "photos/3.jpg", "photos/7.jpg"]  # the file's order
    # 40: zebra once, apple twice; 3: nothing; 7: a crowd of zebras
    assert split.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


IMAGE, CATEGORY = {"id": 7, "file_name": "7.jpg"}, {"id": 9, "name": "horse"}


@pytest.mark.parametrize(
    ("key", "entry", "culprit"),
    [
        ("annotations", [{"image_id": 8, "category_id": 2}], "image id 8"),
        ("annotations", [{"image_id": 7, "category_id": 5}], "category id 5"),
        ("annotations", [{"image_id": [7], "category_id": 2}], r"image id \[7\]"),
        ("annotations", [{"image_id": 7, "category_id": {}}], r"category id \{\}"),
        ("annotations", [{"image_id": 7, "caption": "a horse"}], "a horse"),
        ("annotations", [{"category_id": 2}], "category_id"),
        ("images", [IMAGE], "image id 7"),
        ("images", [IMAGE | {"id": "seven"}], "seven"),
        ("images", [IMAGE | {"id": [7]}], r"image id \[7\]"),
        ("images", [{"id": 11}], "11"),
        ("images", [{"file_name": "11.jpg"}], "'id'"),
        ("categories", [CATEGORY], "category id 9"),
        ("categories", [{"id": 11, "name": "zebra"}], "id 11, 'zebra'"),
        ("categories", [CATEGORY | {"id": [1]}], r"category id \[1\]"),
        ("categories", [{"id": 11}], "11"),
        ("categories", [{"name": "horse"}], "'id'"),
        ("images", None, "'images'"),  # no list of them
        ("annotations", {}, "'annotations'"),
        ("categories", "text", "'categories'"),
        (None, json.dumps(coco_document())[:-40], "not valid JSON"),
        (None, '{"info": ' + "[" * 100_000, "not valid JSON"),
        (None, json.dumps(coco_document()).replace("}]", "},]"), "not valid JSON"),
        (None, json.dumps(coco_document()) + "]", "not valid JSON"),
        (None, "[]", "'images'"),
    ],
)
def test_coco_reader_names_what_is_wrong(tmp_path, key, entry, culprit):
    document = coco_document() if key else entry
    if key:
        document[key] = [*document[key], *entry] if isinstance(entry, list) else entry
    with pytest.raises(ValueError, match=rf"instances\.json.*{culprit}"):
        data.load_coco(write_coco(tmp_path, document), tmp_path)


# What labelling tools write as COCO JSON, short of fields that are as in COCO's own: CVAT (by
# datumaro's exporter), Label Studio (by label_studio_sdk's converter, on Windows), Roboflow and
# FiftyOne (fiftyone.utils.coco). In each, photo a shows a dog and a cat, photo b two dogs, c none.
BOX = {"bbox": [1.5, 2, 3, 4], "area": 12.0, "iscrowd": 0}
EXPORTS = {
    "cvat": {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "year": ""},
        "categories": [
            {"id": 1, "name": "cat", "supercategory": ""},
            {"id": 2, "name": "dog", "supercategory": ""},
        ],
        "images": [
            {"id": i, "width": 8, "height": 6, "file_name": name, "license": 0, "date_captured": 0}
            for i, name in ((1, "day 1/a.png"), (2, "day 1/b.png"), (3, "c.png"))
        ],
        "annotations": [
            BOX | {"id": 1, "image_id": 1, "category_id": 2, "segmentation": []},
            BOX
            | {"id": 2, "image_id": 1, "category_id": 1, "attributes": {"occluded": False}}
            | {"segmentation": {"counts": [3, 4, 41], "size": [6, 8]}, "iscrowd": 1},
            BOX | {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [[1.0, 2.0, 4.0]]},
            BOX | {"id": 4, "image_id": 2, "category_id": 2, "segmentation": []},
        ],
    },
    "label studio": {
        "images": [
            {"width": None, "height": None, "id": i, "file_name": f"images\\{name}.png"}
            for i, name in enumerate("abc")
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "segmentation": [], "ignore": 0}
            for k, (i, j) in enumerate([(0, 1), (0, 0), (1, 1), (1, 1)])
        ],
        "info": {"year": 2025, "version": "1.0", "contributor": "Label Studio"},
    },
    "roboflow": {
        "info": {"year": "2025", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "pets-Xy1z", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets-Xy1z"},
            {"id": 2, "name": "dog", "supercategory": "pets-Xy1z"},
        ],
        "images": [
            {"id": i, "license": 1, "file_name": f"{name}_png.rf.0f9.png", "date_captured": ""}
            | {"extra": {"name": f"{name}.png"}}
            for i, name in enumerate("abc")
        ],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "segmentation": []}
            for k, (i, j) in enumerate([(0, 2), (0, 1), (1, 2), (1, 2)])
        ],
    },
    "fiftyone": {
        "info": {"year": "", "description": "Exported from FiftyOne"},
        "categories": [
            {"id": 0, "name": "cat", "supercategory": None},
            {"id": 1, "name": "dog", "supercategory": None},
        ],
        "images": [
            {"id": i, "file_name": f"{name}.png", "license": None, "coco_url": None}
            for i, name in enumerate("abc", 1)
        ],
        "annotations": [
            BOX | {"id": k, "image_id": i, "category_id": j, "score": 0.9, "mood": "calm"}
            for k, (i, j) in enumerate([(1, 1), (1, 0), (2, 1), (2, 1)], 1)
        ],
    },
}
EXPORTED = {  # the photos, and their folder from the one that is given
    "cvat": ["day 1/a.png", "day 1/b.png", "c.png"],
    "label studio": ["images/a.png", "images/b.png", "images/c.png"],
    "roboflow": ["a_png.rf.0f9.png", "b_png.rf.0f9.png", "c_png.rf.0f9.png"],
    "fiftyone": ["a.png", "b.png", "c.png"],
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_what_labelling_tools_write_as_coco_is_read_and_trained_on(tmp_path, capsys, tool):
    path = write_coco(tmp_path, EXPORTS[tool])
    split = data.load_coco(path, tmp_path)
    root = ["pets-Xy1z"] if tool == "roboflow" else []
    assert split.classes == [*root, "cat", "dog"]
    assert split.targets[:, len(root) :].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert not split.targets[:, : len(root)].any()
    assert split.paths == [f"{tmp_path}/{name}" for name in EXPORTED[tool]]
    for i, name in enumerate(EXPORTED[tool]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (100 * i, 0, 0)).save(tmp_path / name)
    own = ["--dataset", "coco", "--out", str(tmp_path / "out"), "--epochs", "1", "--workers", "0"]
    for name in ("train", "val"):
        own += [f"--{name}-json", str(path), f"--{name}-images", str(tmp_path)]
    own += ["--backbone", "tresnet_tiny", "--image-size", "32", "--device", "cpu"]
    own += ["--nodes", "pca", "--phase", *(["all"] if root else ["backbone", "eval"])]
    assert run.main(own) == 0
    name = "gcn-pca" if root else "backbone"
    summary = f"{2 + len(root)} labels, {len(root)} of them in no image"
    assert summary + (": pets-Xy1z" if root else "") in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / f"metrics-{name}.json").read_text())
    # a and b show a dog, the root is in no photo: its AP is none, the mean is of cat and dog
    assert metrics["left_out"] == len(root)
    assert metrics["AP"]["dog"] == 100


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
    for third in ("rabbit", "none", "pets"):
        more = [{"id": 6, "name": "rabbit", "supercategory": third}]
        with pytest.raises(ValueError, match="id 6, 'rabbit'"):
            data.load_coco(
                write_coco(tmp_path, document | {"categories": document["categories"] + more}), ""
            )


def test_the_readme_splits_one_coco_json_and_shortens_names_as_it_says(tmp_path):
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    split, shorten, *_ = re.findall("```python\n(.*?)```", text, re.DOTALL)
    above = "..\\..\\label-studio/media"
    images = [{"id": i, "file_name": f"{above}\\{i}.png"} for i in range(11)]
    annotations = [{"image_id": i, "category_id": i % 2} for i in range(11)]
    categories = [{"id": 0, "name": "even"}, {"id": 1, "name": "odd"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(whole))
    (tmp_path / "split.py").write_text(split.replace("fifth =", shorten + "fifth =", 1))
    subprocess.run([sys.executable, "split.py"], cwd=tmp_path, check=True)
    parts = [data.load_coco(tmp_path / f"{name}.json", "photos") for name in ("val", "train")]
    assert [len(part) for part in parts] == [2, 9]
    photos = [path for part in parts for path in part.paths]
    assert sorted(photos) == sorted(f"photos/{i}.png" for i in range(11))
    for part in parts:
        assert part.classes == ["even", "odd"]
        for path, target in zip(part.paths, part.targets.tolist(), strict=True):
            assert target == ([0, 1] if int(Path(path).stem) % 2 else [1, 0])


def test_released_vg500_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 3)
    vg_photos(tmp_path, ["7.jpg", "8.jpg", "12.jpg"])
    (tmp_path / "train_list_500.txt").write_bytes(b"12.jpg\r\n7.jpg\r\n")
    (tmp_path / "test_list_500.txt").write_bytes(b"8.jpg")  # no newline at the end
    index = tmp_path / "vg_category_500_labels_index.json"
    index.write_text('{"7.jpg": [2], "8.jpg": [0, 2, 2], "12.jpg": [], "99.jpg": [1]}')
    train, test = data.load_vg500(tmp_path)
    assert train.paths == [f"{tmp_path}/VG_100K/12.jpg", f"{tmp_path}/VG_100K/7.jpg"]
    assert test.paths == [f"{tmp_path}/VG_100K_2/8.jpg"]
    assert train.targets.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert test.targets.tolist() == [[1, 0, 1]]
    assert len(train.classes) == 3
    for wrong, culprit in [
        ('{"7.jpg": [3], "8.jpg": [], "12.jpg": []}', "7.jpg"),
        ("{}", "12.jpg"),
    ]:
        index.write_text(wrong)
        with pytest.raises(ValueError, match=culprit):
            data.load_vg500(tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_vg500_from_visual_genomes_files_is_what_brute_force_counts(tmp_path, monkeypatch, listed):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    shown = write_vg(tmp_path)
    if listed:
        (tmp_path / "test_list_500.txt").write_text("".join(f"{i}.jpg\n" for i in range(41, 81)))
    train, test = data.load_vg500(tmp_path, tmp_path / "cache.npz")
    rows = {"train": train, "test": test}
    ids = {k: [int(re.findall(r"(\d+)\.jpg", p)[0]) for p in s.paths] for k, s in rows.items()}
    assert sorted(ids["train"] + ids["test"]) == list(range(41, 101))
    if listed:
        assert ids["test"] == list(range(41, 81))
    else:
        assert len(ids["test"]) == 6  # a tenth
    counts = {}
    for image_id in ids["train"]:
        for name in shown[image_id]:
            counts[name] = counts.get(name, 0) + 1
    expected = sorted(counts, key=lambda name: (-counts[name], name))[:4]
    assert train.classes == test.classes == expected
    for k, split in rows.items():
        for image_id, row in zip(ids[k], split.targets.tolist(), strict=True):
            assert row == [int(name in shown[image_id]) for name in expected]


def test_a_parsed_data_set_is_kept_until_its_files_change(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VG_LABELS", 4)
    write_vg(tmp_path)
    cache, parsed, read_lists = tmp_path / "cache.npz", [], data.read_lists
    monkeypatch.setattr(data, "read_lists", lambda *a, **k: parsed.append(a) or read_lists(*a, **k))
    first, second = data.load_vg500(tmp_path, cache), data.load_vg500(tmp_path, cache)
    assert len(parsed) == 2  # objects and images, once
    for a, b in zip(first, second, strict=True):
        assert (a.paths, a.classes, a.targets.tolist()) == (b.paths, b.classes, b.targets.tolist())
    truncate(cache)  # a damaged cache is made anew
    assert data.load_vg500(tmp_path, cache)[0].targets.tolist() == first[0].targets.tolist()
    assert len(parsed) == 4
    write_vg(tmp_path, images=50, seed=1)
    assert len(data.load_vg500(tmp_path, cache)[0]) == 45
    assert len(parsed) == 6


def walk(text, piece):
    """The top object of a JSON text, its lists item by item."""
    window, found = data.JSONWindow(io.StringIO(text), piece), {}
    for name in window.members("{}"):
        found[name] = list(window.members("[]")) if window.peek() == "[" else window.value()
    assert window.peek() == ""
    return found


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1000])
def test_json_walked_through_a_window_is_what_json_reads_whatever_the_window(piece):
    text = '{"a": {"b": [1, 2.5e3, "\\u00e9 \\"]"]}, "list" : [ {"id": 12}, 345 ,"x,]", [], {}], '
    text += '"n": null}\n'
    assert walk(text, piece) == json.loads(text)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("sort_keys", [False, True])  # sorted, the polygons end their object
def test_polygons_are_taken_out_and_nothing_else(piece, indent, sort_keys):
    polygons = [[[1, 2.5, -3, 4e-05]], [[1, 2], [3, 4]], [[5], []]]
    others = [[], {"counts": [4, 2], "size": [2, 3]}, {"counts": "a]b["}, None]
    quoted = '"segmentation": [[1, 2]], "id": 3 } ]'
    items = [
        {"segmentation": value, "id": i, "bbox": [1, 2, 3], "name": quoted}
        for i, value in enumerate(polygons + others + polygons)
    ]
    document = {"annotations": items, "more": {"segmentation": [7], "x": [1]}, "categories": [8]}
    found = walk(json.dumps(document, indent=indent, sort_keys=sort_keys), piece)
    if piece == 10_000:  # else, many a list is parsed before the window shows that it is whole
        cut = [item["segmentation"] for item in found["annotations"]]
        assert cut == [0, 0, 0, *others, 0, 0, 0]
    for one in (document, found):
        for item in [*one["annotations"], one["more"]]:
            if isinstance(item["segmentation"], list):
                item["segmentation"] = 0
    assert found == document


def test_glove_nodes_are_the_means_of_their_words(tmp_path):
    # GloVe's own files hold words that are a no-break space, or have blanks in them.
    text = "light 1 2 3\ntraffic 3 0 -1\n\u00a0 7 7 7\n. . 8 8 8\nunused a b c\ntv 5 5 5.5\n"
    (tmp_path / "glove.txt").write_text(text, encoding="utf-8")
    nodes, unknown = data.load_glove(tmp_path / "glove.txt", ["Traffic light", "tv-set", "zebra"])
    assert nodes.tolist() == [[2, 1, 1], [5, 5, 5.5], [0, 0, 0]]  # ((3 0 -1) + (1 2 3)) / 2
    assert unknown == ["set", "zebra"]


@pytest.mark.parametrize("third", ["cat 1 2", "cat 1 2 many", "cat 1 2 nan"])
def test_glove_reader_names_the_line_that_is_wrong(tmp_path, third):
    (tmp_path / "glove.txt").write_text(f"a 1 2 3\nb 1 2 3\n{third}\n")
    with pytest.raises(ValueError, match=r"glove\.txt, line 3"):
        data.load_glove(tmp_path / "glove.txt", ["cat"])


def palette_image():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("L", (4, 4), 100), {}, (100, 100, 100)),
        (Image.new("1", (4, 4), 1), {}, (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 51)), {}, (204, 204, 204)),  # a fifth black, the rest white
        (Image.new("RGBA", (4, 4), (200, 0, 50, 51)), {}, (244, 204, 214)),  # v / 5 + 204
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (palette_image(), {}, (10, 20, 30)),
        (palette_image(), {"transparency": 0}, (10, 20, 30)),
        (palette_image(), {"transparency": 1}, (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), {"format": "TIFF"}, (255, 0, 0)),
        # 100 * 256 + 200: the upper byte counts
        (Image.fromarray(np.full((4, 4), 25800, np.uint16)), {}, (100, 100, 100)),
    ],
)
def test_images_of_every_mode_become_the_right_rgb(tmp_path, image, options, expected):
    image.save(tmp_path / "photo", **{"format": "PNG"} | options)
    for draft in (False, True):
        photo = data.read_image(tmp_path / "photo", 4, draft)
        assert photo.mode == "RGB"
        assert photo.getcolors() == [(16, expected)]


def test_photos_are_squashed_bilinearly(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 3] = 240
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    # 8 columns to 4: output column c has its centre at 2c + 1 and a triangle of half-width 2 and
    # area 2; the pixel at 3.5 weighs (1 - 0.5 / 2) / 2 = 3/8 in column 1 and 1/8 in column 2.
    squashed = np.asarray(data.read_image(tmp_path / "photo.png", 4))
    assert squashed[..., 0].tolist() == [[0, 90, 30, 0]] * 4


def grey_blocks(path):
    """A JPEG of 8 x 8 blocks of 8 x 8 equal pixels, in which every scale of it is exact."""
    blocks = np.random.default_rng(0).integers(40, 210, size=(8, 8), dtype=np.uint8)
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path, "JPEG", quality=100)
    return blocks.astype(int)


def test_drafts_of_large_jpegs_are_decoded_small(tmp_path):
    blocks = grey_blocks(tmp_path / "photo.jpg")
    for size, repeats in [(8, 1), (16, 2), (32, 4)]:  # the bilinear filter would blend the blocks
        draft = np.asarray(data.read_image(tmp_path / "photo.jpg", size, draft=True))[..., 0]
        assert np.abs(draft - blocks.repeat(repeats, 0).repeat(repeats, 1)).max() <= 2


@pytest.mark.parametrize(("width", "height", "size"), [(64, 64, 33), (64, 63, 32), (63, 64, 32)])
def test_drafts_of_smaller_photos_are_a_grey_level_at_most_from_pillows(
    tmp_path, width, height, size
):
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as image:
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    draft = np.asarray(data.read_image(tmp_path / "photo.jpg", size, draft=True))
    assert np.abs(draft - expected).max() == 1  # 0 would be Pillow itself


def test_photos_are_drafts_for_training_and_whole_for_evaluation_unless_asked(
    tmp_path, monkeypatch
):
    path = str(tmp_path / "photo.jpg")
    blocks = grey_blocks(path)
    with Image.open(path) as image:
        whole = image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    monkeypatch.setattr(data, "augment", lambda image, rng: image)
    split = data.Split([path], np.zeros((1, 1), np.uint8), ["label"])
    for options, is_draft in [
        ({}, False),
        ({"augment": True}, True),
        ({"draft": True}, True),
        ({"augment": True, "draft": False}, False),
    ]:
        pixels = data.MultiLabelImages(split, 8, **options)[0, 0][0]
        assert (np.abs(pixels[..., 0] - blocks).max() <= 2) == is_draft
        assert (pixels.tobytes() == whole.tobytes()) == (not is_draft)


def test_a_photo_that_pillow_refuses_is_an_error_that_names_it(demo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 160 x 120 is a "decompression bomb" now
    split = demo_split(demo, "val2014")
    image, _, _, error = data.MultiLabelImages(split, 32)[0, 3]
    assert image is None
    assert split.paths[3] in error


def test_augmentation_depends_on_seed_epoch_and_row_alone(demo):
    def pixels(seed, keys):
        images = data.MultiLabelImages(demo_split(demo, "train2014"), 32, augment=True, seed=seed)
        return [images[key][0].tobytes() for key in keys]

    keys = [(epoch, row) for epoch in range(3) for row in range(4)]
    assert pixels(5, keys) == pixels(5, keys[::-1])[::-1]
    assert len({*pixels(5, keys), *pixels(6, keys)}) == 2 * len(keys)


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


def test_two_operations_are_drawn_apart_each_applied_half_the_time(monkeypatch):
    applied = []
    kinds = {"a": (0, 9, True), "b": (18, 0, False), "c": (0, 0, False)}
    operations = {k: (lambda im, m, _, k=k: applied.append((k, m)) or im, *kinds[k]) for k in kinds}
    monkeypatch.setattr(data, "OPERATIONS", operations)
    rng, image, times = np.random.default_rng(0), Image.new("RGB", (1, 1)), 4000
    counts, pairs = np.zeros(3), 0
    for _ in range(times):
        applied.append(None)
        data.augment(image, rng)
        new = applied[len(applied) - applied[::-1].index(None) :]
        counts[len(new)] += 1
        pairs += len(new) == 2 and new[0][0] == new[1][0]
    assert counts / times == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)
    assert pairs / counts[2] == pytest.approx(1 / 3, abs=0.05)  # drawn with replacement
    found = {k: [one[1] for one in applied if one and one[0] == k] for k in kinds}
    assert [len(found[k]) / times for k in kinds] == pytest.approx([1 / 3] * 3, abs=0.03)
    levels = {k: np.unique(np.round(found[k], 9), return_counts=True) for k in kinds}
    assert levels["a"][0].tolist() == [*range(-9, 0), *range(1, 10)]
    assert levels["a"][1] / len(found["a"]) == pytest.approx(np.full(18, 1 / 18), abs=0.02)
    assert levels["b"][0].tolist() == [*range(0, 18, 2)]  # 18 less two a level
    assert levels["c"][0].tolist() == [0]


def test_batches_shuffled_hold_an_image_at_most_once_and_depend_on_seed_and_epoch():
    def rows(sampler, epoch):
        sampler.epoch = epoch
        assert [len(batch) for batch in sampler] == [4, 4]  # the other 3 of 11 wait for their turn
        keys = [key for batch in sampler for key in batch]
        assert {key[0] for key in keys} == {epoch}
        return [key[1] for key in keys]

    first = rows(loading.Rows(11, 4, shuffle=True, seed=2), 5)
    assert len(set(first) & set(range(11))) == 8
    again = loading.Rows(11, 4, shuffle=True, seed=2)
    assert rows(again, 4) != first
    assert rows(again, 5) == first
    assert rows(loading.Rows(11, 4, shuffle=True, seed=3), 5) != first


def test_batches_in_order_hold_every_image_once():
    rows = [[row for _, row in batch] for batch in loading.Rows(11, 4)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_demo_scenes_of_one_seed_are_the_same_bytes_and_are_drawn_once(demo, tmp_path):
    scenes.make_demo(tmp_path, seed=0, train=24, val=12)
    files = [path.relative_to(demo) for path in sorted(demo.rglob("*.j*"))]
    assert len(files) == 2 + 24 + 12
    assert all((demo / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    photo = tmp_path / files[-1]
    photo.write_bytes(b"mine")
    scenes.make_demo(tmp_path, seed=0, train=24, val=12)
    assert photo.read_bytes() == b"mine"
    scenes.make_demo(tmp_path, seed=1, train=24, val=12)
    assert all((demo / file).read_bytes() != (tmp_path / file).read_bytes() for file in files)


def test_demo_boxes_lie_inside_their_pictures_and_hold_all_that_was_drawn(demo):
    document = json.loads((demo / "annotations/instances_train2014.json").read_text())
    for entry in document["images"]:
        with Image.open(demo / "train2014" / entry["file_name"]) as image:
            brightness = np.asarray(image).max(2)  # (H, W)
        for annotation in document["annotations"]:
            if annotation["image_id"] == entry["id"]:
                x, y, width, height = annotation["bbox"]
                assert 0 <= x < x + width <= 160
                assert 0 <= y < y + height <= 120
                brightness[y : y + height, x : x + width] = 255
        assert brightness.min() > 60  # the objects' outlines are darker, the background is not
