"""Every environment variable leanlm reads: name, type, default, meaning. Nothing else in the package reads os.environ."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable; `get()` reads it at the time of the call, so tests may set and unset it."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        return os.environ.get(self.name, self.default)

    def put(self, value: str) -> None:
        """Set it for this process, where another library reads it."""
        os.environ[self.name] = value

    def is_set(self) -> bool:
        """Whether the value switches something on: anything but empty, 0, false, no and off."""
        return self.get().strip().lower() not in ("", "0", "false", "no", "off")


IMPL = Variable("LEANLM_IMPL", "", "run every operation by this implementation (eager or reference), and no model natively")
ISA = Variable("LEANLM_ISA", "", "instruction set of the native library, where the CPU has it: portable, avx2 or avx512")
THREADS = Variable("LEANLM_THREADS", "", "threads of the native library; as many as there are physical cores by default")
DEBUG = Variable("LEANLM_DEBUG", "", "1: show tracebacks instead of one-line errors, as --debug does")
HF_HUB_OFFLINE = Variable("HF_HUB_OFFLINE", "", "1: use only what is already on disk, as --offline does")
HF_TOKEN = Variable("HF_TOKEN", "", "access token for gated repositories (read by huggingface_hub)")
TOKENIZERS_PARALLELISM = Variable("TOKENIZERS_PARALLELISM", "", "false: one thread per tokenizer (read by tokenizers)")
GOLDEN = Variable("LEANLM_GOLDEN", "", "folder of golden cases that the tests run besides their own")

MOST_THREADS = 256  # that the native library starts

VARIABLES = (IMPL, ISA, THREADS, DEBUG, HF_HUB_OFFLINE, HF_TOKEN, TOKENIZERS_PARALLELISM, GOLDEN)
