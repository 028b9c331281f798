"""A run's folder: all that an exact resume needs, every checkpoint written aside and renamed when complete.

recipe.toml       the recipe as run            log.jsonl     one line per report
tokenizer.json    the run's own tokenizer      data/, held/  token shards
step-00000200/    weights, optimiser, progress model/        the finished model in its published format
"""

import json
import pickle
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from leanlm.errors import CheckpointError, LeanLMError, first_line


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimiser steps done, windows consumed, seconds spent training."""

    step: int = 0
    position: int = 0
    seconds: float = 0.0


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first by step."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def save(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, keep: int) -> Path:
    """Write a checkpoint and remove all but the newest `keep`; a failure leaves the older ones as they were."""
    final = folder / f"step-{progress.step:08}"
    aside = final.with_name(final.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, aside / "weights.safetensors")
        torch.save(optimiser.state_dict(), aside / "optimiser.pt")
        (aside / "progress.json").write_text(json.dumps(asdict(progress)))
        shutil.rmtree(final, ignore_errors=True)
        aside.replace(final)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        raise LeanLMError(f"{final}: cannot write ({first_line(error)}); older checkpoints are as they were") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def restore(checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Load weights and optimiser state in place; raises CheckpointError naming the damaged checkpoint and the way out."""
    try:
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text()))
        module.load_state_dict(load_file(checkpoint / "weights.safetensors"))
        optimiser.load_state_dict(torch.load(checkpoint / "optimiser.pt", weights_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, KeyError, EOFError, pickle.UnpicklingError) as error:
        older = [p.name for p in checkpoints(checkpoint.parent) if p != checkpoint]
        remedy = f"remove it to go on from {older[-1]}" if older else "remove it to start again"
        raise CheckpointError(f"{checkpoint}: damaged checkpoint ({first_line(error)}); {remedy}") from None
    return progress


def log(folder: Path, record: dict) -> None:
    """Append one JSON line to the run's log."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
