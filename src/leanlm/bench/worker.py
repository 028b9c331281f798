"""A process of its own for each side of a measurement, asked over pipes: one JSON object a line, one answer a line.

So peak memory is one side's alone, a side that is not asked sleeps, and nothing is left when the process is gone. A request is
{"call": method, "given": its arguments}; an answer {"result": ...}, or {"error": one line, "kind": the name of its class}.
"""

import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, NotFound, OutOfMemory, UsageError, first_line
from leanlm.runtime import device_memory

KINDS = {  # what a process may be: module and class
    "prepare": ("leanlm.bench.subject", "Preparation"),
    "read": ("leanlm.bench.ours", "Reader"),
    "leanlm": ("leanlm.bench.ours", "Ours"),
    "llama.cpp": ("leanlm.bench.llama_cpp", "LlamaCpp"),
    "transformers": ("leanlm.bench.transformers", "Transformers"),
    "train": ("leanlm.bench.training", "Ours"),
    "train-transformers": ("leanlm.bench.training", "Theirs"),
}
ERRORS = {error.__name__: error for error in (LeanLMError, UsageError, NotFound, CheckpointError, CheckFailed, OutOfMemory)}


class Worker:
    """A running side; a context manager, at whose end the process is gone."""

    def __init__(self, kind: str):
        self.kind, self.said = kind, tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leanlm.bench.worker", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )

    def call(self, method: str, **given):
        """What the side's method returns; raises the LeanLMError that it raised, or one that says why there is no answer."""
        request = json.dumps({"call": method, "given": given}) + "\n"
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise LeanLMError(f"the process of {self.kind} ended during {method} ({self._last_words()})")
        found = json.loads(answer)
        if "error" in found:
            raise ERRORS.get(found["kind"], LeanLMError)(found["error"])
        return found["result"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.said):
            stream.close()
        with suppress(BrokenPipeError):  # a request it never read
            self.process.stdin.close()

    def _last_words(self) -> str:
        self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").split("\n")
        return next((line.strip()[:160] for line in reversed(lines) if line.strip()), f"exit code {self.process.returncode}")


def peak_resident() -> int:
    """Bytes that this process has had in memory at most, mapped files included."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):  # no Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def answers(kind: str, requests: Iterator[bytes]) -> Iterator[dict]:
    """What a side answers to each request. Where it ran out of memory its texts are cleared, for those of others."""
    side = None
    for request in map(json.loads, requests):
        try:
            if side is None:
                module, name = KINDS[kind]
                side = getattr(importlib.import_module(module), name)()
            call = peak_resident if request["call"] == "peak_resident" else getattr(side, request["call"])
            answer = {"result": call(**request["given"])}
        except LeanLMError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except Exception as error:  # whatever another program fails with is for the parent to tell
            name = type(error).__name__
            told = f"{kind} failed ({request['call']}): {name}: {first_line(error)}"
            answer = {"error": told, "kind": OutOfMemory.__name__ if device_memory.ran_out(error) else name}
        if answer.get("kind") == OutOfMemory.__name__ and hasattr(side, "clear"):
            side.clear()
        yield answer


def main(kind: str) -> None:
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for answer in answers(kind, sys.stdin.buffer):
        print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
