"""Files of tensors: read as plain data, written whole or not at all, and told apart by their ids.

Only plain types are stored, so torch.load(weights_only=True) reads all that is written here.
"""

import hashlib
import re
import warnings
import zipfile
from pathlib import Path

import torch

from runtime import download, safetensors
from runtime.terminal import printable
from runtime.writing import explained, replacing


def read_checkpoint(path: str | Path, advice: str = "") -> dict:
    """The tensors and plain values in a torch.save or safetensors file, given by path or URL.

    A pickle that would run code is an error. A URL is downloaded once. `advice` says what to do
    about a damaged file, where that is known.
    """
    if download.is_url(path):
        path = download.cached(str(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; pass the path of an existing file")
    if str(path).endswith(".safetensors") or safetensors.looks_like_one(path):
        return safetensors.read(path)
    check_bytes(Path(path), advice)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle in a damaged file
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise TypeError("no dict of tensors")
    except Exception as error:
        kind = type(error).__name__  # torch's text advises to let the file run code
        refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if refused:
            raise ValueError(
                f"{path} holds {printable(refused[1])} besides its tensors, and objects are not "
                "read, as they can run code; if you trust its author, save the weights (of a whole "
                "network, its state_dict()) alone: "
                'torch.save(torch.load(FILE, weights_only=False)["state_dict"], "weights.pth")'
            ) from error
        advice = advice or "pass the file as torch.save wrote it; delete one that was downloaded"
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors ({kind}); {advice}"
        ) from error
    return checkpoint


def check_bytes(path: Path, advice: str = "") -> None:
    """A ValueError if the bytes of a torch.save file have changed since it was written.

    It is a zip with a CRC-32 of each tensor, which torch does not compare. Files from before
    torch 1.6 have none and are not checked.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise ValueError(damaged)
    except Exception as error:  # of zipfile, zlib, lzma or the system
        raise ValueError(
            f"{path} has changed since it was written, or is damaged ({printable(error)}); "
            + (advice or "train this model again, or fetch the file again")
        ) from error


def save(path: Path, checkpoint: dict) -> None:
    with replacing(path) as file, explained(path):
        torch.save(checkpoint, file)


def content_id(*tensors: torch.Tensor) -> str:
    """An id of tensors: equal for equal numbers in the same order, whatever file they are in."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def code_id(*paths: Path) -> str:
    """An id of files: equal if their bytes are equal."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
