"""leanlm as one side of a measurement, and the plain read of memory it is held against, on the CPU or a CUDA device."""

import time

import torch
from torch import Tensor

from leanlm import runtime
from leanlm.api import as_device, as_dtype, as_state_dtype
from leanlm.bench import traffic
from leanlm.checkpoint.load import load_module
from leanlm.model.packed import Packed
from leanlm.ops import dispatch
from leanlm.ops.pages import Arena
from leanlm.runtime import card, device_memory, machine
from leanlm.runtime.cuda_graph import CudaGraphRuntime

PIECE = 128  # rows of the prompt that a profile looks at, at most: those of one call of the runtime
ROUNDS = 5  # of a profile


class Reader:
    """Plain reads of memory: by as many threads as the model has, or of a device's."""

    def load(self, threads: int, device: str = "cpu") -> None:
        machine.set_threads(threads)
        self.device, self.block = device, torch.empty(0, dtype=torch.uint8)

    def read(self, nbytes: int, times: int) -> float:
        """Seconds of one read, the mean of so many in a row."""
        if self.device != "cpu":
            return card.read_seconds(nbytes, times)
        if len(self.block) != nbytes:
            self.block = Arena(nbytes).zeros((nbytes,), torch.uint8).fill_(1)
        return machine.read_seconds(self.block, times)


class Ours:
    """One model from a folder, with one state."""

    def load(
        self,
        path: str,
        dtype: str | None,
        threads: int | None,
        state_dtype: str | None = None,
        cache_dtype: str | None = None,
        device: str = "cpu",
    ) -> dict:
        """Loads the model; returns what it is and what runs it."""
        if threads:
            machine.set_threads(threads)
        self.device = as_device(device)
        began = time.perf_counter()
        self.module = load_module(path, as_dtype(dtype)).module.to(self.device)
        card.wait(self.device)
        seconds = time.perf_counter() - began
        self.module.state_dtype, self.module.cache_dtype = as_state_dtype(state_dtype), as_state_dtype(cache_dtype)
        self.run = runtime.of(self.module)
        on_cpu = self.device.type == "cpu" and self.run is not self.module
        native = on_cpu and self.run.takes(self.module.new_state(1, 1))
        weights = self.module.weights()
        return {
            "parameters": sum(weight.numel() for weight in weights.values()),
            "weight_bytes": sum(weight.nbytes for weight in weights.values()),
            "dtype": _word(self.module.dtype),
            "formats": sorted({str(w.format) if isinstance(w, Packed) else _word(w.dtype) for w in self._matrices()}),
            "load_seconds": seconds,
            "native": native,
            "device": self.device.type,
            "runtime": self._runtime(),
            "instruction_set": machine.instruction_set() if native else f"torch, {torch.backends.cpu.get_cpu_capability()}",
            "threads": machine.threads() if native else torch.get_num_threads(),
            "processor": machine.processor() if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
        }

    def _runtime(self) -> str:
        if self.run is self.module:
            return "modules in PyTorch"
        return "native library" if self.device.type == "cpu" else "CUDA graphs"

    def peak_device(self) -> int:
        """Bytes of the device's memory that tensors have taken at most."""
        return torch.cuda.max_memory_allocated(self.device)

    def _matrices(self) -> list:
        return [matrix.weight for matrix in self.module.matrices().values()]

    def fallbacks(self) -> dict[str, str]:
        """What is slower than it should be until now, and why: operations without their kernels, tokens without graphs."""
        found = dispatch.fallbacks(self.device.type)
        found.pop("packed_attend", None)  # of texts without a state, which are not measured here
        reason = self.run.without_graphs if isinstance(self.run, CudaGraphRuntime) else ""
        return {**found, "graphs": reason} if reason else found

    def clear(self) -> None:
        """Give up the state, and its memory to the device."""
        self.state = None
        card.release(self.device)

    def _enough(self, batch: int, tokens: int):
        return device_memory.enough(self.module, batch, self.context + self.room, max(1, tokens))

    @torch.inference_mode()
    def fill(self, batch: int, context: int, room: int) -> dict:
        """A state of `batch` texts that have read `context` tokens and have room for more; returns its dtypes and bytes."""
        self.clear()
        self.context, self.room = context, room
        with self._enough(batch, context):
            self.state = self.module.new_state(batch, capacity=context + room)
            if context:
                self.run(self._tokens(batch, context), self.state, last_only=True)
        held = {name: t.dtype for m in self.state.memories if m for name, t in m.items() if t.dtype != torch.int64}
        return {"bytes": self.state.nbytes, "dtypes": {name: _word(dtype) for name, dtype in held.items()}}

    @torch.inference_mode()
    def prefill(self, length: int) -> float:
        """Seconds from a prompt of every text, read from the beginning, to the logits of the first new token."""
        batch, capacity = self.state.batch, self.context + length
        self.state = None  # before there is another one
        with self._enough(batch, length):
            self.state = self.module.new_state(batch, capacity=capacity)
            tokens = self._tokens(batch, length)
            card.wait(self.device)
            began = time.perf_counter()
            self.run(tokens, self.state, last_only=True)
            card.wait(self.device)
            return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, count: int) -> float:
        """Seconds of so many steps after the context. Keys and values are rewound to it; recurrent memories go on, which
        changes no speed."""
        self._rewind()
        tokens = self._tokens(self.state.batch, count).t().unsqueeze(-1).contiguous()  # [count, B, 1]
        with self._enough(self.state.batch, self.context):
            card.wait(self.device)
            began = time.perf_counter()
            for one in tokens:
                self.run(one, self.state, last_only=True)
            card.wait(self.device)
            return time.perf_counter() - began

    @torch.inference_mode()
    def traffic(self, count: int) -> dict[str, int]:
        """Bytes of a step, the mean over those that `decode` runs."""
        self._rewind()
        return traffic.of_step(self.module, self.state, count)

    @torch.inference_mode()
    def profile(self, batch: int, context: int, prompt: int) -> dict:
        """Steps of one token after the context and of (a piece of) the prompt, see `profile.of_call`."""
        from leanlm.bench import profile  # needs the library

        found = {}
        for name, length, read in (("decode", 1, context), ("prefill", max(1, min(prompt, PIECE // batch)), 0)):
            self.fill(batch, read, length * ROUNDS)
            rows = profile.of_call(self.module, self._tokens(batch, length), self.state, ROUNDS)
            found[name] = {"tokens": length, "context": read, "batch": batch, "steps": rows}
        return found

    def _rewind(self) -> None:
        for memory in (m for m in self.state.memories if m and "position" in m):
            memory["position"].fill_(self.context)
        self.state.position.fill_(self.context)

    def _tokens(self, batch: int, length: int) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return torch.randint(self.module.config.vocab_size, (batch, length), generator=chance).to(self.device)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
