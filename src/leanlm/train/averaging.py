"""The mean of a run's checkpoints as a model: what a decaying learning rate does, done afterwards (Bamba's second version was
made so; Izmailov et al. 2018, arXiv 1803.05407)."""

from pathlib import Path

import torch
from torch import Tensor

from leanlm.checkpoint import distributed
from leanlm.checkpoint.save import save_module
from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.errors import NotFound, UsageError
from leanlm.model import ternary
from leanlm.train import checkpoints, run
from leanlm.train import origin as origins
from leanlm.train import recipe as recipes


def average(folder: Path, last: int | None, out: Path) -> list[Path]:
    """Write the mean of the newest `last` checkpoints (None: all) of the run in `folder` as a model into the new folder `out`;
    returns the checkpoints. Raises NotFound where there are fewer than two, CheckpointError for a damaged one."""
    if last is not None and last < 2:
        raise UsageError(f"--last {last}: a mean is of at least 2 checkpoints")
    if not (folder / run.RECIPE).is_file():
        raise NotFound(f"{folder}: no run's folder (no {run.RECIPE})")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already; name a new folder")
    found = checkpoints.complete(folder)
    last = last or max(2, len(found))
    if len(found) < last:
        raise NotFound(
            f"{folder}: {len(found)} of {last} checkpoints are there; train with --set keep.last={last}, or ask for fewer"
        )
    recipe = recipes.read(folder / run.RECIPE)
    origin = origins.of(recipe, folder)
    weights = mean(found[-last:])
    origin.module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    module = ternary.packed(origin.module).to(getattr(torch, recipe.keep.dtype))
    tokenizer = Tokenizer.from_folder(folder) if (folder / MAIN).is_file() else None
    save_module(out, module, origin.family, origin.raw, tokenizer)
    return found[-last:]


def mean(found: list[Path]) -> dict[str, Tensor]:
    """The mean of every weight, added up in float64; the checkpoints are read one after another."""
    total: dict[str, Tensor] = {}
    for checkpoint in found:
        if wrong := checkpoints.damage(checkpoint):
            raise checkpoints.refusal(checkpoint, wrong)
        for name, tensor in distributed.tensors(checkpoint).items():
            total[name] = total[name] + tensor if name in total else tensor.double()
    return {name: tensor / len(found) for name, tensor in total.items()}
