"""Files of tensors: read as plain data, written whole or not at all.

Plain types only: torch.load(weights_only=True) reads all that is written here.
"""

import ast
import contextlib
import functools
import hashlib
import http.client
import json
import math
import os
import urllib.error
import warnings
import zipfile
from pathlib import Path

import torch


def read_checkpoint(path: str | Path) -> dict:
    """torch.load of tensors and plain types only: a hostile pickle cannot run, it is an error.

    So is a file that unpacks to more than it holds, or a tensor that claims more than its storage.
    A URL is downloaded once, into torch.hub's folder.
    """
    url = str(path) if str(path).startswith(("http://", "https://")) else None
    if not url and not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give the path of an existing file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on what a damaged file happens to ask for
            if url:
                checkpoint = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", check_hash=True, weights_only=True
                )
            else:
                check_size(path)
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            check_tensors(checkpoint)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
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
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, expected a dict of weights; give a file "
            "of weights"
        )
    return checkpoint


def check_size(path: str | Path) -> None:
    """torch.save compresses nothing: what unpacks to more than the file's size is none of its."""
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":  # else it is of torch before 1.6, no archive
            size = file.seek(0, os.SEEK_END)
            if sum(member.file_size for member in zipfile.ZipFile(file).infolist()) > size:
                raise ValueError("it unpacks to more than it holds")


def check_tensors(checkpoint: object) -> None:
    """Every tensor in these dicts and lists is plain and in memory, none of it more than once."""
    left, seen = [checkpoint], set()
    while left:
        value = left.pop()
        if id(value) in seen:  # lists may hold themselves
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
            if not plain or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
                raise ValueError("a tensor claims more than there is")


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


def save_json(path: Path, value: dict) -> None:
    """Paths become text, and what is not a number null: JSON knows neither."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    save_text(path, json.dumps(plain(value), indent=1, default=str, allow_nan=False))


def content_id(*tensors: torch.Tensor) -> str:
    """The same for the same numbers in the same order, whatever file they come from."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def code_id(*paths: Path) -> str:
    """The same for Python files that say the same: comments and layout do not count."""
    code = "".join(parsed(path.read_bytes()) for path in paths)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


@functools.cache
def parsed(source: bytes) -> str:
    return ast.dump(ast.parse(source))
