"""The demo data: cartoon scenes, drawn as a COCO 2014 tree and read like the real one.

Five contexts with objects that go together, some shared, some astray. All of it is ours.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runtime import writing
from runtime.locks import one_at_a_time

SCENE_WIDTH, SCENE_HEIGHT, JPEG_QUALITY = 160, 120, 90
SUPERSAMPLING = 2  # objects are drawn this much larger, then shrunk
STRAY_RATE, PARTNER_RATE = 0.06, 0.5
COUNT_RATES = [0.01, 0.15, 0.3, 0.3, 0.17, 0.07]  # of 0, 1, ... 5 objects in a scene

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
    "bottle": "poly own 36 10 64 10 64 32 80 48 80 99 20 99 20 48 36 32, box white 20 56 80 82, "
    "box black 34 1 66 16",
    "cup": "line own 74 30 98 32 96 72 70 80, poly own 2 16 78 16 68 98 12 98, "
    "disc white 2 2 78 30, disc saddlebrown 10 7 70 25",
    "cake": "box wheat 6 52 94 96, box own 6 36 94 60, disc own 10 50 34 74, disc own 40 50 64 74, "
    "disc own 66 50 90 74, disc red 38 6 62 30, line saddlebrown 50 20 60 2",
    "apple": "line saddlebrown 48 34 56 2, disc own 2 20 98 99, "
    "disc limegreen 56 4 94 24, disc white 18 34 36 52",
    "laptop": "box black 14 8 86 64, box own 20 14 80 58, poly silver 14 64 86 64 99 88 1 88, "
    "poly dimgray 22 68 78 68 84 78 16 78",
    "book": "poly own 1 24 50 34 99 24 99 88 50 98 1 88, poly white 7 14 50 28 50 90 7 78, "
    "poly white 93 14 50 28 50 90 93 78, line gray 16 40 42 50, line gray 84 40 58 50",
    "lamp": "disc yellow 30 40 70 76, line dimgray 50 56 50 92, "
    "box own 20 86 80 99, poly own 24 2 76 2 99 56 1 56",
    "tree": "box brown 42 56 58 99, disc own 2 28 54 72, disc own 46 28 98 72, disc own 18 2 82 60",
}
# In degrees; every other object takes any hue.
HUES = {"apple": (0, 20), "lamp": (40, 60), "tree": (80, 145), "cup": (190, 230)}
HUES |= {"boat": (260, 300), "cake": (320, 350), "bottle": (160, 185)}

# A context: its colours of ground, partly shared so that they are only a hint, and the weights of
# its objects. The partner of an object often comes right after it, in any context.
SKIES = ["lightblue", "linen", "lightgray", "wheat"]
CONTEXTS = {
    "kitchen": ("burlywood silver", {"cup": 3, "apple": 4, "cake": 4, "bottle": 3, "person": 1}),
    "desk": ("burlywood peru", {"laptop": 4, "book": 4, "lamp": 4, "cup": 2, "apple": 1}),
    "street": ("silver gray", {"car": 4, "traffic light": 4, "person": 2, "bicycle": 3, "tree": 2}),
    "park": ("darkseagreen tan", {"tree": 4, "kite": 4, "person": 2, "ball": 2, "bicycle": 2}),
    "beach": ("wheat tan", {"umbrella": 4, "boat": 4, "ball": 3, "person": 2, "kite": 1}),
}
PARTNERS = {"cup": "bottle", "laptop": "book", "traffic light": "car", "umbrella": "ball"}
# 1, 2, 3, 5, 6, 7, 9, ...: COCO's ids have gaps too, and the reader must cope with them.
CATEGORY_IDS = {name: 1 + k + k // 3 for k, name in enumerate(OBJECTS)}


def choose_objects(rng: np.random.Generator, weights: dict[str, int]) -> list[str]:
    """Names of the objects of a scene, by the weights of its context."""
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


def draw_background(rng: np.random.Generator, ground: str) -> Image.Image:
    """Sky above, ground of this colour below, with noise."""
    scene = Image.new("RGB", (SCENE_WIDTH, SCENE_HEIGHT), rng.choice(SKIES))
    horizon = SCENE_HEIGHT * rng.uniform(0.3, 0.6)
    ImageDraw.Draw(scene).rectangle((0, horizon, SCENE_WIDTH, SCENE_HEIGHT), ground)
    tint = rng.normal(0, 12, size=3)
    pixels = np.asarray(scene) + rng.normal(tint, 7, size=(SCENE_HEIGHT, SCENE_WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_object(rng: np.random.Generator, name: str) -> Image.Image:
    """One object of random colour, size and tilt on a transparent tile, cropped to the object."""
    low, high = HUES.get(name, (0, 360))
    hue, saturation, value = rng.integers((low, 55, 60), (high, 95, 95))
    own = f"hsv({hue}, {saturation}%, {value}%)"
    side = SUPERSAMPLING * int(rng.integers(52, 84))
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


def too_close(box: list[int], other: list[int]) -> bool:
    """Whether two boxes, [x, y, width, height] in px, share more than a third of the smaller."""
    (x, y, w, h), (u, v, s, t) = box, other
    across, down = min(x + w, u + s) - max(x, u), min(y + h, v + t) - max(y, v)
    return max(across, 0) * max(down, 0) > min(w * h, s * t) / 3


def draw_scene(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """A picture and its objects as (name, [x, y, width, height] in px)."""
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


def make_demo(root: str | Path, seed: int = 0, train: int = 1600, val: int = 400) -> None:
    """Draw the demo under `root`, unless it is there already. If two runs need it, one draws."""
    counts = {"train2014": train, "val2014": val}
    if all(is_there(root, folder, seed, count) for folder, count in counts.items()):
        return  # perhaps in a folder that cannot be written
    with one_at_a_time(Path(root, "demo.lock"), f"the demo scenes in {root}"):
        for split, (folder, count) in enumerate(counts.items()):
            if not is_there(root, folder, seed, count):
                draw_split(root, folder, seed, split, count)


def info(seed: int, count: int) -> dict:
    """The entry "info" in the JSON of a split."""
    return {"description": f"demo scenes, seed {seed}", "pictures": count}


def labels_of(root: str | Path, folder: str) -> Path:
    return Path(root, "annotations", f"instances_{folder}.json")


def is_there(root: str | Path, folder: str, seed: int, count: int) -> bool:
    """Whether a split has been drawn; something else in its place is an error."""
    path = labels_of(root, folder)
    if not path.exists():
        return False
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        document = None
    if not isinstance(document, dict) or document.get("info") != info(seed, count):
        raise FileExistsError(f"{path} is not of this demo; move it, or choose another --data")
    return True


def draw_split(root: str | Path, folder: str, seed: int, split: int, count: int) -> None:
    """The photos of a split, then their labels: a half-drawn one has none."""
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
    content = {"info": info(seed, count), "images": images, "annotations": annotations}
    content["categories"] = categories
    path = labels_of(root, folder)
    path.parent.mkdir(exist_ok=True)
    writing.save_json(path, content)
