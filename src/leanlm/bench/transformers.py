"""transformers as one side of a measurement."""

import time
from contextlib import suppress

import torch
import transformers
from torch import Tensor

from leanlm.api import as_device
from leanlm.runtime import card


class Transformers:
    """One Hugging Face folder, with one cache."""

    def load(self, path: str, threads: int, attn: str, device: str = "cpu") -> dict:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.device = as_device(device)
        began = time.perf_counter()
        given = {} if attn == "auto" else {"attn_implementation": attn}  # Mamba's models refuse any
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", **given).eval().to(self.device)
        # Mamba's models have a name of their own for what the others call past key values.
        self.cache = "cache_params" if self.model.config.model_type in ("mamba", "mamba2") else "past_key_values"
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "load_seconds": time.perf_counter() - began,
            "options": {"attn": attn, "keys_values": str(self.model.dtype).removeprefix("torch.")},
        }

    def clear(self) -> None:
        """Give up the cache, and its memory to the device."""
        self.held = None
        card.release(self.device)

    @torch.inference_mode()
    def fill(self, batch: int, context: int, room: int) -> None:
        """A cache of `batch` texts that have read `context` tokens (at least one)."""
        self.clear()
        self.batch, self.context = batch, max(1, context)
        self.held = self._run(self._tokens(self.context))

    @torch.inference_mode()
    def prefill(self, length: int) -> float:
        """Seconds from a prompt of every text, read from the beginning, to the logits of the first new token."""
        self.held, tokens = None, self._tokens(length)
        card.wait(self.device)
        began = time.perf_counter()
        self.held = self._run(tokens)
        card.wait(self.device)
        return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, count: int) -> float:
        """Seconds of so many steps after the context. A recurrent cache, which cannot be rewound, goes on."""
        self._rewind()
        tokens = self._tokens(count)
        card.wait(self.device)
        began = time.perf_counter()
        for one in tokens.split(1, 1):
            self.held = self._run(one)
        card.wait(self.device)
        return time.perf_counter() - began

    def peak_device(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def _rewind(self) -> None:
        if self.cache == "past_key_values" and (more := self.held.get_seq_length() - self.context) > 0:
            with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # a hybrid's recurrent layers
                self.held.crop(-more)

    def _run(self, tokens: Tensor):
        given = {} if self.held is None else {self.cache: self.held}
        return getattr(self.model(tokens, use_cache=True, logits_to_keep=1, **given), self.cache)

    def _tokens(self, length: int) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return torch.randint(self.model.config.vocab_size, (self.batch, length), generator=chance).to(self.device)
