"""curves.png: loss and val mAP over epochs.

Oracles: numbers of an axis by hand; colours of pixels where a value lies.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageColor

from reports import curves
from runtime.journal import read_log


def write_log(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def epochs(model, losses, mAPs):
    pairs = zip(losses, mAPs, strict=True)
    return [
        {"model": model, "epoch": i + 1, "loss": loss, "lr": 1e-3} | ({"mAP": mAP} if mAP else {})
        for i, (loss, mAP) in enumerate(pairs)
    ]


def drawn(folder):
    curves.save_curves(folder)
    return np.asarray(Image.open(folder / "curves.png"), int)


def charts(folder):
    """The picture without its legend, which has every model's colour."""
    return drawn(folder)[curves.LEGEND_HEIGHT // curves.FINER :]


def shows(pixels, colour):
    colour = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return bool((np.abs(pixels - colour).max(2) < 20).any())


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (21, 48, [20, 30, 40, 50]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (3.2, 3.9, [3.2, 3.4, 3.6, 3.8, 4.0]),
        (0.9, 11, [1, 2, 5, 10]),  # more than one to ten: logarithmic
        (0.004, 300, [0.01, 0.1, 1, 10, 100]),
    ],
)
def test_axes_have_round_numbers(low, high, ticks):
    assert curves.Axis.of_values(low, high).ticks == pytest.approx(ticks)


def test_places_on_an_axis_are_shares_of_its_length():
    assert curves.Axis.of_values(20, 50).fraction(35) == pytest.approx(0.5)
    assert curves.Axis.of_values(1, 100).fraction(10) == pytest.approx(0.5)
    assert curves.Axis.of_epochs(9).fraction(5) == pytest.approx(0.5)
    assert curves.Axis.of_epochs(40).ticks == [1, 10, 20, 30, 40]
    assert curves.Axis.of_epochs(2).ticks == [1, 2]
    flat = curves.Axis.of_values(7, 7)
    assert flat.low < 7 < flat.high


def test_a_curve_passes_its_points(tmp_path):
    # Loss 2 and 4 over two epochs: the axis is from 2 to 4, so the curve goes from one corner of
    # the chart to the other, and through its middle.
    write_log(tmp_path, *epochs("backbone", [2, 4], [None, None]))
    pixels = drawn(tmp_path)
    top = (curves.LEGEND_HEIGHT + curves.TOP) / curves.FINER
    bottom = (curves.LEGEND_HEIGHT + curves.HEIGHT - curves.BOTTOM) / curves.FINER
    left, right = curves.LEFT / curves.FINER, (curves.WIDTH - curves.RIGHT) / curves.FINER
    for share in (0, 0.5, 1):
        x, y = left + share * (right - left), bottom - share * (bottom - top)
        near = pixels[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
        assert shows(near, curves.COLOURS[0]), share
    assert not shows(pixels[:, curves.WIDTH // curves.FINER :][100:], curves.COLOURS[0])


def test_models_have_colours_of_their_own_in_the_order_of_the_tables(tmp_path):
    write_log(tmp_path, *epochs("gcn-pca", [3, 2], [10, 20]), *epochs("backbone", [9, 8], [30, 40]))
    entries = curves.by_model(read_log(tmp_path / "log.jsonl"))
    assert list(entries) == ["backbone", "gcn-pca"]
    pixels = drawn(tmp_path)
    assert [shows(pixels, colour) for colour in curves.COLOURS[:3]] == [True, True, False]


ODD_VALUES = [
    '{"model": "backbone", "epoch": 3}',
    '{"model": "backbone", "epoch": 3, "loss": NaN, "mAP": Infinity}',
    '{"model": "backbone", "epoch": 4, "loss": "low", "mAP": null}',
    '{"model": "backbone", "epoch": 5, "loss": ' + "9" * 400 + "}",
    '{"model": "b\\ud800\\n\\u4eba", "epoch": 1, "loss": 0}',
]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    good = epochs("backbone", [2, 4], [10, 20])
    write_log(tmp_path, *ODD_VALUES, *good)
    entries = curves.by_model(read_log(tmp_path / "log.jsonl"))
    assert curves.points({"backbone": entries["backbone"]}, "loss") == [[(1, 2), (2, 4)]]
    assert shows(charts(tmp_path), curves.COLOURS[0])
    for line in ODD_VALUES:
        write_log(tmp_path, line)
        curves.save_curves(tmp_path)  # and if it is the only one there is


def test_values_of_any_size_are_drawn(tmp_path):
    for losses in ([0, 0], [-1, 1], [1e-300, 1e11], [5], [1e-9, 1e-9], [0.1] * 300):
        write_log(tmp_path, *epochs("backbone", losses, losses))
        assert shows(charts(tmp_path), curves.COLOURS[0]), losses


def test_a_young_picture_stays_until_the_last_epoch(tmp_path):
    write_log(tmp_path, *epochs("backbone", [2], [10]))
    curves.save_curves(tmp_path, final=False)
    first = (tmp_path / "curves.png").read_bytes()
    write_log(tmp_path, *epochs("backbone", [2, 3], [10, 20]))
    curves.save_curves(tmp_path, final=False)
    assert (tmp_path / "curves.png").read_bytes() == first
    os.utime(tmp_path / "curves.png", (0, 0))
    curves.save_curves(tmp_path, final=False)
    second = (tmp_path / "curves.png").read_bytes()
    assert second != first
    write_log(tmp_path, *epochs("backbone", [2, 3, 4], [10, 20, 30]))
    curves.save_curves(tmp_path, final=True)
    assert (tmp_path / "curves.png").read_bytes() != second


def test_without_an_epoch_nothing_is_drawn(tmp_path):
    curves.save_curves(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    curves.save_curves(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
