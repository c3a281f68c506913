"""Data sets as `Split(paths, targets, classes)`, and the pipeline from photo to training batch.

The rest of the code knows nothing of a data set but its `Split`. COCO is read from its usual tree:

    <root>/annotations/instances_train2014.json   <root>/annotations/instances_val2014.json
    <root>/train2014/*.jpg                        <root>/val2014/*.jpg

Symbols: M images in a split, n labels, B images in a batch, S the side images are squashed to.
JSON is read with `json` and photos with Pillow. Augmentation follows ASL's training code (Ridnik et
al. 2021a; README, differences 9 and 10).
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch.utils.data import Dataset, Sampler


@dataclass
class Split:
    """One split of a data set: paths of M photos, targets (M, n) uint8 of 0/1, n class names."""

    paths: list[str]
    targets: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Split":
        """The images of these row numbers, in this order."""
        return Split([self.paths[i] for i in rows], self.targets[rows], self.classes)


def load_coco(json_path: str | Path, image_dir: str | Path) -> Split:
    """Read any COCO-format `instances` JSON; every image in it, labelled or not, in file order.

    Classes are in category id order (ids have gaps: column != id). Crowd annotations count as any
    other, boxes and polygons are not looked at. An image of several annotations of one category
    has that label once.
    """
    document = read_json(json_path, object_hook=_keep_labels)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{json_path} has no list {key!r}; expected COCO's instances_*.json")

    categories = {}  # id -> name
    for category in document["categories"]:
        if not isinstance(category, dict) or not isinstance(category.get("name"), str):
            raise ValueError(f"{json_path}: category {category!r:.80} needs an 'id' and a 'name'")
        category_id, name = _id(category.get("id"), "category", json_path), category["name"]
        if category_id in categories or name in categories.values():
            raise ValueError(
                f"{json_path}: category id {category_id}, {name!r:.80}, is there twice"
            )
        categories[category_id] = name
    ids = sorted(categories)  # difference 8: id order, not alphabetical
    columns = {category_id: j for j, category_id in enumerate(ids)}

    rows, paths = {}, []  # image id -> row
    for image in document["images"]:
        if not isinstance(image, tuple) or not isinstance(image[1], str):
            raise ValueError(f"{json_path}: image {image!r:.80} needs an 'id' and a 'file_name'")
        image_id = _id(image[0], "image", json_path)
        if image_id in rows:
            raise ValueError(f"{json_path}: image id {image_id} is there twice")
        rows[image_id] = len(paths)
        paths.append(os.path.join(image_dir, image[1]))

    targets = np.zeros((len(paths), len(ids)), np.uint8)  # (M, n)
    for annotation in document["annotations"]:
        if not isinstance(annotation, tuple):
            raise ValueError(
                f"{json_path}: annotation {annotation!r:.80} needs an 'image_id' and a "
                "'category_id'; captions and panoptic files have none, use instances_*.json"
            )
        try:
            targets[rows[annotation[0]], columns[annotation[1]]] = 1
        except (KeyError, TypeError):  # TypeError: an id that is a list or an object
            kind = "category" if annotation[0] in list(rows) else "image"
            value = annotation[kind == "category"]
            raise ValueError(
                f"{json_path}: an annotation names {kind} id {value!r:.80}, which is not among the "
                f"{len(ids)} categories and {len(rows)} images; the file is damaged or cut by hand"
            ) from None
    return Split(paths, targets, [categories[i] for i in ids])


def _keep_labels(item: dict) -> dict | tuple:
    """Shrinks an annotation to (image_id, category_id) and an image to (id, file_name) as soon as
    it is parsed, so that no polygon outlives its annotation: COCO's file parses to several GB."""
    if "image_id" in item and "category_id" in item:
        return item["image_id"], item["category_id"]
    if "file_name" in item:
        return item.get("id"), item["file_name"]
    return item


def _id(value: object, kind: str, path: str | Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path}: {kind} id {value!r:.80} is not a whole number")
    return value


def read_json(path: str | Path, object_hook=None):
    """json.load with one clear sentence for a file that is missing, cut short or not JSON."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); download or export it again"
        ) from None


def cached(cache: str | Path | None, read: Callable[..., Split], *arguments: str | Path) -> Split:
    """read(*arguments), kept in the npz file `cache` for the next start; None keeps nothing.

    The file is used if it was made by the same code from the same arguments, of which those that
    are files have the size and time of change they had. If not, or damaged, it is made anew.
    """
    if cache is None:
        return read(*arguments)
    key = []
    for path in (__file__, *arguments):
        stat = os.stat(path) if os.path.isfile(path) else None
        key.append([str(path), stat and [stat.st_size, stat.st_mtime_ns]])
    try:
        with np.load(cache, allow_pickle=False) as file:
            found, paths, classes = json.loads(file["names"].tobytes())
            if found == key:
                targets = np.unpackbits(file["targets"], axis=1, count=len(classes))  # (M, n)
                return Split(paths, targets, classes)
    except Exception:  # noqa: BLE001 (a damaged npz raises any of a dozen kinds)
        found = None
    split = read(*arguments)
    names = json.dumps([key, split.paths, split.classes]).encode()
    os.makedirs(os.path.dirname(os.path.abspath(cache)), exist_ok=True)
    temporary = f"{cache}.{os.getpid()}.tmp"  # several processes may start at once
    with open(temporary, "wb") as file:
        bits = np.packbits(split.targets, axis=1)  # (M, n / 8)
        np.savez_compressed(file, names=np.frombuffer(names, np.uint8), targets=bits)
    os.replace(temporary, cache)
    return split


VG_LABELS = 500


def load_vg500(root: str | Path, cache: str | Path | None = None) -> tuple[Split, Split]:
    """VG-500 as (train, test), from the files of its release or from Visual Genome's own:

    <root>/VG_100K/*.jpg   <root>/VG_100K_2/*.jpg   <root>/test_list_500.txt   and either
    <root>/train_list_500.txt   <root>/vg_category_500_labels_index.json   or
    <root>/objects.json   <root>/image_data.json

    The release (SSGRL, Chen et al. 2019) numbers its labels without naming them. Where its index
    is not there `count_vg_names` makes labels anew, kept in the file `cache`, and every image that
    is not a test image is a training image.
    """
    root = Path(root)
    index, test_list = root / "vg_category_500_labels_index.json", root / "test_list_500.txt"
    if index.is_file():
        train, test = read_list(root / "train_list_500.txt"), read_list(test_list)
        both = set(train) & set(test)
        if both:
            raise ValueError(f"{root}: {len(both)} images are in both lists ({min(both)}, ...)")
        split = read_vg_index(index, train + test)
    elif (root / "objects.json").is_file():
        sources = root / "objects.json", root / "image_data.json", test_list
        split = cached(cache, count_vg_names, *sources)
        test = choose_vg_test(test_list, split.paths)
    else:
        raise FileNotFoundError(
            f"{root} has neither {index.name} nor objects.json; expected there\n"
            "  VG_100K/*.jpg  VG_100K_2/*.jpg  test_list_500.txt  and either\n"
            f"  train_list_500.txt  {index.name}  or\n"
            "  objects.json  image_data.json"
        )
    is_test = np.isin(split.paths, test)  # (M,)
    second = set(os.listdir(root / "VG_100K_2")) if (root / "VG_100K_2").is_dir() else set()
    folders = ["VG_100K_2" if name in second else "VG_100K" for name in split.paths]
    split.paths = [os.path.join(root, *path) for path in zip(folders, split.paths, strict=True)]
    return split.select(np.flatnonzero(~is_test)), split.select(np.flatnonzero(is_test))


def read_list(path: Path) -> list[str]:
    """The photos of a released list, one a line."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; VG-500's release has it")
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{path} has {len(names):,} lines, {len(set(names)):,} of them different; expected "
            "<id>.jpg lines, each once; download it again"
        )
    return names


def read_vg_index(path: Path, names: list[str]) -> Split:
    """The released labels of these photos: {"<id>.jpg": [0, 17, ...], ...}, numbered from 0."""
    index = read_json(path)
    missing = [name for name in names if not isinstance(index, dict) or name not in index]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing):,} of the {len(names):,} photos of the lists "
            f"({missing[0]}, ...); lists and index must be of one release"
        )
    targets = np.zeros((len(names), VG_LABELS), np.uint8)  # (M, n)
    for row, name in enumerate(names):
        labels = index[name]
        if not isinstance(labels, list) or any(label not in range(VG_LABELS) for label in labels):
            raise ValueError(
                f"{path}: {name} has {labels!r:.80}, expected a list of label numbers, 0 to "
                f"{VG_LABELS - 1}; download it again"
            )
        targets[row, np.array(labels, int)] = 1
    return Split(names, targets, [f"label {j}" for j in range(VG_LABELS)])


def count_vg_names(objects: Path, image_data: Path, test_list: Path) -> Split:
    """Every image of Visual Genome, by id, with the 500 names most training images show [ours].

    Names are in lower case and of single blanks; every name of an object counts, once an image;
    ties go by name. The images are those of `image_data`, or of `objects` where it is not there.
    """
    shown = {}  # image id -> names

    def collect(item: dict) -> list | None:
        """Shrinks an object to its names and takes an image's: parsed whole they take 3 GB."""
        if "objects" not in item:
            return item.get("names")
        names = {" ".join(name.lower().split()) for names in item["objects"] for name in names}
        shown[item["image_id"]] = [sys.intern(name) for name in names if name]

    try:
        count = len(read_json(objects, object_hook=collect))
        images = read_json(image_data) if image_data.is_file() else []
        ids = [image["image_id"] for image in images] or shown
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{objects} or image_data.json is not as Visual Genome has it ({error!r}); expected "
            "[{'image_id': 1, 'objects': [{'names': ['tree']}, ...]}, ...], [{'image_id': 1}, ...]"
        ) from None
    if count != len(shown):
        raise ValueError(f"{objects} has {count:,} images of {len(shown):,} ids; download it again")

    ids = sorted({_id(image_id, "image", objects) for image_id in ids})
    paths = [f"{image_id}.jpg" for image_id in ids]
    test = set(choose_vg_test(test_list, paths))
    counts = Counter()  # name -> training images that show it
    for image_id, path in zip(ids, paths, strict=True):
        if path not in test:
            counts.update(shown.get(image_id, []))
    classes = sorted(counts, key=lambda name: (-counts[name], name))[:VG_LABELS]
    if len(classes) < VG_LABELS:
        raise ValueError(
            f"{objects}: training images show {len(classes)} names, expected {VG_LABELS} or more; "
            "give Visual Genome's whole file"
        )
    columns = {name: j for j, name in enumerate(classes)}
    targets = np.zeros((len(ids), VG_LABELS), np.uint8)  # (M, n)
    for row, image_id in enumerate(ids):
        targets[row, [columns[name] for name in shown.get(image_id, []) if name in columns]] = 1
    return Split(paths, targets, classes)


def choose_vg_test(test_list: Path, names: list[str]) -> list[str]:
    """The released test photos; without that list 10,000 drawn with seed 0, or a tenth of fewer
    than 20,000 [ours]."""
    if not test_list.is_file():
        size = 10_000 if len(names) >= 20_000 else len(names) // 10
        return [names[i] for i in np.random.default_rng(0).permutation(len(names))[:size]]
    test = read_list(test_list)
    absent = set(test).difference(names)
    if absent:
        raise ValueError(
            f"{test_list} names {len(absent):,} photos that Visual Genome's files here do not have "
            f"({min(absent)}, ...); give the version it was made for, or take out those lines"
        )
    return test


def load_glove(path: str | Path, classes: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Word nodes (n, d) from a GloVe-format text file: a word and d numbers a line.

    A label's vector is the mean over its words' (ML-GCN); words are lower case, split at blanks,
    hyphens and underscores. Returns the words not found too; a label of no known word gets zeros.
    """
    words = [[w for w in re.split(r"[\s_-]+", name.lower()) if w] for name in classes]
    wanted = {w for ws in words for w in ws}
    vectors, width = {}, None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no GloVe file {path}; give --glove a text file of word vectors")
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                values = line.rstrip().split(" ")  # not split(): a few words are Unicode blanks
                if number == 1 and len(values) == 2:  # word2vec's header: count and width
                    continue
                width = width or len(values) - 1
                if len(values) - 1 < width or width < 2:  # more: some of GloVe's words hold blanks
                    raise ValueError(f"has {len(values) - 1} numbers, line 1 has {width}")
                if values[0] in wanted and len(values) - 1 == width:
                    vectors[values[0]] = np.array(values[1:], dtype=np.float64)  # (d,)
                    if not np.isfinite(vectors[values[0]]).all():
                        raise ValueError("holds a number that is not finite")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected GloVe's .txt") from None
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}: {error}; expected a word and the same count of numbers a line"
        ) from None
    if not vectors:
        raise ValueError(f"{path} holds none of the words of the {len(classes)} labels")
    nodes = np.zeros((len(classes), width))  # (n, d)
    for j, ws in enumerate(words):
        known = [vectors[w] for w in ws if w in vectors]
        if known:
            nodes[j] = np.mean(known, axis=0)
    return torch.from_numpy(nodes).float(), sorted(wanted - vectors.keys())


def read_image(path: str | Path, size: int) -> Image.Image:
    """The photo as RGB, squashed to size x size (bilinear, aspect not kept; difference 9)."""
    with Image.open(path) as image:
        return to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, CMYK, palette: RGB. Transparency is laid on white, 16-bit grey keeps its top 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def cutout(image: Image.Image, side: float, rng: np.random.Generator) -> Image.Image:
    """A square of one random colour at a random centre, clipped at the borders."""
    x, y = rng.integers(image.width), rng.integers(image.height)
    left, top = max(int(x - side / 2), 0), max(int(y - side / 2), 0)
    right, bottom = min(int(x + side / 2), image.width), min(int(y + side / 2), image.height)
    image.paste(tuple(rng.integers(256, size=3).tolist()), (left, top, right, bottom))
    return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    bicubic, grey = Image.Resampling.BICUBIC, (128, 128, 128)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=grey)


# RandAugment's operations as the `randaugment` package has them: what it does to (image, magnitude,
# rng), the magnitude at level 0 and at level 9, and whether the magnitude takes either sign.
OPERATIONS = {
    "ShearX": (lambda im, m, _: _affine(im, 1, m, 0, 0, 1, 0), 0, 0.3, True),
    "ShearY": (lambda im, m, _: _affine(im, 1, 0, 0, m, 1, 0), 0, 0.3, True),
    "TranslateX": (lambda im, m, _: _affine(im, 1, 0, m * im.width, 0, 1, 0), 0, 150 / 331, True),
    "TranslateY": (lambda im, m, _: _affine(im, 1, 0, 0, 0, 1, m * im.height), 0, 150 / 331, True),
    "Rotate": (lambda im, m, _: im.rotate(m, fillcolor=(128, 128, 128)), 0, 30, False),
    "Color": (lambda im, m, _: ImageEnhance.Color(im).enhance(1 + m), 0, 0.9, True),
    "Contrast": (lambda im, m, _: ImageEnhance.Contrast(im).enhance(1 + m), 0, 0.9, True),
    "Brightness": (lambda im, m, _: ImageEnhance.Brightness(im).enhance(1 + m), 0, 0.9, True),
    "Sharpness": (lambda im, m, _: ImageEnhance.Sharpness(im).enhance(1 + m), 0, 0.9, True),
    "Posterize": (lambda im, m, _: ImageOps.posterize(im, round(m)), 8, 4, False),
    "Solarize": (lambda im, m, _: ImageOps.solarize(im, m), 256, 0, False),
    "AutoContrast": (lambda im, m, _: ImageOps.autocontrast(im), 0, 0, False),
    "Equalize": (lambda im, m, _: ImageOps.equalize(im), 0, 0, False),
    "Invert": (lambda im, m, _: ImageOps.invert(im), 0, 0, False),
    "Cutout": (lambda im, m, rng: cutout(im, m, rng), 0, 20, False),  # magnitude in pixels
}


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cutout of half the side, then RandAugment (difference 10). No flip: ASL's code has none."""
    image = cutout(image, 0.5 * image.width, rng)
    for name in rng.choice(list(OPERATIONS), size=2):
        if rng.random() < 0.5:
            operation, low, high, either_sign = OPERATIONS[name]
            magnitude = low + (high - low) * rng.integers(1, 10) / 9
            if either_sign and rng.random() < 0.5:
                magnitude = -magnitude
            image = operation(image, magnitude, rng)
    return image


# What Pillow raises on damaged files.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)


class MultiLabelImages(Dataset):
    """A split as (image, target, row, error) items, keyed by (epoch, row) pairs; see `Batches`.

    image is a (S, S, 3) uint8 array. What is drawn for augmentation depends on (seed, epoch, row)
    alone: not on the worker, not on what was loaded before, not on whether the run was resumed.
    A photo that cannot be read has image None and a sentence in `error`.
    """

    def __init__(self, split: Split, size: int, augment: bool = False, seed: int = 0):
        self.split, self.size, self.augment, self.seed = split, size, augment, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]):
        epoch, row = key
        path, target = self.split.paths[row], self.split.targets[row]
        try:
            image = read_image(path, self.size)
        except PILLOW_ERRORS as error:
            return None, target, row, f"cannot read photo {path} ({error}); replace the file"
        if self.augment:
            image = augment(image, np.random.default_rng((self.seed, epoch, row)))
        return np.asarray(image), target, row, None


def collate(items: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """images (B, 3, S, S) uint8 in channels_last order, targets (B, n), rows (B,), errors."""
    errors = [error for *_, error in items if error]
    good = [item for item in items if item[3] is None]
    if not good:
        return torch.empty(0), torch.empty(0), torch.empty(0), errors
    images = torch.from_numpy(np.stack([item[0] for item in good]))  # (B, S, S, 3)
    targets = torch.from_numpy(np.stack([item[1] for item in good]))  # (B, n)
    rows = torch.tensor([item[2] for item in good])  # (B,)
    return images.permute(0, 3, 1, 2), targets, rows, errors


class Batches(Sampler):
    """Lists of (epoch, row) keys, one list a batch. Set `epoch` before each pass.

    Shuffled: the order depends on (seed, epoch) alone and the last, incomplete batch is dropped
    (unless it is the only one), so that every step weighs the same. In order: every image once.
    """

    def __init__(self, num_images: int, batch_size: int, shuffle: bool = False, seed: int = 0):
        self.num_images, self.batch_size = num_images, min(batch_size, num_images)
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole if self.shuffle else whole + (rest > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_images)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for i in range(len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in rows]


# The demo: cartoon scenes, written as a COCO 2014 tree and read like the real one. All of it: ours.

SCENE_WIDTH, SCENE_HEIGHT, JPEG_QUALITY = 160, 120, 90
SUPERSAMPLING = 3  # objects are drawn this much larger, then shrunk
STRAY_RATE, PARTNER_RATE = 0.06, 0.5
COUNT_RATES = [0.01, 0.11, 0.22, 0.27, 0.20, 0.12, 0.07]  # of 0, 1, ... 6 objects in a scene

# Each object is a list of "kind colour x y x y ..." on a square of 100 x 100, in painting order.
# The colour "own" stands for the colour drawn at random for that one object.
OBJECTS = {
    "person": "line tan 14 60 50 32 86 60, box navy 33 62 49 99, box navy 51 62 67 99, "
    "box own 29 30 71 68, disc saddlebrown 32 0 68 30, disc tan 36 8 64 34",
    "bicycle": "disc black 0 46 44 90, disc white 7 53 37 83, disc black 55 46 99 90, "
    "disc white 62 53 92 83, line own 78 68 64 24, line own 22 68 38 38 67 38 48 68 22 68, "
    "line own 48 68 36 28, line black 54 24 74 24, line black 28 27 46 27",
    "car": "poly own 18 48 32 22 68 22 84 48, poly lightcyan 27 46 36 28 65 28 75 46, "
    "line own 51 26 51 48, box own 1 46 99 72, disc black 12 56 38 82, disc black 62 56 88 82",
    "traffic light": "box gray 44 66 56 99, box black 30 1 70 74, disc red 39 5 61 27, "
    "disc gold 39 27 61 49, disc lime 39 49 61 71",
    "boat": "line sienna 50 4 50 70, poly white 54 6 54 62 92 62, poly own 46 16 46 62 14 62, "
    "poly own 2 68 98 68 80 96 20 96",
    "umbrella": "line sienna 50 50 50 99, poly own 1 56 10 28 28 10 50 4 72 10 90 28 99 56, "
    "poly white 22 56 28 28 50 4 72 28 78 56, poly own 38 56 42 22 50 4 58 22 62 56",
    "kite": "line dimgray 50 68 40 78 56 88 46 99, poly own 50 0 86 32 50 72 14 32, "
    "poly gold 50 0 86 32 50 32, poly gold 14 32 50 32 50 72",
    "ball": "disc own 4 4 96 96, disc white 22 4 78 96, disc own 38 4 62 96",
    "bottle": "poly own 41 8 59 8 59 32 72 48 72 99 28 99 28 48 41 32, box white 28 56 72 82, "
    "box black 39 1 61 14",
    "cup": "line own 70 36 92 36 90 68 68 74, poly own 8 22 74 22 66 94 16 94, "
    "disc white 8 10 74 34, disc saddlebrown 15 14 67 32",
    "knife": "poly silver 1 62 14 44 64 38 64 62, box own 62 38 99 56",
    "apple": "line saddlebrown 48 32 54 4, disc own 6 22 94 98, disc limegreen 54 6 84 22",
    "laptop": "box black 14 8 86 64, box own 20 14 80 58, poly silver 14 64 86 64 99 88 1 88, "
    "poly dimgray 22 68 78 68 84 78 16 78",
    "book": "poly own 1 24 50 34 99 24 99 88 50 98 1 88, poly white 7 14 50 28 50 90 7 78, "
    "poly white 93 14 50 28 50 90 93 78, line gray 16 40 42 50, line gray 84 40 58 50",
    "lamp": "disc yellow 36 36 64 64, line dimgray 50 54 50 90, box own 24 86 76 98, "
    "poly own 32 4 68 4 92 50 8 50",
    "tree": "box brown 42 56 58 99, disc own 2 28 54 72, disc own 46 28 98 72, disc own 18 2 82 60",
}
HUES = {"apple": (0, 100), "tree": (80, 145)}  # in degrees; every other object takes any hue

# A context: its colours of ground, partly shared so that they are only a hint, and the weights of
# its objects. The partner of an object often comes right after it, in any context.
SKIES = ["lightblue", "linen", "lightgray", "wheat"]
CONTEXTS = {
    "kitchen": ("burlywood silver", {"cup": 5, "apple": 4, "knife": 3, "bottle": 2, "person": 1}),
    "desk": ("burlywood peru", {"laptop": 5, "book": 4, "lamp": 3, "cup": 3, "apple": 1}),
    "street": ("silver gray", {"car": 5, "traffic light": 3, "person": 3, "bicycle": 3, "tree": 2}),
    "park": ("darkseagreen tan", {"tree": 6, "person": 3, "kite": 2, "ball": 2, "bicycle": 2}),
    "beach": ("wheat tan", {"umbrella": 4, "boat": 3, "ball": 3, "person": 3, "bottle": 1}),
}
PARTNERS = {"cup": "bottle", "laptop": "book", "traffic light": "car", "umbrella": "ball"}
# 1, 2, 3, 5, 6, 7, 9, ...: COCO's ids have gaps too, and the reader must cope with them.
CATEGORY_IDS = {name: 1 + k + k // 3 for k, name in enumerate(OBJECTS)}


def choose_objects(rng, weights):
    rates = np.array(list(weights.values())) / sum(weights.values())
    names = []
    for _ in range(rng.choice(len(COUNT_RATES), p=COUNT_RATES)):
        if names and names[-1] in PARTNERS and rng.random() < PARTNER_RATE:
            names.append(PARTNERS[names[-1]])
        elif rng.random() < STRAY_RATE:
            names.append(rng.choice(list(OBJECTS)))
        else:
            names.append(rng.choice(list(weights), p=rates))
    return names


def draw_background(rng, ground):
    scene = Image.new("RGB", (SCENE_WIDTH, SCENE_HEIGHT), rng.choice(SKIES))
    horizon = SCENE_HEIGHT * rng.uniform(0.3, 0.6)
    ImageDraw.Draw(scene).rectangle((0, horizon, SCENE_WIDTH, SCENE_HEIGHT), ground)
    tint = rng.normal(0, 12, size=3)
    pixels = np.asarray(scene) + rng.normal(tint, 7, size=(SCENE_HEIGHT, SCENE_WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_object(rng, name):
    """One object of random colour, size and tilt on a transparent tile, cropped to the object."""
    low, high = HUES.get(name, (0, 360))
    hue, saturation, value = rng.integers((low, 55, 60), (high, 95, 95))
    own = f"hsv({hue}, {saturation}%, {value}%)"
    side = SUPERSAMPLING * int(rng.integers(20, 48))
    tile = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(tile)
    filled = {"box": draw.rectangle, "disc": draw.ellipse, "poly": draw.polygon}
    for shape in OBJECTS[name].split(", "):
        kind, colour, *numbers = shape.split()
        colour = own if colour == "own" else colour
        points = [int(number) * side / 100 for number in numbers]
        if kind == "line":
            draw.line(points, colour, width=side // 14, joint="curve")
        else:
            filled[kind](points, colour, outline="#282828", width=side // 36)
    tile = tile.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR, expand=True)
    tile = tile.reduce(SUPERSAMPLING)
    return tile.crop(tile.getbbox())


def too_close(box, other):
    """Whether two boxes share more than a third of the smaller one."""
    (x, y, w, h), (u, v, s, t) = box, other
    across, down = min(x + w, u + s) - max(x, u), min(y + h, v + t) - max(y, v)
    return max(across, 0) * max(down, 0) > min(w * h, s * t) / 3


def draw_scene(rng):
    """A picture and its objects as (name, [x, y, width, height])."""
    grounds, weights = CONTEXTS[rng.choice(list(CONTEXTS))]
    scene = draw_background(rng, rng.choice(grounds.split()))
    objects = []
    for name in choose_objects(rng, weights):
        tile = draw_object(rng, name)
        for _ in range(20):  # an object that finds no free place is left out
            # Up to a fifth of it may lie beyond the border, each way.
            x = int(rng.uniform(-0.2 * tile.width, SCENE_WIDTH - 0.8 * tile.width))
            y = int(rng.uniform(-0.2 * tile.height, SCENE_HEIGHT - 0.8 * tile.height))
            left, right = max(x, 0), min(x + tile.width, SCENE_WIDTH)
            top, bottom = max(y, 0), min(y + tile.height, SCENE_HEIGHT)
            box = [left, top, right - left, bottom - top]
            if not any(too_close(box, other) for _, other in objects):
                scene.paste(tile, (x, y), tile)
                objects.append((name, box))
                break
    return scene, objects


def make_demo(root: str | Path, seed: int = 0, train: int = 1200, val: int = 400) -> None:
    """Draw the demo under `root`, unless it is there already."""
    for split, (folder, count) in enumerate([("train2014", train), ("val2014", val)]):
        path = Path(root, "annotations", f"instances_{folder}.json")
        info = {"description": f"demo scenes, seed {seed}", "pictures": count}
        if path.exists():
            found = json.loads(path.read_text()).get("info")
            if found == info:
                continue
            if "demo scenes" not in str(found):
                raise FileExistsError(f"{path} is not of the demo and is left alone")
            path.unlink()  # a half-drawn demo must not pass for a finished one
        Path(root, folder).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            scene, objects = draw_scene(np.random.default_rng((seed, split, i)))
            image_id = 1 + i + 1_000_000 * split
            file_name = f"demo_{folder}_{image_id:012}.jpg"
            scene.save(Path(root, folder, file_name), quality=JPEG_QUALITY)
            size = {"width": SCENE_WIDTH, "height": SCENE_HEIGHT}
            images.append({"id": image_id, "file_name": file_name, **size})
            for name, box in objects:
                entry = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
                entry |= {"category_id": CATEGORY_IDS[name], "bbox": box, "area": box[2] * box[3]}
                annotations.append(entry)
        categories = [{"id": CATEGORY_IDS[n], "name": n, "supercategory": "thing"} for n in OBJECTS]
        content = {"info": info, "images": images, "annotations": annotations}
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".tmp").write_text(json.dumps({**content, "categories": categories}))
        os.replace(path.with_suffix(".tmp"), path)
