"""What the library tells of this machine, and the estimate made of it."""

import pytest

from hybrid_models import build
from leanlm.bench import traffic
from leanlm.families import catalog
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig
from leanlm.model.format import Grouped
from leanlm.quantize.convert import to_format

pytest.importorskip("leanlm.ops.native", reason="the native library was not built")
from leanlm.runtime import machine


def test_reading_leaves_threads_and_instruction_set_as_they_were(monkeypatch):
    monkeypatch.setattr(machine, "BUDGET", 0.01)
    before = machine.threads(), machine.instruction_set()
    rates = machine.read_rates()
    assert 1 in rates and before[0] in rates and all(1e8 < rate < 1e13 for rate in rates.values())
    assert "portable" in machine.available_sets() and before[1] in machine.available_sets()
    assert (machine.threads(), machine.instruction_set()) == before


def test_bytes_of_a_token_by_the_config_are_those_of_the_model():
    layers = (Mamba2(128, 16, 8),), (Attention(4, 2, 16, window=9), GatedMLP(96))
    config = ModelConfig(64, 256, layers, tied=False)
    module = build(config).bfloat16()
    to_format(module, "int8")
    counted = sum(traffic.of_step(module, module.new_state(1)).values())
    assert machine.decode_bytes(config, Grouped(8)) == pytest.approx(counted, rel=0.1)  # norms are read in float32


def test_what_to_expect_of_a_known_shape():
    """Mamba-2 370M in 4 bits: 317 million weights of 4.125 bits, 103 MB of embedding, 2 x 50 MB of state."""
    rate = machine.expected_rate(catalog.resolve("mamba2-370m").model, Grouped(4, 128), 30e9)
    assert rate == pytest.approx(0.8 * 30e9 / (317e6 * 4.125 / 8 + 103e6 + 101e6), rel=0.03)
