"""COCO 2014 in its real numbers, drawn: as many photos, annotations and labels, in zips as COCO's
server has them. The photos are tiny; each has the colour of its context, so there is something to
learn.

What is COCO's: file names, ids with gaps, the order of keys, crowds at the end, the photos without
annotations, how often each label occurs, and polygons so long that the JSON has COCO's size. Which
labels occur together comes from CONTEXTS, which are ours.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush"""
NAMES = NAMES.replace("\n", " ").split(", ")
UNUSED_IDS = 12, 26, 29, 30, 45, 66, 68, 69, 71, 83
IDS = [i for i in range(1, 91) if i not in UNUSED_IDS]  # COCO's
COUNTS = """45125 2263 8571 2419 2238 2784 2462 4308 2098 2889 1204 1213 480 3842 2237 2815 3037
2067 1104 1389 1516 668 1323 1797 3922 2744 4853 2665 1626 1510 2209 1169 2984 1625 1803 1883
2510 2341 2368 5959 1765 6509 2534 3093 2491 5020 1615 1169 1643 1216 1337 1183 821 2201 1061
2076 8944 3170 3081 2538 8368 2314 3189 2473 1290 2180 1471 3319 1088 2001 151 3289 1667 3731
3156 2530 672 1510 128 699"""
RATES = np.array(COUNTS.split(), float) / 82_007  # (n,), of the photos of COCO's train split

# A context: how common it is, how often it shows a person, and its labels.
CONTEXTS = [
    (14, 0.5, "bottle, wine glass, cup, fork, knife, spoon, bowl, sandwich, broccoli, carrot, "
     "hot dog, pizza, donut, cake, chair, dining table"),
    (3, 0.2, "banana, apple, orange, broccoli, carrot, bowl"),
    (5, 0.35, "microwave, oven, toaster, sink, refrigerator, bottle, cup, bowl, spoon, knife"),
    (12, 0.45, "chair, couch, potted plant, bed, tv, remote, book, vase, clock, teddy bear, "
     "dining table, cup"),
    (6, 0.35, "laptop, mouse, keyboard, cell phone, tv, book, chair, cup, scissors"),
    (4, 0.2, "toilet, sink, toothbrush, hair drier, bottle"),
    (15, 0.6, "bicycle, car, motorcycle, bus, truck, traffic light, fire hydrant, stop sign, "
     "parking meter, bench, backpack, handbag, umbrella, clock"),
    (6, 0.5, "airplane, train, boat, suitcase, truck, car"),
    (6, 0.95, "backpack, handbag, umbrella, suitcase, tie, cell phone, chair"),
    (3, 0.98, "surfboard, boat"),
    (4, 0.98, "skis, snowboard, backpack"),
    (3, 0.98, "tennis racket, sports ball, chair"),
    (3, 0.98, "baseball bat, baseball glove, sports ball, bench"),
    (8, 0.8, "frisbee, kite, skateboard, sports ball"),
    (7, 0.3, "horse, sheep, cow, dog"),
    (8, 0.1, "elephant, bear, zebra, giraffe, bird"),
    (6, 0.35, "cat, dog, couch, bed, chair, laptop, remote"),
]  # fmt: skip
SHARES = np.array([share for share, *_ in CONTEXTS]) / sum(share for share, *_ in CONTEXTS)
ASTRAY = 0.1  # of a label's photos are in any context
SPLITS = {  # photos, of them with annotations, annotations: COCO's
    "train2014": (82_783, 82_081, 604_907),
    "val2014": (40_504, 40_137, 291_875),
}
CROWDS = 0.0115  # of the annotations
LAST_ID = 581_929
PICTURES, POLYGONS = 150, 4000  # different ones: of each context, and in all


def scaled_splits(factor: float) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(round(factor * count) for count in counts) for name, counts in SPLITS.items()
    }


def rates_in_contexts() -> np.ndarray:
    """(contexts, n): how often each label occurs in each context, so that in all of them it occurs
    at its rate in COCO."""
    members = np.array([[name in about[2].split(", ") for name in NAMES] for about in CONTEXTS])
    share = np.maximum(SHARES @ members, 1e-9)  # (n,), of the contexts that a label belongs to
    rates = RATES * (ASTRAY + (1 - ASTRAY) * members / share)  # (contexts, n)
    rates[:, 0] = [person for _, person, _ in CONTEXTS]
    rng = np.random.default_rng(0)
    for _ in range(6):  # photos without labels get one, which is mended here
        _, targets = draw_labels(rng, rates, 30_000)
        rates = np.minimum(rates * RATES / np.maximum(targets.mean(0), 1e-4), 0.97)
    return rates


def draw_labels(rng, rates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The contexts (M,) of so many photos, and which labels they show, (M, n) bool: one or more."""
    contexts = rng.choice(len(CONTEXTS), count, p=SHARES)  # (M,)
    targets = rng.random((count, len(NAMES))) < rates[contexts]  # (M, n)
    for row in np.flatnonzero(~targets.any(1)):
        of_context = rates[contexts[row]]
        targets[row, rng.choice(len(NAMES), p=of_context / of_context.sum())] = True
    return contexts, targets


def draw_pictures(rng) -> list[list[bytes]]:
    """JPEGs of 16 x 12 to 32 x 24 px, some for each context, of its colour."""
    pictures = []
    for k in range(len(CONTEXTS)):
        colour = np.array(Image.new("RGB", (1, 1), f"hsv({360 * k // len(CONTEXTS)}, 80%, 80%)"))
        of_context = []
        for _ in range(PICTURES):
            blocks = colour * 0.5 + rng.integers(0, 128, (3, 4, 3))
            width = int(rng.integers(4, 9)) * 4
            picture = Image.fromarray(blocks.astype(np.uint8)).resize((width, width * 3 // 4))
            file = io.BytesIO()
            picture.save(file, "JPEG")
            of_context.append(file.getvalue())
        pictures.append(of_context)
    return pictures


def with_comment(jpeg: bytes, text: str) -> bytes:
    """The picture with a text in it that is not seen, so that no two files are equal."""
    content = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def draw_polygons(rng) -> list[str]:
    """Outlines as COCO writes them. Their mean length gives the JSON the size of COCO's."""
    polygons = []
    for points in np.clip(rng.lognormal(3.17, 0.85, POLYGONS), 3, 250).astype(int):
        angles = np.sort(rng.random(points)) * 2 * np.pi
        around = np.stack([320 + 200 * np.cos(angles), 240 + 150 * np.sin(angles)], 1)
        outline = (around + rng.normal(0, 8, around.shape)).round(2).ravel().tolist()
        polygons.append(json.dumps([outline]))
    return polygons


class DrawnSplit:
    """A split: its images with ids, contexts and labels, and the labels of its annotations."""

    def __init__(self, name: str, ids: np.ndarray, counts: tuple, rates: np.ndarray):
        photos, labelled, annotations = counts
        rng = np.random.default_rng((ids[0], photos))
        self.name, self.rng, self.ids = name, rng, ids
        self.contexts, self.targets = draw_labels(rng, rates, photos)  # (M,), (M, n)
        self.targets[rng.permutation(photos)[labelled:]] = False
        rows, columns = self.targets.nonzero()
        more = rng.integers(len(rows), size=max(annotations - len(rows), 0))
        pairs = rng.permutation(np.concatenate([np.arange(len(rows)), more]))
        self.rows, self.columns = rows[pairs], columns[pairs]  # of each annotation

    def file_name(self, row: int) -> str:
        return f"COCO_{self.name}_{self.ids[row]:012d}.jpg"

    def images(self) -> Iterator[str]:
        server = f"http://images.cocodataset.org/{self.name}"
        for row, image_id in enumerate(self.ids.tolist()):
            name = self.file_name(row)
            yield (
                f'{{"license": {row % 8 + 1}, "file_name": "{name}", '
                f'"coco_url": "{server}/{name}", "height": 480, "width": 640, '
                f'"date_captured": "2013-11-{row % 28 + 1:02d} 17:02:52", "flickr_url": '
                f'"http://farm9.staticflickr.com/8186/{image_id * 13:010d}_z.jpg", '
                f'"id": {image_id}}}'
            )

    def annotations(self, polygons: list[str]) -> Iterator[str]:
        """Those of one object, then the crowds."""
        crowds = round(len(self.rows) * CROWDS)
        chosen = self.rng.integers(len(polygons), size=len(self.rows)).tolist()
        ids = self.rng.permutation(2 * len(self.rows)).tolist()
        boxes = self.rng.integers(1, 30_000, (len(self.rows), 4)) / 100
        image_ids, category_ids = self.ids[self.rows], np.array(IDS)[self.columns]
        of_each = zip(image_ids.tolist(), category_ids.tolist(), boxes.tolist(), strict=True)
        for i, (image_id, category_id, box) in enumerate(of_each):
            crowd = i >= len(self.rows) - crowds
            outline = polygons[chosen[i]]
            if crowd:
                counts = [int(100 * n) for n in box] * 20
                outline = f'{{"counts": {counts}, "size": [480, 640]}}'
            number = 900_100_000_000 + ids[i] if crowd else ids[i]
            yield (
                f'{{"segmentation": {outline}, "area": {box[2] * box[3] / 2:.4f}, '
                f'"iscrowd": {int(crowd)}, "image_id": {image_id}, "bbox": {box}, '
                f'"category_id": {category_id}, "id": {number}}}'
            )

    def captions(self) -> Iterator[str]:
        for i, image_id in enumerate(np.repeat(self.ids, 5).tolist()):
            text = f"Something in front of something else, seen from the side, number {i}."
            yield f'{{"image_id": {image_id}, "id": {i}, "caption": "{text}"}}'

    def zip_photos(self, path: Path, pictures: list[list[bytes]]) -> None:
        """Stored, after an entry for their folder."""
        chosen = self.rng.integers(PICTURES, size=len(self.ids)).tolist()
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(zipfile.ZipInfo(f"{self.name}/"), "")
            for row, context in enumerate(self.contexts.tolist()):
                photo = with_comment(pictures[context][chosen[row]], f"photo {self.ids[row]}")
                file.writestr(f"{self.name}/{self.file_name(row)}", photo)


def write_document(file: zipfile.ZipFile, name: str, parts: dict[str, Iterator[str]]) -> None:
    """A JSON of lists of objects, in pieces: there is never all of it in memory."""
    with file.open(f"annotations/{name}.json", "w", force_zip64=True) as entry:
        entry.write(b'{"info": {"description": "drawn in the numbers of COCO 2014"}')
        for key, objects in parts.items():
            entry.write(f', "{key}": ['.encode())
            between, piece = "", []
            for each in objects:
                piece.append(each)
                if len(piece) == 5000:
                    entry.write((between + ", ".join(piece)).encode())
                    between, piece = ", ", []
            if piece:
                entry.write((between + ", ".join(piece)).encode())
            entry.write(b"]")
        entry.write(b"}")


def draw(folder: Path, factor: float) -> dict[str, DrawnSplit]:
    """The three zips of COCO 2014 in a folder, and what is in them; `factor` scales all numbers."""
    rates, rng = rates_in_contexts(), np.random.default_rng(1)
    counts = scaled_splits(factor)
    ids = 1 + rng.permutation(LAST_ID)[: sum(photos for photos, *_ in counts.values())]
    train = counts["train2014"][0]
    splits = {
        name: DrawnSplit(name, np.sort(part), counts[name], rates)
        for name, part in (("train2014", ids[:train]), ("val2014", ids[train:]))
    }
    polygons, pictures = draw_polygons(rng), draw_pictures(rng)
    categories = [
        json.dumps({"supercategory": "thing", "id": i, "name": name})
        for i, name in zip(IDS, NAMES, strict=True)
    ]
    path = folder / "annotations_trainval2014.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, split in splits.items():
            lists = {"images": split.images(), "licenses": iter(())}
            lists |= {"annotations": split.annotations(polygons), "categories": iter(categories)}
            write_document(file, f"instances_{name}", lists)
            lists = {"images": split.images(), "annotations": split.captions()}
            write_document(file, f"captions_{name}", lists)
    for name, split in splits.items():
        split.zip_photos(folder / f"{name}.zip", pictures)
    return splits
