"""A font for every text of a picture.

Oracles: what fonts have by a table of the test; letters that DejaVu Sans and Pillow's own font are
known to have or lack; equal pictures.
"""

import numpy as np
import pytest
from PIL import Image, features

from reports import fonts, pictures
from reports.pictures import Caption


def forget():
    for cached in (fonts.best_file, fonts.exists, fonts.system_files, fonts.has):
        cached.cache_clear()
    fonts.reported.clear()


@pytest.fixture(autouse=True)
def _fresh():
    forget()
    yield
    forget()


@pytest.fixture
def no_fonts(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(fonts, "FOLDERS", [])


@pytest.fixture
def table(monkeypatch):
    """A system of two fonts with letters of the test's choice; Pillow's own has ASCII."""
    letters = {None: "", "latin.ttf": "éü", "asian.ttf": "é人", "own.ttf": "ü"}
    monkeypatch.setattr(fonts, "system_files", lambda: ["latin.ttf", "asian.ttf"])
    monkeypatch.setattr(fonts, "has", lambda file, letter: letter in letters[file])
    monkeypatch.setattr(fonts, "font_of", lambda size, path=None: path)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("cat", None, ("cat", None)),
        ("é", None, ("é", "latin.ttf")),  # the first that has it
        ("é人", None, ("é人", "asian.ttf")),
        ("ü人", None, ("ü\\u4eba", "latin.ttf")),  # in none together: the first with most
        ("é\U0001f408", None, ("é\\U0001f408", "latin.ttf")),  # nowhere
        ("cat ü", "own.ttf", ("cat ü", "own.ttf")),
        ("人", "own.ttf", ("人", "asian.ttf")),  # --font lacks it
    ],
)
def test_the_first_font_with_most_letters_is_taken(table, text, path, expected):
    assert fonts.for_text(text, 14, path) == expected


def test_what_no_font_has_is_said_once(table, capsys):
    fonts.for_text("é", 14)
    assert capsys.readouterr().err == ""
    for text in ("x\U0001f408", "\U0001f408", "\U0001f415"):
        fonts.for_text(text, 14)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "'x\U0001f408': pictures show 'x\\U0001f408'" in lines[0]
    assert "--font FILE" in lines[0]


def test_pillows_own_font_has_ascii_and_no_box_or_blank_counts_as_a_letter(no_fonts):
    assert all(fonts.has(None, chr(code)) for code in range(32, 127))
    for letter in ("\U0010fffe", "\u0301", "\u093f", "\u4eba", "\u200d"):
        assert not fonts.has(None, letter), letter
    picture, escaped = (
        pictures.with_labels(Image.new("RGB", (200, 50)), [Caption(name, "0.51")])
        for name in ("x 人", "x \\u4eba")
    )
    assert np.array_equal(picture, escaped)


def test_a_system_font_draws_letters_that_pillows_own_lacks():
    if not any("DejaVuSans.ttf" in file for file in fonts.system_files()):
        pytest.skip("DejaVu Sans is not installed")
    text, font = fonts.for_text("Stühle Жук →", 14)
    assert (text, font.getname()[0]) == ("Stühle Жук →", "DejaVu Sans")
    dejavu = next(file for file in fonts.system_files() if "DejaVuSans.ttf" in file)
    for letter in "人한ि":  # it has no Han, no Hangul, no Devanagari
        assert not fonts.has(dejavu, letter)
    assert not fonts.has(dejavu, "\u200b")  # it draws nothing there
    assert fonts.has(dejavu, "א") == features.check("raqm")  # else it would be drawn backwards


def test_files_that_are_no_fonts_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("broken.ttf", "deep/er/empty.otf", "note.txt"):
        (tmp_path / name).write_bytes(b"no font" if name == "broken.ttf" else b"")
    monkeypatch.setattr(fonts, "FOLDERS", [str(tmp_path), str(tmp_path / "absent")])
    assert [path.rsplit("/")[-1] for path in fonts.system_files()] == ["broken.ttf", "empty.otf"]
    assert fonts.for_text("\u4eba", 14)[0] == "\\u4eba"
    with pytest.raises(ValueError, match=r"--font .*broken.ttf is not a TrueType font"):
        fonts.check(str(tmp_path / "broken.ttf"))
    fonts.check(None)


def test_plain_faces_come_before_bold_ones(tmp_path, monkeypatch):
    names = ["A-Bold.ttf", "B.ttf", "DejaVuSans.ttf", "NotoSansTamil-Regular.ttf", "LastResort.otf"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "FOLDERS", [str(tmp_path)])
    found = [path.rsplit("/")[-1] for path in fonts.system_files()]
    assert found == ["DejaVuSans.ttf", "NotoSansTamil-Regular.ttf", "B.ttf", "A-Bold.ttf"]


def test_a_name_that_is_too_wide_loses_its_middle_and_keeps_its_score(no_fonts):
    text, font = pictures.fitting("人" * 80, 200, 14, ending=" 0.51")
    assert text.startswith("\\u4e")
    assert text.endswith(" 0.51")
    assert "..." in text
    assert font.getlength(text) <= 200


def test_sign_name_and_score_stay_in_order_around_letters_that_run_to_the_left():
    mark = fonts.LEFT_TO_RIGHT
    assert fonts.in_order("- שלום עולם 0.51") == f"{mark}- שלום עולם{mark} 0.51"
    assert fonts.in_order("- cat 0.51") == "- cat 0.51"
