"""Runs told to TensorBoard, W&B or trackio as they go: the one place that imports any of them."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from leanlm.errors import UsageError

NAMES = ("tensorboard", "wandb", "trackio")


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def close(self) -> None:
        """The run ends here."""


def start(names: Sequence[str], run: str, folder: Path, settings: dict) -> list[Tracker]:
    """The trackers of a run, going on where the run of this folder went on before.

    `settings` is the recipe as plain data. Raises UsageError for an unknown name, and naming the extra where the package is
    missing.
    """
    return [_start(name, run, folder, settings) for name in names]


def _start(name: str, run: str, folder: Path, settings: dict) -> Tracker:
    if name not in NAMES:
        raise UsageError(f"keep.trackers: {name!r} is none of {', '.join(NAMES)}")
    try:
        return _TensorBoard(folder) if name == "tensorboard" else _Service(name, run, folder, settings)
    except ImportError:
        raise UsageError(f'keep.trackers: {name} is not installed: pip install "leanlm[track]"') from None


class _TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Service:
    """W&B, or trackio, which has its interface. The folder is the run's identity, so that a resumed run stays one run."""

    def __init__(self, name: str, run: str, folder: Path, settings: dict):
        self.module = importlib.import_module(name)
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        where = {"id": identity, "dir": str(folder)} if name == "wandb" else {}
        self.run = self.module.init(project="leanlm", name=f"{run}-{identity}", config=settings, resume="allow", **where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def close(self) -> None:
        self.module.finish()
