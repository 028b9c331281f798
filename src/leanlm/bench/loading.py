"""How long packed models of a billion parameters take to load, and how much memory they need.

    python -m leanlm.bench.loading [--repeats 5] [--small]

Random weights are written to a temporary folder in every container (3 GB at most), and loaded by processes of their own,
which then read 128 tokens and produce 8. Seconds are the median; memory is the most that any process ever had, mapped files,
Python and torch included, and "over" what that is beyond weights and state.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from leanlm.bench import subject
from leanlm.bench.worker import Worker
from leanlm.checkpoint.save import save_module

PROMPT, NEW = 128, 8
CONTAINERS = ("leanlm", "compressed-tensors", "gptq")
CASES = (("llamba-1b", "int4", "bfloat16"), ("trilm-1.1b", "ternary", "float16"))
SMALL = (("floatlm-99m", "int4", "bfloat16"), ("trilm-99m", "ternary", "float16"))


def folders(into: Path, model: str, format: str, dtype: str) -> Iterator[tuple[str, Path]]:
    """(container, folder) of the model in each, written when its turn comes."""
    family, raw = subject.shape(model)
    module = subject.random_model(family.to_config(raw), dtype)
    subject.hold(module, {"layers": format, "embedding": None, "head": None}, random=True)
    for container in CONTAINERS:
        folder = into / container
        save_module(folder, module, family, raw, weights="safetensors", container=container)
        yield container, folder


def once(folder: Path) -> dict:
    """Seconds and bytes of one process."""
    with Worker("leanlm") as worker:
        loaded = worker.call("load", path=str(folder), dtype=None, threads=None)
        state = worker.call("fill", batch=1, context=0, room=PROMPT + NEW)
        worker.call("prefill", length=PROMPT)
        worker.call("decode", count=NEW)
        peak = worker.call("peak_resident")
    return {"seconds": loaded["load_seconds"], "weights": loaded["weight_bytes"], "state": state["bytes"], "peak": peak}


def measure(folder: Path, repeats: int) -> dict:
    """The median of the seconds and the highest peak, after one run that brings the file into the system's cache."""
    runs = [once(folder) for _ in range(repeats + 1)][1:]
    seconds = [run["seconds"] for run in runs]
    peak, held = max(run["peak"] for run in runs), runs[0]["weights"] + runs[0]["state"]
    return {
        "load_seconds": round(statistics.median(seconds), 2),
        "slowest": round(max(seconds), 2),
        "file_MB": sum(file.stat().st_size for file in folder.iterdir()) // 10**6,
        "weights_MB": runs[0]["weights"] // 10**6,
        "state_MB": runs[0]["state"] // 10**6,
        "peak_MB": peak // 10**6,
        "over_MB": (peak - held) // 10**6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="models of a hundred million parameters instead")
    arguments = parser.parse_args()
    rows = []
    for model, format, dtype in SMALL if arguments.small else CASES:
        with tempfile.TemporaryDirectory(prefix="leanlm-loading-") as into:
            for container, folder in folders(Path(into), model, format, dtype):
                found = {"model": model, "format": format, "container": container, **measure(folder, arguments.repeats)}
                rows.append(found)
                print(json.dumps(found), file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
