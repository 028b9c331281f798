"""Formats without text: ternary or refused, round-to-nearest, float again; all matrices or none."""

import pytest
import torch

from golden_cases import OWN
from hybrid_models import ONE_OF_EACH, alone, build
from leanlm.checkpoint.load import load_module
from leanlm.errors import CheckFailed, CheckpointError
from leanlm.model.format import Grouped
from leanlm.model.packed import Packed
from leanlm.quantize import health, ternary
from leanlm.quantize.convert import convert, to_format

TRILM = OWN / "trilm/trilm_mp3"


def test_formats_follow_one_another_and_float_is_exact():
    module = build(alone(ONE_OF_EACH["mamba2"], tied=False))
    before = {name: weight.detach().clone() for name, weight in module.weights().items()}
    errors = convert(module, {"head.weight": Grouped(8), "layers.0.0.mixer.in_proj.weight": Grouped(4, 8, False)})
    assert set(errors) == {"head.weight", "layers.0.0.mixer.in_proj.weight"} and 0 < errors["head.weight"] < 1e-4
    changed = {name for name, weight in module.weights().items() if isinstance(weight, Packed)}
    assert changed == set(errors)
    assert all(torch.equal(w, before[n]) for n, w in module.weights().items() if n not in changed)
    values = module.head.dequantize()
    assert convert(module, {"head.weight": "float"}) == {"head.weight": 0.0}
    assert torch.equal(module.head.weight, values)
    packed = module.layers[0][0].mixer.in_proj.weight
    convert(module, {"layers.0.0.mixer.in_proj.weight": Grouped(4, 8, False)})
    assert module.layers[0][0].mixer.in_proj.weight is packed


def test_ternary_matrices_are_packed_and_others_refused_by_name_and_count():
    module = load_module(TRILM).module
    to_format(module, "ternary")
    assert {str(w.format) for n, w in module.weights().items() if isinstance(w, Packed)} == {"ternary"}
    weight = module.layers[1][0].mixer.v_proj.dequantize().half()
    weight[2, 3] = 0.5
    with pytest.raises(CheckFailed, match=r"^layers\.1\.0\.mixer\.v_proj\.weight: not ternary: \d+ distinct values, \d+ dist"):
        ternary.quantize(weight, "layers.1.0.mixer.v_proj.weight")


def test_nothing_changes_where_one_matrix_is_refused():
    module = load_module(TRILM).module
    with torch.no_grad():
        module.layers[2][1].mixer.down_proj.weight.data = torch.randn_like(module.layers[2][1].mixer.down_proj.weight)
    with pytest.raises(CheckFailed, match=r"layers\.2\.1\.mixer\.down_proj"):
        to_format(module, "ternary")
    module.layers[0][0].mixer.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.0\.0\.mixer\.q_proj\.weight: .*NaN"):
        to_format(module, "int8")
    assert not any(isinstance(weight, Packed) for weight in module.weights().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_counted_in_every_dtype(dtype):
    weight = torch.tensor([[0.0, -0.0, 1.5, -1.5], [0.25, 0.25, 1.5, 0.0]], dtype=dtype)
    assert ternary.distinct(weight) == 4 and ternary.distinct(weight.abs()) == 3


def test_health_of_a_sound_model():
    found = health.examine(load_module(TRILM).module)
    assert not found.damage and len(found.ternary) == len(found.magnitudes) == 21
    assert max(found.magnitudes.values()) == 4
    packed = load_module(TRILM).module
    to_format(packed, "ternary")
    assert health.examine(packed) == found


def test_health_names_what_is_wrong(monkeypatch):
    monkeypatch.setattr(health, "OUTLIER", 20)  # small matrices have no room for stranger weights
    module = build(alone(ONE_OF_EACH["mamba1"]))
    with torch.no_grad():
        module.layers[0][0].mixer.out_proj.weight[0, 0] = float("inf")
        module.layers[0][0].mixer.in_proj.weight[:, 3] = 0
        module.layers[1][0].mixer.up_proj.weight[2] = 0
        module.layers[1][0].mixer.down_proj.weight[0, 0] = 1e4
        module.layers[1][1].mixer.in_proj.weight.zero_()
        module.layers[1][1].norm.weight.zero_()
        module.layers[1][1].mixer.A_log[0, 0] = 30
    found = health.examine(module)
    assert found.damage == ("layers.0.0.mixer.out_proj.weight: 1 of 720 values are NaN or infinite",)
    said = "\n".join(found.oddities)
    for part in ("1 of 24 inputs", "1 of 20 outputs", "down_proj.weight: its largest", "all zeros", "nothing through", "A_log"):
        assert part in said
