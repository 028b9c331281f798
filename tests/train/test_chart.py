"""Charts: well-formed, points where they belong, nothing that is not a number."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanlm.train.chart import POINTS, Axis, Series, number, svg

SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf")])


@given(st.lists(st.tuples(numbers, numbers), max_size=30), st.booleans(), st.booleans(), st.sampled_from(["line", "points"]))
def test_every_chart_is_well_formed(points, log_x, log_y, style):
    text = svg("<&>", [Series("a & b", [x for x, _ in points], [y for _, y in points], style=style)], "x", "y", log_x, log_y)
    ElementTree.fromstring(text)
    assert not re.search(r"\b(nan|inf)\b", text.replace("a & b", ""))


def test_points_and_bars_stand_where_their_values_are():
    text = svg("t", [Series("s", [1, 2, 3], [0.0, 5.0, 10.0], errors=[1.0, 1.0, 1.0], style="points")], "x", "y")
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in ElementTree.fromstring(text).iter(f"{SVG}circle")]
    assert circles[1] == pytest.approx(((circles[0][0] + circles[2][0]) / 2, (circles[0][1] + circles[2][1]) / 2), abs=0.1)
    assert circles[0][1] > circles[2][1]  # up is less in SVG
    unit = (circles[0][1] - circles[2][1]) / 10
    upright = [
        e for e in ElementTree.fromstring(text).iter(f"{SVG}line") if e.get("x1") == e.get("x2") == f"{circles[0][0]:.1f}"
    ]
    assert any(abs(float(e.get("y1")) - float(e.get("y2"))) == pytest.approx(2 * unit, abs=0.2) for e in upright)


def test_logarithms_space_by_ratio():
    axis = Axis(1, 1e4, 0, 400, log=True)
    assert [axis(v) for v in (1, 10, 100, 1e4)] == pytest.approx([0, 100, 200, 400])
    assert set(axis.ticks()) >= {1, 10, 100, 1e3, 1e4}


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_within_the_axis_and_a_handful(low, span):
    ticks = Axis(low, low + span, 0, 1, log=False).ticks()
    assert 2 <= len(ticks) <= 13
    assert all(low - 1e-6 * span - abs(low) * 1e-9 <= t <= low + span + 1e-6 * span + abs(low) * 1e-9 for t in ticks)


def test_long_lines_are_thinned():
    text = svg("t", [Series("s", range(100_000), range(100_000))], "x", "y")
    line = next(ElementTree.fromstring(text).iter(f"{SVG}polyline")).get("points")
    assert POINTS / 2 <= len(line.split()) <= POINTS + 1


def test_nothing_to_show_is_said():
    assert "nothing to show" in svg("t", [], "x", "y")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1.5e6, "1.5M"), (3e-4, "3e-4"), (0.25, "0.25"), (2000, "2k")])
def test_numbers(value, text):
    assert number(value) == text
