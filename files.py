"""What a run keeps in its folder: written whole or not at all, used again only where it fits.

A checkpoint carries its `classes` and its `settings`, everything that decided its numbers. Plain
types only: torch.load(weights_only=True) reads all of it.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch

import data
import tresnet

try:
    import fcntl
except ImportError:  # Windows: without it two runs in one folder are not noticed
    fcntl = None


@contextlib.contextmanager
def replacing(path: Path):
    """Write a file whole or not at all: to a temporary name, synced, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's word for a full disk
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        before = "the one before is as it was" if path.is_file() else "nothing was written"
        reason = getattr(error, "strerror", None) or "the disk is full, or was taken away"
        raise OSError(
            f"cannot write {path} ({reason}); {before}; make room, start again"
        ) from error


def save(path: Path, checkpoint: dict) -> None:
    with replacing(path) as file:
        torch.save(checkpoint, file)


def save_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def lock(folder: Path):
    """Makes the folder and holds it for this process: two runs would mix their files.

    The system lets go of it when the process ends, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")
    except OSError as error:
        reason = error.strerror
        raise OSError(f"cannot write to {folder} ({reason}); give another --out") from error
    with file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by process {file.read(20) or 'unknown'}; wait for its end, or "
                "give another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def forget(log: Path, name: str, epochs: int) -> None:
    """Cut log.jsonl back to where a training goes on: no epoch of it is there twice."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # of a line that was cut short
            entry = json.loads(line)
            if entry["model"] != name or entry["epoch"] <= epochs:
                kept.append(line + "\n")
    save_text(log, "".join(kept))


def load(args, name: str, classes: list[str], phase: str) -> dict:
    """A file of an earlier phase; a ValueError says which to run, or that the labels differ."""
    path = args.out / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run --phase {phase} first (or --phase all)")
    checkpoint = tresnet.read_checkpoint(path)
    check_classes(path, checkpoint, classes)
    return checkpoint


def check_classes(path: Path, checkpoint: dict, classes: list[str]) -> None:
    stored = checkpoint.get("classes")
    if stored != classes:
        what = f"{len(stored)} labels" if isinstance(stored, list) else "no list of labels"
        raise ValueError(
            f"{path} has {what}, the data set {len(classes)}, and they are not the same; "
            "give the --out of this data set, or --fresh to start over"
        )


# Arguments that change no number of a trained model; what they say of the data is in split_id.
UNIMPORTANT = {"phase", "evaluate", "nodes", "out", "fresh", "data", "year", "limit", "workers"}
UNIMPORTANT |= {"train_json", "train_images", "val_json", "val_images", "keep_unlabelled"}
UNIMPORTANT |= {"dataset", "eval_every", "device", "compile", "threshold"}
UNIMPORTANT |= {"save_every", "skip_bad_images", "download", "tensorboard"}


def settings(args, name: str, split: data.Split, backbone_id: str | None = None) -> dict:
    """What decides the numbers in <name>.pt: arguments, training data. No change passes unseen."""
    ignored = UNIMPORTANT | (set() if name == "gcn-word" else {"glove"})
    if name == "backbone":
        ignored |= {"init", "adjacency", "tau", "p", "node_norm", "graph_json", "backbone_lr"}
    kept = {k: v for k, v in vars(args).items() if k not in ignored}
    return kept | {"training_data": split_id(split), "backbone_id": backbone_id}


def split_id(split: data.Split) -> str:
    names = "\n".join(os.path.basename(path) for path in split.paths)
    return hashlib.sha256(names.encode() + split.targets.tobytes()).hexdigest()[:16]


def unfinished(args, name: str) -> bool:
    """Whether last.pt was left by a training of this model that did not come to its end."""
    last = args.out / "last.pt"
    return last.is_file() and tresnet.read_checkpoint(last).get("name") == name


def trained_before(args, name: str, current: dict, classes: list[str]) -> bool:
    if unfinished(args, name) or not begun(args, args.out / f"{name}.pt", current, classes):
        return False
    print(f"{name}: trained before ({name}.pt); --fresh trains it again")
    return True


def begun(args, path: Path, current: dict, classes: list[str]) -> dict | None:
    """What `path` holds, if made with the same settings; None if there is nothing to go on."""
    if args.fresh or not path.is_file():
        return None
    checkpoint = tresnet.read_checkpoint(path)
    check_classes(path, checkpoint, classes)
    stored = checkpoint.get("settings", {})
    for key in current:
        if stored.get(key) != current[key]:
            raise ValueError(
                f"{path} was made with {key.replace('_', '-')} {stored.get(key)}, now it is "
                f"{current[key]}; give another --out, or --fresh to redo this phase"
            )
    return checkpoint


def weights_id(model: torch.nn.Module) -> str:
    """Tells whether embeddings.pt and backbone.pt belong together."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
