"""Types of command-line options, and the device they name."""

import argparse
from collections.abc import Callable

import torch


def whole(low: int) -> Callable[[str], int]:
    """Whole numbers of at least `low`."""

    def convert(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        return int(text)

    convert.__name__ = "whole number"  # argparse's own word for it in its error
    convert.metavar = "N"
    return convert


def between(low: float, high: float) -> Callable[[str], float]:
    """Numbers from `low` to `high`."""

    def convert(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}")
        return float(text)

    convert.__name__, convert.metavar = "number", "X"
    return convert


def device(name: str) -> str:
    """The device of this name, auto the first there is. Touches no GPU, so that ranks choose."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's, for no such device or no driver
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} is not to be had: {reason}") from None
