"""leanlm pull MODEL: download a model into the cache and print its folder."""

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Command:
    """Download a model into the cache and print its folder."""

    model: tyro.conf.Positional[str]
    """Name from `leanlm list`, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""


def run(command: Command) -> None:
    from leanlm.checkpoint import locate

    print(locate.resolve(command.model, revision=command.revision, offline=command.offline))
