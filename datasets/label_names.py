"""What the text of a label tells: whether it holds several labels, torn quotes, or characters that
nobody sees.

Label files are read elsewhere. `csv_labels.py` refuses with this what is surely wrong, and
`doubtful_labels.py` names what may be.
"""

import re
from collections import Counter
from collections.abc import Collection

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
    pieces = [piece.strip() for piece in re.split(f"[{re.escape(separators)}]", name)]
    return [piece for piece in pieces if piece]


def surely_several(names: Collection[str], separators: str) -> dict[str, list[str]]:
    """Label -> its pieces, of each label that is a list of others: if one of these separators is in
    it and a piece of it is elsewhere too; or if all pieces between commas, slashes and the like are
    labels themselves. A name such as "#cat#dog" is a list as well."""
    found = joined_labels(names, (LISTS, *JOINTS))
    tagged = [name for name in names if name[:1] in HASHES and name]
    for group, each in ((names, separators), (tagged, HASHES)):
        count = counts_of_pieces(group, each)
        for name in group:
            pieces = pieces_of(name, each)
            if len(pieces) > 1 and any(count[piece] > 1 for piece in pieces):
                found[name] = pieces
    return found


def joined_labels(names: Collection[str], groups: Collection[str]) -> dict[str, list[str]]:
    """Label -> its pieces, of each label whose pieces between the separators of one group are all
    labels; a # in front of these does not matter where it is the separator."""
    found = {}
    for group in groups:
        known = {name.lstrip(HASHES) if group == HASHES else name for name in names} | set(names)
        for name in names:
            pieces = pieces_of(name, group)
            if len(pieces) > 1 and known.issuperset(pieces):
                found[name] = pieces
    return found


def perhaps_several(names: Collection[str]) -> list[str]:
    """Labels that hold a separator of lists which names rarely have, or whose pieces are all in
    other labels too."""
    found = {name for name in names if re.search(f"[{ONLY_IN_LISTS}{COMMAS}]", name)}
    for group in (LISTS, *JOINTS, *WORD_JOINTS):
        count = counts_of_pieces(names, group)
        for name in names:
            pieces = pieces_of(name, group)
            if len(pieces) > 1 and all(count[piece] > 1 for piece in pieces):
                found.add(name)
    return [name for name in names if name in found]


def counts_of_pieces(names: Collection[str], separators: str) -> Counter:
    """In how many labels each piece is; a label without a separator is one piece."""
    return Counter(piece for name in names for piece in set(pieces_of(name, separators)))
