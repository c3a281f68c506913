"""Labels of whole photos in a CSV: tags in one column, or a column of ticks for each label.

    file,labels               file,cat,dog
    a.jpg,"cat; dog"          a.jpg,1,1

Cells are separated by commas, semicolons or tabs. A file that can be read in only one way is read;
for any other, an error names the cell that is in doubt. Which photo a name means is decided in
`photo_names.py`.
"""

import ast
import contextlib
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import label_names, predicted_labels
from runtime import reading
from runtime.csv_table import from_cell
from runtime.photo_names import (
    PhotoFolder,
    decoded,
    has_photo_suffix,
    without_suffix,
)
from runtime.terminal import brief, counted, printable, tell

# Ticks, as `simplified` writes them.
YES, NO = {"1", "true", "yes", "y", "t", "x"}, {"0", "false", "no", "n", "f"}
# Ticks in other languages, as Excel and people write them, as symbols, and -1 for no; they are
# refused.
FOREIGN_TICKS = set(
    "wahr falsch vrai faux verdadero falso vero verdadeiro waar onwaar prawda fałsz pravda "
    "nepravda истина ложь істина хибність igaz hamis sant falskt sand sandt falsk sann usann "
    "tosi epätosi doğru yanlış yanliş adevărat fals cert tõene väär αληθης ψευδης 真 假 صحيح خطأ "
    "si sí sì oui non ja nein nee nej nei sim não nao tak nie ano ne igen nem evet hayır hayir "
    "да нет так ні ναι όχι οχι 是 否 はい いいえ 예 아니요 아니오 نعم لا כן לא "
    "✓ ✔ ✗ ✘ ✕ ✖ ✅ ❌ ☑ ☐ ☒ √ × ○ ◯ 〇 -1".split()
)
# A column's single letters are ticks if they are all of one of these, and its header does not say
# that they are letters.
LETTERS = ({"t", "f"}, {"y", "n"}, {"x"})
OF_LETTERS = set("letter letters character characters char chars glyph symbol initial".split())
NUMBERS = {"0", "1"}  # ticks, or the numbers of two classes
# What pandas, NumPy, spreadsheets and data bases write where there is nothing.
NOTHING = {"nan", "NaN", "NAN", "-nan", "NaT", "none", "None", "NONE", "null", "Null", "NULL"}
NOTHING |= {"N/A", "n/a", "#N/A", "NA", "#NA", "<NA>", "\\N"}
# What a header calls the column of the photos. Any other word may be a photo without its suffix.
OF_PHOTOS = "files?|images?|photos?|pictures?|img|pic|path|names?|ids?|index|key|ur[il]|link"
OF_PHOTOS = re.compile(rf"[\W_]*(({OF_PHOTOS})[\W_]*)+", re.I)
SEPARATORS = ";|,"  # of tags; a file's own is the first of these that it has
FORM = 'expected the photo and one column of tags ("cat; dog"), or a column of 0 and 1 for each'
FORM += " label and no other column"

MAY_BE_TICKS = (
    "this may be a row of ticks, but the labels are not named; write one column per label"
)

TORN = (
    "a quote in it and its partner are not in the same label; write straight double quotes around "
    'the whole cell ("cat; dog"), or no quotes'
)

# What lists hold as Python, JSON and NumPy print them: texts in quotes, numbers, and nothing.
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ITEM = rf"{QUOTED}|-?\d+(?:\.0*)?|None|null|nan|NaN"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)
NUMPY = re.compile(rf"np\.\w+\(({ITEM})\)")  # how NumPy prints an item of its own


@dataclass
class Table:
    """The rows of a CSV below its header, all of one length. `header` is None if it has none;
    `numbers` are those of the rows in the file, for messages; `photo` is the column of the photos,
    `labels` are those of the labels; `nothing` counts what was read as no label."""

    path: str | Path
    header: list[str] | None
    rows: list[list[str]]
    numbers: list[int]
    photo: int = 0
    labels: tuple[int, ...] = ()
    nothing: Counter = field(default_factory=Counter)

    def doubt(self, row: int, column: int, problem: str) -> ValueError:
        """The error that names a cell by its row, its column and what it holds."""
        name = f" ({printable(self.header[column], 40)})" if self.header else ""
        where = f"row {self.numbers[row]:,}, column {column + 1}{name}"
        return ValueError(f"{self.path}: {where} is {brief(self.rows[row][column])}; {problem}")


def read(
    path: str | Path, photos: PhotoFolder
) -> tuple[list[tuple[str, set[str]]], list[str] | None]:
    """(name of a photo, its labels) for every row; and the labels in the order of their columns,
    or None where they are tags."""
    table = read_rows(path)
    if predicted_labels.holds_scores(table.rows):
        raise ValueError(
            f"{path} holds the scores that predict.py --columns writes, no labels; write it again "
            "without --columns"
        )
    if table.rows[0] == predicted_labels.HEADER:
        tell(f"{path}: a table of predict.py; its labels count as they are, its scores do not")
        table = Table(path, table.rows[0], table.rows[1:], table.numbers[1:], labels=(1,))
        names, labels = [], []
        for row in table.rows:
            name, labels_of_photo = predicted_labels.read_row(row)
            names.append(name)
            labels.append({label for label in labels_of_photo if label})
        several = label_names.joined_labels(set().union(*labels), [label_names.LISTS])
        check_one_separator(table, labels, [True] * len(labels), several)
        return list(zip(names, labels, strict=True)), None
    table = split_header(table, photos)
    if not table.rows:
        raise ValueError(f"{path} has a header and no rows; {FORM}")
    for i, row in enumerate(table.rows):
        if row[table.photo] in NOTHING | {""}:
            raise table.doubt(i, table.photo, "expected the name of a photo")
    table.labels = label_columns(table)
    for row in table.rows if table.header is None else [table.header, *table.rows]:
        for j in table.labels:
            row[j] = label_names.trimmed(row[j])
    classes = None
    if holds_ticks(table):
        for j in table.labels:
            table.header[j] = label_names.without_typographic_quotes(table.header[j])
        classes = [table.header[j] for j in table.labels]
        labels = ticks(table)
    else:
        labels = tags(table)
    if table.nothing:
        tell(f"{path}: these entries mean no label: {counted(table.nothing)}")
    names = [row[table.photo] for row in table.rows]
    if table.header == predicted_labels.HEADER_WITHOUT_SCORES:
        names = [from_cell(name) for name in names]
        labels = [{from_cell(label) for label in each} for each in labels]
    return list(zip(names, labels, strict=True)), classes


def read_rows(path: str | Path) -> Table:
    """All rows that are not blank, as a table without a header; blanks around cells are cut off."""
    try:
        text = reading.read_text(path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f'{path}, line {line:,}: it is not in UTF-8; save the file as "CSV UTF-8" ({error})'
        ) from None
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    skipped = 0
    if named := re.match(r'"?sep=(.)"?\s*$', first, re.I):  # of Excel
        separator, skipped = named[1], 1
        text = text.split("\n", 1)[1] if "\n" in text else ""
    else:
        match = re.match(r'(?:"[^"]*"|[^\t,;"])*?([\t,;])', first)
        separator = match[1] if match else ","
    # Blanks behind a closing quote; csv itself skips those in front of an opening one.
    text = re.sub(r'" +(?=[,;\t\r\n]|\Z)', '"', text)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    table = Table(path, None, [], [])
    try:
        for number, cells in enumerate(reader, 1 + skipped):
            if any(cell.strip() for cell in cells):
                table.rows.append([cell.strip() for cell in cells])
                table.numbers.append(number)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num + skipped:,}: {error}; check the quotes there, and "
            f"that no cell has more than {csv.field_size_limit():,} letters"
        ) from None
    check_lengths(table)
    return table


def check_lengths(table: Table) -> None:
    """An error unless all rows are as long as the first; empty cells beyond it are cut off."""
    if not table.rows:
        raise ValueError(f"{table.path} is empty; expected a photo and its labels in each row")
    width = len(table.rows[0])
    for number, row in zip(table.numbers, table.rows, strict=True):
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) != width:
            raise ValueError(
                f"{table.path}: row {number:,} has {len(row)} cells ({brief(row)}), expected "
                f'{width} as in the first; write several labels as "cat; dog" in quotes'
            )


def simplified(cell: str) -> str:
    """A cell in small letters. A number that equals 0, 1 or -1 is written so: programs write 1.00,
    1. and 1e0 as well."""
    if NUMBER.fullmatch(cell) and float(cell) in (-1, 0, 1):
        return str(int(float(cell)))
    return cell.lower()


# The photos


def split_header(table: Table, photos: PhotoFolder) -> Table:
    """The table with its header apart, if there is one, and its column of photos known."""
    have_suffixes = any(is_photo_name(cell) for row in table.rows for cell in row)
    is_photo = is_photo_name if have_suffixes else is_in(photos)  # Kaggle has names without
    table.photo = photo_column(table, is_photo, have_suffixes)
    if first_row_is_data(table, photos):
        return table
    first, *rest = table.rows
    return Table(table.path, first, rest, table.numbers[1:], table.photo)


def first_row_is_data(table: Table, photos: PhotoFolder) -> bool:
    """Whether row 1 is no header. It is data if its cell in the column of the photos is a photo's
    name or a file's; if a photo has that name without suffix; or if its label occurs again. A word
    that headers have for photos is a header's, and is in doubt if a photo has that name."""
    first, *rest = table.rows
    name = first[table.photo]
    others = [cell for j, cell in enumerate(first) if j != table.photo]
    if is_photo_name(name) or os.path.isfile(os.path.join(photos.folder, name)):
        return True
    if not OF_PHOTOS.fullmatch(name):
        return is_in(photos)(name) or repeats_labels(first, rest, table.photo)
    stems = {without_suffix(decoded(row[table.photo]).rpartition("/")[2]) for row in rest}
    if not all(map(label_names.is_generic, others)) and name not in stems and is_in(photos)(name):
        raise table.doubt(
            0,
            table.photo,
            "it may be the header or a photo; write the photo's suffix, or another header",
        )
    return False


def is_photo_name(cell: str) -> bool:
    return has_photo_suffix(decoded(cell))


def is_in(photos: PhotoFolder) -> Callable[[str], bool]:
    """A test for names of photos in the folder, with or without suffix."""

    def is_photo(cell: str) -> bool:
        try:
            return bool(cell) and bool(photos.find(cell)[0])
        except ValueError:  # it may be several
            return True

    return is_photo


def photo_column(table: Table, is_photo: Callable[[str], bool], have_suffixes: bool) -> int:
    """The column that names the photos in every row, perhaps but for the first. If the names have
    no suffixes, `is_photo` looks for them in the folder, where some photos may be missing."""
    body = table.rows[1:] or table.rows
    sample = body if have_suffixes else body[:200]  # looking into the folder is slow
    counts = [sum(map(is_photo, column)) for column in zip(*sample, strict=True)]
    most = max(counts)
    if not most:
        raise ValueError(
            f"{table.path}: no column names photos, row {table.numbers[-1]:,} is "
            f"{brief(table.rows[-1])}; expected a file name such as a.jpg in every row"
        )
    columns = [j for j, count in enumerate(counts) if count == most]
    if not have_suffixes:
        columns = [j for j, count in enumerate(counts) if 2 * count >= most]
    if len(columns) > 1:  # class numbers may be names of photos too; photos differ in every row
        distinct = [j for j in columns if len({row[j] for row in body}) == len(body)]
        if distinct:
            columns = distinct
    if len(columns) > 1:
        raise ValueError(
            f"{table.path}: columns {columns[0] + 1} and {columns[1] + 1} both name photos, in row "
            f"{table.numbers[-1]:,} {brief(table.rows[-1][columns[0]])} and "
            f"{brief(table.rows[-1][columns[1]])}; keep one of them"
        )
    return columns[0]


def repeats_labels(first: list[str], rest: list[list[str]], photo: int) -> bool:
    """Whether row 1 is data and not a header: its only label also occurs in later rows. Rows with
    more labels hold ticks, which need a header."""
    labels = [j for j in range(len(first)) if j != photo and first[j]]
    if len(labels) != 1:
        return False
    others = {row[labels[0]] for row in rest}
    return first[labels[0]] in others and not set(map(simplified, others)) <= {*YES, *NO, ""}


# The labels


def label_columns(table: Table) -> tuple[int, ...]:
    """All columns except the photos' own, empty ones, and an index in front of the photos."""
    columns = []
    for j in range(len(table.rows[0])):
        has_cells = any(row[j] for row in table.rows)
        has_header = table.header is not None and table.header[j] != ""
        if j != table.photo and (has_cells or has_header):
            columns.append(j)
    without_index = [j for j in columns if not (j < table.photo and is_index(table, j))]
    if without_index:
        columns = without_index
    if not columns:
        raise ValueError(f"{table.path} has no labels, no column but that of the photos; {FORM}")
    return tuple(columns)


def is_index(table: Table, column: int) -> bool:
    """Whether a column numbers the rows or the photos, as pandas and data bases do."""
    numbers = [row[column] for row in table.rows]
    if not all(number.isdigit() for number in numbers):
        return False
    name = table.header[column].lower() if table.header else ""
    if set(numbers) <= {"0", "1"} and not re.match("unnamed|index|id$|pk$|$", name):
        return False  # ticks of one or two photos
    photos = {row[table.photo] for row in table.rows}
    pairs = {(row[column], row[table.photo]) for row in table.rows}
    distinct = len(set(numbers))
    return distinct == len(numbers) or distinct == len(photos) == len(pairs)


def holds_ticks(table: Table) -> bool:
    """Whether the columns are labels with ticks; else there is one column of tags. An error where
    it may be both, or is neither."""
    places = [(i, j) for i, row in enumerate(table.rows) for j in table.labels if row[j]]
    places = [(i, j) for i, j in places if table.rows[i][j] not in NOTHING]
    if not places:
        raise ValueError(f"{table.path} has no labels, all cells for them are empty; {FORM}")
    not_ticks = [(i, j) for i, j in places if simplified(table.rows[i][j]) not in YES | NO]
    if len(table.labels) > 1 and not_ticks:
        raise table.doubt(*not_ticks[0], FORM)
    if not_ticks:
        values = {simplified(table.rows[i][j]) for i, j in places}
        if may_be_foreign_ticks(table, values):
            i, j = not_ticks[0]
            as_label = f'["{printable(table.rows[i][j], 40)}"]'
            problem = "for ticks write 1 and 0 under a header that is the label's name"
            raise table.doubt(i, j, f"{problem}, for a label write {as_label}")
        return False
    if table.header is None:
        problem = (
            "it may be a tick or the number of a class; add a first row with the columns' names"
        )
        raise table.doubt(*places[0], problem)
    torn = [table.header[j] for j in table.labels if label_names.are_quotes_torn([table.header[j]])]
    if torn:
        raise ValueError(f"{table.path}: row 1 has the label {brief(torn[0])}; {TORN}")
    check_letters(table)
    if len(table.labels) > 1:
        nameless = [j for j in table.labels if not table.header[j]]
        if nameless:
            raise ValueError(f"{table.path}: row 1 has no label in column {nameless[0] + 1}")
        check_named_after_labels(table)
        return True
    header = table.header[table.labels[0]]
    generic = label_names.is_generic(header)
    numbers = {simplified(table.rows[i][j]) for i, j in places} <= NUMBERS
    if generic and numbers:  # 0 and 1 of "class" are two classes
        return False
    if label_names.is_of_no_label(header) and not label_names.is_thing(header):
        generic = True
    if not generic and not numbers:  # true and false of "cat" are ticks
        return True
    either = "two classes, 0 and 1, or ticks; write the labels' names in place of 0 and 1"
    if generic:
        either = "a tick, but the column is not named after a label; write the label in the header"
    raise table.doubt(*places[0], f"it may be {either}")


def may_be_foreign_ticks(table: Table, values: set[str]) -> bool:
    """Whether the values of the only column are ticks as other languages write them. Under a
    header such as "class", -1 and 1 are two classes. "sand" is true in Danish, and alone a label.
    """
    if table.header and label_names.is_generic(table.header[table.labels[0]]):
        if values <= NUMBERS | {"-1"}:
            return False
    return values <= FOREIGN_TICKS | YES | NO and values != {"sand"}


def check_letters(table: Table) -> None:
    """An error if a column of single letters may hold labels: under a header such as "letter", or
    if its letters are not those of one way to write ticks."""
    for j in table.labels:
        cells = {i: simplified(row[j]) for i, row in enumerate(table.rows)}
        cells = {i: cell for i, cell in cells.items() if cell and table.rows[i][j] not in NOTHING}
        values = set(cells.values())
        if not values or not values <= set().union(*LETTERS):
            continue
        are_letters = not OF_LETTERS.isdisjoint(label_names.words_of(table.header[j]))
        if are_letters or not any(values <= way for way in LETTERS):
            first = min(cells)
            as_label = f'["{table.rows[first][j]}"]'
            problem = (
                f"it may be a tick or a label; write 1 and 0 for ticks, {as_label} for a label"
            )
            raise table.doubt(first, j, problem)


def check_named_after_labels(table: Table) -> None:
    """An error if columns of ticks are of no label: if all have names that tables give to other
    columns, such as label and fold, or if one has such a name of several words. The others may be
    labels; where all names begin with "is", so may is_train."""
    names = [table.header[j] for j in table.labels]
    foreign = [name for name in names if label_names.is_of_no_label(name)]
    if len(foreign) < len(names):
        foreign = [name for name in foreign if label_names.is_surely_of_no_label(name)]
        if all(label_names.words_of(name)[:1] == ["is"] for name in names):
            foreign = []
    if foreign:
        raise ValueError(
            f"{table.path}: row 1 has ticks under {brief(foreign[0])}, which names no label; write "
            "the label in the header, or remove the column"
        )


def ticks(table: Table) -> list[set[str]]:
    """The labels of every row, from a column of ticks for each."""
    for row in table.rows:
        table.nothing.update(row[j] for j in table.labels if row[j] in NOTHING)
    return [
        {table.header[j] for j in table.labels if simplified(row[j]) in YES} for row in table.rows
    ]


# Tags


def tags(table: Table) -> list[set[str]]:
    """The labels of every row, from its one column of tags."""
    (column,) = table.labels
    cells = [row[column] for row in table.rows]
    items = [items_of_list(cell) for cell in cells]
    check_no_vectors(table, items)
    separator = separator_of(
        table, [cell for cell, listed in zip(cells, items, strict=True) if listed is None]
    )
    chosen = next((each for each in SEPARATORS if each in separator), "")
    pieces_of = []  # of each row
    for cell, listed in zip(cells, items, strict=True):
        pieces = re.split(separator, cell) if listed is None else listed
        pieces_of.append([label_names.trimmed(piece) for piece in pieces])
    filled = [i for i, cell in enumerate(cells) if cell]
    if are_ticks([pieces_of[i] for i in filled]):
        raise table.doubt(filled[0], column, MAY_BE_TICKS)
    labels = []
    for i, (cell, pieces) in enumerate(zip(cells, pieces_of, strict=True)):
        table.nothing.update(piece for piece in pieces if piece in NOTHING)
        if items[i] is None:
            if label_names.are_quotes_torn(pieces):
                raise table.doubt(i, column, TORN)
            pieces = [label_names.without_typographic_quotes(piece) for piece in pieces]
        names = {without_quotes(piece) for piece in pieces} - NOTHING - {""}
        if items[i] is None and (cell[:1] in ("[", "{") or not all(map(brackets_match, names))):
            raise table.doubt(i, column, """of lists only those like "['cat', 'dog']" are read""")
        labels.append(names)
    check_one_separator(
        table,
        labels,
        [listed is None for listed in items],
        label_names.surely_several(set().union(*labels), unexpected_in_names(chosen)),
        chosen,
    )
    return as_class_numbers(table, labels)


def items_of_list(cell: str) -> list[str] | None:
    """The items of a cell that holds a list; None for any other cell."""
    if cell == "set()":
        return []
    cell = NUMPY.sub(r"\1", cell)
    if cell[:1] + cell[-1:] not in ("[]", "()", "{}") or re.fullmatch(r"\(\d+\)", cell):
        return None
    blanked = " ".join(re.sub(ITEM, "\0", cell[1:-1]).split())
    if not re.fullmatch("(\0(( ?, ?| )\0)*)? ?,?", blanked):
        return None
    return [without_quotes(item) for item in re.findall(ITEM, cell)]


def brackets_match(text: str) -> bool:
    return all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}"))


def without_quotes(text: str) -> str:
    """What JSON's or Python's quotes around a text hold; a text without quotes as it is."""
    if not re.fullmatch(QUOTED, text):
        return text
    for read_text in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read_text(text)
    return text[1:-1]


def check_no_vectors(table: Table, items: list[list[str] | None]) -> None:
    """An error if lists of numbers may be ticks for labels that are named nowhere: if one holds a
    number twice, or if all have one length and hold only 0 and 1."""
    lists = {i: each for i, each in enumerate(items) if each and all(map(is_number, each))}
    doubtful = [i for i, each in lists.items() if len(set(each)) < len(each)]
    if are_ticks(list(lists.values())):
        doubtful = list(lists)
    if doubtful:
        raise table.doubt(
            doubtful[0],
            table.labels[0],
            MAY_BE_TICKS,
        )


def are_ticks(lists: list[list[str]]) -> bool:
    """Whether lists of numbers have one length, above 1, and hold only 1 and 0, or 1 and -1."""
    lengths = {len(each) for each in lists}
    numbers = {simplified(number) for each in lists for number in each}
    return len(lengths) == 1 and lengths != {1} and numbers <= NUMBERS | {"-1"}


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d*)?", text))


def separator_of(table: Table, texts: list[str]) -> str:
    """A pattern for what separates the tags of a cell: the first of ; | , that the file has, or
    blanks if all tags are numbers; a line break always. An error if blanks may be within labels as
    well as between them."""
    (column,) = table.labels
    filled = [text for text in texts if text]
    if filled and all(re.fullmatch(r"-?\d+,0+", text) for text in filled):
        row = next(i for i, each in enumerate(table.rows) if each[column] == filled[0])
        whole = filled[0].split(",")[0]
        either = "a number with a decimal comma, or two classes"
        raise table.doubt(row, column, f"it may be {either}; write {whole}, or {whole}; 0")
    for separator in SEPARATORS:
        if any(separator in text for text in texts):
            return f"[\n{separator}]"
    if all(re.fullmatch(r"[\d\s]*", text) for text in texts) or is_planet(table):
        return r"\s"
    several = [text for text in texts if re.search(r"\S +\S", text)]
    photos = [row[table.photo] for row in table.rows]
    words = {word for text in texts for word in text.split()}
    more_rows = len(photos) - len(set(photos))  # than photos: some have a row for each label
    if several and more_rows < len(several) and len(words) <= len(set(texts) - {""}):
        row = next(i for i, each in enumerate(table.rows) if each[column] == several[0])
        raise table.doubt(
            row, column, 'one label or several? write "cat; dog" for several, ["cat dog"] for one'
        )
    return "\n"


def unexpected_in_names(chosen: str) -> str:
    """The separators that no label has in a file whose tags this one separates: those of lists, and
    commas of other keyboards unless ; or | was chosen so that names can hold commas."""
    if chosen in (";", "|"):
        return label_names.ONLY_IN_LISTS
    return label_names.ONLY_IN_LISTS + label_names.COMMAS


def is_planet(table: Table) -> bool:
    """Whether the header is that of a data set of Kaggle's with blanks between the tags."""
    return table.header is not None and {"image_name", "tags"} <= set(table.header)


def check_one_separator(
    table: Table,
    labels: list[set[str]],
    split: list[bool],
    several: dict[str, list[str]],
    separator: str = ";",
) -> None:
    """An error if a label may be several, which `several` holds. `split` says of each row whether
    its cell was split into labels, by `separator` if it has one, and did not hold a list."""
    for i, names in enumerate(labels):
        for name in sorted(names & several.keys()):
            if split[i]:
                separator = separator or ";"
                between = separator if separator == "|" else f"{separator} "
                as_several = printable(between.join(several[name]), 60)
                as_one = f'["{printable(name, 60)}"]'
                raise table.doubt(
                    i,
                    table.labels[0],
                    f"{brief(name)} may be {len(several[name])} labels; separate labels by "
                    f'{separator} alone: write "{as_several}" for several, {as_one} for one',
                )


def as_class_numbers(table: Table, labels: list[set[str]]) -> list[set[str]]:
    """Numbers of classes without the .0 that pandas may add; other labels as they are."""
    if not all(map(is_number, map(whole, set().union(*labels)))):
        return labels
    for i, names in enumerate(labels):
        for name in names:
            if float(name) % 1:
                raise table.doubt(i, table.labels[0], "this is not the number of a class")
    return [{whole(name).split(".")[0] for name in names} for names in labels]


def whole(name: str) -> str:
    """-1, 0 and 1 in their shortest form; other names, and codes such as 01, as they are."""
    return name if name.isdigit() else simplified(name)
