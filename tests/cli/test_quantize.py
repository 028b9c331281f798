"""leanlm quantize: plans, ternary packing, integers with and without text, reports, and what is refused."""

import json
import re
from types import SimpleNamespace

import pytest

from hybrid_models import build
from leanlm import families
from leanlm.checkpoint import aligned, codecs
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import UsageError
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope
from leanlm.quantize import job
from tiny_models import GOLDEN, add_tokenizer, copy_case

REPORT = "quantization-report.json"
WORDS = "the sun was low and the wind sang of the sea, the sand and the morning; "


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> SimpleNamespace:
    """A calibration file long enough for eight samples of 32 tokens, and a held-out file."""
    folder = tmp_path_factory.mktemp("texts")
    for name, repeats in (("calibration", 20), ("held-out", 2)):
        (folder / f"{name}.txt").write_text(WORDS * repeats)
    return SimpleNamespace(calibration=folder / "calibration.txt", held_out=folder / "held-out.txt")


def asked(texts, *more):
    return ("--calibration", texts.calibration, "--held-out", texts.held_out, "--samples", 8, "--length", 32, *more)


def test_a_ternary_model_is_packed_exactly_and_shown(leanlm, tmp_path):
    trilm = GOLDEN / "trilm/trilm_mp3"
    ran = leanlm("quantize", trilm, tmp_path / "out", "--scheme", "ternary", "--container", "leanlm")
    assert ran.code == 0, ran.err
    assert "all of these" in ran.out and "times smaller" in ran.out
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["method"] == "lossless" and all(m["weight_error"] == 0 for m in report["matrices"])
    shown = json.loads(leanlm("show", tmp_path / "out", "--json").out)
    assert (
        shown["formats"]["ternary"]["matrices"] == 21
        and shown["formats"]["ternary"]["file_bits"] < 3
        and not [odd for odd in shown["odd"] if "tokenizer" not in odd]
    )
    assert leanlm("verify", tmp_path / "out").code == 0
    ids = ["generate", "--promptlen", 5, "--genlen", 8, "--seed", 1, "--model"]
    assert leanlm(*ids, trilm).out == leanlm(*ids, tmp_path / "out").out


def test_a_float_model_is_not_ternary(leanlm, tmp_path):
    ran = leanlm("quantize", GOLDEN / "llama/bf16", tmp_path / "out", "--scheme", "ternary")
    assert ran.code == 5 and "distinct values" in ran.err
    assert not (tmp_path / "out").exists()


def test_gptq_on_a_text(leanlm, rene, texts, tmp_path):
    flags = asked(texts, "--scheme", "int4-channel", "--embedding", "int8", "--json")
    ran = leanlm("quantize", rene, tmp_path / "out", *flags)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report == json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["bits_per_byte_before"] > 0 and report["bits_per_byte_after"] > 0
    by_name = {m["name"]: m for m in report["matrices"]}
    assert by_name["embedding.weight"]["output_error"] is None and by_name["embedding.weight"]["format"] == "int8"
    assert all(m["output_error"] < 0.1 for m in report["matrices"] if m["name"] != "embedding.weight")
    assert json.loads(leanlm("show", tmp_path / "out", "--json").out)["formats"].keys() == {"int4-channel", "int8"}
    assert leanlm("generate", "--model", tmp_path / "out", "--genlen", 3, "the ").code == 0


def test_the_nearest_needs_no_text(leanlm, tmp_path):
    model = copy_case("mamba1/ss_base", tmp_path / "model", text=False)
    ran = leanlm("quantize", model, tmp_path / "out", "--scheme", "int8", "--method", "rtn")
    assert ran.code == 0 and not (tmp_path / "out/pytorch_model.bin").exists()
    ran = leanlm("quantize", model, tmp_path / "other", "--scheme", "int8")
    assert ran.code == 2 and "has no tokenizer: give --tokenizer, or --method rtn" in ran.err
    assert not (tmp_path / "other").exists()


def test_a_plan_is_only_printed(leanlm, rene, tmp_path):
    flags = ("--scheme", "int8", "--override", "layers.0.*=float", "--plan", "--json")
    ran = leanlm("quantize", rene, tmp_path / "out", *flags)
    assert ran.code == 0 and set(json.loads(ran.out).values()) == {"int8", "float"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "message", "flags"),
    [
        (2, "give either --preset", ()),
        (2, "give either --preset", ("--preset", "quantlm-4", "--scheme", "int4")),
        (2, "groups of 128; choose", ("--preset", "quantlm-4")),
        (2, "gptq cannot hold .* exactly", ("--scheme", "int6", "--container", "gptq")),
        (2, "fits no matrix", ("--scheme", "int8", "--override", "nothing=float")),
        (2, "stored as one matrix", ("--scheme", "int8", "--override", "*.q_proj=float")),
        (2, "--samples 0", ("--scheme", "int8", "--samples", 0)),
        (3, "no such file or folder", ("--scheme", "int8", "--calibration", "missing.txt")),
        (2, "calibration text has .* need 1,048,576", ("--scheme", "int8", "--length", 2048, "--samples", 512)),
        (2, "--damping 2: must be", ("--scheme", "int8", "--damping", 2)),
    ],
)
def test_what_cannot_be_meant(leanlm, rene, texts, tmp_path, code, message, flags):
    text = () if "--calibration" in flags else ("--calibration", texts.calibration)
    ran = leanlm("quantize", rene, tmp_path / "out", "--held-out", "none", *text, *flags)
    assert ran.code == code and re.search(message, ran.err), ran.err
    assert ran.err.strip().splitlines()[-1].startswith("error: ") and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(leanlm, rene):
    before = sorted(path.name for path in rene.iterdir())
    ran = leanlm("quantize", rene, rene, "--scheme", "int8")
    assert ran.code == 2 and "nothing is overwritten" in ran.err
    assert sorted(path.name for path in rene.iterdir()) == before


def test_a_full_disk_leaves_nothing_half_written(leanlm, rene, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aligned, "save_file", full)
    ran = leanlm("quantize", rene, tmp_path / "out", "--scheme", "int8", "--method", "rtn", "--held-out", "none")
    assert ran.code == 1 and "No space left on device" in ran.err and not (tmp_path / "out").exists()


def test_formats_on_the_fly(leanlm, tmp_path):
    model = add_tokenizer(copy_case("trilm/trilm_mp3", tmp_path / "model"))
    told = [leanlm("generate", "--model", model, "--genlen", 6, *flags, "the ").out for flags in ((), ("--format", "ternary"))]
    assert told[0] == told[1]
    assert leanlm("generate", "--model", model, "--genlen", 2, "--format", "int8", "the ").code == 0
    ran = leanlm("generate", "--model", model, "--format", "q4_0", "the ")
    assert ran.code == 2 and "no format" in ran.err


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama that every container can hold, without a tokenizer."""
    layer = Attention(2, 2, 32, rope=Rope(32)), GatedMLP(96)
    config = ModelConfig(64, 96, (layer,), norm=Norm(round_first=True), context_length=64)
    folder = tmp_path_factory.mktemp("llama")
    save_module(folder, build(config), families.get("hf_llama"))
    return folder


def test_asymmetric_groups_in_gptq(leanlm, llama, tmp_path):
    flags = ("--scheme", "int4-g32-asym", "--method", "rtn", "--container", "gptq")
    assert leanlm("quantize", llama, tmp_path / "out", *flags, "--plan").code == 0
    ran = leanlm("quantize", llama, tmp_path / "out", *flags)
    assert ran.code == 0 and "packed weights in gptq" in ran.out, ran.err
    assert load_module(tmp_path / "out").raw["quantization_config"]["sym"] is False


def test_what_a_container_refuses_in_the_end_is_kept_in_another(leanlm, llama, tmp_path, monkeypatch):
    real = codecs.choose

    def late(weights, wanted=None):
        if wanted and (tmp_path / "ready").exists():
            raise UsageError("gptq cannot hold it")
        return real(weights, wanted)

    def run(*arguments, **options):
        report = job_run(*arguments, **options)
        (tmp_path / "ready").touch()
        return report

    job_run = job.run
    monkeypatch.setattr(codecs, "choose", late)
    monkeypatch.setattr(job, "run", run)
    flags = ("--scheme", "int4-g32", "--method", "rtn", "--container", "gptq")
    ran = leanlm("quantize", llama, tmp_path / "out", *flags)
    assert ran.code == 2 and "so that nothing is lost" in ran.err and "holds it as compressed-tensors" in ran.err
    assert load_module(tmp_path / "out").module.layers[0][0].mixer.q_proj.bits > 4


def test_integers_are_not_made_of_integers(leanlm, llama, tmp_path):
    assert leanlm("quantize", llama, tmp_path / "int8", "--scheme", "int8", "--method", "rtn").code == 0
    ran = leanlm("quantize", tmp_path / "int8", tmp_path / "out", "--scheme", "int4-g32", "--method", "rtn")
    assert ran.code == 2 and "is int8 already; quantise the float model" in ran.err and not (tmp_path / "out").exists()


def test_held_out_text_needs_a_tokenizer(leanlm, llama, tmp_path):
    flags = ("--scheme", "int8", "--method", "rtn")
    ran = leanlm("quantize", llama, tmp_path / "out", *flags, "--held-out", "missing.txt")
    assert ran.code == 2 and "no tokenizer to read text with" in ran.err and not (tmp_path / "out").exists()
    ran = leanlm("quantize", llama, tmp_path / "out", *flags)
    assert ran.code == 0 and "note: without a tokenizer no held-out text" in ran.err
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["container"] == "compressed-tensors"
    assert report["file_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size


def test_a_mixed_model_is_sound(leanlm, tmp_path):
    flags = ("--scheme", "ternary", "--override", "layers.0.*=int8", "--method", "rtn")
    assert leanlm("quantize", GOLDEN / "trilm/trilm_mp3", tmp_path / "out", *flags).code == 0
    ran = leanlm("verify", tmp_path / "out")
    assert ran.code == 0 and "all 14 matrices are ternary" in ran.out
    assert leanlm("quantize", GOLDEN / "trilm/trilm_mp3", tmp_path / "int8", "--scheme", "int8", "--method", "rtn").code == 0
    assert leanlm("verify", tmp_path / "int8").code == 0
    assert leanlm("verify", tmp_path / "int8", "--ternary").code == 5
