"""leanlm verify MODEL: check that a ternary checkpoint is ternary.

The check Spectra publishes: a matrix trained on S model-parallel shards has one scale per shard, so the magnitudes of its
weights are zero and at most S others.
"""

import json
from dataclasses import dataclass

import tyro

from leanlm.errors import CheckFailed, UsageError


@dataclass(frozen=True)
class Command:
    """Check that every matrix inside the layers is ternary, with at most one scale per model-parallel shard."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id."""
    shards: int | None = None
    """Scales a matrix may have; as config.json says (pretraining_model_parallel), else 1."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    if command.shards is not None and command.shards < 1:
        raise UsageError(f"--shards {command.shards}: must be at least 1")
    from leanlm.checkpoint import locate
    from leanlm.checkpoint.load import load_module

    loaded = load_module(locate.resolve(command.model, revision=command.revision, offline=command.offline))
    shards = command.shards or loaded.raw.get("pretraining_model_parallel") or 1
    counts = {name: magnitudes(p) for name, p in loaded.module.named_parameters() if is_matrix(name, p)}
    worst = max(counts, key=counts.get)
    failed = [name for name, count in counts.items() if count > shards + 1]
    if command.json:
        found = {"matrices": len(counts), "shards": shards, "worst": worst, "magnitudes": counts[worst], "ternary": not failed}
        print(json.dumps(found, indent=2))
    if failed:
        raise CheckFailed(
            f"{command.model}: {len(failed)} of {len(counts)} matrices are not ternary with {shards} scale(s): {worst} holds "
            f"{counts[worst]:,} distinct magnitudes, {shards + 1} are allowed (--shards sets how many scales)"
        )
    if not command.json:
        print(
            f"{command.model}: all {len(counts)} matrices are ternary: at most {counts[worst]} distinct magnitudes in one, "
            f"{shards + 1} are allowed ({shards} scale(s) and zero)"
        )


def is_matrix(name: str, parameter) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2 and not name.endswith("A_log")


def magnitudes(weight) -> int:
    """Number of distinct absolute values, zero included."""
    import torch

    size = weight.abs()
    if size.element_size() == 2:  # 16-bit floats are counted by their bits, which is many times faster than sorting them
        return int(size.view(torch.int16).flatten().int().bincount().count_nonzero())
    return len(size.unique())
