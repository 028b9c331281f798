"""Checkpoints of a run: sharded, written by a thread while training goes on, complete or not there at all.

step-00000200/           *.distcp and .metadata: weights and optimiser, as torch.distributed.checkpoint writes them and any
                         number of processes reads them; progress.json: where the run stood; manifest.json: sizes and sha256
step-00000200.partial/   the same while it is written; it takes its name when all is on the disk
"""

import json
import re
import shutil
import threading
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.distributed import METADATA, Reader
from leanlm.data.manifest import sha256
from leanlm.errors import CheckpointError, LeanLMError, first_line
from leanlm.train.precision import LossScale
from leanlm.train.processes import Processes
from leanlm.train.recipe import Keep

PROGRESS, MANIFEST = "progress.json", "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimiser steps done, windows consumed of the data with this fingerprint, seconds spent training."""

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    data: str = ""
    scale: LossScale = field(default_factory=LossScale)


def complete(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first by step; those still being written are none."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def tensors(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint holds, sharing memory with the run: weights, and what the optimiser remembers of each."""
    held = {}
    for name, parameter in module.named_parameters():
        held[f"model.{name}"] = parameter.detach()
        held |= {f"optimiser.{name}.{key}": tensor for key, tensor in optimiser.state[parameter].items()}
    return held


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor, of this process's shard."""
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


class Saver:
    """Writes the checkpoints of a run, one at a time. All processes call `save` and `finish` at the same steps.

    In a `with` block, which waits for what is being written (but for a second Ctrl-C).
    """

    def __init__(self, folder: Path, processes: Processes, keep: Keep):
        self.folder, self.processes, self.keep = folder, processes, keep
        self._thread: threading.Thread | None = None
        self._error: LeanLMError | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._thread is not None and kind is not KeyboardInterrupt:
            self._thread.join()

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; `finish` raises why."""
        return self._error is not None

    def save(self, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Copy the run's state, and write it while training goes on. Raises as `finish` does for the checkpoint before."""
        self.finish()
        state = {name: copied(tensor) for name, tensor in tensors(module, optimiser).items()}
        self._thread = threading.Thread(target=self._write, args=(state, progress), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the checkpoint being written. Raises LeanLMError where it failed; the older ones are as they were."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: dict[str, Tensor], progress: Progress) -> None:
        final = self.folder / f"step-{progress.step:08}"
        aside, processes = final.with_name(final.name + ".partial"), self.processes
        try:
            self._together(lambda: _empty(aside) if processes.leader else None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that there is one process
                writer = dcp.FileSystemWriter(aside)
                dcp.save(state, storage_writer=writer, process_group=processes.writers, no_dist=processes.size == 1)
            own = self._together(lambda: _entries(aside, f"__{processes.rank}_*"))
            entries = {name: entry for part in processes.gather(own, processes.writers) for name, entry in part.items()}
            self._together(lambda: _commit(aside, final, progress, entries) if processes.leader else None)
            self._together(lambda: _prune(self.folder, self.keep) if processes.leader else None)
        except (CheckpointException, Exception) as error:  # torch's is none of Python's
            self._error = LeanLMError(f"{final}: cannot write ({_reason(error)}); older checkpoints are as they were")
            if processes.leader:
                shutil.rmtree(aside, ignore_errors=True)

    def _together(self, act):
        """`act` in every process; what the disk refuses one of them is an error of all."""

        def guarded():
            try:
                return act()
            except OSError as error:
                raise LeanLMError(_reason(error)) from error

        return self.processes.together(guarded, self.processes.writers)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _entries(folder: Path, pattern: str) -> dict[str, list]:
    """Size and sha256 of the files of a folder whose names match."""
    return {path.name: [path.stat().st_size, sha256(path)] for path in sorted(folder.glob(pattern))}


def _commit(aside: Path, final: Path, progress: Progress, entries: dict[str, list]) -> None:
    """Add what says that a checkpoint is whole, and give it its name."""
    with replacing(aside) as file:
        file(PROGRESS).write_text(json.dumps(asdict(progress), indent=1) + "\n")
    entries = entries | _entries(aside, METADATA) | _entries(aside, PROGRESS)
    with replacing(aside) as file:
        file(MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)


def _prune(folder: Path, keep: Keep) -> None:
    """Remove all but the newest checkpoints and the milestones."""
    for path in complete(folder)[: -keep.last]:
        if not keep.milestones or int(path.name.removeprefix("step-")) % keep.milestones:
            shutil.rmtree(path)


def _reason(error: BaseException) -> str:
    """What went wrong, wherever in torch's layers it is said: what the disk refuses is an OSError deep down, or lost."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    text = first_line(error)
    return "torch could not write all of it; is the disk full?" if "inline_container" in text else text


def damage(checkpoint: Path, share: slice = slice(None)) -> str:
    """What is wrong with a checkpoint, as far as a share of its files tells; empty where nothing is."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        if absent := {METADATA, PROGRESS} - entries.keys():
            return f"{MANIFEST} does not name {min(absent)}"
        for name, (size, checksum) in list(entries.items())[share]:
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or sha256(path) != checksum:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"no {MANIFEST}: it is only half there"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({first_line(error)})"
    return ""


def restore(checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes) -> Progress:
    """Load weights and optimiser in place, written by any number of processes; they check the files together.

    Raises CheckpointError naming a damaged checkpoint and the way out, or one of another model.
    """

    def check() -> None:
        if wrong := damage(checkpoint, slice(processes.rank, None, processes.size)):
            raise refusal(checkpoint, wrong)

    processes.together(check)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is one process
            dcp.load(
                tensors(module, optimiser),
                storage_reader=Reader(checkpoint),
                process_group=processes.writers,
                no_dist=processes.size == 1,
            )
        raw = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        return Progress(**raw | {"scale": LossScale(**raw["scale"])})
    except (CheckpointException, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise refusal(checkpoint, f"it does not fit this run: {_reason(error)}") from None


def refusal(checkpoint: Path, wrong: str) -> CheckpointError:
    """The error for a checkpoint that cannot be used; it names the newest that can."""
    older = [path for path in complete(checkpoint.parent) if path.name < checkpoint.name and not damage(path)]
    remedy = f"remove it to go on from {older[-1].name}" if older else "no older one is whole; remove it to start again"
    return CheckpointError(f"{checkpoint}: damaged checkpoint ({wrong}); {remedy}")
