"""The photos behind docs/evidence.md, laid out from COCO 2014.

    python -m experiments.subset DIR    # -> subset/{train,val}2014, subset/annotations

photos.csv names them by COCO's image id; they come from COCO's train and val photos, copied as
they are (half a gigabyte). Ours had been reduced to a short side of 256 px.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

coco, subset = Path(sys.argv[1] if len(sys.argv) == 2 else ""), Path("subset")
if not (coco / "annotations/instances_val2014.json").is_file():
    sys.exit(f"error: no annotations in {coco}; give the folder COCO 2014 was unpacked in")
with open(Path(__file__).with_name("results") / "photos.csv") as file:
    split = {int(row["id"]): row["split"] for row in csv.DictReader(file)}
official = [
    json.loads((coco / f"annotations/instances_{name}2014.json").read_text(encoding="utf-8"))
    for name in ("train", "val")
]
(subset / "annotations").mkdir(parents=True, exist_ok=True)
for name in ("train", "val"):
    document, folder = {"categories": official[0]["categories"]}, subset / f"{name}2014"
    for key, of in (("images", "id"), ("annotations", "image_id")):
        items = [item for part in official for item in part[key]]
        document[key] = [item for item in items if split.get(item[of]) == name]
    text = json.dumps(document)
    (subset / f"annotations/instances_{name}2014.json").write_text(text, encoding="utf-8")
    folder.mkdir(exist_ok=True)
    for photo in document["images"]:  # COCO_val2014_000000000042.jpg is in val2014
        source = coco / photo["file_name"].split("_")[1] / photo["file_name"]
        if not (folder / source.name).exists():
            shutil.copy(source, folder)
    print(f"subset: {len(document['images'])} {name} photos")
