"""The device that a run computes on: which one, whether it is there, what it can do.

How training saves memory: see `lean.py` and `memory.py`.
"""

import torch

from runtime.terminal import printable


def choose(name: str) -> str:
    """The device of this name; "auto" is the first of cuda, mps and cpu that is available.

    No GPU is opened here, so that every rank can still choose its own.
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check(name: str) -> None:
    """A ValueError where torch cannot compute on the device."""
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # no such device, no driver, or no numbers
        reason = printable(str(error).splitlines()[0], 120)
        raise ValueError(
            f"--device {name} is not available: {reason}; choose --device cpu, or auto"
        ) from None


def native_bfloat16(name: str) -> bool:
    """Whether the device is a GPU that computes in bfloat16 and does not only imitate it."""
    if not name.startswith("cuda"):
        return False
    with torch.cuda.device(name):
        return torch.cuda.is_bf16_supported(including_emulation=False)
