"""CSV files that people open in a spreadsheet.

UTF-8 with a byte order mark, without which Excel takes another encoding; all text in quotes; and
no text that a spreadsheet would compute. Nothing here knows what is in the cells.
"""

import csv
import io
from pathlib import Path

from runtime import checkpoints

# What makes a cell a formula, also in the full width of East Asian text.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def cell(value: str | float | None) -> str | float | None:
    """Text that would be a formula gets an apostrophe in front; numbers stay numbers."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value


def save(path: Path, header: list[str], rows: list[list]) -> None:
    """Write a table whole or not at all. None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    for row in [header, *rows]:
        writer.writerow([cell("" if value is None else value) for value in row])
    with checkpoints.replacing(path) as file:  # half a surrogate pair has no UTF-8: escaped
        file.write(text.getvalue().encode("utf-8-sig", "backslashreplace"))
