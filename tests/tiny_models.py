"""Tiny checkpoints with a tokenizer, for tests that start from files: golden cases plus a byte-level BPE of 112 tokens."""

import json
import shutil
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

GOLDEN = Path(__file__).parent / "golden"
END = "<|endoftext|>"
WORDS = ("the", "and", "ing", "of", "was")  # merged from left to right
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


def tokenizer() -> tokenizers.Tokenizer:
    """Printable ASCII and newline, one token each (id 0 ends a text), and the merges of WORDS; other bytes give nothing."""
    letters = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(i))[0][0] for i in TEXT]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in WORDS for i in range(1, len(word))))
    tokens = [END, *letters, *("".join(pair) for pair in merges)]
    core = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END])
    return core


TEXT = (10, *range(32, 127))


def add_tokenizer(folder: Path, chat: bool = False) -> Path:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END} | ({"chat_template": CHAT} if chat else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def copy_case(case: str, folder: Path, text: bool = True, chat: bool = False) -> Path:
    """A golden case's checkpoint ("rene/gqa_groups") in `folder`, with the tokenizer where `text` or `chat`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        if (GOLDEN / case / name).exists():
            shutil.copy(GOLDEN / case / name, folder / name)
    return add_tokenizer(folder, chat) if text or chat else folder


def edit_config(folder: Path, **changes) -> Path:
    """Change keys of the folder's config.json; None removes a key."""
    raw = json.loads((folder / "config.json").read_text())
    raw = {key: value for key, value in {**raw, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
