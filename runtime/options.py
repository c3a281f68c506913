"""Command-line options as rows of a table, and the parser and help texts that are made of it.

The program says which options there are, and what a recipe changes.
"""

import argparse
import difflib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One row of the table.

    kind: a list of choices; or a function text -> value, such as `whole`; or for any text, the word
    that the help shows for it, such as FILE; or bool, for a switch; or
    argparse.BooleanOptionalAction, for --x and --no-x.
    """

    name: str  # as it is typed, "--lr"
    default: object
    kind: object
    text: str  # for the help; it can be understood alone
    source: str  # of the default: the paper's section, its equation, other code, or "ours"
    decides: bool = False  # numbers of a trained model, so that another value is another model
    common: bool = False  # in the short help
    several: bool = False  # takes one value or more
    default_text: str = ""  # the default in words, if it depends on the machine or other options

    @property
    def key(self) -> str:
        """The attribute of the parsed arguments."""
        return self.name[2:].replace("-", "_")


def typed_name(key: str) -> str:
    """An option as it is typed, "--val-photos" of the key "val_photos"."""
    return f"--{key.replace('_', '-')}"


Table = dict[str, list[Option]]  # title of a group -> its options


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence; for an unknown option it suggests a similar one."""

    names: tuple[str, ...] = ()

    def error(self, message: str) -> None:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown and (meant := nearest(unknown[1], self.names)):
            message = f"there is no {unknown[1]}; did you mean {meant}?"
        elif stray := re.match(r"unrecognized arguments: ([^-].*)", message):
            message = f"{stray[1]} follows no option; a path with blanks in it needs quotes"
        super().error(message)


def nearest(name: str, names: tuple[str, ...]) -> str | None:
    """The option with the same words in another order, or the one that is spelled most alike."""
    words = sorted(name[2:].split("-"))
    for known in names:
        if sorted(known[2:].split("-")) == words:
            return known
    known = {each[2:]: each for each in (*names, "--help", "--help-all")}
    close = difflib.get_close_matches(name[2:].replace("_", "-"), known, n=1)
    return known[close[0]] if close else None


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal, at most 100 columns."""

    def __init__(self, prog: str):
        super().__init__(prog, 2, 27, min(shutil.get_terminal_size().columns, 100))


def parser_of(table: Table, changes: dict[str, dict], short: str, description: str) -> Parser:
    """A parser whose result holds only what was typed: no defaults.

    `changes` are the defaults that differ, for the help: {"recipe asl": {"lr": 1e-4}, ...}. -h
    prints `short` and the common options, --help-all the description and all of them.
    """
    parser = Parser(
        usage="python run.py [option ...]",
        description=description,
        formatter_class=HelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.names = tuple(option.name for options in table.values() for option in options)
    content = (table, changes, short)
    parser.add_argument(
        "-h", "--help", action=ShortHelp, nargs=0, help=argparse.SUPPRESS, const=content
    )
    parser.add_argument("--help-all", action="help", help="every option, with its source")
    for title, options in table.items():
        group = parser.add_argument_group(title)
        for option in options:
            text = f"{explained(option, changes)} [{option.source}]"
            group.add_argument(option.name, help=text.replace("%", "%%"), **arguments_of(option))
    return parser


class ShortHelp(argparse.Action):
    """Prints the common options without their sources."""

    def __call__(self, parser, *_) -> None:
        table, changes, short = self.const
        brief = argparse.ArgumentParser(
            usage=parser.usage,
            description=short,
            formatter_class=parser.formatter_class,
            add_help=False,
        )
        brief.add_argument("--help-all", action="help", help="every option, with its source")
        for options in table.values():
            for option in options:
                if option.common:
                    text = explained(option, changes).replace("%", "%%")
                    brief.add_argument(option.name, help=text, **arguments_of(option))
        brief.print_help()
        parser.exit()


def arguments_of(option: Option) -> dict:
    """What argparse's add_argument takes for an option."""
    if option.kind is bool:
        return {"action": "store_true"}
    if option.kind is argparse.BooleanOptionalAction:
        return {"action": option.kind}
    arguments = {"nargs": "+"} if option.several else {}
    if isinstance(option.kind, str):
        return arguments | {"metavar": option.kind}
    if callable(option.kind):
        return arguments | {"type": option.kind, "metavar": option.kind.metavar}
    return arguments | {"choices": list(option.kind), "metavar": "NAME"}


def explained(option: Option, changes: dict[str, dict]) -> str:
    """The text of an option with its default, and the defaults of recipes that change it."""
    defaults = [option.default_text or written(option.default)]
    for name, values in changes.items():
        if option.key in values:
            defaults.append(f"{name}: {written(values[option.key])}")
    defaults = [text for text in defaults if text]
    return f"{option.text} ({'; '.join(defaults)})" if defaults else option.text


def written(value: object) -> str:
    """A default as it would be typed; "" for none and for a switch that is off."""
    if value is None or value is False:
        return ""
    if value is True:
        return "on"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def defaults_of(table: Table) -> dict:
    return {option.key: option.default for options in table.values() for option in options}


def between(low: float, high: float) -> Callable[[str], float]:
    """Numbers from `low` to `high`."""

    def convert(text: str) -> float:
        if re.fullmatch(r"\d*,\d+|[\d.,]+ ?%", text):  # as many languages write it
            number = float(text.rstrip(" %").replace(",", ".")) / (100 if "%" in text else 1)
            raise argparse.ArgumentTypeError(f"{text} is not a number here; write {number:g}")
        value = float(text)
        if not low <= value <= high:
            hint = ""
            if high == 1 and 2 <= value <= 100:
                hint = f"; write {value / 100:g} for {value:g}%"
            raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}{hint}")
        return value

    convert.metavar, convert.__name__ = "X", "number"  # the name is argparse's word in its error
    return convert


LARGEST_COUNT = 10**9  # the largest count that is accepted: a larger one is a typing error


def whole(low: int) -> Callable[[str], int]:
    """Whole numbers of at least `low`."""

    def convert(text: str) -> int:
        value = int(text)
        if value < low:
            problem = f"is too small; expected a whole number of at least {low}"
            raise argparse.ArgumentTypeError(f"{text} {problem}")
        if value > LARGEST_COUNT:
            problem = f"is too large; expected a whole number of at most {LARGEST_COUNT:,}"
            raise argparse.ArgumentTypeError(f"{text} {problem}")
        return value

    convert.metavar, convert.__name__ = "N", "whole number"
    return convert


def or_auto(kind: Callable[[str], object]) -> Callable[[str], object]:
    """The word "auto", or a value of this kind."""

    def convert(text: str) -> object:
        return text if text == "auto" else kind(text)

    convert.metavar, convert.__name__ = kind.metavar, kind.__name__
    return convert
