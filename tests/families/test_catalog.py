"""The catalogue's sizes against published figures, and its names against those the models are called by."""

import re
import subprocess
import sys

import pytest

from leanlm import families
from leanlm.bench.packed_sizes import PRINTED as SPECTRA  # 1e9 bits of the whole model
from leanlm.families import catalog
from leanlm.model import cost

EXACT = {  # parameters
    "Rene": 1_433_295_104,
    "Llamba-1B": 1_405_159_936,
    "Llamba-3B": 3_656_994_688,
    "Llamba-8B": 8_315_868_160,
    "Llamba-8B-untied": 8_841_204_736,
    "mamba-2.8b": 2_768_345_600,
    "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680,
    "mamba-7b": 6_946_557_952,
}
BILLIONS = {
    "bamba-9b": "9.780",
    "avengers-llama3-1.8b": "1.884",
    "avengers-tele64": "1.289",
    "avengers-tele128": "1.872",
    "avengers-mamba-1.5b": "1.500",
    "avengers-mamba-2.9b": "2.897",
}
SPECTRA_PARAMETERS = {  # millions, with the unpadded vocabulary
    "99M": 99.735, "190M": 190.497, "390M": 392.424, "560M": 569.174, "830M": 834.003,
    "1.1B": 1149.165, "1.5B": 1514.658, "2.4B": 2461.352, "3.9B": 3989.591,
}  # fmt: skip
NAMES = {  # as the models' own pages write them -> repository
    "Rene": "cartesia-ai/Rene-v0.1-1.3b-pytorch",
    "cartesia-ai/Rene-v0.1-1.3b-pytorch": "cartesia-ai/Rene-v0.1-1.3b-pytorch",
    "Llamba-1B": "cartesia-ai/Llamba-1B",
    "cartesia-ai/Llamba-8B": "cartesia-ai/Llamba-8B",
    "llamba-8b": "cartesia-ai/Llamba-8B",
    "tri-ml/mamba-7b-rw": "tri-ml/mamba-7b-rw",
    "TRI-ML/mamba-7b-rw": "tri-ml/mamba-7b-rw",
    "Mamba-7B": "tri-ml/mamba-7b-rw",
    "Mamba-1.4B": "state-spaces/mamba-1.4b",
    "state-spaces/mamba-2.8b": "state-spaces/mamba-2.8b",
    "state-spaces/mamba2-1.3b": "state-spaces/mamba2-1.3b",
    "SpectraSuite/TriLM_3.9B_Unpacked": "SpectraSuite/TriLM_3.9B_Unpacked",
    "TriLM-3.9B": "SpectraSuite/TriLM_3.9B_Unpacked",
    "SpectraSuite/FloatLM_99M": "SpectraSuite/FloatLM_99M",
    "FloatLM 99M": "SpectraSuite/FloatLM_99M",
}


def entry(name: str) -> catalog.Entry:
    found = catalog.resolve(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("name", EXACT)
def test_parameters(name):
    assert entry(name).parameters == EXACT[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_to_the_digits_published(name):
    assert f"{entry(name).parameters / 1e9:.3f}" == BILLIONS[name]


@pytest.mark.parametrize("size", SPECTRA)
def test_spectra(size):
    suite = [entry(f"FloatLM-{size}"), *(entry(f"QuantLM-{bits}bit-{size}") for bits in (8, 6, 4, 3)), entry(f"TriLM-{size}")]
    config = suite[0].model
    padding = 2 * (config.padded_vocab_size - 50277) * config.d_model
    assert {e.parameters for e in suite} == {suite[0].parameters}
    assert (suite[0].parameters - padding) / 1e6 == pytest.approx(SPECTRA_PARAMETERS[size], abs=1e-3)
    inside = cost.linear_parameters(config)
    for model, billions in zip(suite, SPECTRA[size], strict=True):
        bits = inside * model.bits + 16 * (model.parameters - padding - inside)
        assert bits / 1e9 == pytest.approx(billions, abs=0.011)
    assert suite[0].weight_bytes == suite[-1].weight_bytes == 2 * suite[0].parameters  # both are released as float16
    assert suite[3].weight_bytes == round((inside * 4.25 + 16 * (suite[3].parameters - inside)) / 8)


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert entry(name).repo == NAMES[name]


def test_everything_resolves_to_itself():
    names = [e.name for e in catalog.CATALOG]
    assert len(set(names)) == len(names)
    for known in catalog.CATALOG:
        for name in (known.name, known.name.upper(), *known.aliases, *([known.repo] if known.repo else [])):
            assert catalog.resolve(name) is known
    assert catalog.resolve("no-such-model") is None


def test_entries_are_sound():
    for known in catalog.CATALOG:
        assert families.find(known.config).name == known.family
        assert known.tokenizer_repo.count("/") == 1
        assert known.repo or "never released" in known.note


def test_quantlms_say_how_they_will_be_made():
    made = [e.note for e in catalog.CATALOG if e.name.startswith("quantlm")]
    assert len(made) == 36
    command = re.compile(r"leanlm quantize (FloatLM-\S+) OUT --preset quantlm-[3468]$")
    assert all(entry(command.search(note)[1]).repo for note in made)


def test_state_does_not_grow():
    """Bytes of one text's state in a 16-bit model: scans in float32, convolution tails in 16 bits."""
    assert entry("mamba-7b").state_bytes == 64 * 8192 * (16 * 4 + 3 * 2)
    assert entry("llamba-8b").state_bytes == 32 * (4096 * 64 * 4 + (4096 + 2 * 32 * 64) * 3 * 2)
    assert entry("rene").model.bounded and not entry("bamba-9b").model.bounded


def test_needs_no_torch():
    code = (
        "import sys; from leanlm.families import catalog; catalog.resolve('rene').parameters; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
