"""Types of command-line options."""

import argparse
import math
import re
from collections.abc import Callable


class Adder:
    """Adds options to `group` of a parser, one line each: name, help text, kind, default.

    kind is a type, a list of choices, bool for a switch, or the name of a text's value.
    """

    group = None

    def __call__(self, name: str, text: str, kind: object, default=None, **more) -> str:
        """Returns the name of the attribute."""
        if kind is bool:
            more["action"] = "store_true"
        elif isinstance(kind, str):
            more |= {"metavar": kind, "default": default}
        elif callable(kind):
            more |= {"type": kind, "metavar": kind.metavar, "default": default}
        else:
            more |= {"choices": list(kind), "metavar": "NAME", "default": default}
        return self.group.add_argument(name, help=text, **more).dest


class ShortHelp(argparse.Action):
    """Prints the help of some options, without their sources; `const` is a description, and their
    names."""

    def __call__(self, parser, *_) -> None:
        parser.description, names = self.const
        for action in parser._actions:
            shown = re.sub(r" \[[^]]*\]$", "", action.help)
            action.help = shown if action.dest in names else argparse.SUPPRESS
        parser.print_help()
        parser.exit()


def between(low: float, high: float, kind: type = float) -> Callable[[str], float]:
    """Numbers from `low` to `high`."""

    def convert(text: str) -> float:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}")
        return kind(text)

    convert.metavar = "N" if kind is int else "X"
    convert.__name__ = "whole number" if kind is int else "number"  # argparse's word in its error
    return convert


def whole(low: int) -> Callable[[str], int]:
    """Whole numbers of at least `low`."""
    return between(low, math.inf, int)
