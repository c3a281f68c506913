"""The folder of a run: one process at a time, and what is in it is used again only where it fits.

Every file of tensors carries `classes` and `settings`: all that decided its numbers, data, code and
starting weights by content.
"""

import contextlib
import re
from pathlib import Path

from runtime import checkpoints, ranks
from runtime.terminal import printable

try:
    import fcntl
except ImportError:  # Windows: without it two runs in one folder are not noticed
    fcntl = None

CONTENT = re.compile("[0-9a-f]{16}")  # checkpoints.content_id's and the like
PHOTOS, START = "training photos and labels", "starting weights (--weights, --gcn-from)"  # settings


class Folder:
    """--out, and the labels of its data set. `fresh`: what is there is made again."""

    def __init__(self, path: Path, classes: list[str], fresh: bool = False):
        self.path, self.classes, self.fresh = path, classes, fresh

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
        """The file, if it is there, finished or not; of other settings it is an error."""
        if self.fresh or not (self / name).is_file():
            return None
        checkpoint = checkpoints.read_checkpoint(self / name)
        advice = "give another --out, or --fresh to redo this phase"
        check_settings(self / name, checkpoint, self.classes, settings, advice)
        return checkpoint

    def done(self, name: str, settings: dict, remake: bool = False) -> bool:
        """Whether the file is there, with the same settings and nothing begun after it.

        One of other settings is an error, or with `remake`, where it costs little, to be replaced.
        """
        try:
            if (self / f"last-{name}").is_file() or not self.begun(name, settings):
                return False
        except ValueError:
            if remake:
                return False
            raise
        print(f"{Path(name).stem}: done before ({name}); --fresh does it again")
        return True

    def save(self, name: str, content: dict, settings: dict) -> None:
        """By the first rank, before any goes on."""
        if ranks.rank() == 0:
            about = {"classes": self.classes, "settings": settings}
            checkpoints.save(self / name, about | content)
        ranks.wait()


def check_settings(path: Path, checkpoint: dict, classes: list[str], settings: dict, advice: str):
    """A ValueError that names the first thing a file was made with that is another one now."""
    if checkpoint.get("classes") != classes:
        raise ValueError(
            f"{path} is not of the data set's {len(classes)} labels; give the --out of this data "
            "set, or --fresh to start over"
        )
    stored = checkpoint.get("settings") or {}
    for key, value in settings.items():
        if stored.get(key) != value:
            made_with = f"{key} {printable(stored.get(key))}, now it is {value}"
            if CONTENT.fullmatch(str(value)):
                made_with = f"other {key}"
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
        except OSError:
            raise ValueError(
                f"{path} is in use by another run; wait for its end, or give another --out"
            ) from None
        yield
