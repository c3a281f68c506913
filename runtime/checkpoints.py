"""Files of tensors: read as plain data, written whole or not at all.

Plain types only: torch.load(weights_only=True) reads all that is written here.
"""

import contextlib
import hashlib
import json
import os
import urllib.error
from pathlib import Path

import torch


def read_checkpoint(path: str | Path) -> dict:
    """torch.load of tensors and plain types only: a hostile pickle cannot run, it is an error.

    A URL is downloaded once, into torch.hub's folder.
    """
    url = str(path) if str(path).startswith(("http://", "https://")) else None
    if not url and not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give the path of an existing file")
    plain = {"map_location": "cpu", "weights_only": True}
    try:
        if url:
            checkpoint = torch.hub.load_state_dict_from_url(url, check_hash=True, **plain)
        else:
            checkpoint = torch.load(path, **plain)
        if not isinstance(checkpoint, dict):
            raise TypeError("no dict of tensors")
    except urllib.error.URLError as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise FileNotFoundError(
            f"cannot download {url} ({error}); fetch it on another machine and put it into {folder}"
        ) from error
    except Exception as error:
        kind = type(error).__name__  # not its text: torch's advises to let the file run code
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors ({kind}); give the file as torch.save "
            "wrote it, or fetch it again"
        ) from error
    return checkpoint


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
        before = "its old content is kept" if path.is_file() else "nothing was written"
        reason = getattr(error, "strerror", None) or "the disk is full, or was taken away"
        raise OSError(
            f"cannot write {path} ({reason}); {before}; make room and start again"
        ) from error


def save(path: Path, checkpoint: dict) -> None:
    with replacing(path) as file:
        torch.save(checkpoint, file)


def save_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def plain(value: object) -> object:
    """The value as JSON can hold it: paths become text, NaN and infinity become null."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)


def save_json(path: Path, value: object) -> None:
    save_text(path, json.dumps(plain(value), indent=1))


def content_id(*tensors: torch.Tensor) -> str:
    """The same text for the same numbers in the same order, whatever file they come from."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def code_id(*paths: Path) -> str:
    """The same text for files of the same bytes."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
