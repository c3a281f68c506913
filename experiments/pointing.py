"""Does the map of a label point at the thing?  docs/scores.md has the figures.

    python -m experiments.pointing CHECKPOINT instances.json IMAGES

Of the three highest labels of every photo, those that are right: how often the highest place of the
map lies in a box of that label, and how often a place drawn by lot would.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import predict
from extras.activation_maps import activation_maps

TOP, SMALL = 3, 32**2  # pixels: COCO's word for a small thing


def judged(heat: np.ndarray, boxes: list, width: int, height: int) -> tuple[bool, float, bool]:
    """Whether the highest place of a map (h, w) is in a box, the share of the photo that the boxes
    cover, whether all are small."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    x, y = (column + 0.5) * width / heat.shape[1], (row + 0.5) * height / heat.shape[0]
    hit = any(u <= x <= u + w and v <= y <= v + h for u, v, w, h in boxes)
    covered = np.zeros((height, width), bool)
    for u, v, w, h in boxes:
        covered[int(v) : int(np.ceil(v + h)), int(u) : int(np.ceil(u + w))] = True
    return hit, covered.mean(), all(w * h < SMALL for *_, w, h in boxes)


@torch.inference_mode()
def pointed(checkpoint: str, annotations: str, folder: str) -> list[tuple[bool, float, bool]]:
    """What is judged of every right label."""
    model, about = predict.load(checkpoint)
    model, boxes, found = model.fold(), defaultdict(list), []
    document = json.loads(Path(annotations).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    for mark in document["annotations"]:
        boxes[mark["image_id"], names[mark["category_id"]]].append(mark["bbox"])
    images = {Path(folder, image["file_name"]): image for image in document["images"]}
    for (path,), pixels in predict.photos_in_batches(list(images), about["image_size"], 1, []):
        maps, image = activation_maps(model, pixels)[0].numpy(), images[path]  # (n, h, w)
        for j in maps.mean((1, 2)).argsort()[::-1][:TOP]:
            if there := boxes[image["id"], about["classes"][j]]:
                found.append(judged(maps[j], there, image["width"], image["height"]))
    return found


if __name__ == "__main__":
    found = np.array(pointed(*sys.argv[1:4]), float)  # (labels, 3)
    for what, rows in (("all", found), ("small things", found[found[:, 2] > 0])):
        hit, chance, _ = 100 * rows.mean(0)
        print(f"{what}: {len(rows)} labels, {hit:.1f} % pointed at, by lot {chance:.1f} %")
