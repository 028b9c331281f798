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

import torch

from leanlm import families
from leanlm.errors import UsageError
from leanlm.families.names import to_ours
from leanlm.model.language_model import LanguageModel

PUBLISHED = {"mamba-370m": "hf_mamba", "mamba2-370m": "hf_mamba2"}


def peer(model: str, dtype: torch.dtype):
    """transformers' model of this shape with random weights; the extra `test` brings transformers."""
    try:
        import transformers
    except ImportError:
        raise UsageError("transformers is not installed: pip install 'leanlm[test]'") from None
    torch.manual_seed(0)
    shape = {"hidden_size": 1024, "num_hidden_layers": 48, "expand": 2}
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


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def compare(model: str, dtype: torch.dtype, prompt: int, new: int, repeats: int) -> dict:
    """Medians in tokens per second of both sides, their ratios, state bytes and the largest logit difference."""
    theirs = peer(model, dtype)
    module = ours(model, theirs)
    ids = torch.randint(0, 50000, (1, prompt))
    seconds: dict[str, list[float]] = {name: [] for name in ("theirs prefill", "ours prefill", "theirs decode", "ours decode")}

    def their_prefill():
        return theirs(ids, use_cache=True, logits_to_keep=1)

    def our_prefill():
        state = module.new_state(1)
        return module(ids, state, last_only=True), state

    def their_decode(out):
        token, cache = ids[:, -1:], out.cache_params
        for _ in range(new):
            out = theirs(token, cache_params=cache, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.cache_params

    def our_decode(state):
        token = ids[:, -1:]
        for _ in range(new):
            token = module(token, state, last_only=True)[:, -1:].argmax(-1)

    their_out, (our_logits, state) = their_prefill(), our_prefill()
    difference = (their_out.logits[:, -1].float() - our_logits[:, -1].float()).abs().max().item()
    their_decode(their_out)
    state_bytes = (state.nbytes, our_decode(state), state.nbytes)
    for _ in range(repeats):
        seconds["theirs prefill"].append(timed(their_prefill))
        seconds["ours prefill"].append(timed(our_prefill))
        their_out, (_, state) = their_prefill(), our_prefill()
        seconds["theirs decode"].append(timed(lambda out=their_out: their_decode(out)))
        seconds["ours decode"].append(timed(lambda s=state: our_decode(s)))
    rate = {name: (prompt if "prefill" in name else new) / statistics.median(runs) for name, runs in seconds.items()}
    spread = {name: round(max(runs) / min(runs), 2) for name, runs in seconds.items()}
    return {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prompt": prompt,
        "new": new,
        "repeats": repeats,
        "tokens_per_second": {name: round(value, 1) for name, value in rate.items()},
        "slowest_over_fastest": spread,
        "prefill_ratio": round(rate["ours prefill"] / rate["theirs prefill"], 2),
        "decode_ratio": round(rate["ours decode"] / rate["theirs decode"], 2),
        "largest_logit_difference": difference,
        "state_bytes_before_and_after_decode": [state_bytes[0], state_bytes[2]],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PUBLISHED, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of prefill")
    parser.add_argument("--new", type=int, default=16, help="tokens of decode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = compare(arguments.model, getattr(torch, arguments.dtype), arguments.prompt, arguments.new, arguments.repeats)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
