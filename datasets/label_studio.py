"""Label Studio's JSON: a task for each photo, with any number of annotations by different people.

A photo that nobody has annotated, or that was skipped, is left out; one in which somebody found
nothing has no label. Its other exports, CSV and JSON-MIN, are refused in `label_files.py`.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from runtime import reading
from runtime.photo_names import decoded, has_photo_suffix
from runtime.reading import ANY, LABEL
from runtime.terminal import counted, printable, tell

TASKS = [{"data": {...: ANY}, "annotations": [{"result": [{...: ANY}]}]}]


def read(path: str | Path) -> tuple[list[tuple[str, set[str]]], None]:
    """(name of the photo, labels of all its annotations) for every task that was annotated."""
    photos, left_out = [], Counter()  # (name, its ticks)
    for number, task in enumerate(reading.read_json(path, TASKS)):
        done = [each for each in task["annotations"] if not each.get("was_cancelled")]
        left_out["skipped annotations"] += len(task["annotations"]) - len(done)
        if isinstance(task.get("predictions"), list):
            left_out["predictions"] += len(task["predictions"])
        if not done:
            left_out["photos without an annotation"] += 1
            continue
        ticks = set()
        for annotation in done:
            of_result = [ticks_of(result, path, f"[{number}]") for result in annotation["result"]]
            ticks = ticks.union(*of_result)
            left_out += without_ticks(annotation["result"], of_result)
        results = [result for annotation in done for result in annotation["result"]]
        photos.append((photo_of(task["data"], results, f"{path}: [{number}]"), ticks))
    if any(left_out.values()):
        tell(f"{path}: left out: {counted(left_out)}")
    label_of = labels_of_ticks(set().union(*(ticks for _, ticks in photos)))
    return [(name, {label_of[tick] for tick in ticks}) for name, ticks in photos], None


class Tick(NamedTuple):
    """What somebody ticked: a choice or the label of a region is a way of one word, an item of a
    taxonomy the way to it. A region answers no question: a cat in a box and one in a polygon are
    the same label."""

    question: str  # `from_name` of a choice or a taxonomy; "" for a region
    way: tuple[str, ...]


def ticks_of(result: dict, path: str | Path, place: str) -> set[Tick]:
    """What a result says about labels."""
    ticks, value = set(), result.get("value")
    if not isinstance(value, dict):
        return ticks
    question = str(result.get("from_name", ""))
    for key, chosen in value.items():
        if key == "taxonomy":
            reading.check(chosen, [[LABEL]], path, f"{place}.taxonomy")
            ticks |= {Tick(question, tuple(way)) for way in chosen if way}
        elif key == "choices" or key.endswith("labels"):
            reading.check(chosen, [LABEL], path, f"{place}.{printable(key)}")
            asked = question if key == "choices" else ""
            ticks |= {Tick(asked, (label,)) for label in chosen}
    return ticks


def labels_of_ticks(ticks: set[Tick]) -> dict[Tick, str]:
    """A tick's label is the last word of the way to it; or the whole way if several ways end with
    that word; with the question in front if the word answers several questions."""
    ticks_with = defaultdict(set)  # last word -> ticks
    for tick in ticks:
        ticks_with[tick.way[-1]].add(tick)
    labels = {}
    for tick in ticks:
        others = ticks_with[tick.way[-1]]
        is_unique = len({other.way for other in others}) == 1
        words = tick.way[-1:] if is_unique else tick.way
        if tick.question and len({other.question for other in others} - {""}) > 1:
            words = (tick.question, *words)
        labels[tick] = " / ".join(words)
    return labels


def without_ticks(results: list[dict], ticks: list[set]) -> Counter:
    """How many results of each type say nothing about labels: texts, ratings and others. The shape
    of a region does not count if another result has its label."""
    pairs = list(zip(results, ticks, strict=True))
    labelled = {str(result["id"]) for result, ticked in pairs if ticked and "id" in result}
    types = Counter()
    for result, ticked in pairs:
        if not ticked and str(result.get("id")) not in labelled:
            types[f"{printable(result.get('type'))} without labels"] += 1
    return types


def photo_of(values: dict, results: list[dict], place: str) -> str:
    """The name of the photo among a task's data, the one that the results are about."""
    texts = {}  # key -> names
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        texts[key] = [name_in(item) for item in items if isinstance(item, str)]
    photos = {}
    for key, names in texts.items():
        names = [name for name in names if has_photo_suffix(decoded(name))]
        if names:
            photos[key] = names
    if not photos:  # a name without suffix
        photos = {key: names for key, names in texts.items() if key == "image" and names}
    if not photos:
        photos = {key: names for key, names in texts.items() if names}
    named = {str(result["to_name"]) for result in results if "to_name" in result}
    if len(photos) > 1 and len(named) <= 1:  # else there are labels of several
        for key in [*named, "image"]:
            if key in photos:
                photos = {key: photos[key]}
                break
    names = {name for names in photos.values() for name in names}
    if len(names) != 1:
        keys = ", ".join(printable(key) for key in photos) or "no text"
        raise ValueError(
            f"{place}.data has {len(names)} photos that its labels may belong to ({keys}); export "
            "a task for each photo"
        )
    return names.pop()


def name_in(text: str) -> str:
    """A photo's name as an upload, a file of the server, or a link has it."""
    if "?d=" in text:
        return unquote(text.split("?d=")[1])
    return text if "://" in text else unquote(text.split("?")[0])
