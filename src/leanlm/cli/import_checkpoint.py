"""leanlm import CHECKPOINT OUT: a training checkpoint of fms-fsdp as a model folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from leanlm.errors import UsageError


@dataclass(frozen=True)
class Command:
    """Turn a sharded training checkpoint (torch.distributed.checkpoint, as fms-fsdp writes it) into a model folder."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder with .metadata and *.distcp files; of a run's folder the newest checkpoint is taken."""
    out: tyro.conf.Positional[Path]
    """The folder to write."""
    config: str
    """What model it is, which such checkpoints do not say: a config.json, or a name of `leanlm list --all`."""
    tokenizer: Path | None = None
    """A tokenizer.json, or the folder of one, to put beside the weights."""


def run(command: Command) -> None:
    raw = config(command.config)
    from leanlm.checkpoint import distributed
    from leanlm.checkpoint.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(command.tokenizer) if command.tokenizer else None
    found = distributed.convert(command.checkpoint, raw, command.out, tokenizer)
    print(f"from {found}", file=sys.stderr)
    print(command.out)


def config(name: str) -> dict:
    """The config.json of that path, or of that model."""
    from leanlm.checkpoint.folder import read_json
    from leanlm.families import catalog

    path = Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return read_json(path if path.is_file() else path / "config.json")
    entry = catalog.resolve(name)
    if entry is None:
        raise UsageError(f"--config {name}: neither a config.json nor a name of leanlm list --all")
    return entry.config
