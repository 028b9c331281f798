"""A tokenizer as GGUF keys, where llama.cpp would cut texts as it does: byte-level BPE with pre-tokenisation that it knows.

Keys: ggml-org/ggml, docs/gguf.md; pre-tokenisation: ggml-org/llama.cpp, src/llama-vocab.cpp.
"""

import json
from typing import NamedTuple

from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.model.config import ModelConfig

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type

# The expressions that published tokenizers split texts by, and what llama.cpp calls them.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MODERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {GPT2: "gpt-2", MODERN % "{1,3}": "llama-bpe", MODERN % "": "qwen2"}
WHOLE_WORDS = ("llama-bpe",)  # llama.cpp takes a word that is a token as it is, without merging


class Vocabulary(NamedTuple):
    """Keys of the file; `absent` is the reason why they hold no tokens, `notes` what differs in rare texts."""

    keys: dict
    absent: str | None
    notes: tuple[str, ...] = ()


def vocabulary(tokenizer: Tokenizer | None, cfg: ModelConfig) -> Vocabulary:
    """The tokenizer of a model of this config; without tokens, but with the reason, where llama.cpp has no match."""
    if tokenizer is None:
        return _without("the model has no tokenizer")
    raw = json.loads(tokenizer.files[MAIN])
    reason = _mismatch(raw) or _too_many(tokenizer, cfg)
    if reason:
        return _without(reason)
    tokens, types = _tokens(tokenizer, raw, cfg.padded_vocab_size)
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer(raw),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]],
    }
    special, notes = _special(tokenizer, cfg)
    if (raw.get("normalizer") or {}).get("type") == "NFC":
        notes.append("llama.cpp does not bring text into Unicode's form C, as this tokenizer does")
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in raw["added_tokens"]):
        notes.append("llama.cpp leaves spaces beside added tokens, which this tokenizer strips from some")
    if tokenizer.chat_template:
        special["tokenizer.chat_template"] = tokenizer.chat_template.source
    return Vocabulary({**keys, **special}, None, tuple(notes))


def _without(reason: str) -> Vocabulary:
    return Vocabulary({"tokenizer.ggml.model": "no_vocab"}, reason)


def pre_tokenizer(raw: dict) -> str | None:
    """llama.cpp's name for how a tokenizer.json splits texts before merging, None where it has none."""
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and regex:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and regex and steps[0].get("individual_digits"):
        return "starcoder"
    if kinds == ["Split", "ByteLevel"] and not regex and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
        return SPLITS.get(steps[0]["pattern"].get("Regex"))
    return None


def _mismatch(raw: dict) -> str | None:
    """Why llama.cpp would give other ids than this tokenizer.json."""
    model = raw["model"]
    if model.get("type") != "BPE":
        return f"its tokenizer is of type {model.get('type')}, and leanlm writes byte-level BPE"
    pre = pre_tokenizer(raw)
    if pre is None:
        return "llama.cpp has no pre-tokenisation like its tokenizer's"
    if (raw.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return f"llama.cpp has no {raw['normalizer'].get('type')} normaliser for byte-level BPE"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"llama.cpp has no {key} in byte-level BPE"
    if bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS):
        return (
            f"llama.cpp does not treat words that are tokens as its tokenizer does (ignore_merges) where it splits like {pre}"
        )
    return None


def _too_many(tokenizer: Tokenizer, cfg: ModelConfig) -> str | None:
    if tokenizer.vocab_size > cfg.padded_vocab_size:
        return f"its tokenizer has {tokenizer.vocab_size} tokens and the embedding {cfg.padded_vocab_size} rows"
    return None


def _tokens(tokenizer: Tokenizer, raw: dict, rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of every row of the embedding; rows without a token are filled up with unused ones."""
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for token, id in raw["model"]["vocab"].items():
        tokens[id], types[id] = token, NORMAL
    for id, token in tokenizer.core.get_added_tokens_decoder().items():
        tokens[id], types[id] = token.content, CONTROL if token.special else USER_DEFINED
    return tokens, types


def _special(tokenizer: Tokenizer, cfg: ModelConfig) -> tuple[dict, list[str]]:
    """Which tokens begin and end a text, whether they are added, and what cannot be said."""
    notes = []
    bos = tokenizer.bos_id if tokenizer.bos_id is not None else cfg.bos_id
    eos = next(iter((*tokenizer.eos_ids, *cfg.eos_ids)), None)
    plain, whole = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    begins, ends = whole[:1] == [bos] != plain[:1], whole[-1:] == [eos] != plain[-1:]
    if [bos] * begins + plain + [eos] * ends != whole:
        notes.append("its tokenizer adds tokens that llama.cpp does not add")
        begins = ends = False
    keys = {"tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}
    ids = {"bos": bos if bos is not None else eos, "eos": eos, "padding": tokenizer.pad_id}
    keys |= {f"tokenizer.ggml.{role}_token_id": id for role, id in ids.items() if id is not None}
    if eos is None:
        notes.append("no token is known to end a text, and llama.cpp takes token 11 for it")
    return keys, notes
