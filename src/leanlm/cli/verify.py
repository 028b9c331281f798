"""leanlm verify MODEL: are the weights sound, and is a ternary model ternary?"""

import json
from dataclasses import dataclass

import tyro

from leanlm.errors import CheckFailed, UsageError


@dataclass(frozen=True)
class Command:
    """Check the weights for damage and oddities, and that a ternary model is ternary with at most one scale per
    model-parallel shard.

    A model is taken for ternary where the catalogue says so, or any of its matrices is."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id."""
    ternary: bool = False
    """The model must be ternary, whatever it says of itself."""
    shards: int | None = None
    """Scales a matrix may have (implies --ternary); as config.json says (pretraining_model_parallel), else 1."""
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
    from leanlm.quantize import health

    loaded = load_module(locate.resolve(command.model, revision=command.revision, offline=command.offline))
    found = health.examine(loaded.module)
    shards = command.shards or loaded.raw.get("pretraining_model_parallel") or 1
    expected = command.ternary or command.shards or claims_ternary(command.model) or bool(found.ternary)
    failed = [name for name, count in found.magnitudes.items() if count > shards + 1]
    if command.json:
        print(json.dumps(of(found, shards, failed), indent=2))
    else:
        print(*lines(command.model, found, shards, failed), sep="\n")
    if found.damage:
        more = f" (and {len(found.damage) - 1} more)" if len(found.damage) > 1 else ""
        raise CheckFailed(f"{command.model}: {found.damage[0]}{more}; the file is damaged or its training diverged")
    if command.ternary and not found.magnitudes:
        raise CheckFailed(f"{command.model}: its matrices are packed as integers, none is ternary")
    if failed and expected:
        raise CheckFailed(
            f"{command.model}: {len(failed)} of {len(found.magnitudes)} matrices are not ternary with {shards} scale(s): "
            f"{failed[0]} holds {found.magnitudes[failed[0]]:,} distinct magnitudes, {shards + 1} are allowed "
            "(--shards sets how many scales)"
        )


def claims_ternary(model: str) -> bool:
    from leanlm.families import catalog

    entry = catalog.resolve(model)
    return entry is not None and isinstance(entry.format, catalog.Ternary)


def of(found, shards: int, failed: list[str]) -> dict:
    worst = max(found.magnitudes, key=found.magnitudes.get, default=None)
    return {
        "matrices": len(found.magnitudes),
        "shards": shards,
        "worst": worst,
        "magnitudes": found.magnitudes.get(worst),
        "ternary": bool(found.magnitudes) and not failed,
        "damage": found.damage,
        "oddities": found.oddities,
    }


def lines(model: str, found, shards: int, failed: list[str]) -> list[str]:
    """The findings as people read them."""
    counts = found.magnitudes
    said = [f"{model}: {len(counts)} matrices inside the layers that are not packed as integers"]
    if not counts:
        said.append("ternary: no")
    elif failed:
        said.append(f"ternary: no; {len(counts) - len(failed)} of them are, with {shards} scale(s)")
    else:
        said.append(
            f"ternary: yes; all {len(counts)} matrices are ternary: at most {max(counts.values())} distinct magnitudes in one, "
            f"{shards + 1} are allowed ({shards} scale(s) and zero)"
        )
    said.append(f"damage: {'none' if not found.damage else '; '.join(found.damage[:5])}")
    return [*said, *(f"odd: {text}" for text in found.oddities[:20])]
