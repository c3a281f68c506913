"""--fresh: what moves into before-fresh/, also where a process is killed or torchrun restarts it.

Which models a run trains again is decided in `preflight/plan.py`.
"""

import os
import re
from pathlib import Path

from runtime import writing
from runtime.folder import ABOUT_ALL_MODELS, OF_EVALUATED, model_files
from runtime.reading import PHOTO, read_json
from runtime.terminal import tell

ASIDE = "before-fresh"  # the folder in --out that old files move to
MARK = "fresh.json"  # the list of the files that are moving
LAUNCH = "launch.txt"  # in before-fresh/: which start of torchrun moved them there
MODEL = re.compile(r"(backbone|gcn-\w+)\.pt")  # a trained one


def old_files(models: list[str], embeddings: bool, folder: Path) -> list[str]:
    """The names of all files that a run writes into its folder and that are old when these models,
    and perhaps embeddings.pt, are made again. Other files in the folder are the user's."""
    names = [file for model in models for file in model_files(model)]
    if embeddings:
        names.append("embeddings.pt")
    if models:
        names += ABOUT_ALL_MODELS  # predict.py chooses a model by verdict.json
        names += OF_EVALUATED  # --evaluate may have been given one of these models
        staying = {path.stem for path in folder.glob("gcn-*.pt")} - set(models)
        if staying:
            names.remove("graph.png")  # it is theirs
    return names


def check_weights_stay(weights: str, folder: Path, names: list[str]) -> None:
    """A ValueError if the file of --weights would be moved away, or be replaced."""
    path, out = Path(weights).resolve(), folder.resolve()
    if path.name in names and path.parent in (out, out / ASIDE) and path.is_file():
        raise ValueError(
            f"--fresh would move --weights {weights} away; copy the file to another folder, or "
            "choose another --out"
        )


def set_aside(folder: Path, names: list[str], launch: str) -> None:
    """Move the files of these names into before-fresh/, where they replace those of their names. If
    a trained model is among them, all other files of these names that lie there are removed first,
    so that before-fresh/ holds the files of one run.

    Then nothing of an earlier run can be taken for a result of this one. If the process is killed
    halfway, the next start moves the rest (`finish_setting_aside`). When torchrun restarts,
    `is_set_aside` says that it is done.
    """
    present = sorted({name for name in names if (folder / name).is_file()})
    if any(MODEL.fullmatch(name) for name in present):
        for name in set(names) - set(present):
            (folder / ASIDE / name).unlink(missing_ok=True)
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
