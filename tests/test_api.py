"""The public API: every form of prompt and answer, streams, states, casts, and what is refused."""

import subprocess
import sys

import pytest
import torch

import leanlm
import tiny_models
from leanlm.errors import CapacityError, CheckpointError, NotFound, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rene with grouped attention, and a tokenizer of 106 ids."""
    return tiny_models.copy_case("rene/gqa_groups", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return leanlm.load(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return leanlm.load(tiny_models.copy_case("llama/llama3_rope_tied", tmp_path_factory.mktemp("llama"), text=False))


def test_what_a_model_is(model):
    assert isinstance(model, leanlm.Model) and isinstance(model.config, leanlm.ModelConfig)
    assert isinstance(model.module, torch.nn.Module) and not model.module.training
    assert model.family == "rene" and model.tokenizer.vocab_size == 106
    assert model.n_parameters == sum(p.numel() for p in model.module.parameters())
    assert repr(model).startswith("Model(rene, ") and "\n" not in repr(model)


def test_ids_give_prompt_and_new_ids_in_their_own_form(model):
    ids = [5, 6, 7]
    flat = model.generate(ids, max_new_tokens=6, eos_ids=())
    assert flat[:3] == ids and len(flat) == 9
    assert model.generate([ids, ids[:2]], max_new_tokens=6, eos_ids=())[0] == flat
    assert model.generate(torch.tensor(ids), max_new_tokens=6, eos_ids=()).tolist() == flat
    batch = model.generate(torch.tensor([ids, ids]), max_length=9, eos_ids=())
    assert batch.dtype == torch.int64 and batch.tolist() == [flat, flat]
    assert model.generate([torch.tensor(ids)], max_new_tokens=6, eos_ids=()) == [flat]


def test_text_gives_the_new_text_and_echo_both(model):
    prompt = "the cat"
    ids = model.tokenizer.encode(prompt)
    wanted = model.tokenizer.decode(model.generate(ids, 12)[len(ids) :])
    assert model.generate(prompt, max_new_tokens=12) == wanted
    assert model.generate(prompt, max_new_tokens=12, echo=True) == prompt + wanted
    assert model.generate([prompt, "a"], max_new_tokens=12)[0] == wanted


def test_streams_are_the_text_in_pieces(model):
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    wanted, pieces = model.generate("of the", **options), []
    assert model.generate("of the", stream=pieces.append, **options) == wanted
    assert "".join(pieces) == wanted == "".join(model.generate("of the", stream=True, **options))
    assert len(pieces) > 5
    with pytest.raises(UsageError, match="one prompt"):
        model.generate(["a", "b"], stream=True)


def test_streams_without_a_tokenizer_are_ids(llama):
    pieces = []
    ids = llama.generate([1, 2], max_new_tokens=5, eos_ids=(), stream=pieces.append)
    assert [i for piece in pieces for i in piece] == ids[2:]


def test_text_ends_before_a_stop_string(model):
    options = {"temperature": 1.0, "seed": 1, "max_new_tokens": 40}
    whole = model.generate("the", **options)
    stop = whole[9:12]
    assert model.generate("the", stop=["never said", stop], **options) == whole[: whole.find(stop)]
    ids = model.generate(model.tokenizer.encode("the"), stop=stop, **options)
    assert stop in model.tokenizer.decode(ids) and len(ids) < 41


def test_tracing_agrees_with_calling(model):
    ids = torch.randint(0, 100, (2, 9))
    traced = model.trace(ids)
    assert list(traced) == [*(f"hidden.{i}" for i in range(len(model.config.layers) + 1)), "hidden.final", "logits"]
    torch.testing.assert_close(traced["logits"], model(ids))
    assert not traced["logits"].requires_grad and model(ids).requires_grad


def test_states_continue(model, tmp_path):
    ids = torch.randint(0, 100, (2, 9))
    state = model.new_state(2)
    assert isinstance(state, leanlm.State)
    with torch.no_grad():
        model(ids[:, :4], state)
        model.save_state(state, tmp_path / "state")
        fork, loaded = state.clone(), model.load_state(tmp_path / "state")
        size = state.nbytes
        for each in (state, fork, loaded):
            torch.testing.assert_close(model(ids[:, 4:], each), model(ids)[:, 4:])
    assert state.position.tolist() == [9, 9] and state.nbytes == size
    assert model.new_state(1, dtype="bfloat16").nbytes < model.new_state(1).nbytes


def test_gradients_flow_to_the_weights(model):
    model(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
    assert model.module.embedding.weight.grad.abs().sum() > 0
    model.module.zero_grad(set_to_none=True)


def test_saved_models_come_back_the_same(model, tmp_path):
    model.save(tmp_path / "copy")
    again = leanlm.load(tmp_path / "copy")
    assert again.config == model.config and again.tokenizer.decode([40, 41]) == model.tokenizer.decode([40, 41])
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])


def test_casts_keep_what_scans_are_sensitive_to(folder):
    model = leanlm.load(folder).half()
    assert model.dtype == torch.float16
    kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.module.named_parameters()}
    assert kinds["A_log"] == kinds["dt_bias"] == torch.float32 and kinds["weight"] == torch.float16
    assert model.to("cpu").to(dtype="bfloat16").dtype == torch.bfloat16
    assert leanlm.load(folder, dtype=torch.bfloat16).dtype == leanlm.load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert leanlm.load(folder, dtype="auto").dtype == torch.float32


def test_half_precision_generates(folder):
    for dtype in ("bfloat16", "float16"):
        assert len(leanlm.load(folder, dtype=dtype).generate([1, 2, 3], 10, eos_ids=())) == 13


def test_an_empty_prompt_begins_with_the_begin_token(model, tmp_path):
    with pytest.raises(UsageError, match="empty"):
        tokenless = leanlm.Model(model.module, "rene")
        assert tokenless.config.bos_id is None
        tokenless.generate([])
    folder = tiny_models.copy_case("llama/llama3_rope_tied", tmp_path)
    llama = leanlm.load(folder)
    assert llama.config.bos_id is not None
    assert llama.generate([], 2, eos_ids=())[:1] == [llama.config.bos_id]
    assert llama.generate("", 4, echo=True) == llama.generate("", 4)


def test_full_attention_overruns_a_state_with_a_clear_error(llama):
    with pytest.raises(CapacityError, match="capacity"):
        llama(torch.ones(1, 9, dtype=torch.int64), llama.new_state(1, capacity=8))


BAD_IDS = [
    ([[0, 10**9]], "token 1000000000"),
    ([[-1, 3]], "token -1"),
    (torch.ones(3, dtype=torch.int64), "shape"),
    (torch.ones(1, 0, dtype=torch.int64), "shape"),
    (torch.ones(1, 3), "whole numbers"),
    ([[1, 2], [3]], "whole numbers"),
    ("text", "whole numbers"),
]


@pytest.mark.parametrize("ids, words", BAD_IDS, ids=[words for _, words in BAD_IDS])
def test_ids_that_cannot_be_called(model, ids, words):
    with pytest.raises(UsageError, match=words) as refused:
        model(ids)
    assert "\n" not in str(refused.value)


BAD_PROMPTS = [
    ([1, 5000], "token 5000 at position 1"),
    ([[1], [-2]], "token -2"),
    (torch.tensor([[1, 5000]]), "token 5000"),
    (torch.ones(2, 2), "float32"),
    (torch.ones(1, 1, 1, dtype=torch.int64), "shape"),
    (torch.ones(0, 3, dtype=torch.int64), "shape"),
    (["a", [1]], "partly text"),
    (3.5, "float"),
    (None, "NoneType"),
    ([1, 2.5], "type"),
    ([["a"]], "type"),
]


@pytest.mark.parametrize("prompt, words", BAD_PROMPTS, ids=[words for _, words in BAD_PROMPTS])
def test_prompts_that_cannot_be_meant(model, prompt, words):
    with pytest.raises(UsageError, match=words) as refused:
        model.generate(prompt, 3)
    assert "\n" not in str(refused.value)


def test_other_refusals(model, llama, folder, tmp_path):
    with pytest.raises(UsageError, match="no tokenizer"):
        llama.generate("text")
    with pytest.raises(UsageError, match="rows"):
        model(torch.ones(2, 3, dtype=torch.int64), model.new_state(1))
    with pytest.raises(UsageError, match="batch 0"):
        model.new_state(0)
    for dtype in ("float31", "int8", torch.int64):
        with pytest.raises(UsageError, match="dtype"):
            leanlm.load(folder, dtype=dtype)
    with pytest.raises(UsageError, match="device"):
        leanlm.load(folder, device="tpu9")
    with pytest.raises(NotFound):
        leanlm.load(tmp_path / "absent")
    with pytest.raises(NotFound):
        leanlm.load(folder, tokenizer=tmp_path / "absent")
    model.save_state(model.new_state(1), tmp_path / "state")
    with pytest.raises(CheckpointError, match="another model"):
        llama.load_state(tmp_path / "state")


def test_a_tokenizer_given_by_hand(llama, folder, tmp_path):
    plain = tiny_models.copy_case("llama/llama3_rope_tied", tmp_path, text=False)
    assert llama.tokenizer is None
    for given in (folder, str(folder / "tokenizer.json"), leanlm.load(folder).tokenizer):
        assert isinstance(leanlm.load(plain, tokenizer=given).generate("the", 3), str)


def test_public_names():
    for name in leanlm.__all__:
        assert getattr(leanlm, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = leanlm.nothing_here


def test_generating_loads_no_transformers():
    code = "import sys, leanlm.api, leanlm.generate.session; print({'transformers', 'lm_eval', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
