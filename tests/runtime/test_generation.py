"""Through the public interface: the same text, natively or not; sessions and states that change sides; the same loss."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import leanlm as library
from golden_cases import OWN
from hybrid_models import ONE_OF_EACH, alone, build
from leanlm import Session, load
from leanlm import runtime as runtimes
from leanlm.api import Model
from leanlm.evaluate.loss import measure
from leanlm.model.linear import Linear
from leanlm.quantize.convert import to_format

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.runtime.native import NativeRuntime

MODELS = ["mamba1/ss_base", "mamba2/ss_hybrid_dconv", "rene/gqa_groups", "llamba/untied_qk_ne_v", "llama/llama3_rope_tied"]
HELD_OUT = Path(library.__file__).parent / "ops" / "reference.py"  # prose and code, as the built-in model was trained on
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [5] * 30]
SAMPLING = {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.1, "seed": 5}


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    return load(OWN / request.param, dtype=torch.float32)


@pytest.fixture
def eagerly(monkeypatch):
    """eagerly(True) has the modules themselves run from here on, eagerly(False) the native runtime."""

    def choose(yes: bool) -> None:
        monkeypatch.setenv("LEANLM_IMPL", "eager" if yes else "")

    return choose


def test_the_choice_is_what_this_file_is_about(model, eagerly):
    assert isinstance(runtimes.of(model.module), NativeRuntime)
    eagerly(True)
    assert runtimes.of(model.module) is model.module


@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampled"])
def test_the_same_tokens(model, eagerly, options):
    found = model.generate(PROMPTS, 40, eos_ids=(), **options)
    singles = [model.generate(prompt, 40, eos_ids=(), **{**options, "seed": 5 + row}) for row, prompt in enumerate(PROMPTS)]
    eagerly(True)
    assert found == singles == model.generate(PROMPTS, 40, eos_ids=(), **options)


def test_sessions_change_sides(model, eagerly, tmp_path):
    def talk(sides: list[bool]) -> list[int]:
        session = Session(model, seed=3)
        for number, (eager, prompt) in enumerate(zip(sides, [*PROMPTS, None])):
            eagerly(eager)
            session.generate(prompt, 12, temperature=0.8)
            session.save(tmp_path / f"{number}")
            session = Session.load(model, tmp_path / f"{number}")
        return session.tokens

    wanted = talk([False] * 4)
    for sides in ([True] * 4, [True, False, True, False], [False, True, True, False]):
        assert talk(sides) == wanted


def test_states_are_saved_and_loaded_on_the_other_side(model, tmp_path):
    native, tokens = runtimes.of(model.module), torch.arange(1, 41).reshape(2, 20) % 20
    for first, second in ((native, model.module), (model.module, native)):
        state = model.new_state(2)
        with torch.no_grad():
            first(tokens[:, :11], state)
            model.save_state(state, tmp_path / "state")
            found = second(tokens[:, 11:], model.load_state(tmp_path / "state"))
            wanted = model.module(tokens, model.new_state(2))[:, 11:]
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("scheme", ["float", "int8", "int4", "int3"])
def test_bits_per_byte_of_the_built_in_model(eagerly, scheme):
    """Within 0.1 %, activations in 8 bits included."""
    model = load("builtin-float")
    if scheme != "float":
        to_format(model.module, scheme)
    said = HELD_OUT.read_text(encoding="utf-8")[:4000]
    documents = [(model.tokenizer.encode(said), len(said.encode()))]
    found = measure(model.module, documents, model.vocabulary.start([])[0]).bits_per_byte
    eagerly(True)
    wanted = measure(model.module.float(), documents, model.vocabulary.start([])[0]).bits_per_byte
    assert abs(found - wanted) < 1e-3 * wanted, (found, wanted)


@pytest.mark.parametrize("mixer", ["mamba1", "attention with rope"])
def test_hooked_modules_run_as_they_are(mixer):
    module = build(alone(ONE_OF_EACH[mixer]))
    assert isinstance(runtimes.of(module), NativeRuntime)
    hook = module.layers[0][0].register_forward_hook(lambda *_: None)
    assert runtimes.of(module) is module
    hook.remove()
    assert isinstance(runtimes.of(module), NativeRuntime)
    hook = register_module_forward_pre_hook(lambda *_: None)  # of every module of the process
    assert runtimes.of(module) is module
    hook.remove()
    assert isinstance(runtimes.of(module), NativeRuntime)


def test_modules_with_another_inside_run_as_they_are():
    class Adapted(Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module = build(alone(ONE_OF_EACH["mamba1"]))
    adapted = Adapted(module.layers[0][0].mixer.in_proj.in_features, module.layers[0][0].mixer.in_proj.out_features)
    adapted.reset(0.1)
    module.layers[0][0].mixer.in_proj = adapted
    assert runtimes.of(module) is module
