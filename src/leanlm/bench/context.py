"""What a token costs after ever more tokens: four models of equal width, decoding after 1,024 to 32,768 tokens in turn.

    python -m leanlm.bench.context [--width 512] [--layers 6] [--threads 2] [--repeats 15] [--out FOLDER]

The models differ in their mixers alone: attention to all tokens, to the last 1,024, over a telescoping cache of 128 slots, and
Mamba-2. Weights are random, in float32. Every state is read up to its context once; then all of them decode in turn, a burst at
a time, and medians over the turns are told, with what the longest context costs over the shortest. --out draws both figures.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from leanlm import runtime
from leanlm.checkpoint.aside import replacing
from leanlm.model.config import Attention, GatedMLP, Mamba2, Mixer, ModelConfig, Rope, Telescoping
from leanlm.model.language_model import LanguageModel
from leanlm.runtime import machine
from leanlm.slots import NAMED
from leanlm.train.chart import Series, svg

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
WINDOW, HEAD, VOCABULARY = 1024, 64, 4096
BURST = 32  # tokens: every merge of a telescoping cache has its turn


def mixers(width: int) -> dict[str, Mixer]:
    attention = Attention(width // HEAD, width // HEAD, HEAD, rope=Rope(HEAD))
    table = NAMED["128"]
    return {
        "Llama": attention,
        "window of 1,024": Attention(width // HEAD, width // HEAD, HEAD, WINDOW, Rope(HEAD)),
        "telescoping, 128 slots": Telescoping.of(attention, slots=table.size, merges=table.merges),
        "Mamba-2": Mamba2(2 * width, HEAD, 128),
    }


def model(width: int, layers: int, mixer: Mixer) -> LanguageModel:
    torch.manual_seed(0)
    module = LanguageModel(ModelConfig(width, VOCABULARY, ((mixer, GatedMLP(8 * width // 3)),) * layers))
    module.reset()
    return module.eval()


class Subject:
    """A model with a state for every context."""

    def __init__(self, module: LanguageModel, contexts: tuple[int, ...], room: int):
        self.module, self.run, self.tokens = module, runtime.of(module), torch.arange(BURST)
        self.states, self.bytes = {}, {}
        for context in contexts:
            # A state has room for its context alone, as far as it needs any.
            self.bytes[context] = module.new_state(1, capacity=context).nbytes
            self.states[context] = state = module.new_state(1, capacity=context + room)
            generator = torch.Generator().manual_seed(1)
            self.run(torch.randint(VOCABULARY, (1, context), generator=generator), state, last_only=True)

    def burst(self, context: int) -> float:
        """Seconds of a token."""
        began = time.perf_counter()
        for token in self.tokens:
            self.run(token.view(1, 1), self.states[context], last_only=True)
        return (time.perf_counter() - began) / BURST


@torch.inference_mode()
def measure(width: int, layers: int, repeats: int, contexts: tuple[int, ...] = CONTEXTS) -> dict[str, dict]:
    """Per model: milliseconds a token and bytes of its state for every context, and the last one's time over the first's, the
    median of the turns."""
    room = (repeats + 1) * BURST
    subjects = {name: Subject(model(width, layers, mixer), contexts, room) for name, mixer in mixers(width).items()}
    seconds: dict[str, dict[int, list[float]]] = {name: {context: [] for context in contexts} for name in subjects}
    for turn in range(repeats + 1):
        for context in contexts:
            for name, subject in subjects.items():
                took = subject.burst(context)
                if turn:  # the first one warms up
                    seconds[name][context].append(took)
    return {
        name: {
            "milliseconds": {c: 1000 * statistics.median(seconds[name][c]) for c in contexts},
            "bytes": subject.bytes,
            "drift": statistics.median(b / a for a, b in zip(seconds[name][contexts[0]], seconds[name][contexts[-1]])),
        }
        for name, subject in subjects.items()
    }


def charts(found: dict[str, dict]) -> dict[str, str]:
    """The two figures as SVG text, by file name."""
    sides = {"time": ("milliseconds", "milliseconds per token"), "memory": ("bytes", "bytes of the state")}
    made = {}
    for name, (key, label) in sides.items():
        series = [Series(model, list(row[key]), list(row[key].values())) for model, row in found.items()]
        made[f"context-{name}.svg"] = svg("Decoding after a context", series, "tokens read", label, log_x=True, log_y=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 512), ("layers", 6), ("threads", 2), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--longest", type=int, default=CONTEXTS[-1])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    machine.set_threads(given.threads)
    found = measure(given.width, given.layers, given.repeats, tuple(c for c in CONTEXTS if c <= given.longest))
    print(json.dumps(found, indent=2))
    if given.out:
        with replacing(given.out) as aside:
            for name, text in charts(found).items():
                aside(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
