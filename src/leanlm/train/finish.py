"""The end of a run: its model as its family publishes it, with its loss on all held-out text."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from leanlm.checkpoint.save import save_module
from leanlm.model import ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed
from leanlm.train import log
from leanlm.train.checkpoints import Progress
from leanlm.train.origin import Origin
from leanlm.train.processes import Processes
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report
from leanlm.train.start import Material
from leanlm.train.validate import validate


def finish(
    recipe: Recipe,
    folder: Path,
    origin: Origin,
    objective: nn.Module | None,
    material: Material,
    processes: Processes,
    progress: Progress,
    report: Callable[[Report], None],
) -> Path:
    """Write the finished model, and report its loss on all held-out text: of the weights as written, but where the model is
    sharded (`objective` then computes), of those it was trained with."""
    module, dtype = origin.module, getattr(torch, recipe.keep.dtype)
    if objective is None:
        module = ternary.packed(module).to(dtype)
    whole = gathered(module, processes, dtype)

    def write() -> None:
        if whole is not None:
            save_module(folder / "model", whole, origin.family, origin.raw, material.tokenizer)

    processes.together(write)
    loss = None
    if material.held is not None:
        loss = validate(module, material.held, None, processes, objective)
    told = Report(
        progress.step,
        recipe.steps,
        validation=loss and loss.per_token,
        bits_per_byte=loss and loss.bits_per_byte,
        note=f"finished in {progress.seconds:.0f} s of training: {folder / 'model'}",
    )
    if processes.leader:
        log.add(folder, told)
    report(told)
    return folder / "model"


def gathered(module: LanguageModel, processes: Processes, dtype: torch.dtype) -> LanguageModel | None:
    """The whole model on the leader's CPU, None elsewhere. The processes of a sharded one call this together."""
    if ternary.latent(module):
        packed = ternary.packed(module)
        return packed.to("cpu", dtype) if processes.leader else None
    weights = {}
    for name, weight in module.weights().items():
        weight = weight.detach().full_tensor() if isinstance(weight, DTensor) else weight
        if processes.leader:
            weights[name] = copy.deepcopy(weight).to("cpu") if isinstance(weight, Packed) else weight.detach().to("cpu", dtype)
    if not processes.leader:
        return None
    with torch.device("meta"):
        whole = LanguageModel(module.config)
    whole.take(weights)
    return whole
