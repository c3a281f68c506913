"""--fresh: what moves into before-fresh/, also where a process is killed or torchrun restarts it.

Which models a run trains again is decided in `run.py`.
"""

import fnmatch
import os
import re
from pathlib import Path

from runtime import writing
from runtime.folder import ABOUT_ALL_MODELS, EVALUATED
from runtime.reading import PHOTO, read_json
from runtime.terminal import tell

ASIDE = "before-fresh"  # the folder in --out that old files move to
MARK = "fresh.json"  # the list of the files that are moving
LAUNCH = "launch.txt"  # in before-fresh/: which start of torchrun moved them there
MODEL = re.compile(r"(backbone|gcn-\w+)\.pt")  # a trained one


def patterns_of(models: list[str], embeddings: bool, folder: Path) -> list[str]:
    """The names or patterns of all files in a run's folder that are old when these models, and
    perhaps embeddings.pt, are made again."""
    patterns = [pattern for name in models for pattern in (f"{name}.pt", f"*-{name}.*")]
    if embeddings:
        patterns.append("embeddings.pt")
    if models:
        patterns += ABOUT_ALL_MODELS  # predict.py chooses a model by verdict.json
        patterns.append(f"*{EVALUATED}.*")  # --evaluate may have been given one of these models
        staying = {path.stem for path in folder.glob("gcn-*.pt")} - set(models)
        if staying:
            patterns.remove("graph.png")  # it is theirs
    return patterns


def check_weights_stay(weights: str, folder: Path, patterns: list[str]) -> None:
    """A ValueError if the file of --weights would be moved away, or be replaced."""
    path, out = Path(weights).resolve(), folder.resolve()
    moves = any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)
    if moves and path.parent in (out, out / ASIDE) and path.is_file():
        raise ValueError(
            f"--fresh would move --weights {weights} away; copy the file to another folder, or "
            "choose another --out"
        )


def set_aside(folder: Path, patterns: list[str], launch: str) -> None:
    """Move the files of these names or patterns into before-fresh/, where they replace those of
    their names. If a trained model is among them, all other files of these patterns that lie there
    are removed first, so that before-fresh/ holds the files of one run.

    Then nothing of an earlier run can be taken for a result of this one. If the process is killed
    halfway, the next start moves the rest (`finish_setting_aside`). When torchrun restarts,
    `is_set_aside` says that it is done.
    """
    found = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    present = sorted(found)
    if any(MODEL.fullmatch(name) for name in present):
        for older in {path for pattern in patterns for path in (folder / ASIDE).glob(pattern)}:
            if older.name not in present:
                older.unlink()
    if present:
        writing.save_json(folder / MARK, present)
        finish_setting_aside(folder)
        tell(f"--fresh: moved {len(present)} files of an earlier run into {folder / ASIDE}")
    if launch:
        (folder / ASIDE).mkdir(exist_ok=True)
        writing.save_text(folder / ASIDE / LAUNCH, launch)


def is_set_aside(folder: Path, launch: str) -> bool:
    """Whether this start of torchrun had already set the files aside when it lost a rank."""
    path = folder / ASIDE / LAUNCH
    return path.is_file() and path.read_text(encoding="utf-8") == launch


def finish_setting_aside(folder: Path) -> None:
    """Move what is left to move after a --fresh was killed."""
    if not (folder / MARK).is_file():
        return
    (folder / ASIDE).mkdir(exist_ok=True)
    for name in read_json(folder / MARK, [PHOTO]):
        if (folder / name).is_file():
            os.replace(folder / name, folder / ASIDE / name)
    (folder / MARK).unlink()


def move(folder: Path, name: str) -> None:
    """Move a file that was made from other inputs, if it is there. Only one rank calls this."""
    if (folder / name).is_file():
        (folder / ASIDE).mkdir(exist_ok=True)
        os.replace(folder / name, folder / ASIDE / name)
        tell(f"--fresh: moved {name}, made from other inputs, into {folder / ASIDE}")
