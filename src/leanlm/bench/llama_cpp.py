"""llama.cpp as one side of a measurement, through the C interface that llama-cpp-python carries. Loads no torch."""

import ctypes
import random
import time

import llama_cpp

from leanlm.errors import LeanLMError

UBATCH = 512  # tokens of one call of a prompt
FLASH = {"auto": -1, "on": 1, "off": 0}
KV = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # ggml_type


@llama_cpp.llama_log_callback
def _silence(level, text, data):
    """It logs to the terminal, whatever it is told at loading."""


class LlamaCpp:
    """One GGUF file, with one context."""

    def load(self, path: str, threads: int, flash_attn: str, kv: str) -> dict:
        llama_cpp.llama_log_set(_silence, None)
        llama_cpp.llama_backend_init()
        self.threads, self.flash, self.kv, self.context = threads, FLASH[flash_attn], KV[kv], None
        began = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise LeanLMError("llama.cpp cannot load the exported model")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        return {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "load_seconds": time.perf_counter() - began,
            "options": {"flash_attn": flash_attn, "kv": kv, "n_ubatch": UBATCH, "n_threads": threads},
        }

    def fill(self, batch: int, context: int, room: int) -> None:
        """A context of `batch` texts that have read `context` tokens, with room for more."""
        if self.context:
            llama_cpp.llama_free(self.context)
        self.batch, self.read, self.position = batch, context, context
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_seq_max = batch * (context + room + 1), batch
        asked.n_batch = asked.n_ubatch = UBATCH
        asked.n_threads = asked.n_threads_batch = self.threads
        asked.type_k = asked.type_v = self.kv
        asked.flash_attn_type = self.flash
        self.context = llama_cpp.llama_init_from_model(self.model, asked)
        if not self.context:
            raise LeanLMError(f"llama.cpp makes no context for {batch} texts of {context + room} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        if context:
            self._decode(self._prompts(context))

    def prefill(self, length: int) -> float:
        """Seconds from a prompt of every text, read from the beginning, to the logits of the first new token."""
        llama_cpp.llama_memory_clear(self.memory, True)
        return self._decode(self._prompts(length))

    def decode(self, count: int) -> float:
        """Seconds of so many steps after the context. A recurrent memory, which cannot be rewound, goes on."""
        if all(llama_cpp.llama_memory_seq_rm(self.memory, text, self.read, -1) for text in range(self.batch)):
            self.position = self.read
        ids, texts = iter(self._ids(count * self.batch)), range(self.batch)
        steps = [[(next(ids), self.position + i, text, True) for text in texts] for i in range(count)]
        self.position += count
        return self._decode(steps)

    def _prompts(self, length: int) -> list[list[tuple]]:
        """Pieces of the same prompt for every text, with logits of the last token alone."""
        ids = self._ids(length)
        return [
            [(ids[i], i, text, i == length - 1) for i in range(start, min(start + UBATCH, length))]
            for text in range(self.batch)
            for start in range(0, length, UBATCH)
        ]

    def _ids(self, count: int) -> list[int]:
        return random.Random(0).choices(range(self.vocabulary), k=count)

    def _decode(self, pieces: list[list[tuple]]) -> float:
        """Seconds of one call for each piece, of (token, position, text, whether logits are wanted)."""
        batches = [_batch(piece) for piece in pieces]
        began = time.perf_counter()
        for made, _ in batches:
            if failed := llama_cpp.llama_decode(self.context, made):
                raise LeanLMError(f"llama.cpp failed to decode ({failed})")
            llama_cpp.llama_synchronize(self.context)
        return time.perf_counter() - began


def _batch(piece: list[tuple]) -> tuple[llama_cpp.llama_batch, list]:
    """The tokens of one call as C wants them, and what that points to."""
    n, (ids, positions, texts, wanted) = len(piece), zip(*piece, strict=True)
    own = [(ctypes.c_int32 * 1)(text) for text in texts]
    arrays = [
        (ctypes.c_int32 * n)(*ids),
        (ctypes.c_int32 * n)(*positions),
        (ctypes.c_int32 * n)(*[1] * n),
        (ctypes.POINTER(ctypes.c_int32) * n)(*[ctypes.cast(one, ctypes.POINTER(ctypes.c_int32)) for one in own]),
        (ctypes.c_int8 * n)(*wanted),
    ]
    tokens, places, counts, sequences, logits = arrays
    made = llama_cpp.llama_batch(n, tokens, None, places, counts, sequences, logits)
    return made, [own, arrays]
