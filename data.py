"""Data sets as `Split(paths, targets, classes)`, and the pipeline from photo to training batch.

The rest of the code knows nothing of a data set but its `Split`. COCO is read from its usual tree,
Visual Genome from the one `load_vg500` shows:

    <root>/annotations/instances_train2014.json   <root>/annotations/instances_val2014.json
    <root>/train2014/*.jpg                        <root>/val2014/*.jpg

Symbols: M images in a split, n labels, B images in a batch, S the side images are squashed to.
JSON is read by `json` and photos by Pillow. Augmentation follows ASL's training code (Ridnik et al.
2021a; differences 9 and 10 of docs/differences.md).
"""

import functools
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset

from runtime import photo_files, photo_names, reading
from runtime.photo_names import NAME, PhotoFolder
from runtime.reading import LABEL, PHOTO, Kind, composed
from runtime.terminal import brief, tell

# Bytes. The photos of a larger split are known by name and size, which saves minutes.
MOST_READ_FOR_ID = 2 * 10**9


@dataclass
class Split:
    """One split of a data set: paths of M photos, targets (M, n) uint8 of 0/1, n class names.

    `upright`: photos are turned upright where EXIF says how the camera was held (difference 22).
    `by_content`: they are identified by their content, if they take at most 2 GB, rather than by
    names and sizes. `features` (M, D), where the backbone is frozen, are those that `backbone` made
    of the photos. `unreadable` counts the photos that were left out because they could
    not be read.
    """

    paths: list[str]
    targets: np.ndarray
    classes: list[str]
    features: torch.Tensor | None = None
    backbone: torch.nn.Module | None = None
    upright: bool = False
    unreadable: int = 0
    by_content: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def known_by_content(self) -> bool:
        """Whether `photo_ids` are digests of content: only with `by_content`, and for at most
        2 GB."""
        return self.by_content and sum(map(os.path.getsize, self.paths)) <= MOST_READ_FOR_ID

    @functools.cached_property
    def photo_ids(self) -> torch.Tensor:
        """(M,) int64, a number for each photo; see `known_by_content`."""
        return ids_of(self.paths, self.known_by_content)

    def id(self) -> str:
        """The same for the same photos, by `photo_ids` and file names, with the same labels."""
        digest = hashlib.sha256(self.targets.tobytes())
        digest.update(b"upright" if self.upright else b"as stored")
        digest.update(self.photo_ids.numpy())
        for path in self.paths:
            digest.update(f"{os.path.basename(path)}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def select(self, rows: np.ndarray) -> "Split":
        """The images of these row numbers, in this order."""
        features = None if self.features is None else self.features[rows]
        paths, targets = [self.paths[i] for i in rows], self.targets[rows]
        return replace(self, paths=paths, targets=targets, features=features)

    def select_readable(self, rows: np.ndarray) -> "Split":
        """The images of these row numbers; all others could not be read."""
        unreadable = self.unreadable + len(self) - len(rows)
        return replace(self.select(rows), unreadable=unreadable)


def ids_of(paths: list[str], by_content: bool) -> torch.Tensor:
    """(M,) int64: digests of the photos' content, or of their file names and sizes."""
    ids = []
    for path in paths:
        if by_content:
            known_by = photo_files.digest(path)
        else:
            known_by = f"{os.path.basename(path)} {os.path.getsize(path)}"
        ids.append(int64_digest(known_by))
    return torch.tensor(ids, dtype=torch.int64)


def int64_digest(text: str) -> int:
    """A digest of a text, as an int64."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def photos_named(
    names: list[str],
    targets: np.ndarray,
    classes: list[str],
    folder: PhotoFolder,
    source: str | Path,
    uploads: bool = False,
) -> Split:
    """The split of the photos in a folder that a label file, the source, names.

    `names` and `targets`, (rows, n), are those of the file's rows. A photo that is named several
    times has the labels of all its rows, in the place of the first. `uploads`: the names are Label
    Studio's, see PhotoFolder.find.
    """
    paths = photo_names.locate(names, folder, source, uploads)
    row_of = {path: row for row, path in enumerate(dict.fromkeys(paths))}
    united = np.zeros((len(row_of), len(classes)), np.uint8)  # (photos, n)
    for path, labels in zip(paths, targets, strict=True):
        united[row_of[path]] |= labels
    if twice := len(paths) - len(row_of):
        tell(
            f"{source}: {twice:,} of {len(paths):,} rows name a photo that an earlier row names; "
            "their labels are united"
        )
    return Split(list(row_of), united, classes)


def is_id(value: object) -> bool:
    if type(value) is str:
        return len(value) < 20 and value.isascii() and value.isdigit()
    return type(value) is int


ID = Kind("a whole number", is_id)
COCO = {
    "images": [{"id": ID, "file_name": NAME}],
    "annotations": [{"image_id": ID, "category_id": ID}],
    "categories": [{"id": ID, "name": LABEL}],
}


def load_coco(json_path: str | Path, image_dir: str | Path) -> Split:
    """Every image of a COCO-format JSON, labelled or not, in file order, with its photo's path.

    Classes are in category id order (ids have gaps: column != id). Crowd annotations count as any
    other. An image of several annotations of one category has that label once. Categories of one
    name are one label: Roboflow makes a root of the project's name, which may be a label's too. An
    id may be written as text. Names need not be paths in the folder: see PhotoFolder.find.
    """
    coco = reading.read_json(json_path, COCO)
    names = by_id(coco["images"], "file_name", json_path, "image id")
    category_names = by_id(coco["categories"], "name", json_path, "category id")
    category_names = {key: composed(category_names[key]) for key in sorted(category_names)}
    classes = list(dict.fromkeys(category_names.values()))  # in order of id: difference 8
    row_of = {key: row for row, key in enumerate(names)}
    column_of = {key: classes.index(name) for key, name in category_names.items()}

    pairs = [(int(each["image_id"]), int(each["category_id"])) for each in coco["annotations"]]
    reading.check_known((image for image, _ in pairs), row_of, json_path, "image_id")
    reading.check_known((category for _, category in pairs), column_of, json_path, "category_id")
    targets = np.zeros((len(names), len(classes)), np.uint8)  # (M, n)
    for image, category in pairs:
        targets[row_of[image], column_of[category]] = 1
    info = coco.get("info")
    uploads = isinstance(info, dict) and info.get("contributor") == "Label Studio"
    folder = PhotoFolder(image_dir)
    return photos_named(list(names.values()), targets, classes, folder, json_path, uploads)


def by_id(items: list[dict], key: str, path: str | Path, what: str) -> dict[int, str]:
    """What the items of a COCO file have under `key`, by their ids. An id may be there twice with
    the same value; with another value it is a ValueError, which calls the id `what`."""
    values = {}
    for item in items:
        number = int(item["id"])
        if values.setdefault(number, item[key]) != item[key]:
            raise ValueError(
                f"{path}: {what} {brief(number)} is there twice, as {brief(values[number])} and as "
                f"{brief(item[key])}; every id must be different"
            )
    return values


VG_LABELS = 500
LABEL_NUMBER = Kind("a label number, 0 to 499", lambda v: type(v) is int and 0 <= v < VG_LABELS)


def load_vg500(root: str | Path) -> tuple[Split, Split]:
    """VG-500 as (train, test), from the files of its release (SSGRL, Chen et al. 2019):

    <root>/VG_100K/*.jpg   <root>/VG_100K_2/*.jpg   <root>/vg_category_500_labels_index.json
    <root>/train_list_500.txt   <root>/test_list_500.txt

    The release numbers its labels from 0 without naming them: {"<id>.jpg": [0, 17, ...], ...}.
    """
    root = Path(root)
    path = root / "vg_category_500_labels_index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} has no {path.name}; expected there\n"
            f"  VG_100K/*.jpg  VG_100K_2/*.jpg  {path.name}\n"
            "  train_list_500.txt  test_list_500.txt"
        )
    index = reading.read_json(path, {...: [LABEL_NUMBER]})
    second = set(os.listdir(root / "VG_100K_2")) if (root / "VG_100K_2").is_dir() else set()
    splits = []
    for part in ("train", "test"):
        names = read_list(root / f"{part}_list_500.txt")
        reading.check_known(names, index, path, "a photo of the lists,")
        targets = np.zeros((len(names), VG_LABELS), np.uint8)  # (M, n)
        for row, name in enumerate(names):
            targets[row, index[name]] = 1
        folders = ["VG_100K_2" if name in second else "VG_100K" for name in names]
        paths = [os.path.join(root, *path) for path in zip(folders, names, strict=True)]
        splits.append(Split(paths, targets, [f"label {j}" for j in range(VG_LABELS)]))
    train, test = splits
    reading.check_once(train.paths + test.paths, root, "in its two lists, photo")
    return train, test


def read_list(path: Path) -> list[str]:
    """The photos of a released list, one per line."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; VG-500's release has it")
    names = path.read_text(encoding="utf-8", errors="replace").split()
    reading.check(names, [PHOTO], path)
    reading.check_once(names, path, "photo")
    return names


def load_glove(path: str | Path, classes: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Word nodes (n, d) from a GloVe-format text file: a word and d numbers on each line.

    A label's vector is the mean of its words' (ML-GCN); words are lower case, split at blanks,
    hyphens and underscores. Returns also the words that were not found; a label of no known word
    gets zeros. A .npy file is the matrix itself, in the order of the labels (VG-500's have no
    names).
    """
    if Path(path).suffix == ".npy":
        return torch.from_numpy(reading.read_matrix(path, len(classes))).float(), []
    if all(re.fullmatch(r"(label )?\d+", name) for name in classes):
        raise ValueError(
            f"the labels are numbers ({brief(classes[0])}), whose word vectors do not say what "
            "they show; pass a .npy file with a row for each label"
        )
    words = [[w for w in re.split(r"[\s_-]+", composed(name.lower())) if w] for name in classes]
    wanted = {w for words_of_label in words for w in words_of_label}
    vectors = reading.read_vectors(path, wanted)
    nodes = np.zeros((len(classes), len(next(iter(vectors.values())))))  # (n, d)
    for j, words_of_label in enumerate(words):
        known = [vectors[w] for w in words_of_label if w in vectors]
        if known:
            nodes[j] = np.mean(known, axis=0)
    return torch.from_numpy(nodes).float(), sorted(wanted - vectors.keys())


def read_image(
    path: str | Path, size: int, draft: bool = False, upright: bool = False
) -> Image.Image:
    """The photo as RGB, squashed to size x size (bilinear, aspect not kept; difference 9).

    As a draft it takes less time: a JPEG of at least twice the size, both ways, is decoded at a
    half, a quarter or an eighth of it; then torch squashes, at most a grey level off Pillow.
    A photo that cannot be read, or has more than twice Image.MAX_IMAGE_PIXELS, is a ValueError.
    """

    def smaller(image: Image.Image) -> Image.Image:
        if draft:
            image.draft(None, (size, size))  # stays at least this large
        return to_rgb(image, upright)

    image = photo_files.open_photo(path, smaller)
    if not draft:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # (1, 3, H, W) uint8
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)  # (1, 3, S, S)
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def read_photo(path: str | Path, upright: bool = True) -> Image.Image:
    """The photo as RGB, in its own size, turned upright by EXIF unless that is not wanted."""
    return photo_files.open_photo(path, lambda photo: to_rgb(photo, upright))


TURNS = {  # EXIF's orientation -> what turns the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, upright: bool) -> Image.Image:
    """Grey, CMYK and palette images as RGB, turned upright if wanted. What is transparent becomes
    white. 16-bit grey keeps its upper 8 bits; grey of 32 bits is a ValueError."""
    image.load()
    orientation = photo_files.orientation(image) if upright else 1
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("how white its 32-bit grey is cannot be known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = upper_8_bits(image)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def upper_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey. A TIFF may have 12 bits, or 0 for white; a PNG may have a grey
    that is transparent, which becomes white."""
    grey = np.asarray(image).astype(np.int64)  # (H, W)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]  # BitsPerSample
    upper = (grey >> (bits - 8)).clip(0, 255)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        upper = 255 - upper
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        upper[grey == transparent] = 255
    return Image.fromarray(upper.astype(np.uint8))


def cutout(image: Image.Image, side: float, colour: tuple, rng: np.random.Generator) -> Image.Image:
    """A square of one colour at a random centre, clipped at the borders."""
    x, y = rng.integers(image.width), rng.integers(image.height)
    left, top = max(int(x - side / 2), 0), max(int(y - side / 2), 0)
    right, bottom = min(int(x + side / 2), image.width), min(int(y + side / 2), image.height)
    image.paste(colour, (left, top, right, bottom))
    return image


GREY, MEAN = (128, 128, 128), (125, 122, 113)  # MEAN: over ImageNet, the package's for Cutout


def _shear(image: Image.Image, x: float, y: float) -> Image.Image:
    matrix, bicubic = (1, x, 0, y, 1, 0), Image.Resampling.BICUBIC
    return image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=GREY)


def _translate(image: Image.Image, x: float, y: float) -> Image.Image:
    matrix, nearest = (1, 0, x * image.width, 0, 1, y * image.height), Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=GREY)


# RandAugment's operations as the `randaugment` package has them: what it does to (image, magnitude,
# rng), the magnitude at level 0 and at level 9, and whether the magnitude takes either sign.
OPERATIONS = {
    "ShearX": (lambda im, m, _: _shear(im, m, 0), 0, 0.3, True),
    "ShearY": (lambda im, m, _: _shear(im, 0, m), 0, 0.3, True),
    "TranslateX": (lambda im, m, _: _translate(im, m, 0), 0, 150 / 331, True),
    "TranslateY": (lambda im, m, _: _translate(im, 0, m), 0, 150 / 331, True),
    "Rotate": (lambda im, m, _: im.rotate(m, fillcolor=GREY), 0, 30, False),
    "Color": (lambda im, m, _: ImageEnhance.Color(im).enhance(1 + m), 0, 0.9, True),
    "Contrast": (lambda im, m, _: ImageEnhance.Contrast(im).enhance(1 + m), 0, 0.9, True),
    "Brightness": (lambda im, m, _: ImageEnhance.Brightness(im).enhance(1 + m), 0, 0.9, True),
    "Sharpness": (lambda im, m, _: ImageEnhance.Sharpness(im).enhance(1 + m), 0, 0.9, True),
    "Posterize": (lambda im, m, _: ImageOps.posterize(im, round(m)), 8, 4, False),
    "Solarize": (lambda im, m, _: ImageOps.solarize(im, m), 256, 0, False),
    "AutoContrast": (lambda im, m, _: ImageOps.autocontrast(im), 0, 0, False),
    "Equalize": (lambda im, m, _: ImageOps.equalize(im), 0, 0, False),
    "Invert": (lambda im, m, _: ImageOps.invert(im), 0, 0, False),
    "Cutout": (lambda im, m, rng: cutout(im, m, MEAN, rng), 0, 20, False),  # magnitude in pixels
}


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cutout of half the side, then RandAugment (difference 10). No flip: ASL's code has none."""
    image = cutout(image, 0.5 * image.width, tuple(rng.integers(256, size=3).tolist()), rng)
    for _ in range(2):
        if rng.random() < 0.5:
            name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
            operation, low, high, either_sign = OPERATIONS[name]
            magnitude = low + (high - low) * rng.integers(1, 10) / 9
            if either_sign and rng.random() < 0.5:
                magnitude = -magnitude
            image = operation(image, magnitude, rng)
    return image


class MultiLabelImages(Dataset):
    """A split as (image, target, row, error) items, keyed by (epoch, row) pairs, which
    `Loader` batches.

    image is a (S, S, 3) uint8 array. What is drawn for augmentation depends on (seed, epoch, row)
    alone: not on the worker, not on what was loaded before, not on whether the run was resumed.
    A photo that cannot be read has image None and a sentence in `error`. Photos are read as drafts
    where they are augmented, and as they are where not.
    """

    def __init__(self, split: Split, size: int, augment: bool = False, seed: int = 0):
        self.split, self.size, self.augment, self.seed = split, size, augment, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]):
        epoch, row = key
        path, target = self.split.paths[row], self.split.targets[row]
        try:
            image = read_image(path, self.size, self.augment, self.split.upright)
        except ValueError as error:
            return None, target, row, str(error)
        if self.augment:
            image = augment(image, np.random.default_rng((self.seed, epoch, row)))
        return np.asarray(image), target, row, None
