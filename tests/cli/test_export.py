"""leanlm export: what is written, told, stored and refused; the formats themselves are tested in tests/export."""

import json

import pytest

from hybrid_models import build
from leanlm import families
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.export import gguf_container
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope
from tiny_models import GOLDEN, add_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama whose rows are whole blocks of every type, with a tokenizer."""
    layer = Attention(4, 2, 64, rope=Rope(64)), GatedMLP(512)
    config = ModelConfig(256, 112, (layer, layer), norm=Norm(round_first=True), context_length=128, eos_ids=(0,))
    folder = add_tokenizer(tmp_path_factory.mktemp("llama"))
    save_module(folder, build(config), families.get("hf_llama"))
    return folder


@pytest.fixture
def eight_bits(leanlm, llama, tmp_path):
    ran = leanlm("quantize", llama, tmp_path / "int8", "--scheme", "int8", "--method", "rtn", "--held-out", "none")
    assert ran.code == 0, ran.err
    return tmp_path / "int8"


def test_gguf_from_our_integers(leanlm, eight_bits, tmp_path):
    ran = leanlm("export", eight_bits, tmp_path / "m.gguf", "--to", "gguf")
    assert ran.code == 0, ran.err
    assert "14 Q8_0" in ran.out and "read back: 20 tensors, all as in the model" in ran.out
    report = json.loads((tmp_path / "m.gguf.check.json").read_text())
    assert not report["failures"] and report["tensors"]["rounded"] == 0
    ran = leanlm("export", eight_bits, tmp_path / "other.gguf", "--to", "gguf", "--type", "Q4_0")
    assert ran.code == 2 and "Q4_0 cannot hold it exactly" in ran.err and not (tmp_path / "other.gguf").exists()
    ran = leanlm("export", eight_bits, tmp_path / "other.gguf", "--to", "gguf", "--type", "Q4_0", "--lossy")
    assert ran.code == 0 and "14 of them rounded" in ran.out


@pytest.mark.parametrize("to", ["hf", "gptq", "compressed-tensors"])
def test_folders(leanlm, eight_bits, tmp_path, to):
    ran = leanlm("export", eight_bits, tmp_path / "out", "--to", to, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert not report["failures"] and report["tensors"]["largest_difference"] == 0
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw.get("quantization_config", {}).get("quant_method", "hf") == to
    again, before = load_module(tmp_path / "out").module.weights(), load_module(eight_bits).module.weights()
    assert all((again[name].dequantize() == weight.dequantize()).all() for name, weight in before.items() if "mixer" in name)


def test_a_family_that_transformers_has_not_keeps_its_own(leanlm, tmp_path):
    rene = GOLDEN / "rene/gqa_groups"
    ran = leanlm("export", rene, tmp_path / "out", "--to", "hf")
    assert ran.code == 2 and "stock transformers has no model like this one" in ran.err
    assert leanlm("quantize", rene, tmp_path / "int8", "--scheme", "int8", "--method", "rtn").code == 0
    ran = leanlm("export", tmp_path / "int8", tmp_path / "out", "--to", "compressed-tensors")
    assert ran.code == 0 and "rene in float32, packed weights in compressed-tensors" in ran.out


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        ("holds packed weights, and this model has none", ("--to", "gptq")),
        ("--type and --lossy are for --to gguf", ("--to", "hf", "--lossy")),
        ("--dtype is for folders", ("--to", "gguf", "--dtype", "float16")),
        ("--unchecked makes none", ("--to", "gguf", "--json", "--unchecked")),
        ("F16 cannot hold it exactly", ("--to", "gguf", "--type", "F16")),
        ("TQ2_0 cannot hold it exactly", ("--to", "gguf", "--type", "TQ2_0")),
    ],
)
def test_what_cannot_be_meant(leanlm, llama, tmp_path, message, flags):
    ran = leanlm("export", llama, tmp_path / "out", *flags)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(leanlm, llama, tmp_path):
    (tmp_path / "out").write_text("mine")
    ran = leanlm("export", llama, tmp_path / "out", "--to", "gguf")
    assert ran.code == 2 and "nothing is overwritten" in ran.err and (tmp_path / "out").read_text() == "mine"
    (tmp_path / "new.check.json").write_text("of an older file")
    ran = leanlm("export", llama, tmp_path / "new", "--to", "gguf", "--unchecked")
    assert ran.code == 2 and "new.check.json: is there already" in ran.err and not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(leanlm, llama, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_container, "write", full)
    ran = leanlm("export", llama, tmp_path / "m.gguf", "--to", "gguf")
    assert ran.code == 1 and "No space left on device" in ran.err and not list(tmp_path.iterdir())


def test_a_damaged_file_is_told_and_has_its_exit_code(leanlm, llama, tmp_path, monkeypatch):
    written = gguf_container.write

    def damaged(path, *rest):
        written(path, *rest)
        data = bytearray(path.read_bytes())
        data[-40] ^= 64
        path.write_bytes(bytes(data))

    monkeypatch.setattr(gguf_container, "write", damaged)
    ran = leanlm("export", llama, tmp_path / "m.gguf", "--to", "gguf")
    assert ran.code == 5 and "differs from the model's" in ran.err
    assert json.loads((tmp_path / "m.gguf.check.json").read_text())["failures"]
