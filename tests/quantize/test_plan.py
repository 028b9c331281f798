"""Which matrix gets which format, and what cannot be meant."""

import pytest

from leanlm.errors import UsageError
from leanlm.families import Rule
from leanlm.model.format import Grouped
from leanlm.quantize.plan import check_stacked, make, matching

SHAPES = {
    "embedding.weight": (300, 256),
    "layers.0.0.mixer.in_proj.weight": (512, 256),
    "layers.0.0.mixer.dt_proj.weight": (256, 8),
    "layers.0.0.mixer.out_proj.weight": (256, 256),
    "layers.1.0.mixer.down_proj.weight": (256, 192),
    "head.weight": (300, 256),
}
INSIDE = [name for name in SHAPES if name.startswith("layers") and "dt_proj" not in name]
EASY = {name: shape for name, shape in SHAPES.items() if shape[1] == 256}


def test_a_scheme_goes_to_the_layers_alone_and_never_to_step_sizes():
    assert make(SHAPES, "int8") == dict.fromkeys(INSIDE, Grouped(8))
    assert make(SHAPES, "ternary") == dict.fromkeys(INSIDE, "ternary")


@pytest.mark.parametrize(("preset", "format"), [(3, Grouped(3, 128)), (4, Grouped(4, 128)), (6, Grouped(6)), (8, Grouped(8))])
def test_the_suites_presets(preset, format):
    assert set(make(EASY, f"quantlm-{preset}").values()) == {format}


def test_embedding_and_head_by_choice():
    plan = make(SHAPES, "int6", embedding="int8", head="int4-g64")
    assert plan["embedding.weight"] == Grouped(8) and plan["head.weight"] == Grouped(4, 64)
    with pytest.raises(UsageError, match="head is tied"):
        make({n: s for n, s in SHAPES.items() if n != "head.weight"}, "int8", head="int8")
    with pytest.raises(UsageError, match=r"embedding\.weight: .*never ternary"):
        make(SHAPES, "int8", embedding="ternary")


def test_the_last_fitting_override_counts():
    plan = make(SHAPES, "int4-g64", overrides=["layers.*=int8", "layers.1.0.mixer.down_proj=float", "head=int8"])
    assert plan["layers.0.0.mixer.in_proj.weight"] == Grouped(8) == plan["head.weight"]
    assert plan["layers.1.0.mixer.down_proj.weight"] == "float"
    assert "layers.0.0.mixer.dt_proj.weight" not in plan
    assert matching("*.out_proj", SHAPES) == ["layers.0.0.mixer.out_proj.weight"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers.0.*", "PATTERN=FORMAT"),
        ("=int8", "PATTERN=FORMAT"),
        ("layers.7.*=int8", "fits no matrix"),
        ("*.dt_proj=int8", "never quantised"),
        ("*.A_log=int8", "fits no matrix"),
        ("layers.0.*=int9", "9 bits"),
        ("layers.0.*=q4", "no format"),
    ],
)
def test_overrides_that_cannot_be_meant(override, message):
    with pytest.raises(UsageError, match=message):
        make(SHAPES, "int8", overrides=[override])


def test_a_width_that_does_not_divide_names_the_matrix_and_a_remedy():
    with pytest.raises(UsageError, match=r"layers\.1\.0\.mixer\.down_proj\.weight: 192 inputs .* 128; choose groups of 64"):
        make(SHAPES, "quantlm-4")
    assert make(SHAPES, "quantlm-4", overrides=["*.down_proj=int4-g64"])["layers.1.0.mixer.down_proj.weight"].group == 64


def test_matrices_stored_as_one_have_one_format():
    rules = [Rule("attn.in_proj.weight", ("layers.0.0.mixer.in_proj.weight", "layers.0.0.mixer.out_proj.weight"), (512, 256))]
    check_stacked(make(EASY, "int4"), rules)
    with pytest.raises(UsageError, match=r"attn\.in_proj\.weight is stored as one matrix .*out_proj\.weight float"):
        check_stacked(make(EASY, "int4", overrides=["*out_proj=float"]), rules)
