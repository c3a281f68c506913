"""Reads the tensors of a safetensors file without the package, and checks all its header says.

Source: the format's own page, https://github.com/huggingface/safetensors. The first 8 bytes are the
length of the header, little-endian. The header is a JSON object: the name of a tensor -> its dtype,
its shape, and at which bytes of the rest it begins and ends. The rest has no gaps.
Nothing is written here, and nothing here knows a model.
"""

import json
import math
from pathlib import Path
from typing import IO

import torch

from runtime.terminal import brief

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}
LONGEST = 100_000_000  # bytes of a header: the format's own limit


def looks_like_one(path: str | Path) -> bool:
    """Whether a file begins like a safetensors file; a file of torch.save does not."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Name -> tensor. A file that breaks a rule of the format is a ValueError that says which."""
    with open(path, "rb") as file:
        try:
            return tensors_in(file, Path(path).stat().st_size)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); choose another file, or if "
                "it was downloaded, delete it and start again"
            ) from None


def tensors_in(file: IO[bytes], size: int) -> dict[str, torch.Tensor]:
    """The tensors of an open file of `size` bytes."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(LONGEST, size - 8):
        raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
    text = file.read(length).decode()
    if not text.startswith("{"):
        raise ValueError(f"its header begins with {brief(text[:8])}, expected a JSON object")
    header = json.loads(text, object_pairs_hook=without_repeats, parse_constant=refuse_constant)
    metadata = header.pop("__metadata__", {})  # text for people; not used
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise ValueError(f"its __metadata__ is {brief(metadata)}, expected an object of texts")

    places = sorted((*span(name, entry), name) for name, entry in header.items())
    tensors, end = {}, 0
    for first, last, name in places:
        if first != end:
            raise ValueError(f"{brief(name)} begins at byte {first:,}, expected {end:,}")
        end = last
    if end != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length:,} bytes of tensors, expected {end:,}")
    for first, last, name in places:  # in the order in which they lie in the file
        flat = torch.empty(last - first, dtype=torch.uint8)
        if file.readinto(flat.numpy()) != last - first:
            raise ValueError("it became shorter while it was read")
        dtype, shape = DTYPES[header[name]["dtype"]], header[name]["shape"]
        # A byte of BOOL other than 0 and 1 is true; torch's own view of it would be undefined.
        tensor = flat.ne(0) if dtype is torch.bool else flat.view(dtype)
        tensors[name] = tensor.reshape(shape)
    return tensors


def span(name: str, entry: object) -> tuple[int, int]:
    """The bytes where a tensor begins and ends, checked against its dtype and shape."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{brief(name)} is {brief(entry)}, expected dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise ValueError(f"{brief(name)} is of dtype {brief(dtype)}, expected {', '.join(DTYPES)}")
    for numbers in (shape, offsets):
        if type(numbers) is not list or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{brief(name)} has {brief(numbers)}, expected whole numbers")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    extent = math.prod(max(side, 1) for side in shape)  # an empty tensor may still be too long
    if len(offsets) != 2 or offsets[1] - offsets[0] != size or extent >= 2**63:
        raise ValueError(
            f"{brief(name)} lies at {brief(offsets)}, expected {brief(size)} bytes for {dtype} of "
            f"shape {brief(shape)}"
        )
    return offsets[0], offsets[1]


def without_repeats(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object of these keys and values, none of them there twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key of its header is there twice")
    return entries


def refuse_constant(name: str) -> None:
    """NaN and Infinity, which Python's JSON has and JSON has not."""
    raise ValueError(f"{name} is not JSON")
