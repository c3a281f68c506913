"""CSV files for spreadsheet programs: UTF-8 with a byte order mark, and no cell is a formula.

A file appears whole or not at all. What the cells mean is not known here.
"""

import contextlib
import csv
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.terminal import printable
from runtime.writing import explained, replacing

# The beginning of a cell that a spreadsheet may read as a formula (OWASP, "CSV Injection"). The
# wide forms are typed on Japanese keyboards. Leading blanks may be dropped, so they do not protect.
FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")


def as_cell(name: str) -> str:
    """A name as the text of a cell, with an apostrophe in front if it could be a formula.

    What UTF-8 cannot encode (half of a surrogate pair) is written as an escape.
    """
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{name}" if FORMULA.match(name) else name


def from_cell(cell: str) -> str:
    """The name that `as_cell` wrote."""
    if cell.startswith("'") and FORMULA.match(cell):
        return cell[1:]
    return cell


@contextlib.contextmanager
def csv_table(path: Path, header: list[str]) -> Iterator[Callable[[list[str]], None]]:
    """Yields a function that adds a row. When the block ends without an error, the file appears
    and replaces an older one of its name.

    Until then the rows are in a temporary file beside it, so they take no memory.
    """
    path = Path(os.path.realpath(path))  # a link stays; the file behind it is replaced
    if path.exists() and not path.is_file():
        raise ValueError(f"{printable(path, 200)} is not a file; choose another name for the table")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)

        def add(row: list[str]) -> None:
            with explained(path):
                rows.writerow(row)

        add(header)
        yield add
