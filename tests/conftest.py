"""Shared fixtures: writable copies of golden checkpoints, a made-up tokenizer, the native library, command lines."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

import tiny_distillations
from golden_cases import OWN
from leanlm import env
from leanlm.cli.main import main

if not torch.cuda.is_available():
    env.TRITON_INTERPRET.put("1")  # before Triton is imported: the GPU kernels run on the CPU

torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings, many times more on a busy machine

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'robot' %}{{ raise_exception('no role ' + message['role']) }}{% endif %}\n"
    "    {% if not message['content'] %}{% continue %}{% endif %}\n"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


ON_A_CARD = ("test_triton.py", "test_cuda_graph.py", "test_flash.py", "test_loop.py")  # what runs on a card where there is one


def pytest_collection_modifyitems(items):
    """`-m gpu` chooses, beside what is skipped without a card, what runs elsewhere without one."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.name in ON_A_CARD:
                item.add_marker(pytest.mark.gpu)


def pytest_addoption(parser):
    parser.addoption("--fuzz-first", type=int, default=0, help="first seed of the random cases of tests/runtime/test_fuzz.py")


@pytest.fixture
def checkpoint(tmp_path) -> Callable[[str], Path]:
    """checkpoint("rene/gqa_groups") is a folder with a copy of that golden checkpoint, free to be damaged."""

    def copy(name: str) -> Path:
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        for file in ("config.json", "model.safetensors", "pytorch_model.bin"):
            if (OWN / name / file).exists():
                shutil.copy(OWN / name / file, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """The folder of a tiny Llama that distillations learn from."""
    return tiny_distillations.teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A folder with the files of a byte-level BPE tokenizer with <s>, </s> and a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["the cat sat on the mat and the hat", "a lean model of the language"] * 4, trainer)
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "special": True},
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [core.token_to_id("<|end|>"), 2]}))
    return folder


@pytest.fixture(scope="session")
def native():
    """`leanlm.ops.native`; what needs it is skipped where it was not built."""
    try:
        from leanlm.ops import native
    except ImportError as error:
        pytest.skip(str(error))
    return native


@pytest.fixture
def threads(native):
    """threads(n) sets how many the native library has, until the test ends."""
    lib = native.library()
    before = lib.leanlm_threads()
    yield lambda count: lib.leanlm_set_threads(count)
    lib.leanlm_set_threads(before)


@pytest.fixture
def leanlm(capsys, monkeypatch):
    """leanlm(*argv, stdin=None) runs a command line in this process: code, out, err. stdin None is a terminal."""

    def run(*argv, stdin: str | bytes | None = None) -> SimpleNamespace:
        raw = stdin.encode() if isinstance(stdin, str) else stdin or b""
        pipe = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
        pipe.isatty = lambda: stdin is None
        monkeypatch.setattr("sys.stdin", pipe)
        code = main([str(arg) for arg in argv])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run
