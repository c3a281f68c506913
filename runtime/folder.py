"""The folder of a run: one process at a time, and what is in it is used again only where it fits.

Every file of tensors carries `classes` and `settings`: all that decided its numbers, with data,
code and starting weights by content. The caller chooses those settings.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

from runtime import checkpoints, ranks
from runtime.reading import PHOTO, read_json
from runtime.terminal import printable

try:
    import fcntl
except ImportError:  # Windows: without it two runs in one folder are not noticed
    fcntl = None

CONTENT = re.compile("[0-9a-f]{16}")  # checkpoints.content_id's and the like

# Keys of settings that are no option, and what a message calls them. Rewording a message leaves the
# keys, and with them old checkpoints, as they are.
PHOTOS, VAL_PHOTOS, CODE = "training-photos", "val-photos", "code"
START, BACKBONE, GRAPH, NODES = "start", "backbone-file", "graph", "node-features"
IN_WORDS = {
    PHOTOS: "training photos or labels",
    VAL_PHOTOS: "val photos or labels",
    CODE: "code of this program",
    START: "starting weights (--weights, --gcn-from)",
    BACKBONE: "backbone.pt",
    GRAPH: "label graph (--tau, --p, --adjacency)",
    NODES: "node features (--glove, --node-norm)",
}

ASIDE, MARK = "before-fresh", "fresh.json"  # where --fresh puts old files, and which ones it must
LAUNCH = "launch.txt"  # in before-fresh/: the start of torchrun that has put them there


class Folder:
    """--out, and the labels of its data set."""

    def __init__(self, path: Path, classes: list[str]):
        self.path, self.classes = path, classes

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def load(self, name: str, phase: str, settings: dict | None = None) -> dict:
        """A file of an earlier phase, made with these settings; else it says what to run."""
        if not (self / name).is_file():
            raise FileNotFoundError(
                f"{self / name} is not there; run --phase {phase} first (or --phase all)"
            )
        checkpoint = checkpoints.read_checkpoint(self / name)
        advice = f"run --phase {phase} again"
        check_settings(self / name, checkpoint, self.classes, settings or {}, advice)
        return checkpoint

    def begun(self, name: str, settings: dict) -> dict | None:
        """The file, if it exists, finished or not; a ValueError if its settings are others."""
        if not (self / name).is_file():
            return None
        checkpoint = checkpoints.read_checkpoint(self / name)
        advice = "choose another --out, or use --fresh to train again"
        check_settings(self / name, checkpoint, self.classes, settings, advice)
        return checkpoint

    def reusable(self, name: str, settings: dict) -> dict | None:
        """The file, if made with these settings; None otherwise: it is cheap to make again."""
        try:
            return self.begun(name, settings)
        except ValueError:
            return None

    def done(self, name: str, settings: dict) -> bool:
        """Whether a model is there, with the same settings and nothing begun after it."""
        if (self / f"last-{name}").is_file() or not self.begun(name, settings):
            return False
        print(f"{Path(name).stem}: done before ({name}); --fresh does it again")
        return True

    def save(self, name: str, content: dict, settings: dict) -> None:
        """The first rank writes the file; the others wait for it."""
        if ranks.rank() == 0:
            header = {"classes": self.classes, "settings": settings}
            checkpoints.save(self / name, header | content)
        ranks.wait()


def set_aside(folder: Path, names: list[str], launch: str) -> None:
    """Move files of these names, or patterns, into before-fresh/, where they replace older ones.

    So nothing of an earlier run can be taken for a result of this one. A kill in the middle is made
    good by the next start: `finish_setting_aside`. torchrun's restarts ask `is_set_aside`.
    """
    present = sorted({path.name for name in names for path in folder.glob(name) if path.is_file()})
    if present:
        checkpoints.save_json(folder / MARK, present)
        finish_setting_aside(folder)
        print(f"--fresh: moved {len(present)} files of an earlier run into {folder / ASIDE}")
    if launch:
        (folder / ASIDE).mkdir(exist_ok=True)
        checkpoints.save_text(folder / ASIDE / LAUNCH, launch)


def is_set_aside(folder: Path, launch: str) -> bool:
    """Whether this start of torchrun has come as far as `set_aside` before it lost a rank."""
    path = folder / ASIDE / LAUNCH
    return path.is_file() and path.read_text(encoding="utf-8") == launch


def finish_setting_aside(folder: Path) -> None:
    """Move what a --fresh that was killed had still to move."""
    if not (folder / MARK).is_file():
        return
    (folder / ASIDE).mkdir(exist_ok=True)
    for name in read_json(folder / MARK, [PHOTO]):
        if (folder / name).is_file():
            os.replace(folder / name, folder / ASIDE / name)
    (folder / MARK).unlink()


def check_settings(path: Path, checkpoint: dict, classes: list[str], settings: dict, advice: str):
    """A ValueError that names the first setting that differs from the file's own."""
    if checkpoint.get("classes") != classes:
        raise ValueError(
            f"{path} is not of the data set's {len(classes)} labels; choose the --out of this data "
            "set, or use --fresh to start over"
        )
    stored = checkpoint.get("settings")
    if not isinstance(stored, dict):
        stored = {}
    for key, value in settings.items():
        known = stored.get(key)
        if not isinstance(known, (str, int, float, type(None))) or known != value:
            name = IN_WORDS.get(key, key)
            if CONTENT.fullmatch(str(value)):
                made_with = f"other {name}"
            else:
                made_with = f"{name} {printable(known)}, now it is {value}"
            raise ValueError(f"{path} was made with {made_with}; {advice}")


@contextlib.contextmanager
def lock(path: Path):
    """Makes the folder and holds it for this process: two runs would mix their files.

    The system lets go of it when the process ends, however it ends. The first rank's holds for all.
    """
    if ranks.rank() > 0:
        yield
        return
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "lock", "w") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # what POSIX says of a held lock
                raise ValueError(
                    f"{path} is in use by another run; wait for its end, or choose another --out"
                ) from None
            print(f"{path}: its file system has no locks ({error.strerror}); start one run in it")
        yield
