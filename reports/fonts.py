"""A font for every text of a picture: Pillow's own where it has the letters, else the system's.

Pillow's own font has ASCII and little else. Letters that no font here has are escaped as in a
Python string (\\u4eba), and one sentence says so. Nothing here draws.
"""

import functools
import os
import re
import sys
import unicodedata
from pathlib import Path

from PIL import ImageFont, features

from runtime.terminal import tell

FOLDERS = [  # of Linux, macOS and Windows; those that do not exist are passed over
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
    os.path.join(os.environ.get("LOCALAPPDATA", "~"), "Microsoft", "Windows", "Fonts"),
]
# Plain upright faces with many letters, tried first; file names in lower case, without suffix.
PREFERRED = """dejavusans notosans-regular liberationsans-regular freesans arial segoeui tahoma
    arialuni notosanscjk-regular notosanscjksc-regular wqy-zenhei droidsansfallback msyh simsun
    msgothic yugothm malgun nirmala leelawui pingfang applesdgothicneo""".split()
PREFERRED += ["arial unicode", "hiragino sans gb", "apple symbols", "symbola", "seguisym"]
DECORATED = "bold", "italic", "oblique", "mono", "serif", "light", "thin", "black"
PLACEHOLDERS = "lastresort", "adobeblank"  # have a box, or nothing, for every letter
MOST = 200  # fonts that are tried
CHECK_SIZE = 16  # px, at which glyphs are compared
LEFT_TO_RIGHT = "\u200e"  # a mark that is not drawn
UNASSIGNED = "\U0010ffff"  # no letter: a font draws its box for missing ones
reported: list[str] = []  # the first text with letters that no font has


@functools.lru_cache(maxsize=64)
def font_of(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """The font of a file, or Pillow's own. OSError where the file is no font."""
    if path is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(path, size)


def check(path: str | None) -> None:
    """ValueError unless `path`, a user's --font, is a font file or None."""
    try:
        font_of(CHECK_SIZE, path)
    except OSError as error:
        raise ValueError(f"--font {path} is not a TrueType font ({error})") from error


def for_text(text: str, size: int, path: str | None = None) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text as it can be drawn, and the font that draws it: of `path`, Pillow's own and the
    system's fonts the first that has the most of its letters. Letters it lacks are escaped."""
    foreign = {letter for letter in text if not letter.isascii()}
    letters = frozenset(letter for letter in foreign if exists(letter, path))
    file = best_file(letters, path)
    missing = [letter for letter in foreign if not has(file, letter)]
    if missing:
        say_once(text)
    for letter in missing:
        text = text.replace(letter, letter.encode("unicode_escape").decode())
    return text, font_of(size, file)


def in_order(text: str) -> str:
    """The text with direction marks, so that right-to-left names keep the order sign, name,
    score."""
    if not any(right_to_left(letter) for letter in text):
        return text
    return LEFT_TO_RIGHT + re.sub(r"(?= [\d.]+$)", LEFT_TO_RIGHT, text)


def right_to_left(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL")


@functools.cache
def best_file(letters: frozenset[str], path: str | None) -> str | None:
    """The first font file that has the most of the letters; None is Pillow's own font."""
    best, most = None, -1
    for file in files(path):
        count = sum(has(file, letter) for letter in letters)
        if count > most:
            best, most = file, count
        if count == len(letters):
            break
    return best


@functools.cache
def exists(letter: str, path: str | None) -> bool:
    return any(has(file, letter) for file in files(path))


def files(path: str | None) -> list[str | None]:
    """Font files in the order in which they are tried."""
    own = [path] if path else []
    return [*own, None, *system_files()]


@functools.cache
def system_files() -> list[str]:
    """Font files of the system: PREFERRED, then Noto's of single scripts, then other faces."""
    paths = []
    for folder in FOLDERS:
        for parent, _, names in os.walk(os.path.expanduser(folder)):
            paths += [Path(parent, name) for name in names]
    fonts = [path for path in paths if path.suffix.lower() in (".ttf", ".otf", ".ttc")]

    def order(path: Path) -> tuple:
        stem = path.stem.lower()
        rank = PREFERRED.index(stem) if stem in PREFERRED else len(PREFERRED)
        decorated = any(word in stem for word in DECORATED)
        return rank, decorated, not stem.startswith("notosans"), stem, str(path)

    real = [path for path in fonts if path.stem.lower().strip(".") not in PLACEHOLDERS]
    return [str(path) for path in sorted(real, key=order)[:MOST]]


@functools.lru_cache(maxsize=MOST + 2)
def single_glyphs(file: str | None) -> ImageFont.FreeTypeFont:
    """The font without Raqm, which draws a circle beneath an accent that stands alone."""
    if file is None:
        return font_of(CHECK_SIZE)
    return ImageFont.truetype(file, CHECK_SIZE, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def has(file: str | None, letter: str) -> bool:
    """Whether the font has the letter: it draws something other than its box for missing ones."""
    if right_to_left(letter) and not features.check("raqm"):
        return False  # Pillow would draw the word backwards
    try:
        font = single_glyphs(file)
        glyph, box = font.getmask(letter), font.getmask(UNASSIGNED)
    except OSError:  # not a font, or bitmaps of other sizes
        return False
    if not letter.isspace() and not any(glyph):
        return False
    return (glyph.size, bytes(glyph)) != (box.size, bytes(box))


def say_once(text: str) -> None:
    """Tell one sentence on stderr, once in a process, however many texts have such letters."""
    if reported:
        return
    reported.append(text)
    escaped = text.encode("ascii", "backslashreplace").decode()
    tell(
        f"no font on this machine has all letters of '{text}': pictures show '{escaped}'; "
        "pass --font FILE, a TrueType font that has them",
        sys.stderr,
    )
