"""The native runtime on one model with random weights: prefill and decode, beside the module and a plain read of memory.

    python -m leanlm.bench.runtime --model mamba2-370m --dtype float32 --eager
    python -m leanlm.bench.runtime --model mamba2-370m --format int4

Medians over the tokens decoded. The share is that of the bytes of weights and recurrent state (read, and the state written) per
token, over the rate at which a plain read of 400 MB runs in the same process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from leanlm.api import as_dtype
from leanlm.bench.exports import ternarise
from leanlm.families import catalog
from leanlm.model.language_model import LanguageModel
from leanlm.ops import native
from leanlm.quantize.convert import to_format
from leanlm.runtime.native import NativeRuntime

READ = 400 << 20  # bytes


def model(name: str, dtype: str, format: str) -> LanguageModel:
    """The catalogue's shape with random weights."""
    torch.manual_seed(0)
    module = LanguageModel(catalog.resolve(name).model)
    module.reset()
    module.to(as_dtype(dtype))
    if format == "ternary":
        ternarise(module)
    elif format != "float":
        to_format(module, format)
    return module.eval()


@torch.no_grad()
def speeds(run: Callable, module: LanguageModel, prompt: int, new: int) -> tuple[float, float, int]:
    """Tokens per second of a prompt and of decoding, and the bytes of the state."""
    state, ids = module.new_state(1, capacity=prompt + new + 1), torch.randint(0, module.config.vocab_size, (1, prompt))
    run(ids[:, :1], state, last_only=True)
    began = time.perf_counter()
    run(ids, state, last_only=True)
    prefill, steps = time.perf_counter() - began, []
    for _ in range(new):
        began = time.perf_counter()
        run(ids[:, :1], state, last_only=True)
        steps.append(time.perf_counter() - began)
    return prompt / prefill, 1 / statistics.median(steps), sum(m["ssm"].nbytes for m in state.memories if m and "ssm" in m)


def plain_read() -> float:
    """GB/s of all threads, the median of five."""
    block, library, seconds = torch.ones(READ, dtype=torch.uint8), native.library(), []
    for _ in range(5):
        began = time.perf_counter()
        library.leanlm_read(block.data_ptr(), READ)
        seconds.append(time.perf_counter() - began)
    return READ / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mamba2-370m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--format", default="float", help="of the matrices: float, int8, int4, ternary ...")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--eager", action="store_true", help="the module too")
    arguments = parser.parse_args()
    module = model(arguments.model, arguments.dtype, arguments.format)
    prefill, decode, state = speeds(NativeRuntime(module), module, arguments.prompt, arguments.new)
    weights = sum(weight.nbytes for weight in module.weights().values())
    weights -= 0 if module.head is None else module.embedding.weight.nbytes  # of which a token reads one row
    read = plain_read()
    found = {**vars(arguments), "threads": native.library().leanlm_threads(), "prefill": prefill, "decode": decode}
    found |= {"bytes_per_token": weights + 2 * state, "read_GB_per_s": read}
    found["share"] = (weights + 2 * state) * decode / 1e9 / read
    if arguments.eager:
        found["eager_prefill"], found["eager_decode"], _ = speeds(module, module, arguments.prompt, arguments.new)
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in found.items()}))


if __name__ == "__main__":
    main()
