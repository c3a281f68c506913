"""People's own photos: where their labels come from, and which of the photos are held out for val.

Labels come from a file (`label_files.py` reads it) or from the folders that the photos are in.
`data.py` reads the trees of COCO and Visual Genome.

Symbols: M photos, n labels, G groups of photos that stay together.
"""

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

import data
from datasets.label_files import as_split, read_labels
from runtime import photo_files, ranks, reading, writing
from runtime.photo_names import PART, PhotoFolder
from runtime.reading import PHOTO, composed
from runtime.terminal import listed, printable, tell

HELD_OUT = 0.2  # of the photos, where no val labels are given [ours]
# Names of folders that are parts of a data set. One of them beside other folders may be a label.
NO_LABEL_FOLDER = re.compile(
    r"((seg|img|images?|data|my|new|the)[_\W])?"
    r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation|pred|unlabell?ed)\d*"
    r"([_\W]?(set|data|images?|imgs?|split|photos?))?",
    re.I,
)
COPY = re.compile(r"(.+)\.rf\.[^./]+\.\w+")  # Roboflow's names of what it makes from one photo


def load(
    photos: str,
    labels: str | None,
    val_photos: str | None,
    val_labels: str | None,
    val_list: Path,
) -> tuple[data.Split, data.Split]:
    """Train and val, upright by EXIF. Val has photos of its own, or a label file of its own for
    photos of the same folder, or is drawn from the photos."""
    if val_photos:
        if not labels:
            check_folders_apart(photos, val_photos, "--photos", "--val-photos")
        if not val_labels:
            check_folders_apart(val_photos, photos, "--val-photos", "--photos")
        return read(photos, labels), read(val_photos, val_labels, is_val=True)
    if val_labels:
        return with_val_labels(photos, labels, val_labels)
    return with_val_drawn(photos, labels, val_list)


def check_folders_apart(folder: str, other: str, option: str, other_option: str) -> None:
    """An error if photos that are labelled by the folders below `folder` are those of the other
    split: a folder val, say, would be a label. One folder for both is no error."""
    root, inner = os.path.realpath(folder), os.path.realpath(other)
    if Path(inner) in (Path(root), *Path(root).parents):
        return
    for place in {os.path.dirname(name) for name in photo_files.walk(folder)[0]}:
        place = Path(os.path.realpath(os.path.join(folder, place)))
        if Path(inner) in (place, *place.parents):
            raise ValueError(
                f"{other_option} {printable(other, 200)} is in {option} {printable(folder, 200)}, "
                "where folders are labels, so its photos would be in both splits; put the two "
                "folders side by side"
            )


def with_val_labels(
    photos: str, labels: str | None, val_labels: str
) -> tuple[data.Split, data.Split]:
    """Train and val of one folder, where a label file names the val photos. Without one for train,
    all others are train, labelled by folder, but for copies of val photos."""
    inside = photos_in(photos)
    split, val = labelled(photos, labels, inside), labelled(photos, val_labels, inside)
    if labels:
        tell_unnamed(photos, inside, split.paths + val.paths, f"{labels} or {val_labels}")
        return split, val
    names = [*names_of(split, photos), *names_of(val, photos)]
    groups = groups_of_copies([*split.paths, *val.paths], names)
    held = np.isin(groups[: len(split)], groups[len(split) :])  # (M,)
    tell(f"train: left out {held.sum():,} of {len(split):,} photos, val photos or their copies")
    return split.select(np.flatnonzero(~held)), val


def with_val_drawn(
    photos: str, labels: str | None, val_list: Path
) -> tuple[data.Split, data.Split]:
    """Train and val of one folder, where val is a fifth of the photos, which `val_list`, the
    val-photos.json of a run, names."""
    inside = photos_in(photos)
    split = labelled(photos, labels, inside, prefer=names_in(val_list))
    if labels:
        tell_unnamed(photos, inside, split.paths, labels)
    names = names_of(split, photos)
    groups = groups_of_copies(split.paths, names)  # (M,)
    with ranks.in_turn():
        held = held_out(split, names, groups, photos, val_list)  # (M,) bool
    tell(f"val: {held.sum():,} of the {len(held):,} photos, named in {val_list}")
    copies = np.isin(groups, groups[held]) & ~held  # added after the split was drawn
    if copies.any():
        tell(f"train: left out {copies.sum():,} of {(~held).sum():,} photos, copies of val photos")
    return split.select(np.flatnonzero(~held & ~copies)), split.select(np.flatnonzero(held))


def held_out(
    split: data.Split, names: list[str], groups: np.ndarray, photos: str, val_list: Path
) -> np.ndarray:
    """(M,) bool: the photos that `val_list` names; where there is no such file, a fifth of the
    photos, which the file then names. An error if no photo with a label is held out, or all are."""
    present = np.array([os.path.isfile(path) for path in split.paths], bool)  # (M,)
    is_drawn = not val_list.is_file()
    if is_drawn:
        # A photo that is missing is not held out: the file would name what is not there.
        held = np.zeros(len(split), bool)
        held[present] = stratified(split.targets[present], HELD_OUT, groups=groups[present])
    else:
        held = held_out_before(val_list, names, photos)
    if not split.targets[held].any() or held.all():
        advice = "add more, or pass --val-labels"
        if not present.all():
            missing = [split.paths[row] for row in np.flatnonzero(~present)]
            advice = f"{len(missing):,} are missing{listed(missing)}; correct their names"
        if not is_drawn:
            advice += f" and remove {val_list}"
        raise ValueError(
            f"{photos}: of {len(held):,} photos none with a label can be held out; {advice}"
        )
    if is_drawn:
        writing.save_json(val_list, [names[row] for row in np.flatnonzero(held)])
    return held


def read(photos: str, labels: str | None, is_val: bool = False) -> data.Split:
    """The photos of a folder that a label file names; without one, all, labelled by folder."""
    inside = photos_in(photos)
    split = labelled(photos, labels, inside, is_val=is_val)
    if labels:
        tell_unnamed(photos, inside, split.paths, labels)
    return split


def photos_in(photos: str) -> list[str]:
    """The names of all photos of a folder; tells what else is there."""
    inside, left_out = photo_files.walk(photos)
    if left_out:
        tell(f"{photos}: left out {left_out}, which are not read as photos")
    return inside


def labelled(
    photos: str,
    labels: str | None,
    inside: list[str],
    prefer: set[str] = frozenset(),
    is_val: bool = False,
) -> data.Split:
    """The split that a label file or, without one, the folders make of the photos `inside`. One
    folder of them all is an error, unless they are val photos: nothing could be learnt."""
    split = read_labels(labels, photos) if labels else from_folders(photos, inside, prefer)
    one_label = len(split) > 1 and split.targets.shape[1] == 1 and split.targets.all()
    if one_label and not labels and not is_val:
        raise ValueError(
            f"{photos} holds all photos in the folder {printable(split.classes[0], 40)}, which "
            "would be the label of all; pass a label file as --labels, or a folder for each label"
        )
    return dataclasses.replace(split, upright=True, by_content=True)


def tell_unnamed(photos: str, inside: list[str], named: list[str], labels: str) -> None:
    """Tell which photos of a folder no label file names."""
    named = set(named)
    unnamed = [name for name in inside if os.path.join(photos, name) not in named]
    if unnamed:
        tell(
            f"{photos}: {len(unnamed):,} of {len(inside):,} photos are not named in {labels} "
            f"and are left out{listed(unnamed)}"
        )


def from_folders(photos: str, inside: list[str], prefer: set[str]) -> data.Split:
    """A photo's label is the top-level folder it is in; a photo outside every folder has no label.
    Photos of the same bytes are one photo with the labels of all their folders; of its names the
    one among `prefer` is taken, or else the first."""
    groups = groups_of_copies([os.path.join(photos, name) for name in inside])
    name_of_group, labels_of_group = {}, {}
    for name, group in zip(inside, groups, strict=True):
        *folders, _ = name.split("/")
        if group not in name_of_group or composed(name) in prefer:
            name_of_group[group] = name
        labels_of_group.setdefault(group, set()).update(folders[:1])
    rows = [(name, labels_of_group[group]) for group, name in name_of_group.items()]
    if twice := len(inside) - len(rows):
        tell(
            f"{photos}: {twice:,} of {len(inside):,} photos are copies of others, byte for byte; "
            "their labels are united"
        )
    if loose := [name for name, labels in rows if not labels]:
        photos_are = "1 photo is" if len(loose) == 1 else f"{len(loose):,} photos are"
        tell(f"{photos}: {photos_are} in no folder, and so without a label{listed(loose)}")
    tops = {name.split("/")[0] for name in inside}  # a photo outside every folder is its own
    below = {name.split("/")[1] for name in inside if name.count("/") > 1}
    if len(tops) == 1 and len(below) > 1:
        raise ValueError(
            f"{photos} holds all photos in {printable(min(tops), 40)}, in {len(below)} folders; "
            "pass that one as --photos, if the folders in it are the labels"
        )
    split = as_split(rows, None, PhotoFolder(photos), photos)
    parts = [name for name in split.classes if NO_LABEL_FOLDER.fullmatch(name)]
    if len(parts) > 1 or parts == split.classes:
        raise ValueError(
            f"{photos} holds the folders {' and '.join(parts)}, which are parts of a data set, not "
            "labels; pass the folder of the training photos as --photos, the other as --val-photos"
        )
    return split


# Which photos are held out


def names_of(split: data.Split, folder: str) -> list[str]:
    """(M,) the paths of a split's photos in their folder, as names with "/"."""
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in split.paths]


def groups_of_copies(paths: list[str], names: list[str] | None = None) -> np.ndarray:
    """(M,) numbers from 0 to G - 1, equal for copies of one photo: files of the same bytes and, if
    their `names` are given, what Roboflow makes from one photo (`made_from`). Only files that share
    their size with another are hashed.

    A union-find: groups are trees of rows, and what two rows have in common joins their trees.
    """
    sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in paths]
    count = Counter(sizes)
    parent = list(range(len(paths)))  # of each row: an earlier row of its group; a root's is itself
    first_with = {}  # what copies have in common -> the first row that has it

    def root_of(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # a shorter way for the next search
            row = parent[row]
        return row

    for row, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        in_common = []
        if size is not None and count[size] > 1:
            content = photo_files.digest(path)
            in_common.append((size, path if content == "unreadable" else content))
        if names and (original := made_from(names[row])):
            in_common.append(original)
        for each in in_common:
            one, other = root_of(first_with.setdefault(each, row)), root_of(row)
            parent[max(one, other)] = min(one, other)
    roots = [root_of(row) for row in range(len(paths))]
    return np.unique(roots, return_inverse=True)[1]  # in order of the first photo of each


def made_from(name: str) -> str:
    """The photo that Roboflow made a file from, by the file's name: NAME of NAME.rf.HASH.jpg, or ""
    for a name of another form. In folders of different labels, photos of one NAME are different
    photos."""
    *folders, file = name.split("/")
    copy = COPY.fullmatch(file)
    labels = [folder for folder in folders if not PART.fullmatch(folder)]  # train, valid and so on
    return "/".join([*labels, copy[1]]) if copy else ""


def stratified(
    targets: np.ndarray, part: float, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """(M,) bool: this part of the photos, with about this part of the photos of every label. Groups
    of photos, (M,) numbers from 0 to G - 1, stay together.

    Iterative stratification of targets (M, n): Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011,
    Algorithm 1. A label of three photos or more that are alone in their groups and have no other
    label is in both parts.
    """
    M, n = targets.shape
    groups = np.arange(M) if groups is None else groups
    sizes = np.bincount(groups, minlength=1)  # (G,)
    counts = np.zeros((len(sizes), n), int)  # (G, n), photos of a group that show a label
    np.add.at(counts, groups, targets)

    rng, shares = np.random.default_rng(seed), np.array([1 - part, part])
    order = rng.permutation(len(sizes))
    left = counts.sum(0)  # (n,), photos of a label that have no side yet
    wanted, wanted_of_label = shares * M, np.outer(shares, left)  # (2,), (2, n), of each side
    side = np.full(len(sizes), -1)  # of each group: 0, 1, or -1 for none yet
    while left.any():
        label = np.where(left > 0, left, M + 1).argmin()  # the rarest that is left
        for group in order[(counts[order, label] > 0) & (side[order] < 0)]:
            wants = [(wanted_of_label[k, label], wanted[k], rng.random()) for k in (0, 1)]
            chosen = int(wants[1] > wants[0])
            side[group] = chosen
            wanted[chosen] -= sizes[group]
            wanted_of_label[chosen] -= counts[group]
            left -= counts[group]
    room = round(wanted[1])
    for group in order[side[order] < 0]:  # without a label
        if sizes[group] <= room:
            side[group] = 1
            room -= sizes[group]
    return side[groups] == 1


def held_out_before(val_list: Path, names: list[str], photos: str) -> np.ndarray:
    """(M,) bool: the photos that a file of an earlier run names. All of them must be there, perhaps
    in another folder, if no two photos have one file name: so a label is corrected."""
    named = names_in(val_list)
    names = [composed(name) for name in names]
    name_of = {name.rpartition("/")[2]: name for name in names}  # file name -> name
    moved = {}
    if len(name_of) == len(names):  # a file name says which photo it is
        for name in sorted(named - set(names)):
            place = name_of.get(name.rpartition("/")[2])
            if place and place not in named and place not in moved.values():
                moved[name] = place
    if moved:
        first = [f"{name} is now {place}" for name, place in moved.items()]
        tell(
            f"val: {len(moved):,} of {len(named):,} photos are in another folder now{listed(first)}"
        )
    named = {moved.get(name, name) for name in named}
    if absent := sorted(named - set(names)):
        raise ValueError(
            f"{val_list}: {len(absent):,} of the {len(named):,} photos held out are not among "
            f"those of {photos}{listed(absent)}; put them and their labels back, or remove their "
            f"names from {val_list.name}, or that file to draw others, and pass --fresh"
        )
    return np.array([name in named for name in names], bool)


def names_in(val_list: Path) -> set[str]:
    """The photos that a file of an earlier run names; none where there is no such file."""
    if not val_list.is_file():
        return set()
    advice = "correct it, or remove it to draw other val photos, and pass --fresh"
    return {composed(name) for name in reading.read_json(val_list, [PHOTO], advice)}


def warn_of_copies(train: data.Split, val: data.Split, photos: str, val_photos: str) -> None:
    """Say which val photos are copies of training photos: they make val's numbers too high.
    `photos` and `val_photos` are the folders of the two splits."""
    names = [*names_of(train, photos), *names_of(val, val_photos)]
    groups = groups_of_copies([*train.paths, *val.paths], names)
    seen = np.isin(groups[len(train) :], groups[: len(train)])  # (photos of val,)
    copies = [val.paths[row] for row in np.flatnonzero(seen)]
    if copies:
        tell(
            f"{len(copies):,} of {len(val):,} val photos are copies of training photos (the same "
            "bytes, or made from one photo by Roboflow), which makes val's numbers too high"
            f"{listed(copies)}"
        )
