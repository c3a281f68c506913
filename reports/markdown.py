"""Text and tables in Markdown, whatever the labels and paths in them are called.

Nothing here knows what the text is about.
"""

import re

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # safe in HTML too
# What begins markup, another column, a formula, or an address that would become a link.
MARKS = re.compile(r"[\\`*_\[\]|~$@]|(?<=http):|(?<=https):|(?<=ftp):|(?<=www)\.", re.IGNORECASE)


def escape(text: str) -> str:
    """Plain text of one line that Markdown shows as it is."""
    text = MARKS.sub(lambda match: "\\" + match[0], text)
    return "".join(ENTITIES.get(letter, letter) for letter in text)


def table(rows: list[list[str]]) -> str:
    """A table whose first row is its header. Cells are Markdown, so escape texts from outside."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def paragraph(sentence: str, points: list[str]) -> str:
    """A sentence of plain text, and below it its points as a list."""
    lines = [escape(sentence), ""]
    if points:
        lines += [*(f"- {escape(point)}" for point in points), ""]
    return "\n".join(lines)
