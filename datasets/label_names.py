"""What the text of a label tells: whether it holds several labels, torn quotes, or characters that
nobody sees; and whether it is the name of a column that holds something else.

Label files are read elsewhere. `csv_labels.py` refuses with this what is surely wrong, and
`doubtful_labels.py` names what may be.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection

# Words of a header which say that its column holds labels. Any other header may be a label itself.
GENERIC = set("label labels tag tags class classes category categories target targets y".split())
GENERIC |= set("annotation annotations id ids name names number index image photo gt".split())
# Words of columns that hold something else, such as which part of a data set a photo is in.
OF_TABLES = GENERIC | set("is valid train training val validation test testing dev split".split())
OF_TABLES |= set("fold folds subset partition key uid uuid path file filename url row".split())
THINGS = {"train", "photo", "image", "number", "tag", "key", "y"}  # which photos may show
LAST_WORDS = set("id ids index label labels class classes category categories split fold".split())

# What separates the items of a list, and has no other use: a tab, the semicolons of Arabic and
# Chinese, the wide bar.
ONLY_IN_LISTS = "\t\u061b\uff1b\uff5c"
# The commas of Arabic and Chinese, and the one that Chinese and Japanese have for lists.
COMMAS = "\u060c\uff0c\u3001"
LISTS = ";|," + ONLY_IN_LISTS + COMMAS
# These join names too ("AC/DC", "C++", "C#"). Each is there as typed on any keyboard and wide.
HASHES = "#\uff03"
JOINTS = ("/\uff0f", "+\uff0b", HASHES)
# These join the words of one name more often than two labels.
WORD_JOINTS = ("&\uff06", "\u30fb\u00b7")


def pieces_of(name: str, separators: str) -> list[str]:
    """What stands between the separators, without the empty pieces."""
    pieces = [trimmed(piece) for piece in re.split(f"[{re.escape(separators)}]", name)]
    return [piece for piece in pieces if piece]


def in_pieces(names: Collection[str], separators: str) -> dict[str, list[str]]:
    """Label -> its pieces, of each label that has different ones."""
    pattern = re.compile(f"[{re.escape(separators)}]")
    pieces = {name: pieces_of(name, separators) for name in names if pattern.search(name)}
    return {name: each for name, each in pieces.items() if len(set(each)) > 1}


def surely_several(names: Collection[str], separators: str) -> dict[str, list[str]]:
    """Label -> its pieces, of each label that is a list of others: if one of these separators is in
    it and a piece of it is elsewhere too; or if all pieces between commas, slashes and the like are
    labels themselves. A name such as "#cat#dog" is a list as well."""
    found = joined_labels(names, (LISTS, *JOINTS))
    tagged = [name for name in names if name.startswith(tuple(HASHES))]
    for some, each in ((names, separators), (tagged, HASHES)):
        if several := in_pieces(some, each):
            count = counts_of_pieces(some, each)
            for name, pieces in several.items():
                if any(count[piece] > 1 for piece in pieces):
                    found[name] = pieces
    return found


def joined_labels(names: Collection[str], groups: Collection[str]) -> dict[str, list[str]]:
    """Label -> its pieces, of each label whose pieces between the separators of one group are all
    labels; a # in front of these does not matter where it is the separator."""
    found = {}
    for group in groups:
        known = set(names)
        if group == HASHES:
            known |= {name.lstrip(HASHES) for name in names}
        for name, pieces in in_pieces(names, group).items():
            if known.issuperset(pieces):
                found[name] = pieces
    return found


def perhaps_several(names: Collection[str]) -> list[str]:
    """Labels that hold a separator of lists which names rarely have, or whose pieces are all in
    other labels too."""
    found = {name for name in names if re.search(f"[{ONLY_IN_LISTS}{COMMAS}]", name)}
    for group in (LISTS, *JOINTS, *WORD_JOINTS):
        if several := in_pieces(names, group):
            count = counts_of_pieces(names, group)
            for name, pieces in several.items():
                if all(count[piece] > 1 for piece in pieces):
                    found.add(name)
    return [name for name in names if name in found]


def counts_of_pieces(names: Collection[str], separators: str) -> Counter:
    """In how many labels each piece is; a label without a separator is one piece."""
    return Counter(piece for name in names for piece in set(pieces_of(name, separators)))


# Characters that nobody sees

# Soft hyphen, joiners, marks of the direction of writing, byte order mark. Between letters some of
# them have a meaning, in Persian and Hindi and in emoji.
INVISIBLE = "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"
INVISIBLE += "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
JOINERS = "\u200c\u200d"
VIRAMA = 9  # Unicode's combining class of it
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what str.strip() takes off


def trimmed(name: str) -> str:
    """A name without blanks and invisible characters at its ends. Only a joiner after a virama
    stays: in Malayalam the two make the last letter of a word another one."""
    name = name.lstrip(BLANKS + INVISIBLE)
    text = name.rstrip(BLANKS + INVISIBLE)
    next_one = name[len(text) : len(text) + 1]
    if text and unicodedata.combining(text[-1]) == VIRAMA and next_one in JOINERS:
        return text + next_one
    return text


def visible(name: str) -> str:
    """A name without its invisible characters."""
    return re.sub(f"[{INVISIBLE}]", "", name)


# Quotes

# Typographic ones: what opens -> what closes. Languages differ: what closes English quotes opens
# Swedish ones.
DOUBLE = {"\u201c": "\u201d", "\u201d": "\u201d", "\u201e": "\u201c\u201d"}
GUILLEMETS = {"\u00ab": "\u00bb", "\u00bb": "\u00ab\u00bb"}
GUILLEMETS |= {"\u2039": "\u203a", "\u203a": "\u2039\u203a"}
SINGLE = {"\u2018": "\u2019", "\u201a": "\u2018\u2019", "`": "`\u00b4"}
TYPOGRAPHIC = DOUBLE | GUILLEMETS | SINGLE
STRAIGHT = {"'": "'", '"': '"'}
OF_INCHES = r"\d ?[\u201c\u201d]"
CORNERS = ("\u300c\u300d", "\u300e\u300f", "\u300a\u300b")  # of Chinese and Japanese


def without_typographic_quotes(name: str) -> str:
    """What typographic quotes around a whole name hold; any other name as it is."""
    inside = trimmed(name[1:-1])
    if not inside or name[-1] not in TYPOGRAPHIC.get(name[0], ""):
        return name
    return name if any(mark in TYPOGRAPHIC for mark in inside) else inside


def are_quotes_torn(pieces: list[str]) -> bool:
    """Whether quotes around a whole cell were torn when it was split, or a piece has half a pair.
    An apostrophe needs no partner, so single quotes and straight ones count only if they open the
    first piece, do not close in it, and close the last."""
    pieces = [piece for piece in pieces if piece]
    if len(pieces) > 1:
        closing = (TYPOGRAPHIC | STRAIGHT).get(pieces[0][0], "")
        closes_first = closing and re.search(rf"[{closing}](?!\w)", pieces[0][1:])
        if closing and pieces[-1][-1] in closing and not closes_first:
            return True
    return any(map(has_half_a_pair, pieces))


def has_half_a_pair(piece: str) -> bool:
    """Whether a double quote, a guillemet or a corner bracket lacks its partner. A quote after a
    digit may be the sign of inches, a guillemet between words an arrow, and a mark alone a label.
    """
    if len(piece) == 1:
        return False
    doubles = [sum(map(text.count, DOUBLE)) for text in (piece, re.sub(OF_INCHES, "", piece))]
    if all(count % 2 for count in doubles):
        return True
    if any(piece.count(left) != piece.count(right) for left, right in CORNERS):
        return True
    for left, right in ("\u00ab\u00bb", "\u2039\u203a"):
        is_arrow = left not in piece and right not in (piece[:1], piece[-1:])
        if piece.count(left) != piece.count(right) and not is_arrow:
            return True
    return False


# Names of columns


def words_of(name: str) -> list[str]:
    """The words of a header in small letters: is, valid of isValid and of is_valid."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[\W\d_]+", apart.lower()) if word]


def is_generic(header: str) -> bool:
    """Whether a header says that its column holds labels, and so is no label itself."""
    return set(words_of(header)) <= GENERIC


def is_of_no_label(name: str) -> bool:
    """Whether tables have columns of that name which are no label's. With a number, as in class 3,
    it is a label's."""
    words = words_of(name)
    return bool(words) and set(words) <= OF_TABLES and not re.search(r"\d", name)


def is_surely_of_no_label(name: str) -> bool:
    """Whether such a name has several words, as is_valid and image_id have; a photo may show what
    one word names."""
    words = words_of(name)
    is_compound = len(words) > 1 and (words[0] == "is" or words[-1] in LAST_WORDS)
    return is_of_no_label(name) and is_compound


def is_thing(name: str) -> bool:
    """Whether a photo may well show what the name says."""
    return name.lower() in THINGS
