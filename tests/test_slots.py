"""Which tokens a slot covers: the original's schedules, and the same by moving slots about token by token."""

import hashlib
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm import slots
from leanlm.slots import NAMED, Table
from telescoping_cases import cases, table


@pytest.mark.parametrize("path", cases("schedule"), ids=lambda path: path.stem)
def test_schedules_of_the_original(path):
    told = json.loads(path.read_text())
    made, digest = Table(**{name.replace("slots", "size"): value for name, value in table(told).items()}), hashlib.sha256()
    assert [slots.merge_slot(made, t) for t in range(1, told["n_tokens"])] == told["merge_slot"][1:]
    for t in range(told["n_tokens"]):
        runs = slots.runs(made, t)
        digest.update(json.dumps(runs, separators=(",", ":")).encode())
        if str(t) in told["ranges"]:
            assert [run and list(run) for run in runs] == told["ranges"][str(t)], t
    assert digest.hexdigest() == told["sha256_all_steps"]


def moved(table: Table, tokens: int) -> Iterator[list]:
    """The runs of all slots after every token."""
    held: list = [None] * table.size
    for t in range(tokens):
        if t:
            into = slots.merge_slot(table, t)
            merged = []
            if into < table.size:
                older, newer = held[into], held[into - 1]
                merged = [newer if older is None else (older[0], newer[1])]
            held = [None, *held[: into - 1], *merged, *held[into + 1 :]]
        held[0] = (t, t)
        yield held


@st.composite
def tables(draw) -> Table:
    size = draw(st.integers(3, 40))
    return Table(size, tuple(sorted(draw(st.sets(st.integers(2, size - 1), min_size=1, max_size=7)))))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_any_table(table):
    assert not slots.wrong(table)
    for t, held in enumerate(moved(table, 300)):
        assert slots.runs(table, t) == held


def test_what_the_published_tables_cover():
    assert {name: table.covered[-1] for name, table in NAMED.items()} == {
        "32": 695,
        "64": 685,
        "128": 1950,
        "128-even": 4080,
        "128-long": 7156,
        "256": 7580,
        "512": 3568,
    }
    for name, forgotten in (("64", 640), ("128", 1920), ("512", 3568)):
        first = [slots.runs(NAMED[name], t)[-1] for t in (forgotten - 1, forgotten)]
        assert first[0][0] == 0 and first[1][0] > 0
    assert not any(map(slots.wrong, NAMED.values()))
