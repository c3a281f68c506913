"""CVAT's own export, "CVAT for images 1.1": the labels of tags, of boxes and of other shapes.

A skeleton has a label of its own, and so have its points; only its own is a label of the photo.
Nothing else is read from XML.
"""

from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from runtime.reading import composed
from runtime.terminal import counted, printable, tell


def read(path: str | Path) -> tuple[list[tuple[str, set[str]]], list[str]]:
    """(name of a photo, its labels) for every <image>, and the labels in CVAT's order.

    If a name is in several subsets of a project, these are different photos, so that all names are
    subset/name, as the photos lie in the export. Otherwise names stay as they are.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # or an unknown encoding
        raise ValueError(f"{path} is not valid XML ({printable(error)}); export it again") from None
    images = root.findall("image")
    if not images:
        raise ValueError(f'{path} has no images; of XML only CVAT\'s "for images 1.1" is read')
    classes = {}  # in CVAT's order; a label with a <parent> is that of a skeleton's point
    for label in root.iterfind("meta//labels/label"):
        if label.find("parent") is None:
            classes[composed(label.findtext("name", ""))] = True

    subsets_of = defaultdict(set)  # name -> the subsets that it is in
    for image in images:
        subsets_of[composed(image.get("name", ""))].add(image.get("subset"))
    with_subset = any(len(subsets) > 1 for subsets in subsets_of.values())

    rows, left_out = [], Counter()
    for image in images:
        name, subset = image.get("name"), image.get("subset")
        if with_subset and name and subset:
            name = f"{subset}/{name}"
        labels = {composed(shape.get("label")) for shape in image if "label" in shape.keys()}
        rows.append((name, labels))
        left_out["points of skeletons"] += len(image.findall("skeleton/*"))
        left_out["attributes"] += len(image.findall(".//attribute"))
    if any(left_out.values()):
        tell(f"{path}: left out, since they are no labels of photos: {counted(left_out)}")
    undeclared = set().union(*(labels for _, labels in rows)) - classes.keys()
    return rows, [*classes, *sorted(undeclared)]
