"""leanlm beside transformers, in one process, on the same random weights: prefill, decode, and the largest logit difference.

    python -m leanlm.bench.peers --model mamba2-370m --dtype bfloat16 --threads 2

Runs alternate between the two, and medians are compared, because shared machines are noisy. The shapes are those of the
published checkpoints of the same name; the weights are random, which changes no speed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from leanlm import families
from leanlm.errors import UsageError
from leanlm.families.names import to_ours
from leanlm.model.language_model import LanguageModel
from leanlm.quantize import convert

T = TypeVar("T")
PUBLISHED = {"mamba-370m": "hf_mamba", "mamba2-370m": "hf_mamba2"}


def peer(model: str, dtype: torch.dtype, layers: int):
    """transformers' model of this shape with random weights; the extra `test` brings transformers."""
    try:
        import transformers
    except ImportError:
        raise UsageError("transformers is not installed: pip install 'leanlm[test]'") from None
    torch.manual_seed(0)
    shape = {"hidden_size": 1024, "num_hidden_layers": layers, "expand": 2}
    if model == "mamba-370m":
        config = transformers.MambaConfig(vocab_size=50280, state_size=16, **shape)
        return transformers.MambaForCausalLM(config).to(dtype).eval()
    config = transformers.Mamba2Config(
        vocab_size=50288, state_size=128, num_heads=32, head_dim=64, n_groups=1, tie_word_embeddings=True, **shape
    )
    return transformers.Mamba2ForCausalLM(config).to(dtype).eval()


def ours(model: str, theirs) -> LanguageModel:
    """The same weights in leanlm, without copying them."""
    family = families.get(PUBLISHED[model])
    config = family.to_config(theirs.config.to_dict())
    with torch.device("meta"):
        module = LanguageModel(config)
    module.load_state_dict(to_ours(family.rules(config), theirs.state_dict()), assign=True)
    return module.eval()


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call took, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


@torch.no_grad()
def compare(
    model: str, dtype: torch.dtype, prompt: int, new: int, repeats: int, layers: int, format: str | None = None
) -> dict:
    """Medians in tokens per second of both sides, their ratios, state bytes and the largest logit difference."""
    theirs = peer(model, dtype, layers)
    module = ours(model, theirs)
    if format:
        convert.to_format(module, format)
    ids = torch.randint(0, 50000, (1, prompt))
    seconds: dict[str, list[float]] = {name: [] for name in ("theirs prefill", "ours prefill", "theirs decode", "ours decode")}

    def their_prefill():
        return theirs(ids, use_cache=True, logits_to_keep=1)

    def our_prefill():
        state = module.new_state(1)
        return module(ids, state, last_only=True), state

    def their_decode(out):
        for _ in range(new):
            token, cache = out.logits[:, -1:].argmax(-1), out.cache_params
            out = theirs(token, cache_params=cache, use_cache=True)

    def our_decode(logits, state):
        for _ in range(new):
            logits = module(logits[:, -1:].argmax(-1), state, last_only=True)

    for turn in range(repeats + 1):  # the first is the warm-up
        their_seconds, out = timed(their_prefill)
        our_seconds, (logits, state) = timed(our_prefill)
        difference = (out.logits[:, -1].float() - logits[:, -1].float()).abs().max().item()
        before = state.nbytes
        their_decoding, _ = timed(lambda begun=out: their_decode(begun))
        our_decoding, _ = timed(lambda begun=(logits, state): our_decode(*begun))
        took = (their_seconds, our_seconds, their_decoding, our_decoding)
        for name, value in zip(seconds, took):
            seconds[name] += [value] if turn else []
    rate = {name: (prompt if "prefill" in name else new) / statistics.median(runs) for name, runs in seconds.items()}
    return {
        "model": model,
        "layers": layers,
        "dtype": str(dtype).removeprefix("torch."),
        "format": format or "float",
        "threads": torch.get_num_threads(),
        "prompt": prompt,
        "new": new,
        "repeats": repeats,
        "tokens_per_second": {name: round(value, 1) for name, value in rate.items()},
        "slowest_over_fastest": {name: round(max(runs) / min(runs), 2) for name, runs in seconds.items()},
        "prefill_ratio": round(rate["ours prefill"] / rate["theirs prefill"], 2),
        "decode_ratio": round(rate["ours decode"] / rate["theirs decode"], 2),
        "largest_logit_difference": difference,
        "state_bytes_after_prefill_and_decode": [before, state.nbytes],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PUBLISHED, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--format", help="of our matrices: int8, int4, int4-g64 ...; the peer keeps its dtype")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of prefill")
    parser.add_argument("--new", type=int, default=16, help="tokens of decode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=48, help="fewer, where the peer is too slow to wait for")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    sizes = arguments.prompt, arguments.new, arguments.repeats, arguments.layers
    result = compare(arguments.model, dtype, *sizes, arguments.format)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
