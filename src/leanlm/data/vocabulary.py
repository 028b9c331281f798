"""A byte-level BPE tokenizer of one's own, trained on one's own text by the `tokenizers` library; what ids mean."""

import hashlib
import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

END_OF_TEXT = "<|endoftext|>"  # id 0


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A lossless byte-level BPE with `size` ids: end of text, the 256 bytes, and the merges learned from `texts`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of the table of ids: tokenizers with the same fingerprint mean the same by every id, however their files are
    written."""
    table = sorted((id, token) for token, id in tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()
