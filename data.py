"""Data sets as `Split(paths, targets, classes)`, and the pipeline from photo to training batch.

The rest of the code knows nothing of a data set but its `Split`. COCO is read from its usual tree,
Visual Genome from the one `load_vg500` shows:

    <root>/annotations/instances_train2014.json   <root>/annotations/instances_val2014.json
    <root>/train2014/*.jpg                        <root>/val2014/*.jpg

Symbols: M images in a split, n labels, B images in a batch, S the side images are squashed to.
JSON is read with `json` and photos with Pillow. Augmentation follows ASL's training code (Ridnik et
al. 2021a; README, differences 9 and 10).

Whatever is read may be damaged or hostile: that is a ValueError of one sentence, no file outside
the image folder is read for a photo, and no text of a file reaches a message but by `printable`.
"""

import functools
import json
import os
import posixpath
import re
import reprlib
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset, Sampler

from demo import make_demo  # noqa: F401  (data.make_demo, beside the other data sets)


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


def printable(text: object, width: int = 80) -> str:
    """Text from a file for a terminal: one line of at most `width`, its middle left out if longer.

    Whatever moves the cursor, turns the direction or cannot be seen is escaped, as in a string's
    repr: names that differ only by such characters look different.
    """
    text = str(text)
    if len(text) > 2 * width:
        text = text[:width] + text[-width:]  # no time is spent on what is left out
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= width:
        return text
    tail = (width - 3) // 2
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


REPR = reprlib.Repr()  # of huge or deeply nested values it makes no more than it shows
REPR.maxstring = REPR.maxother = 80


def brief(value: object) -> str:
    """A value from a file as Python writes it, cut for a message."""
    return printable(REPR.repr(value))


def check_name(name: str, source: str | Path) -> str:
    """The name of a photo, which leads to no place but one inside the image folder.

    On any system: a backslash and a drive letter mean what they mean on Windows.
    """
    plain = name.replace("\\", "/")
    first = posixpath.normpath(plain).split("/")[0]  # "" of an absolute path
    if first in ("", "..", ".") or DRIVE.match(plain) or "\0" in plain or len(plain) > 4096:
        raise ValueError(
            f"{source}: photo {brief(name)} is not a file in the image folder; expected a path "
            "relative to it, without leading .., drive letter or NUL; correct the name"
        )
    return name


DRIVE = re.compile("[A-Za-z]:")


def check_inside(paths: list[str], *folders: str | Path) -> None:
    """A ValueError if a symbolic link leads a photo out of all these folders.

    The folders may be links themselves. Photos that are not there pass. It costs one lstat a photo.
    """
    roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
    real = functools.cache(os.path.realpath)  # once a folder, not once a photo
    for path in paths:
        folder, name = os.path.split(path)
        try:
            link = stat.S_ISLNK(os.lstat(path).st_mode)
        except (OSError, ValueError):  # ValueError: no file can have such a name
            continue
        target = os.path.realpath(path) if link else os.path.join(real(folder), name)
        if not target.startswith(roots):
            raise ValueError(
                f"photo {printable(path, 200)} is a link, or in a linked folder, to "
                f"{printable(target)}, outside the image folder; put a copy in its place"
            )


def load_coco(
    json_path: str | Path, image_dir: str | Path, cache: str | Path | None = None
) -> Split:
    """Any COCO-format `instances` JSON and its photos; see `read_coco` and, of `cache`, `cached`.

    image_dir only leads to the photos: it is no part of the cache.
    """
    split = cached(cache, read_coco, json_path)
    split.paths = [os.path.join(image_dir, name) for name in split.paths]
    return split


def read_coco(json_path: str | Path) -> Split:
    """Every image of a COCO-format JSON, labelled or not, in file order; paths as they are in it.

    Boxes and polygons are dropped as they are parsed: the file's size does not show in memory.
    Classes are in category id order (ids have gaps: column != id). Crowd annotations count as any
    other. An image of several annotations of one category has that label once. A file name may be
    written with Windows' backslashes (Label Studio). A category under a root of the same name is
    one label with it: Roboflow makes the project's name such a root.
    """
    document = read_lists(
        json_path,
        {
            "images": lambda item: (item["id"], item["file_name"]),
            "annotations": lambda item: (item["image_id"], item["category_id"]),
            "categories": lambda item: (item["id"], item["name"], item.get("supercategory")),
        },
    )
    for key in ("images", "annotations", "categories"):
        if key not in document:
            raise ValueError(
                f"{json_path} has no list {key!r}; expected COCO's instances_*.json, with lists of "
                "images, annotations and categories"
            )

    categories, parents = {}, {}  # id -> name; name -> supercategory
    for value, name, parent in document["categories"]:
        category_id = _id(value, "category", json_path)
        if not isinstance(name, str) or not name.strip() or len(name) > 1000:
            raise ValueError(
                f"{json_path}: the name of category {brief(category_id)} is {brief(name)}, "
                "expected a text of 1 to 1,000 characters; correct the name"
            )
        pair = [parents[name], parent] if name in parents else []
        root = name in pair and any(above in ("none", "", None) for above in pair)
        if category_id in categories or (pair and not root):
            raise ValueError(
                f"{json_path}: category id {brief(category_id)}, {brief(name)}, is there twice; "
                "give each id and each name to one category"
            )
        categories[category_id] = name
        parents[name] = False if pair else parent  # no third one
    ids = sorted(categories)  # difference 8: id order, not alphabetical
    classes = list(dict.fromkeys(categories[i] for i in ids))
    column = {name: j for j, name in enumerate(classes)}
    columns = {category_id: column[categories[category_id]] for category_id in ids}

    rows, paths = {}, []  # image id -> row
    for value, file_name in document["images"]:
        image_id = _id(value, "image", json_path)
        if not isinstance(file_name, str):
            raise ValueError(
                f"{json_path}: file_name of image {brief(image_id)} is {brief(file_name)}, "
                "expected a text; export it again"
            )
        if image_id in rows:
            raise ValueError(
                f"{json_path}: image id {brief(image_id)} is there twice; give each image its own"
            )
        rows[image_id] = len(paths)
        paths.append(check_name(file_name, json_path).replace("\\", "/"))  # Windows' tools

    targets = np.zeros((len(paths), len(classes)), np.uint8)  # (M, n)
    for image_id, category_id in document["annotations"]:
        try:
            if type(image_id) is bool or type(category_id) is bool:  # equal to 0 or 1
                raise KeyError
            targets[rows[image_id], columns[category_id]] = 1
        except (KeyError, TypeError):  # TypeError: an id that is a list or an object
            known = image_id in list(rows) and type(image_id) is not bool
            kind, value = ("category", category_id) if known else ("image", image_id)
            raise ValueError(
                f"{json_path}: an annotation names {kind} id {brief(value)}, not among the "
                f"{len(ids)} categories and {len(rows)} images; the file is damaged or cut by hand"
            ) from None
    return Split(paths, targets, classes)


def _id(value: object, kind: str, path: str | Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path}: {kind} id {brief(value)} is not a whole number; export it again")
    return value


def read_lists(path: str | Path, keep: dict[str, Callable]) -> dict[str, list]:
    """The lists of a JSON file's object that `keep` names, as {name: [keep[name](item), ...]}.

    The name "" is for a file that is one list. Memory is what `keep` keeps and some MB: COCO's
    annotations parse to several GB, of which the labels are a hundredth. A file that is not JSON,
    or an item that `keep` cannot use, is a ValueError.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}")
    lists, name, item = {}, "", None
    with open(path, encoding="utf-8-sig", newline="") as file:
        window = JSONWindow(file)
        try:
            for name in [""] if window.peek() == "[" else window.members("{}"):
                if name in lists:
                    raise ValueError(f"{brief(name)} is there twice")
                if window.peek() != "[":
                    window.value()
                    continue
                use, kept = keep.get(name), []
                for item in window.members("[]"):
                    if use:
                        kept.append(use(item))
                if use:
                    lists[name] = kept
            if window.peek():
                raise ValueError("there is more after its end")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: an item of {printable(name) or 'the list'}, {brief(item)}, lacks what it "
                f"should hold ({printable(error)}); is it a file of another kind?"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = printable(error, 120)
            raise ValueError(f"{path} is not valid JSON ({reason}); export it again") from None
    return lists


# Polygons are four fifths of COCO's file and nine tenths of the time to parse it, so these lists of
# numbers are cut out of the text first: from the key up to the next quote, then back to the last
# bracket behind a digit or a bracket; one behind a brace closes another list.
POLYGONS = re.compile(r'"segmentation"\s*:\s*\[[^"]*[\d\]]\s*\]')


class JSONWindow:
    """Walks a JSON text file value by value, holding a piece of it; the values are parsed by json.

    `peek` looks at the next character; `take`, `value` and `members` consume what they return.
    """

    def __init__(self, file: TextIO, piece: int = 1 << 22):
        self.file, self.piece, self.text, self.at = file, piece, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        """Move the window on; False at the end of the file."""
        rest = self.text[self.at :]
        piece = self.file.read(max(self.piece, len(rest)))  # doubles: no quadratic time
        text = rest + piece
        end = text.rfind('"') + 1  # what follows the last quote may be half a list
        self.text, self.at = POLYGONS.sub('"segmentation":0', text[:end]) + text[end:], 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            self.at = JSON_BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """One of the expected characters."""
        character = self.peek()
        if not character or character not in expected:
            raise ValueError(f"found {character or 'its end'} for {' or '.join(expected)}")
        self.at += 1
        return character

    def value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if NUMBER.match(self.text, end).end() < len(self.text):  # else, it may go on
                    self.at = end
                    return value
                error = "it is cut short"
            except json.JSONDecodeError as wrong:  # at the window's end, or in the file itself
                error = wrong.msg
            if not self.more():
                raise ValueError(error)

    def members(self, brackets: str) -> Iterator[object]:
        """The values of a list, []; the names of an object, {}, whose values the caller takes."""
        opening, closing = brackets
        self.take(opening)
        last = self.peek() == closing and self.take(closing)
        while not last:
            value = self.value()
            if opening == "{":
                self.take(":")
            yield value
            last = self.take("," + closing) == closing


JSON_BLANKS = re.compile(r"[ \t\n\r]*")
NUMBER = re.compile(r"[\d.eE+-]*")  # the rest of a number that the window's end cut


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
        with open(cache, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, on a damaged header
            with np.load(stream, allow_pickle=False) as file:
                found, paths, classes = json.loads(file["names"].tobytes())
                if found == key:
                    return unpacked(paths, classes, file["targets"])
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


def unpacked(paths: list[str], classes: list[str], bits: np.ndarray) -> Split:
    """A split from its npz, which anyone may have written."""
    texts = all(isinstance(text, str) and text.strip() for text in [*paths, *classes])
    if not texts or not isinstance(classes, list) or len(set(classes)) < len(classes):
        raise ValueError("names that no reader gives")
    if bits.shape != (len(paths), -(-len(classes) // 8)):
        raise ValueError("names and targets do not belong together")
    paths = [check_name(path, "cache") for path in paths]
    return Split(paths, np.unpackbits(bits, axis=1, count=len(classes)), classes)  # (M, n)


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
            raise ValueError(
                f"{root}: {len(both):,} images are in both lists ({brief(min(both))}, ...), "
                "expected each in one; download them again"
            )
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
    test = set(test)
    is_test = np.array([name in test for name in split.paths], bool)  # (M,)
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
    return [check_name(name, path) for name in names]


def read_vg_index(path: Path, names: list[str]) -> Split:
    """The released labels of these photos: {"<id>.jpg": [0, 17, ...], ...}, numbered from 0."""
    rows = {name: row for row, name in enumerate(names)}
    index = read_lists(path, dict.fromkeys(names, lambda label: label))
    missing = [name for name in names if name not in index]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing):,} of the {len(names):,} photos of the lists "
            f"({brief(missing[0])}, ...); lists and index must be of one release"
        )
    targets = np.zeros((len(names), VG_LABELS), np.uint8)  # (M, n)
    for name, labels in index.items():
        if any(type(label) is not int or not 0 <= label < VG_LABELS for label in labels):
            raise ValueError(
                f"{path}: {brief(name)} has {brief(labels)}, expected label numbers, 0 to "
                f"{VG_LABELS - 1}; download it again"
            )
        targets[rows[name], np.array(labels, int)] = 1
    return Split(names, targets, [f"label {j}" for j in range(VG_LABELS)])


def count_vg_names(objects: Path, image_data: Path, test_list: Path) -> Split:
    """Every image of Visual Genome, by id, with the 500 names most training images show [ours].

    Names are in lower case and of single blanks; every name of an object counts, once an image;
    ties go by name. The images are those of `image_data`, or of `objects` where it is not there.
    """
    shown = {}  # image id -> names

    def collect(image: dict) -> None:
        names = set()
        for thing in image["objects"]:
            if type(thing["names"]) is not list:  # a text would be read as its letters
                raise TypeError("names is no list")
            names.update(map(normal_name, thing["names"]))
        if image["image_id"] in shown:
            raise KeyError(f"image id {image['image_id']} for itself alone")
        shown[image["image_id"]] = [sys.intern(name) for name in names if name]

    source, sources = objects, {objects: collect}
    if image_data.is_file():
        source, sources[image_data] = image_data, lambda image: image["image_id"]
    for path, keep in sources.items():
        items = read_lists(path, {"": keep}).get("")
        if items is None:
            raise ValueError(f"{path} is not a list of images; give Visual Genome's own file")
    ids = [_id(value, "image", source) for value in (shown if source == objects else items)]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{source}: image ids are there twice; give Visual Genome's own file")
    ids.sort()
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


def normal_name(name: str) -> str:
    return " ".join(name.lower().split())


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
            f"({brief(min(absent))}, ...); give the version it was made for, or cut those lines"
        )
    return test


GLOVE_LINE = 1 << 20  # characters; a line of 300 numbers has about 3,000


def load_glove(path: str | Path, classes: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Word nodes (n, d) from a GloVe-format text file: a word and d numbers a line.

    A label's vector is the mean over its words' (ML-GCN); words are lower case, split at blanks,
    hyphens and underscores. Returns the words not found too; a label of no known word gets zeros.
    Of a word that is there twice the first vector counts. Lines of other words are not parsed.
    """
    words = [[w for w in re.split(r"[\s_-]+", name.lower()) if w] for name in classes]
    wanted = {w for ws in words for w in ws}
    vectors, width, number = {}, None, 0
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no GloVe file {path}; give --glove a text file of word vectors")
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(iter(lambda: file.readline(GLOVE_LINE), ""), 1):
                values = line.rstrip().split(" ")  # not split(): a few words are Unicode blanks
                if len(line) == GLOVE_LINE:
                    raise ValueError(f"is longer than {GLOVE_LINE - 1:,} characters")
                if number == 1 and len(values) == 2:  # word2vec's header: count and width
                    continue
                width = width or len(values) - 1
                if len(values) - 1 < width or width < 2:  # more: some of GloVe's words hold blanks
                    raise ValueError(f"has {len(values) - 1} numbers, line 1 has {width}")
                word, *values = values
                if word in wanted and word not in vectors and len(values) == width:
                    vectors[word] = np.array([float(value) for value in values])  # (d,)
                    if not np.abs(vectors[word]).max() <= FLOAT32_MAX:  # false of NaN, too
                        raise ValueError("holds a number that is not finite in float32")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected GloVe's .txt") from None
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}: {printable(error)}; expected a word and the same count of "
            "numbers a line"
        ) from None
    if not vectors:
        raise ValueError(
            f"{path} holds none of the words of the {len(classes)} labels; give word vectors of "
            "their language"
        )
    nodes = np.zeros((len(classes), width))  # (n, d)
    for j, ws in enumerate(words):
        known = [vectors[w] for w in ws if w in vectors]
        if known:
            nodes[j] = np.mean(known, axis=0)
    return torch.from_numpy(nodes).float(), sorted(wanted - vectors.keys())


FLOAT32_MAX = np.finfo(np.float32).max

# Pillow reads more; of EPS, for one, it has Ghostscript run the program the file is.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")


def read_image(path: str | Path, size: int, draft: bool = False) -> Image.Image:
    """The photo as RGB, squashed to size x size (bilinear, aspect not kept; difference 9).

    As a draft it takes less time: a JPEG of twice the size or more, both ways, is decoded at a
    half, a quarter or an eighth of it, and torch squashes, a grey level at most from Pillow.
    A photo that cannot be read, or has more pixels than Image.MAX_IMAGE_PIXELS, is a ValueError.
    """

    def smaller(image: Image.Image) -> Image.Image:
        if draft:
            image.draft(None, (size, size))  # stays at least this large
        return image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on damaged metadata: no pixel depends on it
        image = open_rgb(path, smaller)
    if not draft:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # (1, 3, H, W) uint8
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)  # (1, 3, S, S)
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def open_rgb(path: str | Path, prepare: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """prepare(the photo) as RGB. Whatever Pillow has against the file is a ValueError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most and pixels > most:  # Pillow itself only warns, up to twice as many
                raise ValueError(f"it has {pixels:,} pixels, at most {most:,} are decoded")
            return to_rgb(prepare(image))
    except Exception as error:  # of a dozen kinds
        reason = getattr(error, "strerror", None) or printable(error, 120) or type(error).__name__
        raise ValueError(
            f"cannot read photo {printable(path, 200)} ({reason}); replace the file"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, CMYK, palette: RGB. Transparency is laid on white, 16-bit grey keeps its top 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
    """A split as (image, target, row, error) items, keyed by (epoch, row) pairs; see `Batches`.

    image is a (S, S, 3) uint8 array. What is drawn for augmentation depends on (seed, epoch, row)
    alone: not on the worker, not on what was loaded before, not on whether the run was resumed.
    A photo that cannot be read has image None and a sentence in `error`. Photos are read as drafts
    where they are augmented, and as they are where not, unless `draft` says otherwise.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        augment: bool = False,
        seed: int = 0,
        draft: bool | None = None,
    ):
        self.split, self.size, self.augment, self.seed = split, size, augment, seed
        self.draft = augment if draft is None else draft

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]):
        epoch, row = key
        path, target = self.split.paths[row], self.split.targets[row]
        try:
            image = read_image(path, self.size, self.draft)
        except ValueError as error:
            return None, target, row, str(error)
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
    """Lists of (epoch, row) keys, one list a batch. Set `epoch` before each pass, and `start`, the
    first batch of it. Of several ranks each gets its share of every batch, and no row twice.

    Shuffled: the order depends on (seed, epoch) alone and the last, incomplete batch is dropped
    (unless it is the only one), so that every step weighs the same. In order: every image once.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.num_images, self.batch_size = num_images, min(batch_size, num_images)
        self.shuffle, self.seed, self.epoch, self.start = shuffle, seed, 0, 0
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole if self.shuffle else whole + (rest > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_images)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for i in range(self.start, len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in rows[self.rank :: self.ranks]]
