"""Picks the labels of the photos behind docs/evidence.md out of those of COCO 2014.

    python -m experiments.subset DIR    # -> subset/train.json, subset/val.json

photos.csv names the photos by COCO's image id. They come from COCO's train and val photos, and
run.py finds both in --photos DIR. Our photos had been reduced to a short side of 256 px.
"""

import csv
import json
import sys
from pathlib import Path

coco = Path(sys.argv[1] if len(sys.argv) == 2 else "")
subset = Path("subset")
files = [coco / f"annotations/instances_{name}2014.json" for name in ("train", "val")]
for file in files:
    if not file.is_file():
        sys.exit(f"error: no {file}; pass the folder COCO 2014 was unpacked in")
with open(Path(__file__).with_name("results") / "photos.csv") as file:
    split = {int(row["id"]): row["split"] for row in csv.DictReader(file)}
official = [json.loads(file.read_text(encoding="utf-8")) for file in files]
subset.mkdir(exist_ok=True)
for name in ("train", "val"):
    document = {"categories": official[0]["categories"]}
    for key, id_key in (("images", "id"), ("annotations", "image_id")):
        items = [item for part in official for item in part[key]]
        document[key] = [item for item in items if split.get(item[id_key]) == name]
    (subset / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    print(f"subset: {len(document['images'])} {name} photos")
