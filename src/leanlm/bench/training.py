"""How fast a model is trained: whole steps beside those of transformers with torch's AdamW, in turn.

    python -m leanlm.bench.training [--width 512] [--layers 6] [--batch 4] [--length 512] [--threads 2] [--repeats 7]

Both sides read the same random Mamba-2 from one folder and take steps on the same tokens: forward, cross-entropy, backward,
clipping to norm 1, AdamW, in float32 on this CPU. Every side is a process of its own. Told are the medians of the steps after
the first, the median of the ratios of neighbouring steps, the peaks of memory, and the first loss of both, which must agree.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlm import families
from leanlm.bench.worker import Worker
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import CheckFailed
from leanlm.model.config import Mamba2, ModelConfig, Norm
from leanlm.model.language_model import LanguageModel
from leanlm.train import optimiser as optimisers
from leanlm.train.loss import Objective
from leanlm.train.recipe import Optimiser
from leanlm.train.schedule import Rates

SIDES = {"leanlm": "train", "transformers": "train-transformers"}  # by their kind of process
LR, DECAY, CLIP, AGREE = 1e-4, 0.1, 1.0, 1e-4


class Ours:
    """leanlm's own step: the objective and the optimiser of its loop."""

    def load(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        module = load_module(path, torch.float32).module.train()
        self.objective, self.tokens = Objective(module), random_tokens(module.config.vocab_size)
        self.optimiser = optimisers.build(module, Optimiser(LR, weight_decay=DECAY))

    def step(self, batch: int, length: int) -> list[float]:
        """[seconds, loss in nats per token] of one step."""
        read = self.tokens(batch, length + 1)
        began = time.perf_counter()
        total, nats = self.objective(read[:, :-1], read[:, 1:])
        (total / (batch * length)).backward()
        optimisers.apply(self.optimiser, Rates(LR, DECAY), CLIP, 1.0)
        return [time.perf_counter() - began, nats.item() / (batch * length)]


class Theirs:
    """transformers' model with torch's loss and optimiser."""

    def load(self, path: str, threads: int) -> None:
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.module = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
        self.tokens = random_tokens(self.module.config.vocab_size)
        self.optimiser = torch.optim.AdamW(self.module.parameters(), LR, weight_decay=DECAY, fused=True)

    def step(self, batch: int, length: int) -> list[float]:
        """[seconds, loss in nats per token] of one step."""
        read = self.tokens(batch, length + 1)
        began = time.perf_counter()
        logits = self.module(read[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), read[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return [time.perf_counter() - began, loss.item()]


def random_tokens(vocabulary: int) -> Callable[..., Tensor]:
    """A function of a shape that gives random tokens, the same ones to every side."""
    chance = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randint(vocabulary, shape, generator=chance)


def write(folder: str, width: int, layers: int, vocabulary: int, state: int) -> int:
    """A random Mamba-2 as transformers publishes it; how many parameters it has."""
    mixer = Mamba2(2 * width, 64, state, n_groups=1)
    norm = Norm("rms", 1e-5, round_first=True)
    module = LanguageModel(ModelConfig(width, vocabulary, ((mixer,),) * layers, norm=norm, residual_in_fp32=True))
    torch.manual_seed(0)
    module.reset()
    save_module(folder, module, families.get("hf_mamba2"))
    return sum(parameter.numel() for parameter in module.parameters())


def measure(folder: str, options: argparse.Namespace) -> dict:
    """All figures as plain data; raises CheckFailed where the sides do not train the same model."""
    found = {"parameters": write(folder, options.width, options.layers, options.vocabulary, options.state)}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Worker(kind)) for name, kind in SIDES.items()}
        for side in sides.values():
            side.call("load", path=folder, threads=options.threads)
        shape = {"batch": options.batch, "length": options.length}
        first = {name: side.call("step", **shape)[1] for name, side in sides.items()}
        if abs(first["leanlm"] - first["transformers"]) > AGREE * first["transformers"]:
            raise CheckFailed(f"the sides train different models: first losses {first}")
        took: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.repeats):
            print(f"turn {number + 1} of {options.repeats}", file=sys.stderr)
            for name, side in sides.items():
                took[name].append(side.call("step", **shape)[0])
        peaks = {name: side.call("peak_resident") for name, side in sides.items()}
    ratios = [theirs / ours for ours, theirs in zip(took["leanlm"], took["transformers"])]
    tokens = options.batch * options.length
    return {
        **found,
        "tokens_per_step": tokens,
        "tokens_per_second": {name: round(tokens / statistics.median(seconds), 1) for name, seconds in took.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        "peak_resident_bytes": peaks,
        "first_loss": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {
        "width": 512,
        "layers": 6,
        "vocabulary": 4096,
        "state": 128,
        "batch": 4,
        "length": 512,
        "threads": 2,
        "repeats": 7,
    }
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    with tempfile.TemporaryDirectory(prefix="leanlm-bench-") as folder:
        print(json.dumps(measure(folder, parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
