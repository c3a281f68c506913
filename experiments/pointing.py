"""Does the map of a label point at the thing?  docs/scores.md has the figures.

    python -m experiments.pointing CHECKPOINT instances.json IMAGES

Of the three highest labels of every photo, those that are right: how often the highest place of the
map lies in a box of that label, and how often a place drawn by lot would.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

import predict
from extras.pictures import activation_maps

TOP, SMALL = 3, 32**2  # pixels: COCO's word for a small thing


def inside(x: float, y: float, boxes: list[list[float]]) -> bool:
    return any(u <= x <= u + w and v <= y <= v + h for u, v, w, h in boxes)


def covered(boxes: list[list[float]], width: int, height: int) -> float:
    """The share of a photo that the boxes cover."""
    mask = np.zeros((height, width), bool)
    for x, y, w, h in boxes:
        mask[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = True
    return mask.mean()


@torch.inference_mode()
def pointed(checkpoint: str, annotations: str, images: str) -> list[tuple[bool, float, bool]]:
    """For every right label: whether its map points at it, the chance to, whether all are small."""
    model, about = predict.load(checkpoint)
    model, size = model.fold(), about["image_size"]
    document = json.loads(Path(annotations).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    boxes, found = {}, []
    for mark in document["annotations"]:
        boxes.setdefault((mark["image_id"], names[mark["category_id"]]), []).append(mark["bbox"])
    for image in document["images"]:
        photos = predict.photos_in_batches([Path(images, image["file_name"])], size, 1, [])
        for _, pixels in photos:
            maps = activation_maps(model, pixels)[0].numpy()  # (n, h, w)
            for j in maps.mean((1, 2)).argsort()[::-1][:TOP]:
                there = boxes.get((image["id"], about["classes"][j]))
                if there:
                    row, column = np.unravel_index(maps[j].argmax(), maps[j].shape)
                    x = (column + 0.5) * image["width"] / maps.shape[2]
                    y = (row + 0.5) * image["height"] / maps.shape[1]
                    chance = covered(there, image["width"], image["height"])
                    small = all(w * h < SMALL for *_, w, h in there)
                    found.append((inside(x, y, there), chance, small))
    return found


if __name__ == "__main__":
    found = np.array(pointed(*sys.argv[1:4]), float)  # (labels, 3)
    for what, rows in (("all", found), ("small things", found[found[:, 2] > 0])):
        hit, chance, _ = 100 * rows.mean(0)
        print(f"{what}: {len(rows)} labels, {hit:.1f} % pointed at, by lot {chance:.1f} %")
