"""Multiple choice with long shared contexts: the harness's adapter beside the harness's own Hugging Face backend, in turn.

    python -m leanlm.bench.choices [--context 600] [--questions 6] [--threads 2] [--repeats 5] [--batch 4]

Two models with random weights in float32, a Llama and a Mamba-2, are written as Hugging Face folders and asked the same
questions: four choices of a few words each after a context of the Python standard library's source. Every turn asks the
backend, then leanlm; the ratio of the medians is told with the lowest and highest of a turn, and the largest difference between
two log-likelihoods.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from leanlm.api import Model, load
from leanlm.bench.speed import compared
from leanlm.data import sources
from leanlm.evaluate.harness import HarnessModel
from leanlm.export import hf
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel
from leanlm.runtime import machine

WIDTH, LAYERS, HEAD = 384, 6, 64
CHOICES, CHOICE = 4, 40  # of a question, characters of each


def configs(vocabulary: int) -> dict[str, ModelConfig]:
    attention = Attention(WIDTH // HEAD, WIDTH // HEAD, HEAD, rope=Rope(HEAD))
    norm = Norm(round_first=True)
    layer = (attention, GatedMLP(8 * WIDTH // 3))
    return {
        "hf_llama": ModelConfig(WIDTH, vocabulary, (layer,) * LAYERS, norm=norm, tied=False, context_length=4096),
        "hf_mamba2": ModelConfig(
            WIDTH, vocabulary, ((Mamba2(2 * WIDTH, HEAD, 64),),) * 2 * LAYERS, norm=norm, residual_in_fp32=True
        ),
    }


def questions(tokenizer, context: int, count: int) -> list[tuple[str, str]]:
    """(context, choice), the choices of a question one after another; the contexts have about so many tokens."""
    text = "".join(document.text for document in itertools.islice(sources.read(sources.STANDARD_LIBRARY), 60))
    length = round(context * len(text[:100_000]) / len(tokenizer.encode(text[:100_000])))
    places = range(0, len(text), len(text) // (2 * count))
    return [
        (text[at : at + length], text[other : other + CHOICE])
        for at in places[:count]
        for other in range(at + length, at + length + CHOICES * 500, 500)
    ]


def measure(context: int, count: int, repeats: int, batch: int) -> dict[str, dict]:
    """By model: seconds of both sides (medians), how many times as fast leanlm is, the largest difference in nats."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer, found = load("builtin-float").tokenizer, {}
    pairs = questions(tokenizer, context, count)
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    for family, config in configs(tokenizer.vocab_size).items():
        torch.manual_seed(0)
        module = LanguageModel(config)
        module.reset()
        with tempfile.TemporaryDirectory(prefix="leanlm-bench-") as folder:
            model = Model(module, family, tokenizer)
            hf.export(Path(folder) / "model", model.module, tokenizer)
            theirs = HFLM(pretrained=f"{folder}/model", dtype="float32", device="cpu", batch_size=batch)
        sides = {"backend": theirs, "leanlm": HarnessModel(model)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        answers = {}
        for turn in range(repeats + 1):
            for name, side in sides.items():
                began = time.perf_counter()
                answers[name] = side.loglikelihood(asked, disable_tqdm=True)
                seconds[name] += [time.perf_counter() - began] if turn else []
        found[family] = {
            "requests": len(asked),
            "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
            "times_as_fast": compared(seconds["backend"], seconds["leanlm"]),
            "largest_difference": max(abs(a[0] - b[0]) for a, b in zip(*answers.values())),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("context", 600), ("questions", 6), ("threads", 2), ("repeats", 5), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    machine.set_threads(given.threads)
    torch.set_num_threads(given.threads)
    print(json.dumps(measure(given.context, given.questions, given.repeats, given.batch), indent=2))


if __name__ == "__main__":
    main()
