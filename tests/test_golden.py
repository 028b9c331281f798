"""Every golden case through the public API: what the original implementations computed for the same files.

The cases in this repository hold fewer tensors than the whole set: whatever a case holds is compared.
"""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file

import leanlm
from golden_cases import Case, checkpoint_cases, golden_cases
from leanlm.generate import filters
from leanlm.generate.sampling import Sampling

CASES = checkpoint_cases()
SAMPLING_CASES = golden_cases("sampling")
HALF_CASES = [case for case in CASES if case.case.startswith("bf16")]
FLOAT_CASES = [case for case in CASES if case not in HALF_CASES]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
    ),
]


def each(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@functools.cache
def expected(case: Case) -> dict[str, torch.Tensor]:
    return load_file(case.folder / "expected.safetensors")


@functools.cache
def meta(case: Case) -> dict:
    return json.loads((case.folder / "meta.json").read_text())


@functools.cache
def model(case: Case, device: str, dtype: str | None = None) -> leanlm.Model:
    """As stored, but fp16 files in float32: the original was computed so."""
    fp16 = case.family == "trilm"
    return leanlm.load(case.folder, dtype=dtype or ("float32" if fp16 else None), device=device)


def close(found: torch.Tensor, wanted: torch.Tensor, case: Case, kind: str) -> None:
    tolerance = meta(case)["tolerance"]
    torch.testing.assert_close(
        found.float().cpu(), wanted, atol=tolerance[f"{kind}_atol"], rtol=tolerance.get(f"{kind}_rtol", 0.0)
    )


def test_every_family_has_cases():
    assert {case.family for case in CASES} >= {"rene", "llamba", "mamba1", "mamba2", "bamba", "llama", "trilm"}
    assert len(SAMPLING_CASES) >= 2 and HALF_CASES


@pytest.mark.parametrize("device", DEVICES)
@each(FLOAT_CASES)
def test_logits_and_hidden_states(case, device):
    """Of the long prompt and of those of 1, 5 and 64 tokens."""
    wanted, compared = expected(case), set()
    for prefix in ("", "len1.", "len5.", "len64."):
        if prefix + "input_ids" in wanted:
            outputs = model(case, device).trace(wanted[prefix + "input_ids"])
            for name in [name for name in outputs if prefix + name in wanted]:
                close(outputs[name], wanted[prefix + name], case, name.partition(".")[0])
                compared.add(prefix + name)
    assert compared >= {"logits", "len1.logits", "len5.logits", "len5.hidden.0", "len5.hidden.1", "len5.hidden.final"}


@pytest.mark.parametrize("device", DEVICES)
@each([case for case in FLOAT_CASES if "len5.mixer.0" in expected(case)])
def test_mixer_outputs(case, device):
    """What the first mixer of every block adds to the stream."""
    wanted = {name: value for name, value in expected(case).items() if name.startswith("len5.mixer.")}
    m, found = model(case, device), {}
    hooks = [
        layer[0].mixer.register_forward_hook(lambda _, __, out, i=i: found.update({f"len5.mixer.{i}": out}))
        for i, layer in enumerate(m.module.layers)
    ]
    try:
        m.trace(expected(case)["len5.input_ids"])
    finally:
        for hook in hooks:
            hook.remove()
    assert len(found) == len(m.config.layers)
    for name, value in wanted.items():
        close(found[name], value, case, "hidden")


@pytest.mark.parametrize("device", DEVICES)
@each([case for case in FLOAT_CASES if "state_atol" in meta(case)["tolerance"]])
def test_states_after_five_tokens(case, device):
    m, wanted = model(case, device), expected(case)
    state = m.new_state(2, capacity=8)
    with torch.no_grad():
        m(wanted["len5.input_ids"], state)
    assert state.position.tolist() == [5, 5]
    names = [name for name in wanted if name.startswith("len5.state.")]
    assert names
    for name in names:
        block, part = name.split(".")[2:]
        found = state.memories[sum(map(len, m.config.layers[: int(block)]))][part]
        value = wanted[name]
        if part == "conv":  # the original keeps the newest column too, which is never used again
            value = value[..., value.shape[-1] - found.shape[-1] :]
        close(found[:, :5] if part in "kv" else found, value, case, "state")


@pytest.mark.parametrize("device", DEVICES)
@each(CASES)
def test_generated_ids_are_exact(case, device):
    runs = meta(case)["generation"]
    assert "generated_ids" in runs
    for name, run in runs.items():
        prompt = expected(case)[name][:, : run["prompt_len"]]
        ids = model(case, device).generate(
            prompt, max_new_tokens=run["new_tokens"], do_sample=False, repetition_penalty=run["repetition_penalty"]
        )
        assert torch.equal(ids, expected(case)[name]), name


@pytest.mark.parametrize("device", DEVICES)
@each(HALF_CASES)
def test_bfloat16_in_its_own_dtype(case, device):
    tolerance, wanted = meta(case)["tolerance"], expected(case)["logits"].float()
    error = (model(case, device).trace(expected(case)["input_ids"])["logits"].float().cpu() - wanted).abs()
    assert error.max() <= tolerance["logits_atol"] and error.mean() <= tolerance["mean_abs"]


@pytest.mark.parametrize("device", DEVICES)
@each(HALF_CASES)
def test_bfloat16_weights_computed_in_float32(case, device):
    logits = model(case, device, "float32").trace(expected(case)["input_ids"])["logits"].cpu()
    torch.testing.assert_close(logits, expected(case)["logits_fp32_of_same_weights"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@each(SAMPLING_CASES)
def test_sampling_distributions(case, device):
    wanted = {name: value.to(device) for name, value in expected(case).items()}
    logits = wanted["logits"]
    seen = filters.mark(wanted["prev_tokens"].tolist(), logits.shape[1], device)
    for settings in meta(case)["configs"]:
        given = {name: value for name, value in settings.items() if name not in ("index", "kept_tokens")}
        sampling = Sampling.of(**given, compat="mamba_ssm" if case.case == "mamba_ssm" else "")
        found = filters.probabilities(logits, seen, sampling)
        assert found.gt(0).sum(-1).tolist() == settings["kept_tokens"], settings
        torch.testing.assert_close(found, wanted[f"probs.{settings['index']}"], atol=1e-6, rtol=0)
