"""The published rule of size, and what packed models take in truth."""

import pytest

from leanlm.bench.packed_sizes import PRINTED, RULE, measure, rule


def test_the_papers_table_follows_from_its_rule():
    """52 of 54 cells to the printed digits, the other two within 0.0055."""
    cells = [(rule(size, scheme), printed) for size, row in PRINTED.items() for scheme, printed in zip(RULE, row, strict=True)]
    assert len(cells) == 54
    assert sum(f"{found:.2f}" == f"{printed:.2f}" for found, printed in cells) >= 52
    assert max(abs(found - printed) for found, printed in cells) < 0.0055


@pytest.mark.parametrize("size", ["99M", "190M"])
def test_ternary_layers_take_two_bits_in_memory_and_less_on_disk(size):
    found = measure(size, "ternary")
    assert 2 < found["bits_in_memory"] < 2.06 and 1.6 <= found["bits_on_disk"] < 1.7


def test_a_whole_model_is_its_layers_times_one():
    one, whole = measure("99M", "quantlm-3"), measure("99M", "quantlm-3", whole=True)
    assert one == whole and one["bits_in_memory"] == 3.125
