"""What a token costs after a context, and telescoping beside full attention: one small measurement of each."""

import xml.etree.ElementTree as ET

from leanlm.bench import context, telescoping
from leanlm.slots import NAMED


def test_states_and_figures():
    found = context.measure(width=64, layers=1, repeats=1, contexts=(64, 128))
    grows = {name: row["bytes"][128] / row["bytes"][64] for name, row in found.items()}
    assert grows["Llama"] > 1.9 and all(grows[name] == 1 for name in ("telescoping, 128 slots", "Mamba-2"))
    assert all(value > 0 for row in found.values() for value in (*row["milliseconds"].values(), row["drift"]))
    for text in context.charts(found).values():
        assert len(ET.fromstring(text).findall("{*}polyline")) == 4


def test_telescoping_beside_full_attention():
    short, long = (telescoping.measure(NAMED["32"], length, 4, 2, 8, repeats=1) for length in (256, 1024))
    assert short["ratio"] > 0 and long["kept_megabytes"] / short["kept_megabytes"] < 4.5
