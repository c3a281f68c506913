"""The photos behind docs/evidence.md, laid out from COCO 2014.

    python -m experiments.subset DIR

    DIR -> subset/{train,val}2014, subset/annotations  for experiments.evidence --data subset
           subset/graph.json                           for --graph-json: COCO's train annotations
                                                       but those of our val photos

photos.csv names them by COCO's image id; they come from COCO's train and val photos, copied as
they are (half a gigabyte). Ours had been reduced to a short side of 256 px.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

coco = Path(sys.argv[1] if len(sys.argv) == 2 else "")
if not (coco / "annotations/instances_val2014.json").is_file():
    sys.exit(f"error: no annotations in {coco}; give the folder COCO 2014 was unpacked in")
with open(Path(__file__).with_name("results") / "photos.csv") as file:
    split = {int(row["id"]): row["split"] for row in csv.DictReader(file)}
official = [
    json.loads((coco / f"annotations/instances_{name}2014.json").read_text(encoding="utf-8"))
    for name in ("train", "val")
]


def keep(part: dict, *splits) -> dict:
    """What of COCO's document is about the photos of these splits; None: of neither."""
    images = [photo for photo in part["images"] if split.get(photo["id"]) in splits]
    marks = [mark for mark in part["annotations"] if split.get(mark["image_id"]) in splits]
    return {"categories": part["categories"], "images": images, "annotations": marks}


def save(name: str, document: dict) -> None:
    path = Path("subset") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


for name in ("train", "val"):
    train, val = (keep(part, name) for part in official)
    both = train | {key: train[key] + val[key] for key in ("images", "annotations")}
    save(f"annotations/instances_{name}2014.json", both)
    folder = Path("subset") / f"{name}2014"
    folder.mkdir(exist_ok=True)
    for photo in both["images"]:  # COCO_val2014_000000000042.jpg is in val2014
        source = coco / photo["file_name"].split("_")[1] / photo["file_name"]
        if not (folder / source.name).exists():
            shutil.copy(source, folder)
    print(f"subset: {len(both['images'])} {name} photos")
save("graph.json", keep(official[0], "train", None))
