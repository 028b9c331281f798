"""What people get wrong, from the command line: each case its exit code and one line that says what to do, no traceback."""

import errno
import json
import os
import re

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fake_hub import FakeHub
from leanlm import load
from leanlm.checkpoint import aligned, state_file
from leanlm.errors import CapacityError, LeanLMError, UsageError
from tiny_models import add_tokenizer, copy_case, edit_config

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def away_from_the_hub(monkeypatch, tmp_path):
    """No test here reaches the real hub or a cache of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(tmp_path):
    """A model with full attention and a context of 64 tokens, free to be damaged."""
    return copy_case("llama/bf16", tmp_path / "model")


@pytest.fixture
def refused(leanlm):
    """refused(code, pattern, *argv): the command fails so, in one line."""

    def check(code: int, pattern: str, *argv, **options):
        ran = leanlm(*argv, **options)
        assert ran.code == code, ran.err
        assert re.search(pattern, ran.err), ran.err
        assert re.fullmatch(r"(warning: .*\n)*error: .*\n", ran.err), ran.err
        assert "Traceback" not in ran.err
        assert ran.out == ""

    return check


def tensors(folder, **changes):
    """Rewrite the weights with some tensors replaced, added, or (None) left out."""
    held = {name: t.clone() for name, t in load_file(folder / WEIGHTS).items()} | changes
    save_file({name: t for name, t in held.items() if t is not None}, folder / WEIGHTS)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def pickle(folder, data):
    (folder / WEIGHTS).unlink()
    torch.save(data, folder / "pytorch_model.bin")


NORM, HEAD = "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.1.self_attn.q_proj.weight"

CHECKPOINTS = {
    "config missing": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "config truncated": (lambda f: os.truncate(f / "config.json", 30), r"config\.json: not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json"),
    "unknown architecture": (lambda f: edit_config(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]), "gpt2"),
    "setting missing": (lambda f: edit_config(f, hidden_size=None), "hidden_size"),
    "setting of a wrong type": (lambda f: edit_config(f, hidden_size="wide"), r"config\.json"),
    "setting out of range": (lambda f: edit_config(f, num_attention_heads=-4), "-4 is not a size"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "no weights"),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "cut short"),
    "weights truncated": (lambda f: os.truncate(f / WEIGHTS, 20_000), "cut short"),
    "weights corrupt": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 4096), "damaged"),
    "a shard missing": (
        lambda f: (f / WEIGHTS).rename(f / "other") and (f / f"{WEIGHTS}.index.json").write_text(
            json.dumps({"weight_map": {NORM: "model-00001-of-00002.safetensors"}})
        ),
        "model-00001-of-00002.safetensors is missing",
    ),
    "tensor missing": (lambda f: tensors(f, **{LAYER: None}), f"'{LAYER}' missing"),
    "tensor unread": (lambda f: tensors(f, extra=torch.ones(3)), "'extra' unknown"),
    "wrong shape": (lambda f: tensors(f, **{NORM: torch.ones(5)}), r"is \[5\] and should be \[48\]"),
    "config of another size": (lambda f: edit_config(f, intermediate_size=64), "shapes do not fit"),
    "integers as weights": (lambda f: tensors(f, **{NORM: torch.ones(48, dtype=torch.int32)}), "int32"),
    "NaN in a weight": (lambda f: tensors(f, **{NORM: torch.full((48,), float("nan"))}), "NaN"),
    "hostile pickle": (lambda f: pickle(f, {NORM: Hostile()}), "refused.*could run code"),
    "pickle of something else": (lambda f: pickle(f, ["weights"]), "table of tensors"),
    "pickle truncated": (
        lambda f: (pickle(f, load_file(f / WEIGHTS)), os.truncate(f / "pytorch_model.bin", 9_000)),
        "cut short",
    ),
    "tokenizer corrupt": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(refused, model, name, monkeypatch):
    damage, pattern = CHECKPOINTS[name]
    monkeypatch.chdir(model.parent)
    damage(model)
    refused(4, pattern, "generate", "hi", "--model", model, "--genlen", "2")
    assert not (model.parent / "owned").exists()


FLAGS = {
    "unknown flag": (["--tempreture", "1"], "did you mean --temperature"),
    "not a number": (["--top_k", "many"], "--top-k"),
    "a value missing": (["--prompt"], "--prompt"),
    "temperature below 0": (["--temperature", "-1"], "temperature"),
    "temperature NaN": (["--temperature", "nan"], "temperature"),
    "top_p above 1": (["--top_p", "1.5"], "top_p"),
    "min_p below 0": (["--min_p", "-0.1"], "min_p"),
    "top_k below 0": (["--top_k", "-3"], "top_k"),
    "penalty 0": (["--repetition_penalty", "0"], "repetition_penalty"),
    "compat unknown": (["--compat", "vllm"], "--compat"),
    "genlen below 0": (["--genlen", "-5"], "--genlen -5"),
    "no repeats": (["--repeats", "0"], "--repeats 0"),
    "seed too large": (["--seed", "99999999999999999999"], "--seed"),
    "dtype unknown": (["--dtype", "float13"], "float13"),
    "dtype of integers": (["--dtype", "int8"], "int8"),
    "device unknown": (["--device", "toaster"], "toaster"),
    "stop string empty": (["--stop", ""], "stop"),
    "two prompts": (["--prompt", "again"], "more than one prompt"),
    "session and repeats": (["--session", "s", "--repeats", "2"], "--session"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(refused, model, name):
    argv, pattern = FLAGS[name]
    refused(2, pattern, "generate", "hi", "--model", model, *argv)


def test_no_prompt(refused, model):
    refused(2, "no prompt: give one", "generate", "--model", model)


@pytest.mark.parametrize("argv", [[""], ["--prompt", ""]])
def test_an_empty_prompt_without_a_begin_token(refused, tmp_path, argv):
    folder = edit_config(copy_case("mamba2/ss_groups_untied", tmp_path / "m"), bos_token_id=None)
    refused(2, "the prompt is empty", "generate", *argv, "--model", folder)


def test_prompt_file_missing(refused, model, tmp_path):
    refused(3, "no such prompt file", "generate", "-f", tmp_path / "nowhere.txt", "--model", model)


def test_prompt_file_a_folder(refused, model, tmp_path):
    refused(1, "Is a directory", "generate", "-f", tmp_path, "--model", model)


def test_prompt_file_not_utf8(refused, model, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    refused(2, "p.txt: not UTF-8 text .byte 0xe9 at offset 3", "generate", "-f", tmp_path / "p.txt", "--model", model)


def test_piped_prompt_not_utf8(refused, model):
    refused(2, "stdin: not UTF-8", "generate", "--model", model, stdin=b"\xff\xfe")


def test_text_without_a_tokenizer(refused, tmp_path):
    refused(2, "no tokenizer.*--tokenizer", "generate", "hi", "--model", copy_case("llama/bf16", tmp_path / "m", text=False))


def test_stop_without_a_tokenizer(refused, tmp_path):
    folder = copy_case("llama/bf16", tmp_path / "m", text=False)
    refused(2, "stop strings need a tokenizer", "generate", "--promptlen", "3", "--stop", "x", "--model", folder)


def test_tokenizer_missing(refused, model, tmp_path):
    refused(3, "nowhere", "generate", "hi", "--model", model, "--tokenizer", tmp_path / "nowhere")


def test_tokens_out_of_range(refused, tmp_path):
    """A tokenizer with more ids than the model has rows."""
    folder = edit_config(copy_case("llama/bf16", tmp_path / "m"), vocab_size=20)
    held = load_file(folder / WEIGHTS)
    tensors(folder, **{name: held[name][:20] for name in (HEAD, "model.embed_tokens.weight") if name in held})
    refused(2, "this model knows ids 0 to 19", "generate", "the zebra", "--model", folder)


def test_tokens_out_of_range_in_the_api(model):
    for ids in ([[1, 150]], [[-1]]):
        with pytest.raises(UsageError, match="this model knows ids 0 to 149"):
            load(model).generate(ids)


def test_a_prompt_over_the_capacity(model):
    loaded = load(model)
    state = loaded.new_state(1, capacity=4)
    with pytest.raises(CapacityError, match="4"):
        loaded(torch.ones(1, 5, dtype=torch.long), state)


def test_logits_that_are_not_finite(refused, tmp_path, monkeypatch):
    """Weights that are finite one by one, with products that overflow float16 where they are computed in it."""
    monkeypatch.setenv("LEANLM_IMPL", "eager")
    folder = copy_case("llama/bf16", tmp_path / "m")
    tensors(folder, **{NORM: torch.full((48,), 6e4, dtype=torch.bfloat16)})
    refused(5, "logits are not finite.*float16 overflows", "generate", "hi", "--model", folder, "--dtype", "float16")


NAMES = {
    "unknown name": (["rene-2b"], "did you mean rene"),
    "unknown folder": (["./nowhere"], "nowhere"),
    "not on disk": (["someone/model", "--offline"], "offline"),
    "never released": (["quantlm-99m-4bit"], "announced, never released; make it"),
    "malformed hub id": (["a/b/c"], "a/b/c"),
}


@pytest.mark.parametrize("verb", ["pull", "generate"])
@pytest.mark.parametrize("name", NAMES)
def test_names(refused, name, verb):
    argv, pattern = NAMES[name]
    refused(3, pattern, verb, *(argv if verb == "pull" else ["hi", "--model", *argv]))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = copy_case("llama/bf16", tmp_path / "served")
    (tmp_path / "empty").mkdir()
    repos = {"some/model": folder, "some/gated": folder, "some/empty": tmp_path / "empty"}
    with FakeHub(repos, gated={"some/gated"}) as fake:
        fake.patch(monkeypatch)
        yield fake


HUB = {
    "absent": (["some/nothing"], "no such repository"),
    "gated": (["some/gated"], "gated; accept its terms.*HF_TOKEN"),
    "bad revision": (["some/model", "--revision", "v9"], "no revision 'v9'"),
    "nothing to load": (["some/empty"], "config.json"),
}


@pytest.mark.parametrize("name", HUB)
def test_hub(refused, hub, name):
    argv, pattern = HUB[name]
    refused(3, pattern, "pull", *argv)


def test_hub_out_of_order(refused, hub):
    hub.broken = 503
    refused(3, "503", "pull", "some/model")


def test_hub_out_of_reach(refused, hub):
    hub.stop()
    refused(3, "cannot download", "pull", "some/model")


@pytest.fixture
def session(leanlm, model, tmp_path):
    file = tmp_path / "talk"
    assert leanlm("generate", "hi", "--model", model, "--genlen", "2", "--session", file).code == 0
    return file


SESSIONS = {
    "corrupt": lambda file: file.write_bytes(b"\x00" * 100),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: file.write_bytes(b""),
    "of another program": lambda file: save_file({"a": torch.ones(1)}, file),
}


@pytest.mark.parametrize("name", SESSIONS)
def test_sessions(refused, model, session, name):
    SESSIONS[name](session)
    damaged = session.read_bytes()
    refused(4, "talk: ", "generate", "more", "--model", model, "--session", session)
    refused(4, "talk: ", "state", "info", session)
    refused(4, "talk: ", "state", "fork", session, session.with_name("new"))
    assert session.read_bytes() == damaged
    assert not session.with_name("new").exists()


def test_session_of_another_make(refused, session, tmp_path):
    other = copy_case("rene/gqa_groups", tmp_path / "rene")
    refused(4, "belongs to another model", "generate", "more", "--model", other, "--session", session)


def test_session_of_other_weights(refused, model, session):
    tensors(model, **{NORM: torch.ones(48, dtype=torch.bfloat16)})
    refused(4, "the same make", "generate", "more", "--model", model, "--session", session)


def test_session_in_another_dtype(refused, model, session):
    refused(
        4, "bfloat16; load it in that dtype", "generate", "more", "--model", model, "--session", session, "--dtype", "float32"
    )


def test_state_file_missing(refused, tmp_path):
    refused(3, "no such state file", "state", "info", tmp_path / "nowhere")


@pytest.mark.parametrize("argv", [["info"], ["burn", "x"], ["fork", "x"], ["info", "x", "y"]])
def test_state_usage(refused, argv):
    refused(2, "state", "state", *argv)


def test_session_in_a_folder_that_is_a_file(refused, model, session):
    refused(1, "cannot", "generate", "hi", "--model", model, "--genlen", "0", "--session", session / "inside")


def full_disk(tensors, path, metadata):
    """In the place of safetensors' save_file."""
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_session(leanlm, model, session, monkeypatch):
    before = session.read_bytes()
    monkeypatch.setattr(state_file, "save_file", full_disk)
    ran = leanlm("generate", "more", "--model", model, "--genlen", "2", "--session", session)
    assert ran.code == 1
    assert re.fullmatch(r"error: .*No space left on device.*\n", ran.err)
    assert session.read_bytes() == before
    assert sorted(path.name for path in session.parent.iterdir() if path.is_file()) == ["talk"]


def test_full_disk_leaves_no_half_saved_model(model, tmp_path, monkeypatch):
    loaded = load(model)
    monkeypatch.setattr(aligned, "save_file", full_disk)
    with pytest.raises(LeanLMError, match="No space left on device"):
        loaded.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_of_a_float_model(leanlm, model):
    ran = leanlm("verify", model, "--ternary")
    assert ran.code == 5 and re.fullmatch("error: .*21 of 21 matrices are not ternary.*\n", ran.err)


def test_show_of_a_file(refused, model):
    refused(4, "is a file", "show", model / WEIGHTS)


def test_chat_without_a_template(refused, model):
    refused(2, "no chat template", "chat", "--model", model, stdin="hi\n")


def test_chat_template_broken(refused, model):
    add_tokenizer(model, chat=True)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{% if %}"}))
    refused(4, "chat template, line 1", "chat", "--model", model, stdin="hi\n")


def test_forced_implementation_unknown(refused, model, monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", "warp")
    refused(2, "LEANLM_IMPL=warp", "generate", "hi", "--model", model)


def test_debug_shows_the_traceback_besides(leanlm, model):
    (model / "config.json").unlink()
    ran = leanlm("generate", "hi", "--model", model, "--debug")
    assert ran.code == 4
    assert "Traceback" in ran.err
