"""The folder of a run: what its files are called, that one run at a time writes to it, and that its
files are used again only where they fit.

Every file of tensors has `classes` and `settings`: all that decided its numbers. Data, code and
starting weights are in the settings by their content. The caller chooses the settings.
"""

import contextlib
import re
from pathlib import Path

from runtime import checkpoints, locks, ranks, writing
from runtime.terminal import listed, printable, tell

CONTENT = re.compile("[0-9a-f]{16}")  # the form of checkpoints.content_id and other ids

# Keys of the settings that are not options, and what a message calls them. The words may change,
# the keys may not: old checkpoints hold them.
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

# The files of a run that are named after no model.
WHILE_TRAINING = ["curves.png", "graph.png"]
EVALUATED = "-evaluated"  # ends the names of what --evaluate writes, before their suffix


def result_files(end: str = "") -> list[str]:
    """What phase eval writes about all its models together; `end` ends the names before their
    suffix."""
    texts = [f"results{end}.md", f"verdict{end}.json", f"labels{end}.csv"]
    return [*texts, f"results{end}.jpg", f"mistakes{end}.jpg"]


def model_files(name: str) -> list[str]:
    """The files of a run that are named after a model."""
    return [f"{name}.pt", f"last-{name}.pt", f"metrics-{name}.json", f"scores-{name}.npz"]


ABOUT_ALL_MODELS = [*result_files(), *WHILE_TRAINING]
OF_EVALUATED = ["metrics-evaluated.json", "scores-evaluated.npz", *result_files(EVALUATED)]
WRITTEN = {*ABOUT_ALL_MODELS, *OF_EVALUATED, "args.json", "log.jsonl", "val-photos.json"}
DRAWN = {name for name in WRITTEN if name.endswith((".jpg", ".png"))}


class Folder:
    """The folder --out, and the labels of its data set."""

    def __init__(self, path: Path, classes: list[str]):
        self.path, self.classes = path, classes

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def load(self, name: str, phase: str, settings: dict | None = None) -> dict:
        """A file of an earlier phase, made with these settings; an error that says what to run
        if there is none."""
        if not (self / name).is_file():
            raise FileNotFoundError(
                f"{self / name} is not there; run --phase {phase} first (or --phase all)"
            )
        advice = f"run --phase {phase} again"
        checkpoint = checkpoints.read_checkpoint(self / name, f"remove it, and {advice}")
        check_settings(self / name, checkpoint, self.classes, settings or {}, advice)
        return checkpoint

    def begun(self, name: str, settings: dict) -> dict | None:
        """The file, finished or not; None if there is none, a ValueError if it was made with
        other settings."""
        if not (self / name).is_file():
            return None
        again = "remove it, and the same command makes it again"
        checkpoint = checkpoints.read_checkpoint(self / name, again)
        advice = "add --fresh to train again, or choose another --out"
        check_settings(self / name, checkpoint, self.classes, settings, advice)
        return checkpoint

    def reusable(self, name: str, settings: dict) -> dict | None:
        """The file if it was made with these settings, otherwise None."""
        try:
            return self.begun(name, settings)
        except ValueError:
            return None

    def done(self, name: str, settings: dict) -> bool:
        """Whether a model with these settings is there, and no new training of it has begun."""
        if (self / f"last-{name}").is_file() or not self.begun(name, settings):
            return False
        tell(f"{Path(name).stem}: done before ({name}); --fresh does it again")
        return True

    def save(self, name: str, content: dict, settings: dict) -> None:
        """The first rank writes the file; the others wait for it."""
        if ranks.rank() == 0:
            header = {"classes": self.classes, "settings": settings}
            checkpoints.save(self / name, header | content)
        ranks.wait()


def check_settings(path: Path, checkpoint: dict, classes: list[str], settings: dict, advice: str):
    """A ValueError that names the first setting that differs from the file's own."""
    known_classes = checkpoint.get("classes")
    if isinstance(known_classes, list) and known_classes != classes:
        if sorted(map(str, known_classes)) == sorted(classes):
            raise ValueError(
                f"{path} has the same labels in another order; bring them in the label file into "
                f"its order{listed(known_classes, 5)}"
            )
    if known_classes != classes:
        raise ValueError(
            f"{path} was made for other labels than this data set's {len(classes)}; choose the "
            "--out of this data set, or use --fresh to start over"
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
    """Make the folder and lock it for this run, since two runs would mix up their files. The first
    rank holds the lock for all ranks."""
    if ranks.rank() > 0:
        yield
        return
    with writing.explained(path):
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / "lock", "w")
    with file:
        try:
            is_ours = locks.locked(file)
        except OSError as error:
            tell(f"{path}: its file system has no locks ({error.strerror}); start one run in it")
        else:
            if not is_ours:
                raise ValueError(
                    f"{path} is in use by another run; wait for its end, or choose another --out"
                )
            writing.remove_leftovers(path)
        yield
